"""Queries by how far apart their ranks are, against a plain loop and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcdctl.core.evaluation import RankShift, RankTable, compare


def table(text_ranks, image_ranks) -> RankTable:
    ids = tuple(f"i{image}" for image in range(len(text_ranks)))
    owner = np.arange(len(image_ranks)) % len(ids)
    return RankTable(ids, np.arange(len(owner)), owner, np.array(text_ranks), np.array(image_ranks))


def test_the_furthest_apart_come_first_and_the_nearer_to_the_top_of_equals():
    # From the base to ours: 100 to 1; 8 to 2 and 40 to 10, both a quarter; unchanged; 1 to 3; 50 to 500.
    ours, base = table([10, 1, 2, 7, 3, 500], [1]), table([40, 100, 8, 7, 1, 50], [1])
    shifts = compare.find_rank_shifts([ours], [base], "text", 5)
    assert (shifts.num_better, shifts.num_equal, shifts.num_worse) == (3, 1, 2)
    assert shifts.better == (RankShift(1, (1,), (100,)), RankShift(2, (2,), (8,)), RankShift(0, (10,), (40,)))
    assert shifts.worse == (RankShift(5, (500,), (50,)), RankShift(4, (3,), (1,)))
    assert compare.find_rank_shifts([ours], [base], "text", 1).better == shifts.better[:1]


def test_runs_count_by_the_geometric_mean_of_their_ranks():
    # Query 0: 2 and 8 are 4 on average, as in the base. Query 1: 1 and 9 are 3, better than 4.
    ours, base = [table([1], [2, 1]), table([1], [8, 9])], [table([1], [4, 4])]
    shifts = compare.find_rank_shifts(ours, base, "image", 9)
    assert (shifts.num_better, shifts.num_equal, shifts.num_worse) == (1, 1, 0)
    assert shifts.better == (RankShift(1, (1, 9), (4,)),)


ranks = st.lists(st.integers(1, 30), min_size=7, max_size=7)


@given(
    ours=st.lists(ranks, min_size=1, max_size=3),
    base=st.lists(ranks, min_size=1, max_size=3),
    direction=st.sampled_from(["text", "image"]),
)
@settings(max_examples=50, deadline=None)
def test_shifts_equal_a_loop_and_swapping_the_sides_swaps_them(ours, base, direction):
    mine, theirs = ([table(some, some[::-1]) for some in side] for side in (ours, base))
    shifts, other = (
        compare.find_rank_shifts(mine, theirs, direction, 7),
        compare.find_rank_shifts(theirs, mine, direction, 7),
    )
    order = 1 if direction == "text" else -1
    gains = [
        math.log(math.prod(some[::order][query] for some in base)) / len(base)
        - math.log(math.prod(some[::order][query] for some in ours)) / len(ours)
        for query in range(7)
    ]
    assert {shift.query for shift in shifts.better} == {query for query, gain in enumerate(gains) if gain > 1e-9}
    assert [gains[shift.query] for shift in shifts.worse] == pytest.approx(
        sorted(gain for gain in gains if gain < -1e-9)
    )
    assert [(shift.query, shift.ours, shift.base) for shift in shifts.better] == [
        (shift.query, shift.base, shift.ours) for shift in other.worse
    ]
    assert shifts.num_better + shifts.num_equal + shifts.num_worse == 7
