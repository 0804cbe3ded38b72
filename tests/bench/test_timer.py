"""Timing rounds and intervals, worked out by hand on a fake clock."""

from __future__ import annotations

import numpy as np
import pytest
from bench_fakes import Clock

from dcdctl.core.bench import BenchConfig
from dcdctl.core.bench.timer import Quantity, Repeats, Timer


def timer(clock: Clock, **settings) -> Timer:
    config = BenchConfig(**{"num_repeats": 30, "budget_s": 10, "min_rounds": 1, **settings})
    return Timer(config=config, clock=clock)


def test_repeats_stay_within_the_budget_after_the_minimum_of_rounds():
    clock = Clock()
    slow = {"a": lambda number: clock.spend(400)}
    assert timer(clock, budget_s=1).time_in_turn(slow)["a"].seconds_NK.ravel() == pytest.approx([0.4, 0.4])
    assert timer(clock, budget_s=1, min_rounds=3).time_in_turn(slow)["a"].num_repeats == 3


def test_models_alternate_and_the_fast_one_repeats_more_often_in_each_round():
    clock, order = Clock(), []

    def work(name, milliseconds):
        def run(number):
            order.append((number, name))
            clock.spend(milliseconds)

        return run

    samples = timer(clock, num_warmup=1, budget_s=1, num_repeats=6).time_in_turn(
        {"slow": work("slow", 500), "fast": work("fast", 10)}
    )
    assert sorted(order[2:6]) == [*[(0, "fast")] * 3, (0, "slow")]
    assert sorted(order[6:]) == [*[(1, "fast")] * 3, (1, "slow")]
    assert samples["slow"].seconds_NK.shape == (2, 1)
    assert samples["fast"].seconds_NK.shape == (2, 3)


def test_resampling_draws_the_same_rounds_for_all_models():
    """The second of two rounds is five times as slow for both models. Their ratio is 4 in every draw, while their times
    differ."""
    draws_RN = np.array([[0, 0], [0, 1], [1, 1]])
    ours, theirs = Repeats(np.array([[4.0], [20.0]]), draws_RN), Repeats(np.array([[1.0], [5.0]]), draws_RN)
    assert ours.median.draws_R == pytest.approx([4, 12, 20])
    assert (ours.median / theirs.median).draws_R == pytest.approx([4, 4, 4])


def test_a_percentile_covers_all_repeats_of_the_drawn_rounds():
    sample = Repeats(np.array([[1.0, 2.0], [3.0, 5.0]]), np.array([[1, 1]]))
    assert sample.percentile(100).value == 5
    assert sample.percentile(0).value == 1
    assert sample.percentile(0).draws_R == pytest.approx([3])


def test_an_interval_is_the_middle_95_percent_of_the_draws():
    assert Quantity(0.0, np.arange(1001.0)).interval == pytest.approx((25, 975))


def test_arithmetic_on_quantities_applies_to_each_draw():
    two, five = Quantity(2.0, np.array([1.0, 3.0])), Quantity(5.0, np.array([5.0, 6.0]))
    assert ((two + five).value, *(two + five).draws_R) == (7, 6, 9)
    assert (two * 10 / five).draws_R == pytest.approx([2, 5])
    excess = two.excess_over(Quantity(2.0, np.array([2.0, 1.0])))
    assert (excess.value, *excess.draws_R) == (0, 0, 2)
