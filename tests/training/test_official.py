"""Ours gives what the official code gave: every tensor of every fixture."""

from __future__ import annotations

import official
import official_training
import pytest

COMPARISONS = official.COMPARISONS | official_training.COMPARISONS


@pytest.mark.parametrize("compare", COMPARISONS.values(), ids=COMPARISONS)
def test_ours_is_what_the_official_code_gave(compare):
    comparisons = list(compare())
    assert comparisons
    for comparison in comparisons:
        assert comparison.relative <= comparison.bound, (
            f"{comparison.fixture}, {comparison.part}: {comparison.relative:.1e}"
        )
