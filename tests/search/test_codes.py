"""Indices of int8 and binary codes, and of short vectors, against plain loops over the stored numbers."""

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
from dcdctl.core.scoring import quantize
from dcdctl.core.search import FolderIndex, ann, part_files
from dcdctl.core.search.index_config import IndexConfig

pytestmark = pytest.mark.usefixtures("_duals_read_once")

QUERIES = unit_vectors(12, dim=70, seed=1).astype(np.float32)
VECTORS = unit_vectors(400, dim=70)
SETTINGS = {"flat_up_to": 0, "segment_rows": 150, "candidates": 20}


def nearest_by_codes(kind: str, query_D, rows: range, count: int) -> list[int]:
    """The first rows of a segment by the codes, number by number."""
    scored = []
    for row in rows:
        vector = VECTORS[row].astype(np.float32)
        if kind == "binary":
            score = sum((q > 0) == (v > 0) for q, v in zip(query_D, vector, strict=True))
        else:
            codes = [np.rint(side * (127 / np.abs(side).max())).astype(int) for side in (query_D, vector)]
            score = int(codes[0] @ codes[1]) / np.sqrt(int(codes[1] @ codes[1]))
        scored.append((-score, row))
    return [row for _, row in sorted(scored)[:count]]


@pytest.mark.parametrize("kind", ["int8", "binary"])
def test_the_candidates_of_every_segment_are_the_nearest_by_codes_and_the_best_of_them_by_numbers_are_found(
    kind, tmp_path
):
    index = write_index(tmp_path / "index", [VECTORS[:250], VECTORS[250:]], kind=kind, **SETTINGS)
    assert (index.kind, [len(range(s.first_row, s.stop)) for s in index.segments]) == (kind, [150, 150, 100])
    found = index.nearest(QUERIES, 5)[1]
    by_bits_alone = 0
    for query_D, rows_K in zip(QUERIES, found.tolist(), strict=True):
        kept = [row for s in index.segments for row in nearest_by_codes(kind, query_D, range(s.first_row, s.stop), 20)]
        others = [row for row in range(400) if row not in kept]
        assert rows_K == exact(VECTORS, query_D, 5, others)
        by_bits_alone += rows_K != exact(VECTORS, query_D, 5)
    assert (by_bits_alone > 0) == (kind == "binary")


def test_a_number_of_exactly_zero_has_the_bit_0_on_disk_in_a_search_and_in_an_evaluation(tmp_path):
    rng = np.random.default_rng(2)
    # 1e-9 is 0 in the float16 of an index. A first number of 1 keeps the vectors from being zero.
    sides = [rng.choice([-1.0, -0.0, 0.0, 1e-9, 1.0], (count, 70)) for count in (90, 7)]
    for side in sides:
        side[:, 0] = 1
    vectors_RD, queries_QD = sides[0].astype(np.float16), sides[1].astype(np.float16).astype(np.float32)
    index = write_index(tmp_path / "index", [vectors_RD], kind="binary", **{**SETTINGS, "segment_rows": 90})
    by_hand = [[number > 0 for number in vector] for vector in vectors_RD.tolist()]
    words_RW = np.load(index.folder / "ann" / index.segments[0].file)
    assert np.unpackbits(words_RW.view(np.uint8), axis=1, count=70).astype(bool).tolist() == by_hand

    segment = ann.open_segment(index.folder / "ann", index.segments[0], config=index.document.settings, dim=index.dim)
    equal_QR = [
        [sum((q > 0) == bit for q, bit in zip(query, bits, strict=True)) for bits in by_hand]
        for query in queries_QD.tolist()
    ]
    assert len({count for counts in equal_QR for count in counts}) < 60  # many ties, which are in the order of rows
    expected = [sorted(range(90), key=lambda row, counts=counts: -counts[row])[:20] for counts in equal_QR]
    assert segment.candidates(queries_QD, 20).tolist() == expected
    codes = [quantize.decoded(side, "binary") for side in (queries_QD, vectors_RD.astype(np.float32))]
    np.testing.assert_allclose(codes[0] @ codes[1].T, 2 * np.array(equal_QR) / 70 - 1, atol=1e-5)


