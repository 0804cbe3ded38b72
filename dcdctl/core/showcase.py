"""Which queries a report shows, and how two models fare on all of them.

Q queries of a direction. A model wins a query where it ranks the best positive higher than the other does; it hits where that comes first.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RANDOM_SHARE = 1 / 3
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Numbers of queries, of one model against another."""

    wins: int
    losses: int
    both_hit: int
    both_miss: int


def outcome(ours_Q: NDArray[np.int64], base_Q: NDArray[np.int64]) -> Outcome:
    """Compare ranks, from 1.

    >>> outcome(np.array([1, 1, 4, 9]), np.array([1, 3, 4, 2]))
    Outcome(wins=1, losses=1, both_hit=1, both_miss=2)
    """
    return Outcome(
        wins=int((ours_Q < base_Q).sum()),
        losses=int((ours_Q > base_Q).sum()),
        both_hit=int(((ours_Q == 1) & (base_Q == 1)).sum()),
        both_miss=int(((ours_Q > 1) & (base_Q > 1)).sum()),
    )


def choose(ranks: Sequence[NDArray[np.int64]], pairs: Sequence[tuple[int, int]], count: int, seed: int = SEED) -> list[int]:
    """Queries worth a look, most telling first: the largest wins and losses of each pair in turns, then a third drawn at random.

    `ranks` has an array (Q,) for each model, and a pair is two places in it. A win is as large as the ratio of the ranks: from the tenth
    place to the first is more than from the hundredth to the fiftieth. All queries where there are no more than `count`.
    """
    order_Q = np.random.default_rng(seed).permutation(len(ranks[0]))
    chosen: dict[int, None] = {}
    turns = [side for ours, base in pairs for side in _extremes(np.log(ranks[ours] / ranks[base]), order_Q)]
    telling = (query for turn in itertools.zip_longest(*turns) for query in turn if query is not None)
    for limit, queries in ((round(count * (1 - RANDOM_SHARE)), telling), (count, order_Q.tolist())):
        for query in queries:
            if len(chosen) >= limit:
                break
            chosen.setdefault(query)
    return list(chosen)


def _extremes(gain_Q: NDArray[np.float64], order_Q: NDArray[np.int64]) -> tuple[list[int], list[int]]:
    """Queries with a gain below zero, lowest first, and those with one above, highest first; equal ones in the order given."""
    by_gain = order_Q[np.argsort(gain_Q[order_Q], kind="stable")]
    by_loss = order_Q[np.argsort(-gain_Q[order_Q], kind="stable")]
    return by_gain[gain_Q[by_gain] < 0].tolist(), by_loss[gain_Q[by_loss] > 0].tolist()
