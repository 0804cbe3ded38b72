"""Indices with codes that are made, killed, changed and shown, and those of short vectors."""

from __future__ import annotations

import json
from contextlib import contextmanager

import numpy as np
import pytest
from image_files import png, put
from made_index import Killed, build, exact, unit_vectors, update, write_index
from tiny import contents
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core.search import FolderIndex, part_files
from dcdctl.core.search.index_config import IndexConfig

pytestmark = pytest.mark.usefixtures("_duals_read_once")

VECTORS = unit_vectors(400, dim=70)


def run(*words: object) -> str:
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_an_index_of_short_vectors_holds_prefixes_and_stays_one(dual, tmp_path):
    images = put(tmp_path / "images", {f"{seed}.png": png(seed) for seed in range(6)})
    made = ["index", dual, "--images", images, "--device", "cpu", "--out"]
    run(*made, tmp_path / "full")
    short = [*made, tmp_path / "short", "--set", "dims=3", "--set", "flat_up_to=2"]
    assert run(*short).startswith("6 images, 3 numbers each, search by codes")
    assert run(*short).startswith("6 images, 3 numbers each")  # done already
    full, index = FolderIndex.open(tmp_path / "full"), FolderIndex.open(tmp_path / "short")
    prefixes = full.stored(np.arange(6)).data[:, :3].astype(np.float64)
    expected = prefixes / np.linalg.norm(prefixes, axis=1, keepdims=True)
    np.testing.assert_allclose(index.stored(np.arange(6)).data, expected, atol=2e-3)
    put(images, {"new.png": png(9)})
    assert run("sync", tmp_path / "short", "--add", images).startswith("7 images, 1 added, 3 numbers each")
    found = run("search", tmp_path / "short", "--image", images / "new.png", "-k", 1, "--device", "cpu", "--json")
    assert '"new.png"' in found


@pytest.mark.parametrize("label", ["embed", "build"])
def test_a_killed_build_and_a_killed_addition_resume_to_the_same_bytes(label, dual, tmp_path, monkeypatch):
    monkeypatch.setattr(part_files, "ROWS_PER_PART", 3)
    images = put(tmp_path / "images", {f"{seed}.png": png(seed) for seed in range(7)})
    more = put(tmp_path / "more", {f"{seed}.png": png(seed) for seed in range(20, 26)})
    whole, folder = tmp_path / "whole", tmp_path / "index"

    @contextmanager
    def dying(shown, *, total, unit):
        calls = 0

        def advance(count):
            nonlocal calls
            calls += shown.startswith(label)
            if calls == 2:
                raise Killed

        yield advance

    def make(to, **options):
        return build(dual, images, to, IndexConfig(flat_up_to=2, segment_rows=4), **options)

    for work, changed in (
        (make, "index"),
        (lambda to, **options: update(to, add=more, **options), "addition"),
    ):
        work(whole)
        with pytest.raises(Killed):
            work(folder, track=dying)
        if changed == "addition":
            assert FolderIndex.open(folder).num_images == 7
        assert contents(work(folder).folder) == contents(whole)
    index = FolderIndex.open(folder)
    assert (index.kind, [segment.rows for segment in index.segments]) == ("codes", [4, 4, 4])
    rows, queries = np.arange(13), unit_vectors(5, dim=8, seed=3).astype(np.float32)
    assert [found.tolist() for found in index.nearest(queries, 4)[1]] == [
        exact(index.stored(rows).data, query, 4) for query in queries
    ]


def test_inspect_says_what_an_index_holds(tmp_path):
    index = write_index(
        tmp_path / "index",
        [VECTORS[:250], VECTORS[250:]],
        removed=[0, 399],
        flat_up_to=120,
        segment_rows=150,
    )
    shown = run("inspect", index.folder).splitlines()
    stored = sum(path.stat().st_size for path in (index.folder / "vectors").iterdir())
    # Of each of two files: four headers, a rotation, a center, and codes of 150 vectors in five blocks of 32: 72 bits
    # and two numbers each. A byte more than bits need, because a block has an even number of halves of a byte.
    codes = 2 * (4 * 128 + 4 * 70 * 71 + 5 * 32 * (9 + 8) + 8)
    assert shown[:6] == [
        f"index {index.folder}",
        "  images: 398, 2 removed, 0 files left out",
        f"  source: folder {tmp_path / 'nowhere'}: 398 images",
        "  vectors: 70 numbers, 140 bytes each",
        "  search: codes",
        f"  bytes: vectors {stored:,}, ann {codes:,}",
    ]
    document = json.loads(run("inspect", index.folder, "--json"))
    assert (document["bytes"]["ann"], document["images"], document["dims"]) == (codes, 398, 70)
    result = CliRunner().invoke(app, ["inspect", str(index.folder), "--split", "val"])
    assert result.exit_code == 2
    assert "is for a corpus or a teacher cache" in result.stderr
