"""`dcdctl recipes` and `dcdctl models`, and what the shell completes."""

from __future__ import annotations

import json
import sys

import processes
import recipe_table
from command_line import document_of, error_of, run

from dcdctl.core import data, models
from dcdctl.core.models.references import family_table
from dcdctl.core.training import load_recipe
from dcdctl.core.training.recipe import packaged


def test_the_list_of_recipes_says_what_each_needs_takes_and_gives():
    entries = document_of("recipes")["recipes"]
    assert [entry["name"] for entry in entries] == packaged.names()
    printed = run("recipes").stdout
    assert [line.split(None, 1) for line in printed.splitlines()] == [
        [entry["name"], entry["description"]] for entry in entries
    ]
    assert all(entry["needs"] for entry in entries)


def test_a_printed_recipe_trains_as_the_recipe_itself_with_its_overrides(tmp_path):
    mine = tmp_path / "mine.toml"
    printed = run("recipes demo-dual --set loss.temperature=0.25 --set optimizer.epochs=3").stdout
    mine.write_text(printed, encoding="utf-8")
    assert load_recipe(str(mine)) == load_recipe("demo-dual", ["loss.temperature=0.25", "optimizer.epochs=3"])
    assert load_recipe(str(mine)) != load_recipe("demo-dual")
    assert document_of(f"recipes {mine}")["loss"]["temperature"] == 0.25
    every = run("recipes demo-dual --set loss.temperature=0.25 --set optimizer.epochs=3 --all").stdout
    assert "betas = " in every
    assert "betas = " not in printed


def test_an_override_without_a_recipe_is_a_usage_error():
    assert "name it" in error_of("recipes --set loss.alpha=1", code=2)


def test_the_page_on_recipes_has_the_table_of_their_heads():
    assert recipe_table.PLACE.parts()[1] == recipe_table.table(), "run python tests/support/recipe_table.py"


def test_the_list_of_models_has_every_family_and_every_named_teacher():
    document = document_of("models")
    assert {family["name"]: family["kind"] for family in document["families"]} == {
        name: family.kind for name, family in family_table.FAMILIES.items()
    } | {"other dual encoders of transformers": "dual"}
    (row,) = [line for line in run("models").stdout.splitlines() if "other dual encoders of transformers" in line]
    assert "loads, family not tested" in row
    assert all(teacher["weights"] and teacher["source"] for teacher in document["teachers"])
    known = {teacher["name"]: teacher for teacher in document["teachers"]}
    assert known.keys() == {
        "scenes-vilt",
        *(path.stem for path in (data.manifests_folder() / "teachers").glob("*.toml")),
    }
    assert known["vilt-flickr30k"]["source"] == "hf://dandelin/vilt-b32-finetuned-flickr30k"
    assert known["vilt-flickr30k"]["reported"] == [
        "flickr30k-1k: text retrieval 83.6/96.8/98.6, image retrieval 64.54/88.86/93.92"
    ]
    assert "vilt-flickr30k\n  ViLT-B/32, fine-tuned on Flickr30K.\n  weights: 112 M parameters" in run("models").stdout


def test_a_family_whose_package_is_missing_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    family = next(family for family in models.list_families() if family.name == "open_clip")
    assert (family.loads, family.needs) == (False, "extra open-clip")
    assert family.hint.startswith("pip install 'open_clip_torch>=")
    assert f"not installed: {family.hint}" in run("models").stdout


def test_every_extra_of_a_family_has_its_module():
    assert all(bool(family.extra) == bool(family.module) for family in family_table.FAMILIES.values())


# What the shell asks, what is proposed, and the heavy libraries that were imported for it.
ASK = """
import contextlib, io, json, os, sys
from dcdctl.cli.app import main
before = dict(os.environ)
for asked in json.loads(sys.argv[1]):
    os.environ.clear()
    os.environ.update(before | asked)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main()
    heavy = sorted({"torch", "numpy", "pyarrow", "transformers"} & set(sys.modules))
    print(json.dumps([said.getvalue().split(), heavy]))
"""


COMPLETED = {
    "distill demo-du": "demo-dual demo-dual-alone",
    "distill DIR/m": "DIR/mine.toml",
    "prepare flickr": "flickr30k flickr8k",
    "prepare pub": "",
    "cache-teacher --teacher vilt-": "vilt-coco vilt-flickr30k",
    "cache-teacher --data x --teacher scenes": "scenes-clip scenes-vilt",
    "eval run --data DIR/corpus --split t": "test train",
    "eval run --data DIR/absent --split t": "",
}
"""Lines, and the words that are proposed for their last one."""


def test_the_shell_completes_without_a_heavy_library(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "corpus.json").write_text('{"splits": {"train": {}, "val": {}, "test": {}}}')
    (tmp_path / "mine.toml").write_text("")
    fish = {"_DCDCTL_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    lines = [f"dcdctl {line}".replace("DIR", str(tmp_path)) for line in COMPLETED]
    asked = json.dumps([fish | {"_TYPER_COMPLETE_ARGS": line} for line in lines])
    done = processes.run([sys.executable, "-c", ASK, asked], capture_output=True, text=True, check=True)
    found = {}
    for line, answer in zip(COMPLETED, done.stdout.splitlines(), strict=True):
        words, heavy = json.loads(answer)
        assert heavy == []
        found[line] = " ".join(sorted(words)).replace(str(tmp_path), "DIR")
    assert found == COMPLETED
