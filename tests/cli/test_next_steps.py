"""What a person types who is new here, and what the error names that helps: the command, the option or the value."""

from __future__ import annotations

import re
import shlex
import zipfile
from pathlib import Path
from typing import Any

import command_line
import pyarrow as pa
import pytest
import typer
from made_index import unit_vectors, update, write_index
from PIL import Image

import dcdctl
from dcdctl.cli.app import app
from dcdctl.core.data import Corpus
from dcdctl.core.errors import ConfigError, DcdError, InputError, ModelError
from dcdctl.core.search import FolderIndex, browse_index, parse_where

TREE: Any = typer.main.get_command(app)
CAMERAS = ["Apple iPhone 12", "Apple iPhone 14 Pro", None]


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> Path:
    """A folder with what the mistakes name."""
    folder = tmp_path_factory.mktemp("stage")
    (folder / "photos" / "sub").mkdir(parents=True)
    for number, name in enumerate(("a.jpg", "b.jpg", "sub/c.jpg", "sub/line\nbreak.jpg")):
        Image.new("RGB", (8, 8), (number, 2, 3)).save(folder / "photos" / name)
    with zipfile.ZipFile(folder / "captions.xlsx", "w") as file:
        file.writestr("xl/workbook.xml", "<workbook/>")
    (folder / "old.xls").write_bytes(bytes.fromhex("d0cf11e0a1b11ae1") + b"image,caption\n")
    for name, cell in (
        ("good", "a.jpg"),
        ("endless", "a"),
        ("windows", r"C:\Users\me\photos\a.jpg"),
        ("backslash", r"sub\c.jpg"),
    ):
        (folder / f"{name}.csv").write_text(f"image,caption\n{cell},a dog\n")
    (folder / "queries.txt").write_text("a dog\na cat\n")
    (folder / "texts").mkdir()
    (folder / "texts" / "config.json").write_text('{"model_type": "bert"}')
    (folder / "texts" / "modules.json").write_text(
        '[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]'
    )
    write_index(folder / "index", [unit_vectors(4)], images=folder / "photos", removed=(3,))
    # Only an image that was removed has a year.
    columns = {"camera": [*CAMERAS, "gone"], "year": pa.array([None] * 3 + [2020], pa.int64()), "shots": [1, 2, 3, 9]}
    update(folder / "index", metadata=pa.table({"image": [f"{row}.png" for row in range(4)], **columns}))
    command_line.run(
        "prepare --hold-out 0",
        "--images",
        folder / "photos",
        "--queries",
        folder / "queries.txt",
        "--out",
        folder / "pool",
    )
    return folder


MISTAKES: dict[str, tuple[type[DcdError], str]] = {
    "search 'a dog' index": (InputError, "`dcdctl search index 'a dog'`"),
    "distill pool-picked --data pool --out run": (ConfigError, "--teacher REF"),
    "distill demo-dual-alone --data pool --out run --set lr=3": (ConfigError, "optimizer.lr"),
    "distill demo-dual-alone --data pool --out run --set optimiser.lr=1": (ConfigError, "did you mean optimizer?"),
    "photos photos --model texts --out library": (ModelError, "name a CLIP"),
    "index texts --images photos --out other": (ModelError, "name a CLIP"),
    "prepare --csv captions.xlsx --images photos --out out": (InputError, "save it as CSV UTF-8"),
    "prepare --csv captions.xlsx --set encoding=cp1252 --images photos --out out": (InputError, "save it as CSV UTF-8"),
    "prepare --csv old.xls --set encoding=cp1252 --images photos --out out": (InputError, "save it as CSV UTF-8"),
    "prepare --images photos --queries captions.xlsx --out out": (InputError, "save it as CSV UTF-8"),
    "prepare captions.xlsx": (InputError, "save it as CSV UTF-8"),
    "prepare good.csv": (InputError, "`dcdctl prepare --csv good.csv --images DIR`"),
    "prepare good.csv --images photos": (InputError, "`dcdctl prepare --csv good.csv --images photos`"),
    "prepare rows.jsonl": (InputError, "`dcdctl prepare --jsonl rows.jsonl --images DIR`"),
    "prepare dataset.json": (InputError, "`dcdctl prepare --karpathy dataset.json --images DIR`"),
    "prepare photos": (InputError, "`dcdctl prepare --csv FILE --images photos`"),
    "prepare --csv endless.csv --images photos --out out": (InputError, "did you mean a.jpg?"),
    "prepare --csv windows.csv --images photos --out out": (InputError, "a path of Windows (did you mean a.jpg?)"),
    "prepare --csv backslash.csv --images photos --out out": (InputError, "did you mean sub/c.jpg?"),
    "search index a --where 'year in 2021, 2022'": (InputError, "year in (2021, 2022)"),
    "search index a --where 'shots = 1 or 2'": (InputError, "year in (2021, 2022)"),
    "search index a --where \"city = 'Berlin'\"": (InputError, "`dcdctl change INDEX --set exif=place`"),
    "sync index --moved elsewhere photos": (InputError, "its image folders: "),
}
"""What is typed in the folder `stage`, the error, and what its next step names."""


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_answered_by_the_next_step(line, stage, monkeypatch):
    monkeypatch.chdir(stage)
    (name, *words), (kind, named) = shlex.split(line), MISTAKES[line]
    with pytest.raises(kind) as caught:
        # Not by way of the group, which shows the error and exits.
        TREE.commands[name].main(words, standalone_mode=False)
    assert named in str(caught.value)


