"""Approximate search: ranges of segments, and exact scores of their candidates."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from made_index import exact, unit_vectors, write_index
from tiny import contents

from dcdctl.core.errors import InputError
from dcdctl.core.search import ann
from dcdctl.core.search.entries import Segment
from dcdctl.core.search.index_config import HnswConfig, IndexConfig, TokenConfig
from dcdctl.core.search.segments import BUILDERS, segment_ranges

VECTORS = unit_vectors(900)
PARTS = [VECTORS[:500], VECTORS[500:]]
QUERIES = unit_vectors(40, seed=1).astype(np.float32)
GRAPHS = {
    "flat_up_to": 100,
    "segment_rows": 300,
    "candidates": 20,
    "hnsw": {"neighbors": 8, "build_width": 32, "search_width": 32},
}


def ranges(*bounds):
    return [range(*bound) for bound in bounds]


def segments(*bounds):
    return [
        Segment(file="", kind="hnsw", first_row=first, rows=stop - first, bytes=0, sha256="") for first, stop in bounds
    ]


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
def graph(tmp_path_factory):
    """Two full segments of three; the last 50 rows have none."""
    return write_index(tmp_path_factory.mktemp("graph"), [*PARTS, unit_vectors(50, seed=2)], **GRAPHS)


def recall(index, vectors, removed=()):
    scores_QK, rows_QK = index.nearest(QUERIES, 10)
    true = [exact(vectors, query, 10, removed) for query in QUERIES]
    share = np.mean(
        [len(set(rows) & set(expected)) / 10 for rows, expected in zip(rows_QK.tolist(), true, strict=True)]
    )
    return scores_QK, rows_QK, share


def test_a_graph_has_high_recall_and_exact_scores(graph, tmp_path):
    vectors = np.concatenate([VECTORS, unit_vectors(50, seed=2)])
    assert [one.stop for one in graph.segments] == [300, 600, 900]
    scores_QK, rows_QK, share = recall(graph, vectors)
    assert share >= 0.95
    flat_scores_QK, flat_rows_QK = write_index(tmp_path, [vectors], kind="flat").nearest(QUERIES, 950)
    scores = [
        dict(zip(rows, values, strict=True)) for rows, values in zip(flat_rows_QK.tolist(), flat_scores_QK, strict=True)
    ]
    for rows, values, of_row in zip(rows_QK.tolist(), scores_QK, scores, strict=True):
        assert [of_row[row] for row in rows] == values.tolist()
        assert sorted(values, reverse=True) == values.tolist()
    assert (rows_QK >= 900).any()  # rows without a segment are found too


def test_removed_rows_do_not_displace_others(tmp_path):
    gone = [row for row in range(900) if row % 8]
    index = write_index(tmp_path, PARTS, removed=gone, **GRAPHS)
    _, rows_QK, share = recall(index, VECTORS, gone)
    assert share >= 0.95
    assert not set(rows_QK.ravel().tolist()) & set(gone)


def test_a_graph_that_reaches_fewer_vectors_than_asked_gives_minus_1_for_the_others():
    class View:
        def __len__(self) -> int:
            return 10

        def search(self, codes_QD, count, threads):
            assert (codes_QD.dtype, count, threads) == (np.int8, 3, 1)
            keys_QC = np.array([[7, 3, 9], [4, 0, 0], [0, 0, 0]], dtype=np.uint64)
            return SimpleNamespace(keys=keys_QC, counts=np.array([3, 1, 0], dtype=np.uint64))

    reached = object.__new__(ann.Graph)
    reached._views = [View()]
    found = reached.candidates(np.ones((3, 4), np.float32), 3)
    assert found.tolist() == [[7, 3, 9], [4, -1, -1], [-1, -1, -1]]


def test_k_may_exceed_the_size_of_a_segment(graph):
    rows = graph.nearest(QUERIES[:2], 2000)[1]
    assert ((rows >= 0).sum(axis=1) > 900).all()
    assert (rows[:, 950:] == -1).all()


def test_the_bytes_of_a_segment_do_not_depend_on_parallel_builds(graph, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    write_index(tmp_path, [*PARTS, unit_vectors(50, seed=2)], **GRAPHS)
    assert contents(tmp_path / "ann") == contents(graph.folder / "ann")
    assert len(contents(tmp_path / "ann")) == 3


def test_settings_of_a_query_and_of_other_kinds_build_the_same_segment():
    graph = {"hnsw": HnswConfig(neighbors=9)}
    in_a_query = [{"flat_up_to": 2000}, {"candidates": 7}, {"hnsw": HnswConfig(search_width=9)}]
    for kind in ("hnsw", "int8", "binary"):
        config = IndexConfig(kind=kind)
        for same in (*in_a_query, *([] if kind == "hnsw" else [graph])):
            assert config.builds_as(replace(config, **same)), (kind, same)
    config = IndexConfig(kind="hnsw")
    for other in ({"kind": "flat"}, {"segment_rows": 5000}, graph):
        assert not config.builds_as(replace(config, **other)), other
    fewer = {"tokens": TokenConfig(centroids=9)}
    for kind in ("flat", "hnsw", "int8", "binary", "centroids"):
        config = IndexConfig(kind=kind)
        assert config.builds_as(replace(config, **fewer)) == (kind != "centroids"), kind


def test_a_failed_segment_stops_the_others(tmp_path, monkeypatch):
    build = BUILDERS["hnsw"]

    def fail(path, *others):
        if "hnsw-000000000300-" in path.name:
            raise MemoryError("no room")
        build(path, *others)

    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    monkeypatch.setitem(BUILDERS, "hnsw", fail)
    with pytest.raises(InputError, match=r"hnsw-0+300-300-1"):
        write_index(tmp_path, PARTS, **GRAPHS)
    assert not (tmp_path / "index.json").exists()
