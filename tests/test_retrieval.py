"""Ranks and recalls against the released evaluation, and against a plain count over the full matrix."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from dcdctl.core import retrieval
from dcdctl.core.errors import ModelError
from dcdctl.core.retrieval import RankCounter, Ranks, Recalls

# From the released evaluation (METER's compute_irtr_recall); fractions in float32.
GOLDEN = json.loads((Path(__file__).parent / "fixtures" / "recall_a.json").read_text(encoding="utf-8"))["cases"]


def plain_ranks(scores: list[list[float]], owner: list[int]) -> tuple[list[int], list[int]]:
    """The definition, pair by pair."""
    texts = range(len(owner))
    text_ranks, image_ranks = [], []
    for image, row in enumerate(scores):
        best = max(row[text] for text in texts if owner[text] == image)
        text_ranks.append(1 + sum(row[text] >= best for text in texts if owner[text] != image))
    for text in texts:
        own = scores[owner[text]][text]
        image_ranks.append(1 + sum(row[text] >= own for image, row in enumerate(scores) if image != owner[text]))
    return text_ranks, image_ranks


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[list[float]], list[int]]:
    """A score matrix full of ties, and the owners of its captions: any number each, in any order."""
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=7))
    owner = draw(st.permutations([image for image, count in enumerate(counts) for _ in range(count)]))
    row = st.lists(st.integers(-2, 2).map(float), min_size=len(owner), max_size=len(owner))
    return draw(st.lists(row, min_size=len(counts), max_size=len(counts))), list(owner)


def unit(seed: int, *shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['images']}x{case['captions_per_image']}")
def test_recalls_are_those_of_the_released_evaluation(case):
    found = retrieval.summarize(retrieval.ranks_from_matrix(torch.tensor(case["scores_images_by_texts"]), np.array(case["text_owner"])))
    for k in (1, 5, 10):
        assert found.text_retrieval[f"R@{k}"] == pytest.approx(100 * case[f"tr_r{k}"], rel=1e-7)
        assert found.image_retrieval[f"R@{k}"] == pytest.approx(100 * case[f"ir_r{k}"], rel=1e-7)


@given(problem=problems(), image_block=st.integers(1, 4), text_block=st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_counting_by_blocks_equals_the_definition(problem, image_block, text_block):
    scores, owner = problem
    scores_IT = torch.tensor(scores)
    counter = RankCounter(scores_IT[owner, range(len(owner))], np.array(owner))
    for image in range(0, len(scores), image_block):
        for text in range(0, len(owner), text_block):
            counter.add(scores_IT[image : image + image_block, text : text + text_block], image, text)
    ranks = counter.ranks()
    assert (ranks.text.tolist(), ranks.image.tolist()) == plain_ranks(scores, owner)


@given(problem=problems(), seed=st.integers(0, 1000), block=st.integers(1, 8))
@settings(max_examples=60, deadline=None, derandomize=True)  # drawn anew, two scores are a tie for us alone once in a long while
def test_ranks_from_embeddings_equal_the_definition(problem, seed, block):
    owner = problem[1]
    image_ID, text_TD = unit(seed, len(problem[0]), 8), unit(seed + 1, len(owner), 8)
    ranks = retrieval.ranks_from_embeddings(image_ID, text_TD, np.array(owner), block=block)
    assert (ranks.text.tolist(), ranks.image.tolist()) == plain_ranks((image_ID @ text_TD.T).tolist(), owner)


@pytest.mark.parametrize("gallery_block", [4, 64])
def test_ranks_and_top_k_do_not_depend_on_the_gallery_block(monkeypatch, gallery_block):
    owner, image_ID, text_TD = np.arange(40) // 2, unit(0, 20, 6), unit(1, 40, 6)
    monkeypatch.setattr(retrieval, "GALLERY_BLOCK", gallery_block)
    ranks = retrieval.ranks_from_embeddings(image_ID, text_TD, owner, block=7)
    whole = retrieval.ranks_from_matrix(image_ID @ text_TD.T, owner)
    assert (ranks.text.tolist(), ranks.image.tolist()) == (whole.text.tolist(), whole.image.tolist())


@pytest.mark.parametrize("num_images", [2, 33, 200])
def test_a_constant_model_finds_nothing_first(num_images):
    owner = np.repeat(np.arange(num_images), 3)
    tables = [retrieval.ranks_from_matrix(torch.full((num_images, len(owner)), 0.25), owner)]
    for seed in range(8):
        # Equal vectors: their products differ in the last bit, depending on how they are summed, and still are a tie.
        vector_D = unit(seed, 256)
        images_ID, texts_TD = vector_D.repeat(num_images, 1), vector_D.repeat(len(owner), 1)
        tables.append(retrieval.ranks_from_embeddings(images_ID, texts_TD, owner, block=30))
    for ranks in tables:
        assert set(ranks.text.tolist()) == {3 * num_images - 2}
        assert set(ranks.image.tolist()) == {num_images}
        found = retrieval.summarize(ranks)
        assert found.text_retrieval["R@1"] == found.image_retrieval["R@1"] == 0


def test_a_margin_makes_near_scores_a_tie():
    scores_IT = torch.tensor([[10.0, 9.995], [0.0, 10.0]])
    own_T, owner = torch.tensor([10.0, 10.0]), np.array([0, 1])
    found = {}
    for margin in (0.0, 1e-3):
        counter = RankCounter(own_T, owner, margin=margin)
        counter.add(scores_IT)
        found[margin] = counter.ranks().text.tolist(), counter.ranks().image.tolist()
    assert found == {0.0: ([1, 1], [1, 1]), 1e-3: ([2, 1], [1, 2])}


def test_other_own_captions_never_count_against_the_best():
    ranks = retrieval.ranks_from_matrix(torch.tensor([[5.0, 5.0, 5.0, 4.0], [0.0, 0.0, 0.0, 1.0]]), np.array([0, 0, 0, 1]))
    assert ranks.text.tolist() == [1, 1]
    assert ranks.image.tolist() == [1, 1, 1, 2]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_without_an_order_are_an_error(bad):
    scores_IT = torch.tensor([[1.0, bad], [0.0, 1.0]])
    with pytest.raises(ModelError, match="NaN"):
        retrieval.ranks_from_matrix(scores_IT, np.array([0, 1]))
    with pytest.raises(ModelError, match="NaN"):
        retrieval.ranks_from_embeddings(scores_IT, scores_IT, np.array([0, 1]))
    with pytest.raises(ModelError, match="NaN"):
        retrieval.top_k(scores_IT, scores_IT, 1)


def test_a_block_left_out_or_an_image_without_caption_is_a_wrong_call():
    counter = RankCounter(torch.ones(3), np.array([0, 0, 1]))
    counter.add(torch.ones(1, 3))
    with pytest.raises(ValueError, match="3 pairs counted of 2 x 3"):
        counter.ranks()
    with pytest.raises(ValueError, match="at least one caption"):
        RankCounter(torch.ones(2), np.array([0, 2]))


@given(
    num_queries=st.integers(1, 9),
    gallery=st.integers(1, 30),
    k=st.integers(1, 12),
    block=st.integers(1, 5),
    gallery_block=st.integers(1, 31),
)
@settings(max_examples=80, deadline=None)
def test_streaming_top_k_equals_the_full_matrix(num_queries, gallery, k, block, gallery_block):
    queries_QD, gallery_GD = unit(0, num_queries, 5), unit(1, gallery, 5)
    scores_QK, index_QK = retrieval.top_k(queries_QD, gallery_GD, k, block=block, gallery_block=gallery_block)
    full_QG = queries_QD @ gallery_GD.T
    assert_close(scores_QK, full_QG.topk(min(k, gallery)).values)
    assert_close(full_QG.gather(1, index_QK), scores_QK)
    assert all(len(set(row)) == len(row) for row in index_QK.tolist())


def test_reranking_by_hand():
    first_Q = np.array([3, 1, 7, 4])
    scores_QK = torch.tensor([[0.1, 0.2, 0.9], [0.5, 0.5, 0.1], [0.3, 0.2, 0.1], [0.0, 0.0, 9.0]])
    is_own_QK = torch.tensor([[0, 0, 1], [1, 0, 0], [0, 0, 0], [0, 0, 1]]).bool()
    # Third becomes first; a tie costs a place; not found stays where it was; found by a tie at the end of the first K: stays too.
    assert retrieval.reranked(first_Q, scores_QK, is_own_QK).tolist() == [1, 2, 7, 4]


def test_reranking_counts_the_best_own_candidate():
    is_own_QK = torch.tensor([[True, False, True, False]])
    assert retrieval.reranked(np.array([1]), torch.tensor([[0.1, 0.5, 0.7, 0.6]]), is_own_QK).tolist() == [1]


def test_recalls_add_up():
    found = retrieval.summarize(Ranks(np.array([1, 6]), np.array([1, 2, 11, 12])))
    assert found == Recalls({"R@1": 50.0, "R@5": 50.0, "R@10": 100.0}, {"R@1": 25.0, "R@5": 50.0, "R@10": 50.0})
    assert found.rsum == 325
    assert found.mean_recall == pytest.approx(325 / 6)
