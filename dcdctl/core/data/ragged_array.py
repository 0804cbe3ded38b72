"""The types of arrays, and lists of different lengths in one array."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Indices = NDArray[np.int64]
"""Indices of images or captions, or positions of values; any shape."""
Scores = NDArray[np.float32]
Values = NDArray[np.float64]
"""Numbers that are computed from scores: statistics, weights, shares."""
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class RaggedArray:
    """Lists of whole numbers of different lengths: list i is `values[offsets[i] : offsets[i + 1]]`.

    >>> lists = RaggedArray.from_sorted(np.array([0, 2, 2]), np.array([7, 5, 8]), count=3)
    >>> [lists[i].tolist() for i in range(len(lists))], lists.offsets.tolist()
    ([[7], [], [5, 8]], [0, 1, 1, 3])
    """

    offsets: Indices
    """One more than there are lists; the last is the number of values."""
    values: Indices

    def __getitem__(self, i: int) -> Indices:
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Indices:
        """Number of values of each list."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> Indices:
        """The number of the list that each value is in."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @staticmethod
    def empty(count: int) -> RaggedArray:
        """`count` lists without values."""
        return RaggedArray(np.zeros(count + 1, dtype=np.int64), np.empty(0, dtype=np.int64))

    @staticmethod
    def from_sorted(rows: NDArray[Any], values: Indices, count: int) -> RaggedArray:
        """`count` lists from values in the order of their lists: value j is in list `rows[j]`, and `rows` ascends."""
        return RaggedArray(offsets_of(np.bincount(rows, minlength=count)), values)

    @staticmethod
    def from_pairs(rows: Indices, values: Indices, count: int) -> RaggedArray:
        """`count` lists from pairs in any order: the values of a list ascend, each once."""
        pairs = np.unique(np.stack([rows, values], axis=1), axis=0)
        # A copy, because a column is a strided view that keeps both columns in memory.
        return RaggedArray(np.searchsorted(pairs[:, 0], np.arange(count + 1)).astype(np.int64), pairs[:, 1].copy())


def offsets_of(lengths: ArrayLike) -> Indices:
    """Where each of consecutive lists begins, and at last the sum of their lengths.

    >>> offsets_of([2, 0, 3])
    array([0, 2, 2, 5])
    """
    # int64 explicitly, because the cumulative sum of an empty list is float64.
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
