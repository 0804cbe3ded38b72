"""`dcdctl index`, `sync`, `change` and `duplicates` on the command line: output and files."""

from __future__ import annotations

import json

import pytest
from image_files import png, put
from made_index import unit_vectors
from tiny import contents, make_models, run_script
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core import models
from dcdctl.core.search import FolderIndex


@pytest.fixture(scope="module")
def dual(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "dual"
    models.save(make_models(corpus.captions)[1], folder)
    return folder


@pytest.fixture
def images(tmp_path):
    return put(tmp_path / "images", {**{f"{seed}.png": png(seed) for seed in range(8)}, "not\nan image.txt": b"x"})


def run(*words):
    return CliRunner().invoke(app, [*map(str, words)])


def test_an_index_is_built_shown_and_changed(dual, images, tmp_path):
    index = tmp_path / "index"
    made = run("index", dual, "--images", images, "--out", index)
    assert made.exit_code == 0, made.output
    assert made.stdout == f"8 images, 8 numbers each, search by flat, no values for taken, year, camera -> {index}\n"
    assert "left out: 1 file that is no image: nothing to do\n" in made.stderr
    assert f"left out: each is listed in {index / 'skipped-1.json'}\n" in made.stderr
    put(images, {"new.png": png(20)})
    assert run("sync", index, "--add", images).stdout.startswith("9 images, 1 added, 8 numbers each")
    assert run("change", index, "--remove", "0.png", "--remove", "[12].png").stdout.startswith("6 images, 3 removed,")
    (images / "new.png").unlink()
    assert run("sync", index).stdout == f"8 images, 3 copied, 1 removed, 5 unchanged -> {index}\n"
    before = contents(index)
    document = {
        "index": str(index),
        "images": 8,
        "added": 0,
        "removed": 0,
        "left_out": 0,
        "left_out_by_kind": {},
        "dims": 8,
        "kind": "flat",
        "keywords": False,
    }
    document |= dict.fromkeys(("changed", "moved", "copied", "unchanged"), 0)
    document |= {"columns": ["taken", "year", "camera"], "notes": []}
    nothing = run("change", index)
    assert (nothing.exit_code, nothing.stdout) == (2, "")
    assert "name what to change: --set, --metadata," in nothing.stderr
    assert contents(index) == before
    # A setting that it has already.
    assert json.loads(run("change", index, "--set", "keywords=false", "--json").stdout) == document
    assert run("change", index, "--set", "flat_up_to=2", "--set", "segment_rows=4").stdout.startswith(
        "8 images, 8 numbers each, search by codes"
    )
    assert (
        run("change", index, "--set", "keywords=true").stdout
        == f"8 images, 8 numbers each, search by codes and by words, no values for taken, year, camera -> {index}\n"
    )
    assert FolderIndex.open(index).hybrid(["4"], unit_vectors(1, 8), 1)[0][0].name == "4.png"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sync", "RUN"], "RUN (no index.json); make one with `dcdctl index RUN --images DIR --out"),
        (
            ["change", "RUN", "--set", "flat_up_to=1"],
            "RUN (no index.json); make one with `dcdctl index RUN --images DIR --out",
        ),
        (["RUN", "--images", "IMAGES", "--out", "NEW"], "RUN does not exist; `dcdctl models` shows"),
        (["DUAL", "--images", "ABSENT", "--out", "NEW"], "ABSENT does not exist; --images and --add take a folder"),
        (
            ["DUAL", "--images", "IMAGES", "--out", "NEW", "--set", "exif=magic"],
            "exif must be one of camera, place, none, got 'magic'",
        ),
        (
            ["DUAL", "--images", "IMAGES", "--out", "NEW", "--precision", "fp8"],
            "precision must be one of fp32, bf16, fp16",
        ),
    ],
)
def test_a_mistake_is_one_line_with_the_next_step(dual, images, tmp_path, words, message):
    places = {"DUAL": dual, "IMAGES": images} | {name: tmp_path / name for name in ("RUN", "NEW", "ABSENT")}
    command = () if words[0] in ("sync", "change") else ("index",)
    done = run(*command, *(places.get(word, word) for word in words))
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "NEW").exists()


def test_a_misspelled_engine_is_an_error_also_where_nothing_is_to_be_embedded(dual, images, tmp_path):
    assert run("index", dual, "--images", images, "--out", tmp_path / "index").exit_code == 0
    before = contents(tmp_path / "index")
    result = run("sync", tmp_path / "index", "--engine", "spark")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "engine 'spark' is unknown; known are files:DIR, processes:N, ray, and ray://HOST:PORT" in result.stderr
    assert contents(tmp_path / "index") == before


def test_a_run_in_place_of_an_index_is_recognized(tmp_path):
    put(tmp_path, {"run/run.json": b"{}"})
    assert "is a run, not an index; make one: dcdctl index" in run("sync", tmp_path / "run").stderr


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("typo", "typo does not exist; `dcdctl models` shows"),
        ("runs/studnet", "runs/studnet does not exist; the runs in runs are query, student"),
        ("./runs/a/b", "./runs/a/b does not exist"),
    ],
)
def test_a_misspelled_query_model_is_named_before_torch_is_imported(images, tmp_path, ref, message):
    put(tmp_path, {"runs/student/run.json": b"{}", "runs/query/run.json": b"{}", "runs/notes.txt": b""})
    script = """
import os, sys
from dcdctl.cli.app import app
os.chdir(sys.argv[1])
os.dup2(1, 2)
for words in (["change", "INDEX"], ["index", "runs/student", "--images", sys.argv[2], "--out", "NEW"]):
    try:
        app([*words, "--query-model", sys.argv[3]])
    except SystemExit as end:
        print(end.code, sorted({"torch", "transformers"} & set(sys.modules)), flush=True)
"""
    lines = run_script(script, tmp_path, images, ref).splitlines()
    assert lines[1::2] == ["1 []", "1 []"]
    assert all(line.startswith(f"error: {message}") for line in lines[::2])
    assert not (tmp_path / "NEW").exists()
