"""The tutorials and the README: their commands run in their order, and what they name is there."""

from __future__ import annotations

import ast
import csv
import functools
import inspect
import re
import shlex
from itertools import islice, pairwise
from pathlib import Path

import encoders
import httpx2
import pytest
import served
from paths import DOCS, ROOT
from tiny import make_teacher, make_wide_dual
from typed_commands import typed_lines
from typer.testing import CliRunner

import dcdctl
from dcdctl.cli.app import app
from dcdctl.core import models
from dcdctl.core.data import describe_scenes, draw_scene
from dcdctl.core.search import FolderIndex, IndexSearcher
from dcdctl.core.serve import ServiceConfig
from dcdctl.core.serve import app as serve_app
from dcdctl.core.training import load_recipe

README = ROOT / "README.md"
POOLS = DOCS / "tutorial-pools.md"
TUTORIALS = [DOCS / "tutorial-own-data.md", DOCS / "tutorial-reranker.md", DOCS / "tutorial-paper.md", POOLS]
TINY = {
    "model.vision_levels": "[3, 4]",
    "model.vision_grid": "1",
    "batch.size": "8",
}
"""Settings that make a training of the tutorial tiny; the levels are those of the recipes."""


def commands_of(page: Path) -> list[list[str]]:
    return [shlex.split(line, comments=True)[1:] for line in typed_lines(page) if line.startswith("dcdctl ")]


def values_of(flag: str, words: list[str]) -> list[str]:
    """The words behind each occurrence of a flag."""
    return [value for word, value in pairwise(words) if word == flag]


def test_the_readme_fits_on_two_screens():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 110


@pytest.mark.parametrize("page", [README, *TUTORIALS], ids=lambda page: page.stem)
def test_the_recipes_of_a_tutorial_load_with_their_settings(page):
    trains = ("distill", "finetune-teacher", "study")
    named = [
        (words[1], values_of("--set", words))
        for words in commands_of(page)
        if words[0] in trains and not words[1].endswith(".toml")
    ]
    named += [(recipe, []) for words in commands_of(page) for recipe in values_of("--recipe", words)]
    assert len(named) >= 1
    for recipe, sets in named:
        load_recipe(recipe, sets)


def test_the_readme_has_the_commands_of_the_tutorial():
    steps = ("photos", "prepare", "distill", "index", "serve")
    own = [words for words in commands_of(README) if words[0] in steps]
    assert [words[0] for words in own] == ["photos", "serve", "prepare", "distill", "index", "serve"]
    tutorial = commands_of(TUTORIALS[0])
    assert [words for words in own if words not in tutorial] == []


@pytest.fixture
def own_photos(tmp_path, monkeypatch) -> dict[str, str]:
    """A folder of drawn photos and a CSV without splits, in the working folder, and two tiny encoders that know their
    captions."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    rows = []
    for number, item in enumerate(islice(describe_scenes(0, "train"), 60)):
        draw_scene(item.scene, 64).save(f"photos/{number:03}.png")
        rows += [(f"{number:03}.png", statement.text) for statement in item.statements]
    with Path("captions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "caption"), *rows])
    vision = encoders.save_vision("timm map", tmp_path / "models" / "vision")
    text = encoders.save_text("bert", [caption for _, caption in rows], tmp_path / "models" / "text")
    return {"model.vision": f"'{vision}'", "model.text": f"'{text}'"}


def with_tiny_models(words: list[str], encoders_of: dict[str, str]) -> list[str]:
    """A command of the tutorial, its models tiny if it makes one."""
    if words[0] not in ("distill", "finetune-teacher"):
        return words
    if words[0] == "distill":
        sets = TINY | encoders_of | {"model.projection_dim": "8", "optimizer.epochs": "1"}
    else:
        sets = TINY | encoders_of | {"model.hidden_size": "8", "optimizer.steps": "2"}
    return [*words, *(word for key, value in sets.items() for word in ("--set", f"{key}={value}"))]


def runs_here(words: list[str]) -> bool:
    """Whether a command of the first tutorial needs nothing from the Hub, nobody's own recipe, and ends."""
    return words[0] not in ("serve", "demo", "photos") and not any(
        word.startswith("openai/") or word in ("clip-finetune", "mine.toml") for word in words
    )


