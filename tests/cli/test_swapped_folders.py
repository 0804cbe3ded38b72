"""A folder of one kind in the place of another: the message says what it is, what is expected, and where it belongs."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core.artifacts import kind_of_folder

FOLDERS = {
    "a corpus": "corpus.json",
    "an index": "index.json",
    "a teacher cache": "cache.json",
    "stored features": "features.json",
    "a run": "run.json",
    "an evaluation": "result.json",
}
COMMANDS = {
    "a corpus": [
        ["eval", "scenes-vilt", "--data", "X"],
        ["cache-teacher", "--recipe", "demo-dual", "--teacher", "scenes-vilt", "--data", "X", "--out", "out"],
        ["distill", "demo-dual", "--data", "X", "--cache", "ABSENT", "--out", "out"],
        ["finetune-teacher", "vilt-flickr30k-teacher", "--data", "X", "--out", "out"],
    ],
    "an index": [["search", "X", "a dog"], ["serve", "X"], ["index", "X"]],
    "a corpus, a teacher cache or an index": [["inspect", "X"]],
    "a model": [["convert", "X", "--out", "out"], ["export", "X", "--out", "out", "--to", "transformers"]],
    "an evaluation": [["compare", "X", "ABSENT"]],
    "a run or an evaluation": [["report", "X"]],
    "a folder of images or a corpus": [["index", "scenes-vilt", "--images", "X", "--out", "out"]],
}
HINTS = {
    "a run": "give it as RUN",
    "a corpus": "give it to --data",
    "a teacher cache": "give it to --cache",
    "an index": "give it to `dcdctl search`",
}
ACCEPTED = {
    ("a model", "a run"),  # a run without a model is another error
    ("an evaluation", "a run"),
    ("index", "a run"),  # `dcdctl index RUN` makes an index
}
SWAPPED = [
    (expected, words, kind)
    for expected, commands in COMMANDS.items()
    for words in commands
    for kind in FOLDERS
    if kind not in expected and (expected, kind) not in ACCEPTED and not (words == ["index", "X"] and kind == "a run")
]


@pytest.mark.parametrize(
    ("expected", "words", "kind"), SWAPPED, ids=lambda value: value if isinstance(value, str) else value[0]
)
def test_a_folder_of_another_kind_is_named_with_its_place(expected, words, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("X")
    folder.mkdir()
    (folder / FOLDERS[kind]).write_text("{}")
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1, result.output
    assert f"X is {kind}, {expected} is expected; {HINTS.get(kind, 'give')}" in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_index_that_holds_a_model_and_a_run_that_holds_an_evaluation_are_known(tmp_path):
    for name in ("index.json", "model/config.json"):
        (tmp_path / "index" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "index" / name).touch()
    (tmp_path / "run").mkdir()
    for name in ("run.json", "result.json"):
        (tmp_path / "run" / name).touch()
    assert [kind_of_folder(tmp_path / name) for name in ("index", "index/model", "run", "absent")] == [
        "an index",
        "a saved model",
        "a run",
        "",
    ]
