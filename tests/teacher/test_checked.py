"""Captions that a teacher doubts: the limit, the images that it picks for them, and what is said of both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from score_table import ScoreTable
from tiny import make_corpus

from dcdctl.core.data import Corpus
from dcdctl.core.teacher import NO_PICK, check_captions
from dcdctl.core.teacher.checked import find_limit

NUM_IMAGES, PER_IMAGE = 100, 5


def drawn(seed: int, wrong: float, *, right: float = 4.0, num_own: int = 2000, num_others: int = 8000) -> Any:
    """Scores of own images, N(right, 1), of which a share is wrong, N(0, 1), as those of other images; and which."""
    rng = np.random.default_rng(seed)
    is_wrong = rng.permutation(num_own) < wrong * num_own
    return rng.normal(size=num_own) + np.where(is_wrong, 0.0, right), rng.normal(size=num_others), is_wrong


@pytest.mark.parametrize("wrong", [0.05, 0.2, 0.4, 0.6])
@pytest.mark.parametrize("seed", range(3))
def test_a_good_teacher_doubts_wrong_captions_and_few_right_ones(wrong, seed):
    own, others, is_wrong = drawn(seed, wrong)
    limit = find_limit(own, others)
    kept = own > limit.value
    assert is_wrong[kept].mean() < 0.1
    assert kept[~is_wrong].mean() > 0.9
    promised = int(limit.reason.split("at least ")[1].split("%")[0])
    assert 80 <= promised <= 100 * (1 - is_wrong[kept].mean()) + 3


def test_the_limit_of_two_modes_lies_half_way_between_their_means():
    own = np.concatenate([np.full(300, 5.0), np.linspace(-1, 1, 201)])
    limit = find_limit(own, np.linspace(-9, -7, 501))
    assert limit.value == pytest.approx(2.5)
    # 2.3 of 501 captions of the lower mode may lie above, of 300.
    assert limit.reason == "the scores have two modes, and at least 99% of the others are of the higher one"


@pytest.mark.parametrize("seed", range(3))
def test_wrong_captions_that_score_above_other_images_are_doubted_too(seed):
    """Such as one wrong word: half way between other images and the right one."""
    rng = np.random.default_rng(seed)
    own = np.concatenate([rng.normal(4.0, 0.5, size=1000), rng.normal(-1.0, 0.8, size=400)])
    doubted = own <= find_limit(own, rng.normal(-5.0, 1.0, size=8000)).value
    assert doubted[1000:].mean() > 0.99
    assert doubted[:1000].mean() < 0.01


def test_one_mode_of_any_form_is_not_cut_in_two():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        for own in (
            rng.normal(size=2000),
            rng.beta(2, 2, size=2000),
            rng.exponential(size=2000),
            -rng.exponential(size=2000),
            rng.laplace(size=2000),
            np.minimum(rng.normal(size=2000), 0.5),
        ):
            limit = find_limit(own, own - 20)
            assert limit.value == -np.inf
            assert limit.reason == "by 2,000 scores with other images, none scores as low as wrong ones do"


@pytest.mark.parametrize("seed", range(3))
def test_proposed_images_do_not_hide_two_modes(seed):
    """Every caption scores higher with the images that a student proposes than a wrong one with its own."""
    own, others, is_wrong = drawn(seed, 0.4)
    assert find_limit(own, others + 8).value == -np.inf
    limit = find_limit(own, None)
    kept = own > limit.value
    assert is_wrong[kept].mean() < 0.1
    assert kept[~is_wrong].mean() > 0.9


@pytest.mark.parametrize("right", [2.0, 6.0])
def test_by_proposed_images_one_mode_is_not_doubted(right):
    """Right captions score lower than the best of many images too, so nothing follows from that."""
    for seed in range(20):
        own, _, _ = drawn(seed, 0.0, right=right)
        limit = find_limit(own, None)
        assert limit.value == -np.inf
        assert limit.reason == "the scores have one mode, and other images were proposed and not drawn"


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_doubted_where_all_captions_are_right(seed):
    own, others, _ = drawn(seed, 0.0, right=6.0)
    assert find_limit(own, others).value == -np.inf


@pytest.mark.parametrize("right", [2.0, 3.0])
def test_a_fair_teacher_doubts_few_right_captions_where_all_are_right(right):
    for seed in range(5):
        own, others, _ = drawn(seed, 0.0, right=right)
        assert (own <= find_limit(own, others).value).mean() < 0.03


@pytest.mark.parametrize("num_own", [100, 160, 500, 5000])
def test_a_teacher_that_tells_nothing_doubts_nothing(num_own):
    """Noise; own images scored lower than others; one score for all; yes for some, whatever they show."""
    for seed in range(20):
        own, others, _ = drawn(seed, 0.0, right=0.0, num_own=num_own)
        for scores in ((own, others), (own - 2, others), (own * 0, others * 0), (own > 1, others > 1)):
            limit = find_limit(*(each.astype(float) for each in scores))
            assert limit.value == -np.inf
            assert "right captions cannot be told from wrong ones" in limit.reason


def test_the_few_highest_scores_of_noise_are_not_all_that_is_kept():
    for seed in range(400):
        own, others, _ = drawn(seed, 0.0, right=0.0, num_own=160, num_others=4096)
        assert find_limit(own, others).value == -np.inf


def test_graded_scores_are_kept_or_doubted_together():
    own, others, is_wrong = drawn(0, 0.4)
    grades = [np.clip(np.round(each), 0, 4) for each in (own, others)]
    limit = find_limit(*grades)
    assert 1 <= limit.value < 3
    assert is_wrong[grades[0] > limit.value].mean() < 0.1
    # A teacher that says yes or no.
    assert find_limit(*(np.where(each > 2, 1.0, 0.0) for each in (own, others))).value == 0.5


def test_fewer_than_a_hundred_scores_tell_nothing():
    own, others, _ = drawn(0, 0.4, num_own=99)
    assert find_limit(own, others).reason == (
        "the scores, 99 with own images and 8,000 with others, are fewer than 100 each"
    )
    assert find_limit(drawn(0, 0.4)[0], others[:99]).value == -np.inf
    assert find_limit(own, None).reason == "the scores, 99 with own images, are fewer than 100 each"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    texts = [[f"{image} {number}" for number in range(PER_IMAGE)] for image in range(NUM_IMAGES)]
    return make_corpus(tmp_path_factory.mktemp("checked") / "corpus", texts)


def true_images(corpus: Corpus, num_wrong: int) -> Any:
    """The image that each caption is of: the next one for the first captions of as many images."""
    image_C = corpus.caption_image.copy()
    wrong = np.arange(0, num_wrong * PER_IMAGE, PER_IMAGE)
    image_C[wrong] = (image_C[wrong] + 1) % NUM_IMAGES
    return image_C


def scored(true_C: Any, seed: int = 0) -> Any:
    """Scores of N(0, 1), and 8 more for the image that a caption is of."""
    scores = np.random.default_rng(seed).normal(size=(NUM_IMAGES, len(true_C)))
    scores[true_C, np.arange(len(true_C))] += 8
    return scores.astype(np.float32)


def some_of(scores: Any, corpus: Corpus, true_C: Any, seed: int = 1) -> Any:
    """The scores of own images, of those that a caption is of, and of a third of the others."""
    is_scored = np.random.default_rng(seed).random(scores.shape) < 1 / 3
    captions = np.arange(corpus.num_captions)
    is_scored[corpus.caption_image, captions] = is_scored[true_C, captions] = True
    return np.where(is_scored, scores, np.nan)


@pytest.mark.parametrize("every_pair", [True, False])
def test_doubted_captions_count_for_the_images_that_they_show(corpus, every_pair):
    true_C = true_images(corpus, 30)
    scores = scored(true_C)
    checked = check_captions(corpus, ScoreTable(scores if every_pair else some_of(scores, corpus, true_C)), "auto")
    is_wrong = true_C != corpus.caption_image
    assert checked.is_doubted_C[is_wrong].all()
    # The one or two right captions with the lowest scores are doubted too, and get their images again.
    assert checked.num_doubted <= 32
    assert np.array_equal(checked.image_C, true_C)
    assert checked.num_picked == checked.num_doubted
    assert np.array_equal(checked.own_C, scores[corpus.caption_image, np.arange(500)])


def test_a_doubted_caption_whose_image_has_no_score_counts_for_none(corpus):
    true_C = true_images(corpus, 30)
    scores = some_of(scored(true_C), corpus, true_C)
    wrong = np.flatnonzero(true_C != corpus.caption_image)
    scores[true_C[wrong[:5]], wrong[:5]] = np.nan
    checked = check_captions(corpus, ScoreTable(scores), "auto")
    assert checked.image_C[wrong[:5]].tolist() == [NO_PICK] * 5
    assert np.array_equal(checked.image_C[wrong[5:]], true_C[wrong[5:]])
    assert checked.num_doubted - checked.num_picked == 5
    best_C = np.nanmax(scores, axis=0)
    # A right caption that was doubted and picked may be asked about again.
    is_asked_C = best_C <= checked.sure_above
    assert is_asked_C[checked.image_C == NO_PICK].all()
    assert is_asked_C.sum() <= 5 + 2


def test_a_caption_without_a_score_counts(corpus):
    true_C = true_images(corpus, 30)
    scores = some_of(scored(true_C), corpus, true_C)
    scores[0, 0] = np.nan
    checked = check_captions(corpus, ScoreTable(scores), "auto")
    assert (checked.image_C[0], checked.is_doubted_C[0], checked.is_doubted_C[5]) == (0, False, True)


def test_no_caption_moves_where_picks_are_not_sure(corpus):
    """The right image of a doubted caption scores no higher than others."""
    true_C = true_images(corpus, 30)
    scores = scored(true_C)
    wrong = np.flatnonzero(true_C != corpus.caption_image)
    scores[true_C[wrong], wrong] -= 8
    checked = check_captions(corpus, ScoreTable(scores), "auto")
    assert checked.is_doubted_C[wrong].all()
    assert (checked.num_picked, checked.picked_above) == (0, None)
    assert checked.sure_above == checked.limit.value
    assert str(checked).endswith("; 0 of these have a sure pick and count for it")


def test_a_teacher_of_every_pair_picks_only_among_as_many_as_it_can_score(corpus, monkeypatch):
    true_C = true_images(corpus, 30)
    monkeypatch.setattr("dcdctl.core.teacher.checked.MOST_LOOKED_UP", 31 * NUM_IMAGES)
    assert check_captions(corpus, ScoreTable(scored(true_C)), "auto").num_picked >= 30
    monkeypatch.setattr("dcdctl.core.teacher.checked.MOST_LOOKED_UP", 29 * NUM_IMAGES)
    assert check_captions(corpus, ScoreTable(scored(true_C)), "auto").num_picked == 0
    some = ScoreTable(some_of(scored(true_C), corpus, true_C))
    assert check_captions(corpus, some, "auto").num_picked >= 30


def test_images_that_a_model_proposed_are_no_measure_of_wrong_captions(corpus):
    """The same overlapping scores, of which a fifth are wrong, with drawn and with proposed images."""
    true_C = true_images(corpus, 100)
    scores = scored(true_C)
    scores[true_C, np.arange(500)] -= 5.5
    assert check_captions(corpus, ScoreTable(scores), "auto").num_doubted > 50
    assert check_captions(corpus, ScoreTable(scores, has_drawn_pairs=False), "auto").num_doubted == 0


def test_a_number_is_the_limit_and_scores_that_equal_it_are_doubted(corpus):
    scores = ScoreTable(np.where(np.arange(500) < 20, 1.0, 2.0) * np.ones((NUM_IMAGES, 1)))
    checked = check_captions(corpus, scores, 1.0)
    assert np.flatnonzero(checked.is_doubted_C).tolist() == list(range(20))
    assert check_captions(corpus, scores, 0.5).num_doubted == 0
    assert "20 of 500 score 1 or less with their image: captions.checked is this number" in str(checked)


def test_run_json_has_counts_and_ten_examples_the_lowest_first(corpus):
    true_C = true_images(corpus, 30)
    facts = check_captions(corpus, ScoreTable(scored(true_C)), "auto").to_json()
    assert facts["doubted"] == facts["picks"] >= 30
    assert len(facts["examples"]) == 10
    scores = [example["score"] for example in facts["examples"]]
    assert scores == sorted(scores)
    first = facts["examples"][0]
    image = int(first["caption"].split()[0])
    assert first["image"] == corpus.image_ids[image]
    assert first["fits_better"] == corpus.image_ids[image + 1]
    assert check_captions(corpus, ScoreTable(scored(corpus.caption_image)), "auto").to_json().keys() == {
        "doubted",
        "reason",
    }
