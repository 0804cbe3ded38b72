"""Positions and first candidates by blocks, against the definition pair by pair."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcdctl.core.errors import ModelError
from dcdctl.core.evaluation import ranks
from dcdctl.core.evaluation.ranking import NO_POSITION, Ranking
from dcdctl.core.evaluation.ranks import RankCounter
from dcdctl.core.scoring import top_k_of_rows


def plain_positions(scores_QG: np.ndarray, positives: list[list[int]]) -> list[list[int]]:
    """The definition: 1 plus the negatives that score at least as high, plus the positives that are sorted before."""
    positions = []
    for row, own in zip(scores_QG, positives, strict=True):
        negatives = [row[candidate] for candidate in range(len(row)) if candidate not in own]
        best_first = sorted((row[candidate] for candidate in own), reverse=True)
        positions.append(
            [1 + nth + sum(negative >= score for negative in negatives) for nth, score in enumerate(best_first)]
        )
    return positions


def positives_of(owner: list[int]) -> tuple[list[list[int]], list[list[int]]]:
    """The positives of every image, and of every caption."""
    texts = [[text for text, image in enumerate(owner) if image == query] for query in range(max(owner) + 1)]
    return texts, [[image] for image in owner]


def positions_of(ranking: Ranking) -> list[list[int]]:
    return [[position for position in row if position != NO_POSITION] for row in ranking.positions_QR.tolist()]


def counted(
    scores_IT: np.ndarray, owner: list[int], image_block: int = 99, text_block: int = 99, **settings
) -> tuple[Ranking, Ranking]:
    counter = RankCounter(scores_IT[owner, range(len(owner))], np.array(owner), **settings)
    for image in range(0, len(scores_IT), image_block):
        for text in range(0, len(owner), text_block):
            counter.add(scores_IT[image : image + image_block, text : text + text_block], image, text)
    rankings = counter.rankings()
    return rankings.text, rankings.image


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, list[int]]:
    """A score matrix full of ties, and the owners of its captions: any number each, in any order."""
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=7))
    owner = draw(st.permutations([image for image, count in enumerate(counts) for _ in range(count)]))
    row = st.lists(st.integers(-2, 2).map(float), min_size=len(owner), max_size=len(owner))
    return np.array(draw(st.lists(row, min_size=len(counts), max_size=len(counts))), dtype=np.float32), list(owner)


@given(problem=problems(), image_block=st.integers(1, 4), text_block=st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_positions_by_blocks_equal_the_definition(problem, image_block, text_block):
    scores_IT, owner = problem
    text, image = counted(scores_IT, owner, image_block, text_block)
    positive_texts, positive_images = positives_of(owner)
    assert positions_of(text) == plain_positions(scores_IT, positive_texts)
    assert positions_of(image) == plain_positions(scores_IT.T, positive_images)


@given(problem=problems(), image_block=st.integers(1, 4), text_block=st.integers(1, 9), num_top=st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_first_candidates_by_blocks_have_the_highest_scores_in_order(problem, image_block, text_block, num_top):
    scores_IT, owner = problem
    for ranking, scores_QG in zip(
        counted(scores_IT, owner, image_block, text_block, num_top=num_top), (scores_IT, scores_IT.T), strict=True
    ):
        k = min(num_top, scores_QG.shape[1])
        assert ranking.top_score_QK.tolist() == (-np.sort(-scores_QG, axis=1)[:, :k]).tolist()
        assert np.take_along_axis(scores_QG, ranking.top_QK, axis=1).tolist() == ranking.top_score_QK.tolist()
        assert all(len(set(row)) == k for row in ranking.top_QK.tolist())


@pytest.mark.parametrize(("levels", "num_top"), [(1, 3), (2, 3), (4, 10), (1000, 10)])
def test_the_first_images_of_a_large_block_are_its_highest_scores(levels, num_top):
    # Few levels: most scores are equal, as with a constant model or binary vectors.
    scores_IT = np.random.default_rng(levels).integers(levels, size=(90, 120)).astype(np.float32)
    _, image = counted(scores_IT, (np.arange(120) * 90 // 120).tolist(), image_block=45, num_top=num_top)
    assert image.top_score_QK.tolist() == (-np.sort(-scores_IT.T, axis=1))[:, :num_top].tolist()
    assert np.take_along_axis(scores_IT.T, image.top_QK, axis=1).tolist() == image.top_score_QK.tolist()
    assert all(len(set(images)) == num_top for images in image.top_QK.tolist())


def test_candidates_of_many_blocks_are_sorted_in_as_they_come():
    # Rising scores are the worst case: every image of a block is better than all before it.
    scores_IT = (np.arange(400)[:, None] + np.random.default_rng(0).random((400, 30))).astype(np.float32)
    owner = [*range(30), *range(30, 400)]
    wide_IT = np.concatenate([scores_IT, np.zeros((400, 370), dtype=np.float32)], axis=1)
    _, image = counted(wide_IT, owner, image_block=16, text_block=100, num_top=5)
    assert image.top_QK[:30].tolist() == [[399, 398, 397, 396, 395]] * 30


def test_positives_stand_last_among_candidates_of_one_score():
    scores_IT = np.array([[1, 1, 1, 0], [1, 0, 1, 1]], dtype=np.float32)
    text, image = counted(scores_IT, [0, 0, 1, 1])
    assert text.top_QK[0].tolist() == [2, 0, 1, 3] or text.top_QK[0].tolist() == [2, 1, 0, 3]
    assert image.top_QK[0].tolist() == [1, 0]


@pytest.mark.parametrize(("num_images", "image_block"), [(2, 40), (33, 40), (200, 40), (600, 600)])
def test_a_constant_model_finds_everything_last(num_images, image_block):
    owner = np.repeat(np.arange(num_images), 3).tolist()
    text, image = counted(np.full((num_images, len(owner)), 0.25, dtype=np.float32), owner, image_block, 90)
    assert text.positions_QR.tolist() == [[3 * num_images - 2, 3 * num_images - 1, 3 * num_images]] * num_images
    assert image.positions_QR.tolist() == [[num_images]] * len(owner)


def test_a_margin_makes_near_scores_a_tie():
    scores_IT = np.array([[10.0, 9.995], [0.0, 10.0]], dtype=np.float32)
    ranks_by_margin = {
        margin: [ranking.ranks.tolist() for ranking in counted(scores_IT, [0, 1], margin=margin)]
        for margin in (0.0, 1e-3)
    }
    assert ranks_by_margin == {0.0: [[1, 1], [1, 1]], 1e-3: [[2, 1], [1, 2]]}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_without_an_order_are_an_error(bad):
    with pytest.raises(ModelError, match="NaN"):
        counted(np.array([[1.0, bad], [0.0, 1.0]], dtype=np.float32), [0, 1])
    with pytest.raises(ModelError, match="NaN"):
        RankCounter(np.array([bad, 1.0], dtype=np.float32), np.array([0, 1]))


@pytest.mark.parametrize("width", [5, 200, 1000, 64 * 30 + 7])
def test_the_first_of_long_rows_are_those_of_the_whole_row(width):
    scores_QG = torch.randn(9, width, generator=torch.Generator().manual_seed(0))
    score_QK, index_QK = top_k_of_rows(scores_QG, 7)
    expected = scores_QG.topk(min(7, width), dim=1)
    assert torch.equal(score_QK, expected.values)
    assert torch.equal(index_QK, expected.indices)


@pytest.mark.parametrize("k", [1, 3, 15])
def test_ties_at_the_last_place_of_long_rows_leave_out_no_better_score(k):
    # Ten values in 1,927 columns: every group of a row has the highest one, and the columns after the last group too.
    scores_QG = torch.randint(10, (9, 64 * 30 + 7), generator=torch.Generator().manual_seed(0)).float()
    scores_QG[3] = 0.0
    scores_QG[3, [5, 64 * 30 + 3]] = 1.0  # two better ones, one of them beyond the groups
    score_QK, index_QK = top_k_of_rows(scores_QG, k)
    assert torch.equal(score_QK, scores_QG.topk(k, dim=1).values)
    assert torch.equal(scores_QG.gather(1, index_QK), score_QK)
    assert all(len(set(row)) == k for row in index_QK.tolist())


def test_rankings_of_several_galleries_keep_their_positions_and_shift_their_indices():
    rankings = [
        counted(np.array(scores, dtype=np.float32), owner)[0]
        for scores, owner in (([[2, 1]], [0, 0]), ([[1, 2], [0, 1]], [0, 1]))
    ]
    joined = ranks.concatenate(rankings, [0, 2])
    assert positions_of(joined) == [[1, 2], [2], [1]]
    assert joined.top_QK.tolist() == [[0, 1], [3, 2], [3, 2]]
    assert joined.positive_score_Q.tolist() == [2, 1, 1]
