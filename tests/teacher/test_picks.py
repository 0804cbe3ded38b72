"""The picks of a teacher, and the threshold above which they are right as often as asked."""

from __future__ import annotations

import numpy as np
import pytest

from dcdctl.core.teacher.picks import Picks, better_half, threshold_by_captions, threshold_by_modes, two_modes


def test_picks_above_a_threshold_exclude_it():
    picks = Picks(np.array([3, 1, 2]), np.array([0.5, 1.0, -np.inf]))
    assert picks.above(0.5).tolist() == [-1, 1, -1]
    assert picks.above(-1e9).tolist() == [3, 1, -1]


def mixture(*, apart: float, share: float, count: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Scores of right and of wrong picks, two normal distributions of deviation 1, and which are right."""
    rng = np.random.default_rng(0)
    is_right = rng.random(count) < share
    return rng.normal(is_right * apart, 1.0), is_right


@pytest.mark.parametrize("precision", [0.8, 0.9, 0.95])
@pytest.mark.parametrize(("apart", "share"), [(4, 0.5), (4, 0.2), (5, 0.9), (9, 0.5)])
def test_two_modes_give_the_precision_that_is_asked(apart, share, precision):
    scores, is_right = mixture(apart=apart, share=share)
    found = threshold_by_modes(scores, precision)
    kept = scores > found.value
    # More where all picks together are right more often.
    assert is_right[kept].mean() == pytest.approx(max(precision, share), abs=0.02)
    assert found.precision == pytest.approx(is_right[kept].mean(), abs=0.02)
    # No right pick is given away that costs nothing.
    assert (is_right & kept).sum() >= 0.85 * is_right.sum()


def test_one_mode_is_none_and_the_better_half_is_half_of_the_picks():
    scores, _ = mixture(apart=0.0, share=0.5)
    assert threshold_by_modes(scores, 0.9) is None
    found = better_half(scores, "nothing is known")
    assert (scores > found.value).mean() == pytest.approx(0.5, abs=0.01)
    assert found.precision is None
    assert str(found).endswith(", the better half, because nothing is known")
    assert two_modes(np.full(100, 3.0)) is None
    assert two_modes(np.array([0.0, 1.0])) is None


def test_the_modes_are_found_where_they_are():
    scores, _ = mixture(apart=6.0, share=0.3)
    found = two_modes(scores)
    assert found is not None
    assert found.means == pytest.approx((0.0, 6.0), abs=0.1)
    assert found.stds == pytest.approx((1.0, 1.0), abs=0.1)
    assert found.weights == pytest.approx((0.7, 0.3), abs=0.02)


def test_a_wide_lower_mode_takes_no_score_above_the_upper_one():
    """Far outside, the wider of two normal distributions is the likelier one on both sides."""
    rng = np.random.default_rng(1)
    scores = np.concatenate([rng.normal(0, 4, 2000), rng.normal(12, 0.5, 2000), [25.0]])
    found = threshold_by_modes(scores, 0.9)
    modes = two_modes(scores)
    assert modes is not None
    assert modes.share_of_upper(np.array([12.0, 25.0])).min() > 0.9
    assert 0 < found.value < 12


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
