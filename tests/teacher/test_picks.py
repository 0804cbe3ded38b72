"""The picks of a teacher, and the threshold above which they are right as often as asked."""

from __future__ import annotations

import numpy as np
import pytest

from dcdctl.core.teacher.picks import Picks, better_half, threshold_by_captions, threshold_by_runners_up


def test_picks_above_a_threshold_exclude_it():
    picks = Picks(np.array([3, 1, 2]), np.array([0.5, 1.0, -np.inf]), np.full(3, -np.inf))
    assert picks.above(0.5).tolist() == [-1, 1, -1]
    assert picks.above(-1e9).tolist() == [3, 1, -1]


def mixture(*, apart: float, share: float, count: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Scores of right and of wrong picks, two normal distributions of deviation 1, and which are right."""
    rng = np.random.default_rng(0)
    is_right = rng.random(count) < share
    return rng.normal(is_right * apart, 1.0), is_right


@pytest.mark.parametrize("precision", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_picks_above_the_threshold_of_the_runners_up_are_right_at_least_as_often_as_asked(share, precision):
    """Scores of one fitting image for some of the texts, among others that do not fit."""
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 1, (4000, 20))
    scores[rng.random(4000) < share, 0] += 6
    order = np.argsort(-scores, axis=1)
    best, second = np.take_along_axis(scores, order, axis=1)[:, :2].T
    found = threshold_by_runners_up(Picks(order[:, 0], best, second), precision)
    kept = best > found.value
    assert precision <= found.precision <= (order[kept, 0] == 0).mean() + 0.04
    assert kept.mean() > 0.8 * share
    # The next lower pick would be one too many.
    lower = np.sort(best[~kept])[::-1]
    for number in range(1, len(lower), 50):
        num_best, num_second = (best >= lower[number]).sum(), (second >= lower[number]).sum()
        assert 1 - max(num_second, (4000 - num_best) / num_best * num_second) / num_best < precision


def test_equal_runners_up_say_nothing():
    found = threshold_by_runners_up(Picks(np.arange(3), np.ones(3), np.ones(3)), 0.5)
    assert (found.value, found.precision) == (1.0, None)
    assert "too few are expected to be right" in str(found)
    # A text with one scored image has no runner-up.
    alone = threshold_by_runners_up(Picks(np.arange(3), np.array([3.0, 2.0, 1.0]), np.full(3, -np.inf)), 1.0)
    assert alone.precision == 1.0
    assert alone.value < 1.0


def test_the_better_half_is_half_of_the_picks():
    scores = np.random.default_rng(0).normal(size=1000)
    found = better_half(scores, "nothing is known")
    assert (scores > found.value).mean() == pytest.approx(0.5, abs=0.01)
    assert found.precision is None
    assert str(found).endswith(", the better half, because nothing is known")


@pytest.mark.parametrize("precision", [0.6, 0.9, 1.0])
def test_captions_choose_the_lowest_threshold_with_the_precision_and_others_measure_it(precision):
    scores, is_right = mixture(apart=2.0, share=0.5)
    found = threshold_by_captions(scores, is_right, precision)
    kept = scores > found.value
    assert found.precision == pytest.approx(is_right[1::2][kept[1::2]].mean())
    assert is_right[::2][kept[::2]].mean() >= precision
    # The next lower caption of the first half would be one too many, or wrong ones follow.
    lower = np.sort(scores[::2][~kept[::2]])[::-1]
    for number in range(1, len(lower), 50):
        assert is_right[::2][scores[::2] >= lower[number]].mean() < precision


def test_captions_that_are_never_right_leave_no_pick():
    scores = np.arange(50.0)
    found = threshold_by_captions(scores, np.zeros(50, dtype=bool), 0.9)
    assert not (scores[::2] > found.value).any()
    assert "above" in str(found)
