"""The order after re-ranking, by hand and against a plain sort of both models' scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcdctl.core.data import Direction
from dcdctl.core.evaluation.ranking import NO_POSITION, Ranking
from dcdctl.core.evaluation.ranks import RankCounter, rerank


def first_by(positions: list[list[int]], top: list[list[int]]) -> Ranking:
    scores = -np.arange(len(top[0]), dtype=np.float32)[None].repeat(len(top), axis=0)
    return Ranking(
        positions_QR=np.array(positions),
        positive_score_Q=np.full(len(top), 7, np.float32),
        top_QK=np.array(top),
        top_score_QK=scores,
    )


def test_ranks_by_hand():
    first = first_by([[3], [1], [7], [4]], [[4, 5, 6]] * 4)
    scores_QK = np.array([[0.1, 0.2, 0.9], [0.5, 0.5, 0.1], [0.3, 0.2, 0.1], [0.0, 0.0, 9.0]], dtype=np.float32)
    is_positive_QK = np.array([[0, 0, 1], [1, 0, 0], [0, 0, 0], [0, 0, 1]]).astype(bool)
    # Third becomes first; a tie costs a place; not found stays where it was; found by a tie at the end of the first K:
    # stays too.
    ranking = rerank(first, scores_QK, is_positive_QK, 3)
    assert ranking.ranks.tolist() == [1, 2, 7, 4]
    assert ranking.positive_score_Q.tolist() == pytest.approx([0.9, 0.5, 7, 7])
    assert ranking.top_QK.tolist() == [[6, 5, 4], [5, 4, 6], [4, 5, 6], [6, 4, 5]]


def test_positions_of_several_positives_by_hand():
    # Positives at 1, 3 and 9, of which the first two are re-ranked: the second model has them second and fourth of
    # four.
    ranking = rerank(
        first_by([[1, 3, 9]], [[10, 11, 12, 13]]),
        np.array([[0.1, 0.9, 0.5, 0.3]]),
        np.array([[True, False, True, False]]),
        4,
    )
    assert ranking.positions_QR.tolist() == [[2, 4, 9]]
    assert ranking.top_QK.tolist() == [[11, 12, 13, 10]]


def test_at_depth_0_everything_stays():
    first = first_by([[3, 5], [1, NO_POSITION]], [[4, 5, 6], [7, 8, 9]])
    ranking = rerank(first, np.ones((2, 3), np.float32), np.zeros((2, 3), bool), 0, num_top=2)
    assert ranking.positions_QR.tolist() == first.positions_QR.tolist()
    assert (ranking.top_QK.tolist(), ranking.positive_score_Q.tolist()) == ([[4, 5], [7, 8]], [7, 7])


@given(
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=6), depth=st.integers(0, 12), seed=st.integers(0, 10_000)
)
@settings(max_examples=100, deadline=None)
def test_positions_and_candidates_equal_one_sort_of_both_scores(counts, depth, seed):
    owner = np.repeat(np.arange(len(counts)), counts)
    rng = np.random.default_rng(seed)
    # Whole numbers without ties: fractions plus a large number would be rounded to ties.
    size = len(counts) * len(owner)
    dual_IT, fusion_IT = (rng.permutation(size).reshape(len(counts), len(owner)).astype(np.float32) for _ in range(2))
    # The plain way: one score that puts the first `depth` above the rest, by fusion within and by cosine below.
    combined = []
    for dual_QG, fusion_QG in ((dual_IT, fusion_IT), (dual_IT.T, fusion_IT.T)):
        is_first_QG = np.argsort(np.argsort(-dual_QG, axis=1), axis=1) < depth
        combined.append(np.where(is_first_QG, fusion_QG + size, dual_QG))
    for direction, combined_QG in zip(Direction, combined, strict=True):
        combined_IT = combined_QG if direction == Direction.TEXT else combined_QG.T
        expected = RankCounter(combined_IT[owner, range(len(owner))], owner)
        expected.add(np.ascontiguousarray(combined_IT))
        counter = RankCounter(dual_IT[owner, range(len(owner))], owner, num_top=12)
        counter.add(dual_IT)
        first = counter.rankings().of(direction)
        queries = np.arange(len(first.top_QK))[:, None]
        scores_QK = (
            fusion_IT[queries, first.top_QK] if direction == Direction.TEXT else fusion_IT[first.top_QK, queries]
        )
        is_positive_QK = (
            owner[first.top_QK] == queries if direction == Direction.TEXT else first.top_QK == owner[:, None]
        )
        ranking = rerank(first, scores_QK, is_positive_QK, depth)
        assert ranking.positions_QR.tolist() == expected.rankings().of(direction).positions_QR.tolist()
        assert ranking.top_QK.tolist() == expected.rankings().of(direction).top_QK[:, :10].tolist()


@pytest.mark.parametrize("depth", [0, 2, 5, 9])
def test_two_constant_models_find_everything_last(depth):
    owner, scores_IT = np.repeat(np.arange(6), 2), np.full((6, 12), 0.5, np.float32)
    counter = RankCounter(scores_IT[owner, range(12)], owner)
    counter.add(scores_IT)
    text = counter.rankings().text
    ranking = rerank(text, np.full_like(text.top_score_QK, 3.0), owner[text.top_QK] == np.arange(6)[:, None], depth)
    assert ranking.positions_QR.tolist() == [[11, 12]] * 6
