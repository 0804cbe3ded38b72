"""The order after re-ranking, by hand and against a plain sort of both models' scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcdctl.core.evaluation.ranks import NOWHERE, Ranking, Tally, reranked


def first_by(places: list[list[int]], top: list[list[int]]) -> Ranking:
    scores = -np.arange(len(top[0]), dtype=np.float32)[None].repeat(len(top), axis=0)
    return Ranking(places_QR=np.array(places), best_Q=np.full(len(top), 7, np.float32), top_QK=np.array(top), top_score_QK=scores)


def test_ranks_by_hand():
    first = first_by([[3], [1], [7], [4]], [[4, 5, 6]] * 4)
    scores_QK = np.array([[0.1, 0.2, 0.9], [0.5, 0.5, 0.1], [0.3, 0.2, 0.1], [0.0, 0.0, 9.0]], dtype=np.float32)
    is_own_QK = np.array([[0, 0, 1], [1, 0, 0], [0, 0, 0], [0, 0, 1]]).astype(bool)
    # Third becomes first; a tie costs a place; not found stays where it was; found by a tie at the end of the first K: stays too.
    found = reranked(first, scores_QK, is_own_QK, 3)
    assert found.ranks.tolist() == [1, 2, 7, 4]
    assert found.best_Q.tolist() == pytest.approx([0.9, 0.5, 7, 7])
    assert found.top_QK.tolist() == [[6, 5, 4], [5, 4, 6], [4, 5, 6], [6, 4, 5]]


def test_places_of_several_positives_by_hand():
    # Positives at 1, 3 and 9, of which the first two are re-ranked: the second model has them second and fourth of four.
    found = reranked(first_by([[1, 3, 9]], [[10, 11, 12, 13]]), np.array([[0.1, 0.9, 0.5, 0.3]]), np.array([[True, False, True, False]]), 4)
    assert found.places_QR.tolist() == [[2, 4, 9]]
    assert found.top_QK.tolist() == [[11, 12, 13, 10]]


def test_at_depth_0_everything_stays():
    first = first_by([[3, 5], [1, NOWHERE]], [[4, 5, 6], [7, 8, 9]])
    found = reranked(first, np.ones((2, 3), np.float32), np.zeros((2, 3), bool), 0, num_top=2)
    assert found.places_QR.tolist() == first.places_QR.tolist()
    assert (found.top_QK.tolist(), found.best_Q.tolist()) == ([[4, 5], [7, 8]], [7, 7])


@given(counts=st.lists(st.integers(1, 4), min_size=1, max_size=6), depth=st.integers(0, 12), seed=st.integers(0, 10_000))
@settings(max_examples=100, deadline=None)
def test_places_and_candidates_equal_one_sort_of_both_scores(counts, depth, seed):
    owner = np.repeat(np.arange(len(counts)), counts)
    rng = np.random.default_rng(seed)
    dual_IT, fusion_IT = (rng.random((len(counts), len(owner)), dtype=np.float32) for _ in range(2))
    # The plain way: one score that puts the first `depth` above the rest, by fusion within and by cosine below.
    combined = []
    for dual_QG, fusion_QG in ((dual_IT, fusion_IT), (dual_IT.T, fusion_IT.T)):
        is_first_QG = np.argsort(np.argsort(-dual_QG, axis=1), axis=1) < depth
        combined.append(np.where(is_first_QG, fusion_QG + 100, dual_QG))
    for way in (0, 1):
        combined_IT = combined[way] if way == 0 else combined[way].T
        expected = Tally(combined_IT[owner, range(len(owner))], owner)
        expected.add(np.ascontiguousarray(combined_IT))
        first = Tally(dual_IT[owner, range(len(owner))], owner, num_top=12)
        first.add(dual_IT)
        ranking = first.rankings()[way]
        queries = np.arange(len(ranking.top_QK))[:, None]
        scores_QK = fusion_IT[queries, ranking.top_QK] if way == 0 else fusion_IT[ranking.top_QK, queries]
        is_own_QK = owner[ranking.top_QK] == queries if way == 0 else ranking.top_QK == owner[:, None]
        found = reranked(ranking, scores_QK, is_own_QK, depth)
        assert found.places_QR.tolist() == expected.rankings()[way].places_QR.tolist()
        assert found.top_QK.tolist() == expected.rankings()[way].top_QK[:, :10].tolist()


@pytest.mark.parametrize("depth", [0, 2, 5, 9])
def test_two_constant_models_find_everything_last(depth):
    owner, scores_IT = np.repeat(np.arange(6), 2), np.full((6, 12), 0.5, np.float32)
    tally = Tally(scores_IT[owner, range(12)], owner)
    tally.add(scores_IT)
    text, _ = tally.rankings()
    found = reranked(text, np.full_like(text.top_score_QK, 3.0), owner[text.top_QK] == np.arange(6)[:, None], depth)
    assert found.places_QR.tolist() == [[11, 12]] * 6
