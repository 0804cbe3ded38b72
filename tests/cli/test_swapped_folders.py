"""A folder of one kind in the place of another: the message says what it is, what is expected, and where it belongs."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import error_of

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
    "eval scenes-vilt --data X": "a corpus",
    "cache-teacher --recipe demo-dual --teacher scenes-vilt --data X --out out": "a corpus",
    "distill demo-dual --data X --cache ABSENT --out out": "a corpus",
    "finetune-teacher vilt-flickr30k-teacher --data X --out out": "a corpus",
    "search X 'a dog'": "an index",
    "serve X": "an index",
    "index X": "an index",
    "inspect X": "a corpus, a teacher cache or an index",
    "convert X --out out": "a model",
    "export X --out out --to transformers": "a model",
    "compare X ABSENT": "an evaluation",
    "report X": "a run or an evaluation",
    "index scenes-vilt --images X --out out": "a folder of images or a corpus",
}
"""Commands that read a folder X, and what they expect there."""
HINTS = {
    "a run": "give it as RUN",
    "a corpus": "give it to --data",
    "a teacher cache": "give it to --cache",
    "an index": "give it to `dcdctl search`",
}
ACCEPTED = {
    ("convert X --out out", "a run"),  # a run without a model is another error
    ("export X --out out --to transformers", "a run"),
    ("compare X ABSENT", "a run"),
    ("index X", "a run"),  # `dcdctl index RUN` makes an index
}
SWAPPED = [
    (line, kind)
    for line, expected in COMMANDS.items()
    for kind in FOLDERS
    if kind not in expected and (line, kind) not in ACCEPTED
]


@pytest.mark.parametrize(("line", "kind"), SWAPPED)
def test_a_folder_of_another_kind_is_named_with_its_place(line, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("X")
    folder.mkdir()
    (folder / FOLDERS[kind]).write_text("{}")
    error = error_of(line)
    assert f"X is {kind}, {COMMANDS[line]} is expected; {HINTS.get(kind, 'give')}" in error
    assert error.count("\n") == 1


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