@pytest.mark.slow
def test_the_commands_of_the_first_tutorial_lead_from_photos_to_a_search_page(own_photos):
    commands = [words for words in commands_of(TUTORIALS[0]) if runs_here(words)]
    assert [words[0] for words in commands[:5]] == ["prepare", "distill", "eval", "index", "search"]
    assert {"finetune-teacher", "cache-teacher", "compare"} < {words[0] for words in commands}
    for words in commands:
        result = CliRunner().invoke(app, with_tiny_models(words, own_photos))
        assert result.exit_code == 0, f"{' '.join(words)}: {result.output}"
    config = ServiceConfig()
    with served.serving(
        serve_app.build(IndexSearcher.for_index(FolderIndex.open(Path("photos.index")), device=served.CPU), config),
        config,
    ) as url:
        answer = httpx2.get(f"{url}/search", params={"text": "a red circle", "k": "3"}).json()
    assert [len(answer["results"]), Path("photos", answer["results"][0]["name"]).is_file()] == [3, True]


def test_the_commands_of_the_tutorial_of_pools_lead_from_photos_and_queries_to_a_search_page(own_photos):
    """A dual encoder is the teacher, and of students that propose what it scores a cross-encoder."""
    with Path("captions.csv").open(newline="", encoding="utf-8") as file:
        texts = [row["caption"] for row in csv.DictReader(file)]
    Path("queries.txt").write_text("\n".join(texts[::2]) + "\n", encoding="utf-8")
    models.save(make_wide_dual(texts), Path("dual"))
    models.save(make_teacher(texts), Path("cross-encoder"))
    over_encoders = TINY | own_photos | {"model.projection_dim": "8", "optimizer.steps": "2"}
    from_a_dual = {"model.start": "dual", "batch.size": "8", "optimizer.steps": "2"}
    settings = {"pool-distilled": ("dual", over_encoders), "pool-picked": ("cross-encoder", from_a_dual)}
    # tests/cli/test_photos_command.py runs `photos`.
    commands = [words for words in commands_of(POOLS) if words[0] not in ("photos", "serve")]
    assert [words[0] for words in commands[:5]] == ["prepare", "distill", "eval", "index", "search"]
    assert {words[1] for words in commands if words[0] == "distill"} == set(settings)
    for words in commands:
        of_others = "cross-encoder" if words[0] == "cache-teacher" else "dual", {}
        teacher, sets = settings[words[1]] if words[0] == "distill" else of_others
        typed = [teacher if word == "TEACHER" else word for word in words]
        more = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
        result = CliRunner().invoke(app, [*typed, *more])
        assert result.exit_code == 0, f"{' '.join(words)}: {result.output}"
    config = ServiceConfig()
    with served.serving(
        serve_app.build(IndexSearcher.for_index(FolderIndex.open(Path("photos.index")), device=served.CPU), config),
        config,
    ) as url:
        answer = httpx2.get(f"{url}/search", params={"text": texts[0], "k": "3"}).json()
    assert [len(answer["results"]), Path("photos", answer["results"][0]["name"]).is_file()] == [3, True]


def test_the_python_lines_of_the_readme_name_functions_with_such_arguments():
    """The tutorial's test runs the same steps as commands, and docs/python.md is run whole."""
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    calls = [call for call in calls if re.fullmatch(r"dcdctl(\.\w+)+", ast.unparse(call.func))]
    assert len(calls) == 5
    for call in calls:
        function = functools.reduce(getattr, ast.unparse(call.func).split(".")[1:], dcdctl)
        inspect.signature(function).bind(*call.args, **{keyword.arg: keyword.value for keyword in call.keywords})
