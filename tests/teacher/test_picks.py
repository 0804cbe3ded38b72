"""The picks of a teacher, and the threshold above which they are expected to be right as often as asked."""

from __future__ import annotations

import numpy as np
import pytest

from dcdctl.core.teacher.picks import CaptionPicks, NoPicks, Picks, Threshold, find_threshold

ASKED = (0.5, 0.6, 0.8, 0.95)


def picks_of(scores: np.ndarray) -> Picks:
    """The picks of a matrix of scores, T x K; the image of a pick is its column."""
    order = np.argsort(-scores, axis=1, kind="stable")
    best, second = np.take_along_axis(scores, order, axis=1)[:, :2].T
    return Picks(order[:, 0], best, second, np.full(len(scores), scores.shape[1]))


def drawn(seed: int, *, right: float | None = None, there: float = 1.0, num_texts: int = 1000, num_images: int = 8):
    """Scores of wrong images, N(0, 1), and in column 0 for a share `there` of the texts that of a right image,
    N(right, 1); and which texts have one."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(num_texts, num_images))
    has_right = rng.random(num_texts) < (0.0 if right is None else there)
    scores[has_right, 0] += right or 0.0
    return scores, has_right


def share_right(picks: Picks, has_right: np.ndarray, found: Threshold) -> float:
    kept = picks.above(found.value)
    return float((kept == 0)[has_right].sum() / (kept != -1).sum())


def test_picks_above_a_threshold_exclude_it():
    picks = Picks(np.array([3, 1, 2]), np.array([0.5, 1.0, -np.inf]), np.full(3, -np.inf), np.array([1, 1, 0]))
    assert picks.above(0.5).tolist() == [-1, 1, -1]
    assert picks.above(-1e9).tolist() == [3, 1, -1]


@pytest.mark.parametrize("precision", ASKED)
def test_no_pick_of_a_teacher_that_tells_nothing(precision):
    """Noise, noise with an offset of each text, the right image lowest, one score for all, and right images for one
    text in a hundred."""
    offsets = np.random.default_rng(1).normal(size=(1000, 1), scale=2)
    for scores in (
        *(drawn(seed, num_texts=num_texts)[0] for seed in range(5) for num_texts in (100, 1000, 5000)),
        drawn(0)[0] + offsets,
        drawn(0, right=-3.0)[0],
        np.ones((1000, 8)),
        drawn(0, right=4.0, there=0.01)[0],
        # Grades and ties, of which most texts have several of the highest.
        np.clip(np.round(drawn(0)[0]), 0, 1),
    ):
        found = find_threshold(picks_of(scores), precision)
        assert isinstance(found, NoPicks)
        assert "expected to be right" in found.reason or "cannot be told" in found.reason


@pytest.mark.parametrize("precision", ASKED)
@pytest.mark.parametrize(("right", "there"), [(2.0, 1.0), (3.0, 0.5), (4.0, 1.0), (4.0, 0.3)])
def test_picks_are_right_as_often_as_expected_and_asked(right, there, precision):
    num_taken = 0
    for seed in range(10):
        scores, has_right = drawn(seed, right=right, there=there)
        picks = picks_of(scores)
        found = find_threshold(picks, precision)
        if isinstance(found, Threshold):
            num_taken += 1
            assert precision <= found.precision <= share_right(picks, has_right, found) + 0.03
    assert num_taken == 10 or precision == 0.95 or right < 4


def test_a_good_teacher_loses_few_picks():
    scores, has_right = drawn(0, right=5.0, there=0.6)
    picks = picks_of(scores)
    kept = picks.above(find_threshold(picks, 0.8).value)
    assert (kept == 0)[has_right].mean() > 0.9


def test_the_shares_of_right_and_wrong_images_are_the_roots_of_what_is_seen():
    """Many texts, so that bounds are close: of R = 0.6 and A = 0.1, a pick above is wrong in at most A / B."""
    num_texts = 10**6
    has_right, has_wrong = np.arange(num_texts) % 10 < 6, np.arange(num_texts) // 10 % 10 < 1
    scores = np.zeros((num_texts, 5))
    scores[has_right, 0], scores[has_wrong, 1] = 2.0, 1.0
    found = find_threshold(picks_of(scores), 0.8)
    assert found.value == 0.0
    assert found.precision == pytest.approx(1 - 0.1 / 0.64, abs=2e-3)


def test_look_alikes_lower_what_is_expected():
    """Another image of half of the texts scores as high as the right one: no threshold has right picks in 80 %."""
    rng = np.random.default_rng(0)
    scores, has_right = drawn(0, right=3.0, num_texts=5000)
    alike = rng.random(5000) < 0.5
    scores[alike, 1] += 3.0
    picks = picks_of(scores)
    assert isinstance(find_threshold(picks, 0.8), NoPicks)
    found = find_threshold(picks, 0.5)
    assert 0.5 <= found.precision <= share_right(picks, has_right, found)


def test_tied_picks_are_taken_or_left_together():
    """A teacher of grades: the threshold lies between two of them, and is the next grade below."""
    scores, has_right = drawn(0, right=4.0)
    picks = picks_of(np.clip(np.round(scores), 0, 4))
    found = find_threshold(picks, 0.8)
    assert found.value in (0, 1, 2, 3)
    assert share_right(picks, has_right, found) >= found.precision
    yes_or_no = picks_of((scores > 2.5).astype(float))
    assert find_threshold(yes_or_no, 0.8).value == 0.0


def test_texts_with_few_scored_images_tell_nothing():
    scores, _ = drawn(0, right=4.0, num_images=4)
    found = find_threshold(picks_of(scores), 0.5)
    assert str(found).endswith("no pick, because no text of the pool has 5 scored images or more")
    # Texts with two do not change what three others say.
    scores, _ = drawn(0, right=4.0)
    picks, few = picks_of(scores), picks_of(np.full((1000, 2), 9.0))
    both = Picks(*(np.concatenate(values) for values in zip(picks, few, strict=True)))
    assert find_threshold(both, 0.8) == find_threshold(picks, 0.8)


def of_captions(seed: int, right: float, wrong: float, num: int = 500) -> CaptionPicks:
    """Captions whose own image is in column 0, and whose other images score `wrong` higher than those of the pool."""
    scores, _ = drawn(seed, right=right, num_texts=num)
    scores[:, 1:] += wrong
    return CaptionPicks(picks_of(scores), np.zeros(num, dtype=int))


def test_captions_raise_the_threshold_and_never_lower_it():
    picks = picks_of(drawn(0, right=4.0)[0])
    alone = find_threshold(picks, 0.8)
    assert find_threshold(picks, 0.8, of_captions(1, 4.0, wrong=-9.0)).value == alone.value
    raised = find_threshold(picks, 0.8, of_captions(1, 4.0, wrong=1.0))
    assert raised.value > alone.value
    assert "and the scores of 500 captions with other images" in raised.reason


def test_captions_find_what_the_scores_of_a_pool_cannot_know():
    """The one high image of each text is always a wrong one: without captions nothing tells it from a right one."""
    scores, _ = drawn(0, right=4.0)
    picks = picks_of(scores)
    assert isinstance(find_threshold(picks, 0.8), Threshold)
    captions = CaptionPicks(picks_of(drawn(1, right=4.0, num_texts=500)[0]), np.full(500, 3))
    found = find_threshold(picks, 0.8, captions)
    assert found.reason.endswith("right picks cannot be told from wrong ones")


def test_the_captions_images_say_nothing_of_texts_without_one():
    """Right images are there for one text in a hundred, and for every caption."""
    picks = picks_of(drawn(0, right=4.0, there=0.01, num_texts=5000)[0])
    assert isinstance(find_threshold(picks, 0.5, of_captions(1, 4.0, wrong=0.0)), NoPicks)


def test_of_more_scored_images_a_wrong_one_is_higher():
    """Captions with 8 scored images, and texts with 80: what is seen of the captions counts some eleven times."""
    scores, _ = drawn(0, right=5.0, num_images=80)
    captions, picks = of_captions(1, 5.0, wrong=0.5), picks_of(scores)
    few = Picks(*picks[:3], np.full(1000, 8))
    assert find_threshold(picks, 0.9, captions).value > find_threshold(few, 0.9, captions).value + 0.3
