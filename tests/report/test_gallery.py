"""The queries that a report shows."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcdctl.core.progress import silent
from dcdctl.core.report import charts, gallery
from dcdctl.core.report.gallery import choose, count_wins


def ranks(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_the_largest_win_and_the_largest_loss_come_first():
    ours, base = ranks(1, 8, 3, 100, 5, 2), ranks(1, 2, 9, 50, 5, 40)
    # Wins by ratio: query 5 (20-fold), query 2 (3-fold); losses: query 1 (4-fold), query 3 (2-fold).
    assert choose([ours, base], [(0, 1)], 6)[:4] == [5, 1, 2, 3]


def test_a_small_win_comes_before_a_larger_loss_and_equal_ranks_are_neither():
    ours, base = ranks(10, 4, 6, 7), ranks(11, 2, 3, 7)
    assert choose([ours, base], [(0, 1)], 4)[0] == 0
    assert {*choose([ours, base], [(0, 1)], 4)[:3]} == {0, 1, 2}


def test_pairs_are_chosen_from_in_turn():
    base, first, second = (
        ranks(9, 9, 9, 9, 9, 9, 9, 9, 9),
        ranks(1, 2, 3, 9, 9, 9, 9, 9, 9),
        ranks(9, 9, 9, 1, 2, 3, 9, 9, 9),
    )
    assert choose([first, second, base], [(0, 2), (1, 2)], 6)[:4] == [0, 3, 1, 4]


def test_a_third_is_drawn_at_random_and_depends_on_the_seed():
    rng = np.random.default_rng(1)
    ours, base = (rng.integers(1, 200, 500) for _ in range(2))
    one, other, again = (choose([ours, base], [(0, 1)], 30, seed) for seed in (0, 1, 0))
    assert one == again
    assert len(one) == len(set(one)) == 30
    assert set(one[:20]) == set(other[:20])
    assert set(one[20:]) != set(other[20:])


def test_without_differences_all_queries_are_drawn_at_random():
    same = ranks(*range(1, 51))
    assert len(choose([same], [(0, 0)], 12)) == 12


@given(seed=st.integers(0, 1000), num_queries=st.integers(1, 30), count=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_the_requested_number_of_queries_or_all_are_chosen_once_each(seed, num_queries, count):
    rng = np.random.default_rng(seed)
    tables = [rng.integers(1, 9, num_queries) for _ in range(3)]
    found = choose(tables, [(0, 2), (1, 2)], count)
    assert len(found) == min(count, num_queries)
    assert len(set(found)) == len(found)
    assert set(found) <= set(range(num_queries))


@given(seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_wins_of_a_swapped_pair_are_swapped(seed):
    rng = np.random.default_rng(seed)
    ours, base = (rng.integers(1, 5, 40) for _ in range(2))
    one, other = count_wins(ours, base), count_wins(base, ours)
    assert one == {**other, "wins": other["losses"], "losses": other["wins"]}


@pytest.mark.parametrize(
    ("labels", "first"),
    [
        (("teacher", "dual", "fusion", "dual-alone"), ("dual", "dual-alone")),
        (("teacher", "fusion"), ("fusion", "teacher")),
        (("dual", "fusion"), ("dual", "fusion")),
        (("dual",), ()),
    ],
    ids=["with the baseline", "with the teacher", "with the last", "alone"],
)
def test_a_student_is_at_first_compared_with_the_baseline_else_with_the_teacher(found, labels, first):
    models = tuple(model for model in found.models if model.label in labels)
    alone = replace(found, models=models, corpus=None)
    page = gallery.make_gallery(alone, charts.colors(alone), silent)
    assert tuple(re.findall(r"<option[^>]* selected[^>]*>([^<]*)<", page)) == first
