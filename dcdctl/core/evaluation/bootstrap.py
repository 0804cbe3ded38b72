"""Tests: bootstrap draws of images, the sign-flip test, the t-test over runs, and p-values of several tests.

Shape letters: I images; R draws, B draws of a block; C columns; P patterns of signs; W words of 64 bits.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcdctl.core.data import Values

BLOCK_IMAGES = 1 << 16
"""Images drawn at a time, over all draws of a block: few enough for a processor's cache."""
MAX_EXACT_IMAGES = 16
"""Up to this many images that differ, all 65,536 patterns of signs are counted; beyond that, patterns are drawn."""
_SIGN_STREAM = 1
"""Stream of the random signs, so that they do not depend on the bootstrap's draws with the same seed."""
ALPHA = 0.05
"""A p-value above it shows no difference."""
MIN_RUNS = 3
"""Fewest runs per system for a claim about its method."""


def bootstrap_sums(values_IC: Values, resamples: int, seed: int) -> Values:
    """(R, C): the sums of the columns over each draw of I images with replacement."""
    rng, num_images, sums = np.random.default_rng(seed), len(values_IC), []
    for size in _blocks(resamples, num_images):
        # Each draw counts in a range of its own, so one bincount serves the whole block.
        image_BI = rng.integers(num_images, size=(size, num_images)) + num_images * np.arange(size)[:, None]
        # Drawing indices and counting them gives multinomial counts ten times faster than drawing the counts.
        counts_BI = np.bincount(image_BI.ravel(), minlength=image_BI.size).reshape(image_BI.shape)
        # float64 has a fast matrix product, and its sums of whole numbers are exact.
        sums.append(counts_BI.astype(np.float64) @ values_IC)
    return np.concatenate(sums)


def sign_flip_test(difference_I: Values, flips: int, seed: int) -> tuple[float, bool]:
    """How often the sum of the differences would be at least as far from zero if each had a random sign: a two-sided
    p-value, and whether it is exact, by all patterns of signs.

    The p-value is the share of all patterns of signs, the observed one included. If there are too many, it is the share
    among `flips` drawn patterns and the observed one. An equal sum counts, so differences should be whole numbers,
    whose sums are exact.

    >>> # of 8: 3 + 2 - 1, 3 + 2 + 1, and the negatives of both
    >>> sign_flip_test(np.array([3.0, 2.0, 0.0, -1.0]), flips=100, seed=0)
    (0.5, True)
    """
    nonzero_I = difference_I[difference_I != 0]  # the sign of a zero changes nothing
    observed = abs(nonzero_I.sum())
    if len(nonzero_I) <= MAX_EXACT_IMAGES:
        patterns_PI = np.arange(1 << len(nonzero_I))[:, None] >> np.arange(len(nonzero_I)) & 1
        return float(np.mean(np.abs(_signed_sums(patterns_PI, nonzero_I)) >= observed)), True
    # The observed pattern counts as one of the drawn ones, so that no p-value is 0.
    rng, num_as_far = np.random.default_rng((seed, _SIGN_STREAM)), 1
    for size in _blocks(flips, len(nonzero_I)):
        words_BW = rng.integers(1 << 64, size=(size, -(-len(nonzero_I) // 64)), dtype=np.uint64)
        bits_BI = np.unpackbits(words_BW.view(np.uint8), axis=1, count=len(nonzero_I))
        num_as_far += int(np.count_nonzero(np.abs(_signed_sums(bits_BI, nonzero_I)) >= observed))
    return num_as_far / (flips + 1), False


def welch_test(ours: Sequence[float], base: Sequence[float]) -> float:
    """Two-sided p-value for no difference between the means of two systems, from a number per run (Welch 1947,
    Biometrika 34).

    t is the difference of the means over the root of the sum of s^2 / n, of a t distribution with (sum of s^2 / n)^2 /
    (sum of (s^2 / n)^2 / (n - 1)) degrees of freedom. The spreads of the systems may differ.

    >>> round(welch_test([1.0, 2.0, 3.0], [3.0, 4.0, 5.0]), 4)  # t = -2.449, 4 degrees of freedom
    0.0705
    """
    difference = statistics.fmean(ours) - statistics.fmean(base)
    sides = [(statistics.variance(side), len(side)) for side in (ours, base)]
    total = sum(variance / count for variance, count in sides)
    if not total:
        return float(not difference)
    freedom = total**2 / sum((variance / count) ** 2 / (count - 1) for variance, count in sides)
    # NumPy has no t distribution. With t = sqrt(f) / tan(u^2), its tail is an integral of a power of the sine; the
    # square keeps the integrand smooth at 0 where f is below 2.
    angle = math.atan2(math.sqrt(freedom * total), abs(difference))
    u, step = np.linspace(0, math.sqrt(angle), 2001, retstep=True)
    scale = 2 / math.sqrt(math.pi) * math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2))
    return min(1.0, scale * float(np.trapezoid(2 * u * np.sin(u**2) ** (freedom - 1), dx=step)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of several tests (Holm 1979): below a level, any of them is wrong no more often than the level
    says.

    The smallest is multiplied by the number of tests, the next by one less, and so on. None falls below a smaller one,
    or exceeds 1.

    >>> holm([0.04, 0.01, 0.03])
    [0.06, 0.03, 0.06]
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, test in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[test]))
        adjusted[test] = largest
    return adjusted


def _signed_sums(is_plus_BI: NDArray[Any], difference_I: Values) -> Values:
    """(B,): the sums of the differences, with a plus where it is set and a minus elsewhere."""
    return 2 * (is_plus_BI.astype(np.float64) @ difference_I) - difference_I.sum()


def _blocks(count: int, num_images: int) -> Iterator[int]:
    """Sizes of blocks that add up to `count`."""
    size = max(1, BLOCK_IMAGES // num_images)
    for start in range(0, count, size):
        yield min(size, count - start)