@pytest.mark.parametrize("kind", ["int8", "binary"])
def test_with_every_row_a_candidate_the_answer_is_exact_without_removed_rows(kind, tmp_path):
    gone = [0, 3, 160, 399]
    index = write_index(tmp_path / "index", [VECTORS], removed=gone, kind=kind, **{**SETTINGS, "candidates": 400})
    assert [rows.tolist() for rows in index.nearest(QUERIES, 9)[1]] == [
        exact(VECTORS, query, 9, gone) for query in QUERIES
    ]


def test_other_codes_are_built_from_the_stored_vectors(tmp_path):
    folder = tmp_path / "index"
    write_index(folder, [VECTORS], kind="int8", **SETTINGS)
    sizes = {"int8": 70 * 150, "binary": 16 * 150}
    for kind, size in sizes.items():
        result = CliRunner().invoke(
            app, ["change", str(folder), "--set", f"kind={kind}", "--set", "candidates=30"], catch_exceptions=False
        )
        assert f"search by {kind}" in result.stdout
        assert FolderIndex.open(folder).segments[0].bytes == size + 128


def run(*words: object) -> str:
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_an_index_of_short_vectors_holds_prefixes_and_stays_one(dual, tmp_path):
    images = put(tmp_path / "images", {f"{seed}.png": png(seed) for seed in range(6)})
    made = ["index", dual, "--images", images, "--device", "cpu", "--out"]
    run(*made, tmp_path / "full")
    short = [*made, tmp_path / "short", "--set", "dims=3", "--set", "kind=binary", "--set", "flat_up_to=2"]
    assert run(*short).startswith("6 images, 3 numbers each, search by binary")
    assert run(*short).startswith("6 images, 3 numbers each")  # done already
    full, index = FolderIndex.open(tmp_path / "full"), FolderIndex.open(tmp_path / "short")
    prefixes = full.stored(np.arange(6)).data[:, :3].astype(np.float64)
    expected = prefixes / np.linalg.norm(prefixes, axis=1, keepdims=True)
    np.testing.assert_allclose(index.stored(np.arange(6)).data, expected, atol=2e-3)
    put(images, {"new.png": png(9)})
    assert run("sync", tmp_path / "short", "--add", images).startswith("7 images, 1 added, 3 numbers each")
    found = run("search", tmp_path / "short", "--image", images / "new.png", "-k", 1, "--device", "cpu", "--json")
    assert '"new.png"' in found


@pytest.mark.parametrize(("kind", "label"), [("int8", "embed"), ("binary", "build")])
def test_a_killed_build_and_a_killed_addition_resume_to_the_same_bytes(kind, label, dual, tmp_path, monkeypatch):
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
        return build(dual, images, to, IndexConfig(kind=kind, flat_up_to=2, segment_rows=4), **options)

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
    assert [(segment.kind, segment.rows) for segment in index.segments] == [(kind, 4), (kind, 4), (kind, 4)]
    rows, queries = np.arange(13), unit_vectors(5, dim=8, seed=3).astype(np.float32)
    assert [found.tolist() for found in index.nearest(queries, 4)[1]] == [
        exact(index.stored(rows).data, query, 4) for query in queries
    ]


def test_inspect_says_what_an_index_holds(tmp_path):
    index = write_index(
        tmp_path / "index",
        [VECTORS[:250], VECTORS[250:]],
        removed=[0, 399],
        kind="binary",
        **{**SETTINGS, "flat_up_to": 120},
    )
    shown = run("inspect", index.folder).splitlines()
    stored = sum(path.stat().st_size for path in (index.folder / "vectors").iterdir())
    assert shown[:6] == [
        f"index {index.folder}",
        "  images: 398, 2 removed, 0 files left out",
        f"  source: folder {tmp_path / 'nowhere'}: 398 images",
        "  vectors: 70 numbers, 140 bytes each",
        "  search: binary",
        # A code of 300 has two words of 8 bytes, and each of two files a header of 128 bytes.
        f"  bytes: vectors {stored:,}, ann {16 * 300 + 2 * 128:,}",
    ]
    document = json.loads(run("inspect", index.folder, "--json"))
    assert (document["bytes"]["ann"], document["images"], document["dims"]) == (16 * 300 + 2 * 128, 398, 70)
    result = CliRunner().invoke(app, ["inspect", str(index.folder), "--split", "val"])
    assert result.exit_code == 2
    assert "is for a corpus or a teacher cache" in result.stderr
