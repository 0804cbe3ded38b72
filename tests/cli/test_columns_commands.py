"""Columns on the command line: set by `dcdctl index`, read by `search --where` and shown by `inspect`."""

from __future__ import annotations

import json
import shutil

import pytest
from made_index import searcher_of
from noise_index import CAPTIONS, NAMES
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core.search import FolderIndex

TEXT = CAPTIONS[0]
CPU = ["--device", "cpu"]
FILES = sorted(name if name.endswith(".png") else f"{name}.png" for name in NAMES)


def run(*words, stdin=None):
    return CliRunner().invoke(app, [*map(str, words)], input=stdin, catch_exceptions=False)


@pytest.fixture(scope="module")
def metadata(tmp_path_factory):
    """Years and owners of eleven of the twelve images, and of one that the index lacks."""
    path = tmp_path_factory.mktemp("metadata") / "photos.csv"
    rows = [
        f'"{name}",{2018 + place % 4},{"ann" if place % 2 else "bob"},2024-01-0{place % 9 + 1}'
        for place, name in enumerate(FILES[:-1])
    ]
    path.write_text("\n".join(["image,year,owner,day", *rows, "absent.png,2020,eve,"]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def index(noise_index, metadata, tmp_path_factory):
    folder = tmp_path_factory.mktemp("columns") / "index"
    shutil.copytree(noise_index, folder)
    dropped = [part for name in ("taken", "year", "camera") for part in ("--drop-column", name)]
    done = run("change", folder, *dropped, "--metadata", metadata)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"12 images, 8 numbers each, search by flat, columns year, owner, day -> {folder}\n"
    assert f"note: not in the index: 1 image of {metadata}, such as 'absent.png'" in done.stderr
    assert f"note: not in {metadata}: 1 image of the index" in done.stderr
    return folder


def kept(index, condition):
    """The names of the hits that meet a condition, in the order of a search without one."""
    hits = searcher_of(index).by_text(TEXT, 12).hits
    return [hit.name for hit in hits if condition(hit.columns)]


def test_a_condition_keeps_the_order_and_drops_the_others(index):
    result = run("search", index, TEXT, "--where", "year >= 2020 and owner = 'ann'", "--json", *CPU)
    hits = json.loads(result.stdout)["hits"]
    assert [hit["name"] for hit in hits] == kept(
        index, lambda row: (row["year"] or 0) >= 2020 and row["owner"] == "ann"
    )
    assert {(hit["columns"]["owner"], hit["columns"]["year"]) for hit in hits} == {("ann", 2021)}
    assert all(hit["columns"]["day"].startswith("2024-01-0") for hit in hits)


def test_columns_are_shown_below_a_hit(index):
    result = run("search", index, TEXT, "--where", "image_id = 'plain.png'", *CPU)
    place = FILES.index("plain.png")
    year, owner = 2018 + place % 4, "ann" if place % 2 else "bob"
    assert result.stdout.splitlines()[2].strip() == f"year {year}, owner {owner}, day 2024-01-0{place % 9 + 1}"


def test_a_condition_that_no_image_meets_gives_an_empty_answer(index):
    result = run("search", index, TEXT, "--where", "year > 3000", *CPU)
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 1)
    assert "note: no image meets the condition: year is from 2018 to 2021\n0 of 12 images" in result.stderr


def test_a_wrong_condition_is_one_line_before_a_model_is_loaded(index, monkeypatch):
    monkeypatch.setattr("dcdctl.core.models.load_dual", None)
    result = run("search", index, TEXT, "--where", "yaer = 2020", *CPU)
    assert (result.exit_code, result.stdout) == (1, "")
    expected = (
        "the condition 'yaer = 2020' has the unknown column yaer; the columns are year, owner, day, image_id, path"
    )
    assert result.stderr == f"error: {expected}\n"


def test_inspect_lists_the_columns(index):
    lines = run("inspect", index).stdout.splitlines()
    assert lines[-3:] == [
        "  column year: whole number, 1 missing, 4 different values; most frequent: 2018 (3), 2019 (3), 2020 (3), "
        "2021 (2)",
        "  column owner: text, 1 missing, 2 different values; most frequent: bob (6), ann (5)",
        "  column day: date, 1 missing, 9 different values; most frequent: 2024-01-01 (2), 2024-01-02 (2), "
        "2024-01-03 (1), 2024-01-04 (1)",
    ]
    document = json.loads(run("inspect", index, "--json").stdout)["columns"]
    assert document[1] == {
        "name": "owner",
        "type": "text",
        "missing": 1,
        "distinct": 2,
        "frequent": [{"value": "bob", "images": 6}, {"value": "ann", "images": 5}],
        "low": "ann",
        "high": "bob",
    }


def test_an_index_is_built_with_columns_and_changed_without_embedding(noise_index, metadata, tmp_path, monkeypatch):
    dual, images = noise_index.parent / "dual", noise_index.parent / "images"
    words = [
        "index",
        dual,
        "--images",
        images,
        "--out",
        tmp_path / "index",
        "--metadata",
        metadata,
        *CPU,
    ]
    assert run(*words, "--json").exit_code == 0
    built = FolderIndex.open(tmp_path / "index")
    assert (built.columns.names, built.values("owner").null_count) == (["year", "owner", "day", "taken", "camera"], 1)
    generation = built.document.generation
    assert run(*words).exit_code == 0
    assert FolderIndex.open(tmp_path / "index").document.generation == generation
    monkeypatch.setattr("dcdctl.core.search.embed.embed", None)
    done = run("change", tmp_path / "index", "--drop-column", "owner", "--drop-column", "day", "--json")
    assert json.loads(done.stdout)["columns"] == ["year", "taken", "camera"]


def test_columns_of_a_corpus_travel_into_its_index(noise_index, tmp_path):
    images = noise_index.parent / "images"
    lines = ["image,caption,split,year,owner", "plain.png,red,train,2020,ann", "g.png,blue,train,2021,bob"]
    (tmp_path / "pairs.csv").write_text("\n".join(lines), encoding="utf-8")
    words = [
        "prepare",
        "--csv",
        tmp_path / "pairs.csv",
        "--images",
        images,
        "--out",
        tmp_path / "corpus",
        "--workers",
        "1",
    ]
    assert "columns: year, owner" in run(*words).stdout
    made = ["index", noise_index.parent / "dual", "--images", tmp_path / "corpus", *CPU]
    assert json.loads(run(*made, "--out", tmp_path / "index", "--json").stdout)["columns"] == ["year", "owner"]
    result = run("search", tmp_path / "index", TEXT, "--where", "year > 2020", "--json", *CPU)
    assert [(hit["name"], hit["columns"]) for hit in json.loads(result.stdout)["hits"]] == [
        ("g.png", {"year": 2021, "owner": "bob"})
    ]
    # Values that were set since stay, and a corpus that is added to another index brings its own.
    (tmp_path / "m.csv").write_text("image,owner\ng.png,eve\n")
    assert run("change", tmp_path / "index", "--metadata", tmp_path / "m.csv").exit_code == 0
    assert run("sync", tmp_path / "index", "--add", tmp_path / "corpus", *CPU).exit_code == 0
    assert FolderIndex.open(tmp_path / "index").values("owner").to_pylist() == ["ann", "eve"]
    other = shutil.copytree(noise_index, tmp_path / "other")
    assert run("sync", other, "--add", tmp_path / "corpus", *CPU).exit_code == 0
    assert FolderIndex.open(other).values("year").to_pylist() == [None] * 12 + [2020, 2021]
