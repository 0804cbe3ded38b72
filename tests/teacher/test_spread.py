"""The spread of a teacher's scores, and the temperature that follows from it, on lists worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made_caches import build_cache

from dcdctl.core.teacher import CandidateConfig, spread
from dcdctl.core.teacher.cache import TeacherEnsemble

NAN = np.nan


def test_two_scores_are_divided_so_that_their_softmax_has_half_a_bit():
    """The entropy of (0.88997, 0.11003) is half a bit, and ln(0.88997 / 0.11003) = 2.0905."""
    assert spread.recommend_temperature(np.array([[0.0, 6.2715]])) == 3.0
    assert spread.recommend_temperature(np.array([[0.0, 0.0062715, NAN]])) == 0.003


@pytest.mark.parametrize("width", [0.05, 1.0, 40.0])
def test_at_the_recommended_temperature_the_mean_entropy_is_half_of_log_k(width):
    rng = np.random.default_rng(3)
    lists = width * rng.normal(size=(50, 16)) + 7
    lists[::3, 9:] = NAN
    lists[::7, 2:] = NAN
    temperature = spread.recommend_temperature(lists)
    shares = []
    for row in lists:
        known = torch.from_numpy(row[~np.isnan(row)])
        shares.append(torch.distributions.Categorical(logits=known / temperature).entropy().item() / np.log(len(known)))
    assert np.mean(shares) == pytest.approx(0.5, abs=2e-3)
    assert temperature == pytest.approx(width * spread.recommend_temperature((lists - 7) / width), rel=6e-3)


def test_scores_without_an_order_have_no_temperature():
    assert spread.recommend_temperature(np.array([[2.0, 2.0, 2.0]])) is None
    # Three of four pairs tie for the best: even at T = 0 the entropy is log 3 of log 4.
    assert spread.recommend_temperature(np.array([[5.0, 5.0, 5.0, 1.0]])) is None
    assert (
        spread.recommend_temperature(np.array([[5.0, 5.0, 5.0, 1.0], [3.0, 1.0, 0.0, 0.0], [3.0, 1.0, 0.0, 0.0]]))
        is not None
    )


@pytest.mark.parametrize(
    ("scores", "found"),
    [([2.5, 2.5], "2.5"), ([0, 1, 1], "0 or 1"), ([0], "0"), ([0, 2], None), ([0, 1, 0.5], None), ([], None)],
)
def test_equal_scores_and_true_or_false_have_no_order(scores, found):
    sentence = f"every score is {found}: nothing can be learned from the order of the scores"
    assert spread.lack_of_order(np.array(scores, dtype=np.float32)) == (found and sentence)


def test_a_list_has_its_own_pair_first_and_different_candidates_of_its_query(corpus, teacher, tmp_path):
    cache = build_cache(corpus, teacher, tmp_path / "cache", CandidateConfig(per_query=20))
    lists = spread._lists(cache)
    assert lists.shape == (2 * 160, 16)
    for position, row in enumerate(lists):
        text = position % 160
        image = int(corpus.caption_image[text])
        if position < 160:
            candidates = cache.lookup(np.array(image), cache.candidates.texts_of_image[image])
        else:
            candidates = cache.lookup(cache.candidates.images_of_text[text], np.array(text))
        assert row[0] == cache.lookup(np.array(image), np.array(text))
        remaining = candidates.tolist()
        for score in row[1:]:
            remaining.remove(score)
        assert len(remaining) == 5


def test_the_temperature_does_not_depend_on_how_many_candidates_are_cached(corpus, teacher, tmp_path):
    few, many = (
        build_cache(corpus, teacher, tmp_path / str(count), CandidateConfig(per_query=count)) for count in (15, 25)
    )
    found = [spread.measure_spread(cache) for cache in (few, many, TeacherEnsemble([many, many]))]
    assert found[1].temperature == pytest.approx(found[0].temperature, rel=0.03)
    assert found[2].temperature == pytest.approx(found[1].temperature, rel=0.005)
