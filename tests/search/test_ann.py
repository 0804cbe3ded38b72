"""Approximate search: ranges of segments, and exact scores of their candidates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_index import exact, unit_vectors, write_index
from tiny import contents

from dcdctl.core.errors import InputError, MissingError
from dcdctl.core.search import FolderIndex
from dcdctl.core.search.codes import Codes
from dcdctl.core.search.entries import Segment
from dcdctl.core.search.exact import spread_over
from dcdctl.core.search.index_config import IndexConfig, TokenConfig
from dcdctl.core.search.segments import segment_ranges

VECTORS = unit_vectors(900)
PARTS = [VECTORS[:500], VECTORS[500:]]
QUERIES = unit_vectors(40, seed=1).astype(np.float32)
CODES = {"flat_up_to": 100, "segment_rows": 300}


def ranges(*bounds):
    return [range(*bound) for bound in bounds]


def segments(*bounds):
    return [Segment(file="", first_row=first, rows=stop - first, bytes=0, sha256="") for first, stop in bounds]


@pytest.mark.parametrize(
    ("num_rows", "there", "expected"),
    [
        (30, [], []),
        (31, [], [(0, 31)]),
        (100, [], [(0, 100)]),
        (130, [], [(0, 100)]),  # the last 30 are searched exactly
        (131, [], [(0, 100), (100, 131)]),
        (131, [(0, 100)], [(0, 100), (100, 131)]),
        (130, [(0, 100)], [(0, 100)]),
        (160, [(0, 100), (100, 131)], [(0, 100), (100, 131)]),  # few added since
        (162, [(0, 100), (100, 131)], [(0, 100), (100, 162)]),
        (210, [(0, 100), (100, 131)], [(0, 100), (100, 200)]),
        (145, [(0, 100), (100, 110)], [(0, 100), (100, 145)]),
    ],
)
def test_segment_ranges_by_number_of_rows(num_rows, there, expected):
    config = IndexConfig(segment_rows=100, flat_up_to=30)
    assert segment_ranges(num_rows, segments(*there), config) == ranges(*expected)


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    """Two full segments of three; the last 50 rows have none."""
    return write_index(tmp_path_factory.mktemp("codes"), [*PARTS, unit_vectors(50, seed=2)], **CODES)


def recall(index, vectors, removed=()):
    scores_QK, rows_QK = index.nearest(QUERIES, 10)
    true = [exact(vectors, query, 10, removed) for query in QUERIES]
    share = np.mean(
        [len(set(rows) & set(expected)) / 10 for rows, expected in zip(rows_QK.tolist(), true, strict=True)]
    )
    return scores_QK, rows_QK, share


def test_codes_have_a_high_recall_and_exact_scores(codes, tmp_path):
    vectors = np.concatenate([VECTORS, unit_vectors(50, seed=2)])
    assert [one.stop for one in codes.segments] == [300, 600, 900]
    scores_QK, rows_QK, share = recall(codes, vectors)
    assert share >= 0.95
    flat_scores_QK, flat_rows_QK = write_index(tmp_path, [vectors]).nearest(QUERIES, 950)
    scores = [
        dict(zip(rows, values, strict=True)) for rows, values in zip(flat_rows_QK.tolist(), flat_scores_QK, strict=True)
    ]
    for rows, values, of_row in zip(rows_QK.tolist(), scores_QK, scores, strict=True):
        assert [of_row[row] for row in rows] == values.tolist()
        assert sorted(values, reverse=True) == values.tolist()
    assert (rows_QK >= 900).any()  # rows without a segment are found too


def test_removed_rows_do_not_displace_others(tmp_path):
    gone = [row for row in range(900) if row % 8]
    index = write_index(tmp_path, PARTS, removed=gone, **CODES)
    _, rows_QK, share = recall(index, VECTORS, gone)
    assert share >= 0.95
    assert not set(rows_QK.ravel().tolist()) & set(gone)


def test_k_may_exceed_the_size_of_a_segment(codes):
    rows = codes.nearest(QUERIES[:2], 2000)[1]
    assert ((rows >= 0).sum(axis=1) > 900).all()
    assert (rows[:, 950:] == -1).all()


def test_the_bytes_of_a_segment_do_not_depend_on_parallel_builds(codes, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    write_index(tmp_path, [*PARTS, unit_vectors(50, seed=2)], **CODES)
    assert contents(tmp_path / "ann") == contents(codes.folder / "ann")
    assert len(contents(tmp_path / "ann")) == 3


def test_settings_of_a_query_and_of_words_build_the_same_segment():
    config = IndexConfig()
    for same in ({"flat_up_to": 2000}, {"keywords": True}, {"exif": "none"}):
        assert config.builds_as(replace(config, **same)), same
    for other in ({"dims": 3}, {"segment_rows": 5000}, {"tokens": TokenConfig(centroids=9)}):
        assert not config.builds_as(replace(config, **other)), other


def test_a_failed_segment_stops_the_others(tmp_path, monkeypatch):
    build = Codes.build

    def fail(path, *others):
        if "codes-000000000300-" in path.name:
            raise MemoryError("no room")
        build(path, *others)

    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    monkeypatch.setattr(Codes, "build", fail)
    with pytest.raises(InputError, match=r"codes-0+300-300-1"):
        write_index(tmp_path, PARTS, **CODES)
    assert not (tmp_path / "index.json").exists()


def test_an_older_faiss_is_an_error_before_it_reads_codes(codes, monkeypatch):
    monkeypatch.setattr("faiss.__version__", "1.14.2")
    with pytest.raises(MissingError, match=r"need faiss 1\.15 or newer, and 1\.14\.2 is installed; pip install"):
        FolderIndex.open(codes.folder).nearest(QUERIES[:1], 3)


def plain_codes(vectors_RD, queries_QD, rotation_DD, center_D):
    """The estimates of RaBitQ (Gao & Long 2024, equations 12 to 20) with one bit a number, written out: Q x R."""
    rotated_RD = vectors_RD.astype(np.float64) @ rotation_DD - center_D
    bits_RD = np.where(rotated_RD > 0, 1, -1) / np.sqrt(rotated_RD.shape[1])
    length_R = np.linalg.norm(rotated_RD, axis=1)
    cosine_R = (bits_RD * rotated_RD).sum(axis=1) / length_R
    query_QD = queries_QD.astype(np.float64) @ rotation_DD
    return query_QD @ bits_RD.T * length_R / cosine_R + (query_QD @ center_D)[:, None]


def test_candidates_are_the_nearest_by_the_estimates_of_the_paper(codes):
    with (codes.folder / "ann" / codes.segments[0].file).open("rb") as file:
        rotation_DD, center_D, _, held = [np.load(file) for _ in range(4)]
    np.testing.assert_allclose(rotation_DD @ rotation_DD.T, np.eye(16), atol=1e-5)
    estimates_QR = plain_codes(VECTORS[:300], QUERIES, rotation_DD, center_D)
    found_QC = codes._segment(codes.segments[0]).candidates(QUERIES, 30)
    expected_QC = np.argsort(-estimates_QR, axis=1)[:, :30]
    # faiss rounds the numbers of a query to bytes.
    shared = [
        len({*found} & {*nearest}) for found, nearest in zip(found_QC.tolist(), expected_QC.tolist(), strict=True)
    ]
    assert np.mean(shared) > 28
    assert held[0] % 3 == 0


def test_the_number_of_candidates_holds_the_best_ten_of_the_held_out_vectors(codes):
    segment = codes._segment(codes.segments[0])
    vectors = VECTORS[:300].astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = vectors[spread_over(300, 200)]
    best = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]

    def share(count):
        found = segment.candidates(queries, count)
        return np.mean([len({*some} & {*ten}) / 10 for some, ten in zip(found.tolist(), best.tolist(), strict=True)])

    enough = segment.num_candidates(10) // 3
    # One of 2,000 more or less, because scores within a rounding are as good.
    assert share(enough + 1) >= 0.995 >= share(enough - 2)
    assert segment.num_candidates(25) == 3 * segment.num_candidates(10)


@pytest.mark.parametrize(
    "vectors",
    [
        np.ones((500, 16)),
        np.eye(16)[np.arange(500) % 16],
        np.repeat(unit_vectors(50), 10, axis=0),
        unit_vectors(1) + 1e-3 * unit_vectors(500, seed=3),
        unit_vectors(3),
        unit_vectors(40, dim=3),
    ],
    ids=["equal", "one number each", "ten copies", "near", "three", "three numbers"],
)
def test_the_best_score_is_found_among_vectors_of_any_kind(tmp_path, vectors):
    vectors = vectors.astype(np.float16)
    found = write_index(tmp_path / "codes", [vectors], flat_up_to=0).nearest(vectors[:3].astype(np.float32), 3)
    every = write_index(tmp_path / "flat", [vectors]).nearest(vectors[:3].astype(np.float32), 3)
    assert found[0].tolist() == every[0].tolist()
