"""The nearest vectors: scores are exact cosines, ties go to the smaller row, for any blocks."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from made_index import exact, unit_vectors

from dcdctl.core.search import StoredVectors
from dcdctl.core.search import exact as search_exact
from dcdctl.core.search.stored import best_of


def found(vectors, queries, k, block, is_gone=None):
    blocks = (
        (first, search_exact.unit_rows(vectors[first : first + block])) for first in range(0, len(vectors), block)
    )
    candidates = search_exact.rough(search_exact.unit(queries, vectors.shape[1]), blocks, k, is_gone)

    def stored(rows):
        return StoredVectors(vectors[rows])

    return best_of(search_exact.unit(queries, vectors.shape[1]), candidates, stored, k)


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
@pytest.mark.parametrize("k", [1, 5, 300])
def test_rows_are_those_of_a_full_sort(block, k):
    vectors = np.concatenate(
        [unit_vectors(90), unit_vectors(30), unit_vectors(90)]
    )  # each of 30 vectors three times, 60 twice
    queries = np.concatenate([unit_vectors(3, seed=1), vectors[:2]]).astype(np.float32)
    _, rows_QK = found(vectors, queries, k, block)
    for query, rows in zip(queries, rows_QK.tolist(), strict=True):
        assert [row for row in rows if row >= 0] == exact(vectors, query, k)


def test_equal_vectors_have_equal_scores_and_are_found_in_row_order():
    vectors = np.tile(unit_vectors(1, dim=67), (500, 1))
    scores_QK, rows_QK = found(vectors, unit_vectors(2, dim=67, seed=1).astype(np.float32), 20, block=33)
    assert rows_QK.tolist() == [list(range(20))] * 2
    assert (scores_QK == scores_QK[:, :1]).all()


def test_a_score_is_the_cosine_for_vectors_of_any_length():
    vectors = np.array([[3, 4], [0.25, 0], [-6, -8]], dtype=np.float16)
    scores_QK, rows_QK = found(vectors, np.array([[30.0, 40.0]]), 3, block=2)
    assert rows_QK.tolist() == [[0, 1, 2]]
    np.testing.assert_array_equal(scores_QK, np.array([[1.0, 0.6, -1.0]], dtype=np.float32))


def test_missing_answers_have_row_minus_one():
    gone = np.array([True, False, False])
    scores_QK, rows_QK = found(np.eye(3, dtype=np.float16), np.array([[1.0, 0.5, 0.2]]), 4, block=2, is_gone=gone)
    assert rows_QK.tolist() == [[1, 2, -1, -1]]
    assert scores_QK[0, 2:].tolist() == [-np.inf, -np.inf]


def test_cosines_of_many_equal_vectors_are_computed_in_blocks(monkeypatch):
    vectors = np.tile(unit_vectors(1, dim=64), (20_000, 1))
    query = unit_vectors(1, dim=64, seed=1)[0].astype(np.float32)
    tracemalloc.start()
    scores = search_exact.cosines(query, vectors)
    largest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert set(scores.tolist()) == set(search_exact.cosines(query, vectors[:1]).tolist())
    # All at once, two arrays of 10 MB; a block has eight of the largest part of 1 MB.
    monkeypatch.setattr(search_exact, "AT_ONCE", 1 << 17)
    tracemalloc.start()
    search_exact.cosines(query, vectors)
    smaller = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert smaller < 5e6 < largest


@pytest.mark.parametrize(
    "queries", [np.ones(3), np.ones((2, 4)), np.full((1, 3), np.nan), np.zeros((1, 3)), np.full((1, 3), np.inf)]
)
def test_queries_that_cannot_be_compared_are_refused(queries):
    with pytest.raises(ValueError, match="quer"):
        search_exact.unit(queries, 3)
