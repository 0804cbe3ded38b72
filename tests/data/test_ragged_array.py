"""Lists of different lengths in one array."""

from __future__ import annotations

import numpy as np

from dcdctl.core.data import RaggedArray


def as_lists(ragged: RaggedArray) -> list[list[int]]:
    return [ragged[i].tolist() for i in range(len(ragged))]


def test_lists_from_pairs_ascend_and_hold_each_value_once():
    assert as_lists(RaggedArray.from_pairs(np.array([2, 0, 2, 2]), np.array([5, 1, 3, 5]), 4)) == [[1], [], [3, 5], []]


def test_lists_from_sorted_values_keep_the_order_and_the_repeats():
    assert as_lists(RaggedArray.from_sorted(np.array([0, 2, 2, 2]), np.array([1, 5, 3, 5]), 4)) == [
        [1],
        [],
        [5, 3, 5],
        [],
    ]


def test_rows_and_lengths_say_where_each_value_is():
    ragged = RaggedArray.from_sorted(np.array([0, 2, 2]), np.array([7, 8, 9]), 4)
    assert (ragged.rows.tolist(), ragged.lengths.tolist()) == ([0, 2, 2], [1, 0, 2, 0])


def test_empty_lists_have_no_values():
    assert as_lists(RaggedArray.empty(3)) == [[], [], []]
    assert as_lists(RaggedArray.empty(0)) == []