def test_a_name_with_a_line_break_is_named(tmp_path):
    from dcdctl.cli.views.search import show_paths
    from dcdctl.core.search import Hit, SearchAnswer

    hits = [Hit(row, name, name, 0.5, path=tmp_path / name) for row, name in enumerate(("a.jpg", "b\nc.jpg"))]
    with pytest.raises(InputError, match=re.escape(r"b\nc.jpg' has a line break")):
        show_paths(SearchAnswer(tuple(hits), 0.0, 0.0), end="\n")


def test_kaggles_captions_are_read_from_one_row(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    # Numbers of two digits, in another order, and an image with fewer captions.
    names = ["caption_10", *(f"caption_{number}" for number in range(10))]
    rows = [
        "image," + ",".join(names),
        "a.jpg,last," + ",".join(f"dog {number}" for number in range(10)),
        "b.jpg,,a cat" + "," * 9,
    ]
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    command_line.run(
        "prepare --hold-out 0 --csv", tmp_path / "pairs.csv", "--images", tmp_path, "--out", tmp_path / "corpus"
    )
    corpus = Corpus.open(tmp_path / "corpus", "train")
    assert list(corpus.captions) == [*(f"dog {number}" for number in range(10)), "last", "a cat"]
    assert corpus.columns is None


def test_equal_captions_are_told(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    table = tmp_path / "pairs.csv"
    for second, is_told in (("photo", True), ("a cat", False)):
        table.write_text(f"image,caption\na.jpg,photo\nb.jpg,{second}\n")
        done = command_line.run("prepare --csv", table, "--images", tmp_path, "--out", tmp_path / second)
        assert ("every caption is 'photo'" in done.stdout) == is_told


@pytest.mark.parametrize(
    ("where", "note"),
    [
        ("camera = 'iPhone 14'", "camera has 'Apple iPhone 14 Pro'; camera ilike '%iPhone 14%' finds it"),
        (
            "camera like '%iphone%'",
            "camera has 'Apple iPhone 12', 'Apple iPhone 14 Pro'; camera ilike '%iphone%' finds it",
        ),
        ("camera = 'Aple iPhone 12'", "camera has 'Apple iPhone 12', 'Apple iPhone 14 Pro'"),
        (
            "camera in ('nokia', 'apple')",
            "camera has 'Apple iPhone 12', 'Apple iPhone 14 Pro'; camera ilike '%apple%' finds it",
        ),
        ("shots > 3", "shots is from 1 to 3"),
        ("year = 2021", "no image has a value for year"),
        ("shots = 2 and year = 2021", "no image has a value for year"),
        # Each part holds for an image, and no image has both.
        ("shots = 1 and camera = 'Apple iPhone 14 Pro'", ""),
        ("camera = 'xyz'", ""),
        ("shots is null", ""),
    ],
)
def test_a_condition_that_no_image_meets_shows_what_the_columns_hold(where, note, stage):
    index = FolderIndex.open(stage / "index")
    answer = browse_index(index, 3, parse_where(where, index.columns))
    told = f"no image meets the condition: {note}" if note else "no image meets the condition"
    assert (answer.hits, answer.notes) == ((), (told,))


def test_a_move_is_told_and_one_that_moves_nothing_is_refused(tmp_path):
    write_index(tmp_path / "moved", [unit_vectors(1)], images=tmp_path / "before")
    (tmp_path / "after").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "after" / "0.png")
    words = tmp_path / "moved", "--moved", tmp_path / "before", tmp_path / "after"
    done = command_line.run("sync", *words)
    assert f"moved: the images of {tmp_path / 'before'} are now looked for in {tmp_path / 'after'}" in done.stderr
    assert "no image folder of" in command_line.error_of("sync", *words)


def test_python_names_the_nearest_function_and_argument():
    with pytest.raises(AttributeError, match="dcdctl has no distil, but distill"):
        dcdctl.distil  # noqa: B018
    with pytest.raises(TypeError, match=r"prepare\(\) has no argument image; did you mean images\?"):
        dcdctl.prepare(image="photos")
    with pytest.raises(TypeError, match=r"build\(\) has no argument imges; did you mean images\?"):
        dcdctl.Index.build("run", imges="photos", out="index")
