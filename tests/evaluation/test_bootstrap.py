"""Signs and corrections against plain loops; the draws of the bootstrap are tested where they are used
(test_comparison.py)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcdctl.core.evaluation import bootstrap
from dcdctl.core.evaluation.bootstrap import holm, sign_flip_test

p_values = st.lists(st.floats(0, 1), min_size=1, max_size=6)


@given(st.lists(st.integers(-3, 3), max_size=9))
def test_all_patterns_of_signs_are_counted_and_zeros_change_nothing(differences):
    sums = [
        sum(sign * value for sign, value in zip(signs, differences, strict=True))
        for signs in signs_of(len(differences))
    ]
    expected = np.mean([abs(flipped) >= abs(sum(differences)) for flipped in sums])
    assert sign_flip_test(np.array(differences, dtype=float), flips=1, seed=0) == (pytest.approx(expected), True)


def signs_of(count):
    return itertools.product([-1, 1], repeat=count)


def test_drawn_signs_agree_with_all_of_them(monkeypatch):
    rng = np.random.default_rng(3)
    for _ in range(20):
        differences = rng.integers(-3, 5, 14).astype(float)
        exact = sign_flip_test(differences, flips=20_000, seed=0)
        with monkeypatch.context() as patch:
            patch.setattr(bootstrap, "MAX_EXACT_IMAGES", 0)
            drawn = sign_flip_test(differences, flips=20_000, seed=0)
        assert (exact[1], drawn[1]) == (True, False)
        # 20,000 draws: a standard error of at most 0.0036
        assert drawn[0] == pytest.approx(exact[0], abs=4 * 0.0036)


@pytest.mark.parametrize(("num_images", "is_exact"), [(16, True), (17, False)])
def test_signs_are_drawn_where_more_than_sixteen_images_differ(num_images, is_exact):
    assert sign_flip_test(np.r_[np.ones(num_images), np.zeros(50)], flips=100, seed=0)[1] == is_exact


def test_the_observed_signs_are_one_of_the_draws():
    # No draw of 99 comes near 60 equal signs: what is left is the observed pattern.
    assert sign_flip_test(np.ones(60), flips=99, seed=0)[0] == 1 / 100


def test_a_draw_as_far_as_the_observed_counts():
    # Seventeen ones and minus ones, one more of these: every odd sum is at least as far from zero as the observed.
    assert sign_flip_test(np.array([1.0, -1.0] * 8 + [1.0]), flips=99, seed=0)[0] == 1


def test_the_size_of_blocks_changes_nothing_but_the_seed_does(monkeypatch):
    differences = np.random.default_rng(0).integers(-3, 4, 100).astype(float)
    whole, other = (sign_flip_test(differences, flips=999, seed=seed) for seed in (0, 1))
    monkeypatch.setattr(bootstrap, "BLOCK_IMAGES", 300)
    assert sign_flip_test(differences, flips=999, seed=0) == whole != other


@given(p_values)
def test_holm_is_the_closure_of_bonferroni(values):
    tests = range(len(values))
    sets = [some for size in range(1, len(values) + 1) for some in itertools.combinations(tests, size)]
    expected = [
        max(min(1, len(some) * min(values[i] for i in some)) for some in sets if test in some) for test in tests
    ]
    assert holm(values) == pytest.approx(expected)
