"""Chance, made by computer: bootstrap draws of images, random signs, and p-values of several tests at once.

Shape letters: I images; R draws, B those of a block; C columns; P patterns of signs; W words of 64 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_IMAGES = 1 << 16
"""Images drawn at a time, over all draws of a block: few enough for a processor's cache."""
MAX_EXACT_IMAGES = 16
"""With no more images that differ than this, all patterns of signs are counted instead of some being drawn."""
_SIGN_STREAM = 1
"""Signs come from a stream of random numbers of their own, beside that of the bootstrap."""


@dataclass(frozen=True)
class SignFlip:
    """The outcome of a sign-flip test."""

    p_value: float
    """Two-sided."""
    is_exact: bool
    """Whether all patterns of signs were counted."""


def bootstrap_sums(values_IC: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """(R, C): the sums of the columns over each draw of as many images as there are, with replacement."""
    rng, num_images, sums = np.random.default_rng(seed), len(values_IC), []
    for size in _blocks(resamples, num_images):
        image_BI = rng.integers(num_images, size=(size, num_images)) + num_images * np.arange(size)[:, None]
        # Counting draws gives multinomial numbers ten times faster than drawing such numbers.
        times_BI = np.bincount(image_BI.ravel(), minlength=image_BI.size).reshape(image_BI.shape)
        sums.append(times_BI.astype(np.float64) @ values_IC)
    return np.concatenate(sums)


def sign_flip_test(difference_I: NDArray[np.float64], flips: int, seed: int) -> SignFlip:
    """How often the sum of the differences would be as far from zero as it is, if each had its sign by chance.

    The share of all patterns of signs, the observed one among them; where they are too many to count, of `flips` drawn ones and the
    observed one. A tie counts as far enough, so differences should be whole numbers, whose sums are equal to the bit.

    >>> sign_flip_test(np.array([3.0, 2.0, 0.0, -1.0]), flips=100, seed=0)  # 4 or more: 3 + 2 - 1, 3 + 2 + 1 and both negated, of 8
    SignFlip(p_value=0.5, is_exact=True)
    """
    odd_I = difference_I[difference_I != 0]  # the sign of a zero changes nothing
    bar = abs(odd_I.sum())
    if len(odd_I) <= MAX_EXACT_IMAGES:
        patterns_PI = np.arange(1 << len(odd_I))[:, None] >> np.arange(len(odd_I)) & 1
        return SignFlip(float(np.mean(np.abs(_signed_sums(patterns_PI, odd_I)) >= bar)), is_exact=True)
    rng, num_as_far = np.random.default_rng((seed, _SIGN_STREAM)), 1
    for size in _blocks(flips, len(odd_I)):
        words_BW = rng.integers(1 << 64, size=(size, -(-len(odd_I) // 64)), dtype=np.uint64)
        bits_BI = np.unpackbits(words_BW.view(np.uint8), axis=1, count=len(odd_I))
        num_as_far += int(np.count_nonzero(np.abs(_signed_sums(bits_BI, odd_I)) >= bar))
    return SignFlip(num_as_far / (flips + 1), is_exact=False)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values for tests made together: compared with a level, they err in any of them no more often than it says (Holm 1979).

    The smallest is multiplied by the number of tests, the next by one less, and so on; none falls below one before it, or exceeds 1.

    >>> holm([0.04, 0.01, 0.03])
    [0.06, 0.03, 0.06]
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, test in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[test]))
        adjusted[test] = largest
    return adjusted


def _signed_sums(is_plus_BI: NDArray[Any], difference_I: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B,): the sums with a plus where it is set, else a minus."""
    return 2 * (is_plus_BI.astype(np.float64) @ difference_I) - difference_I.sum()


def _blocks(count: int, num_images: int) -> Iterator[int]:
    """Sizes of blocks that add up to `count`."""
    if count < 1:
        raise ValueError(f"{count} draws, at least one is wanted")
    size = max(1, BLOCK_IMAGES // num_images)
    for start in range(0, count, size):
        yield min(size, count - start)
