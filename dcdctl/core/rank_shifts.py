"""Where the ranks of two sides differ, query by query.

How far a query is apart is the ratio of its ranks, of their geometric means where a side has several runs: from 40 to 20 is as far as from
2 to 1. Of those equally far apart, the ones nearer to the first place come first.

Shape letter: Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dcdctl.core.comparison import RankTable

Direction = Literal["text", "image"]
DIRECTIONS: tuple[Direction, ...] = ("text", "image")
DECIMALS = 9
"""Of differences of logarithms: further digits are rounding."""


@dataclass(frozen=True)
class Shift:
    """A query whose ranks differ."""

    query: int
    """The image index where the direction is "text", else the caption index."""
    ours: tuple[int, ...]
    """The rank in each of our runs."""
    base: tuple[int, ...]


@dataclass(frozen=True)
class Shifts:
    """How many queries of a direction rank better, worse and equally with us, and the ones furthest apart."""

    num_better: int
    num_equal: int
    num_worse: int
    better: tuple[Shift, ...]
    worse: tuple[Shift, ...]


def find(ours: Sequence[RankTable], base: Sequence[RankTable], direction: Direction, num_queries: int) -> Shifts:
    """The shifts of one direction; `num_queries` of the better and of the worse are named.

    >>> one, other = (RankTable(("a", "b"), np.arange(2), np.arange(2), np.array(ranks), np.ones(2)) for ranks in ([3, 9], [5, 1]))
    >>> find([one], [other], "text", 1).worse
    (Shift(query=1, ours=(9,), base=(1,)),)
    """
    ours_QR, base_QR = (np.column_stack([_ranks(table, direction) for table in tables]) for tables in (ours, base))
    log_ours_Q, log_base_Q = np.log(ours_QR).mean(axis=1), np.log(base_QR).mean(axis=1)
    gain_Q = (log_base_Q - log_ours_Q).round(DECIMALS)
    furthest_Q = np.lexsort([np.minimum(log_ours_Q, log_base_Q), -np.abs(gain_Q)])
    better, worse = furthest_Q[gain_Q[furthest_Q] > 0], furthest_Q[gain_Q[furthest_Q] < 0]
    first_of_each = [
        tuple(Shift(query, tuple(ours_QR[query].tolist()), tuple(base_QR[query].tolist())) for query in queries[:num_queries].tolist())
        for queries in (better, worse)
    ]
    return Shifts(len(better), len(gain_Q) - len(better) - len(worse), len(worse), *first_of_each)


def _ranks(table: RankTable, direction: Direction) -> NDArray[np.int64]:
    return table.text_ranks if direction == "text" else table.image_ranks
