"""Ours gives what the official code gave: every tensor of every fixture."""

from __future__ import annotations

import math

import official
import official_training
import pytest
import torch
from official import Comparison

COMPARISONS = official.COMPARISONS | official_training.COMPARISONS


@pytest.mark.parametrize("compare", COMPARISONS.values(), ids=COMPARISONS)
def test_ours_is_what_the_official_code_gave(compare):
    comparisons = list(compare())
    assert comparisons
    for comparison in comparisons:
        assert comparison.relative <= comparison.bound, (
            f"{comparison.fixture}, {comparison.part}: {comparison.relative:.1e}"
        )


def test_a_difference_is_counted_over_the_largest_entry_and_nan_is_equal_to_nan_alone():
    official_values = torch.tensor([1.0, -4.0, math.nan])
    comparison = Comparison("", "", torch.tensor([1.0, -3.0, math.nan]), official_values)
    assert (comparison.absolute, comparison.relative) == (1, 0.25)
    assert Comparison("", "", torch.zeros(3), official_values).relative == math.inf
    assert Comparison("", "", torch.zeros(3, 1), torch.zeros(3)).relative == math.inf
    assert Comparison("", "", torch.zeros(3), torch.zeros(3)).relative == 0
