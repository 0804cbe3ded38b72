"""Recall@K, RSUM, mAP@R, median and mean rank of a ranking. docs/metrics.md works out each number by hand on two
images.

`evaluation.ranks` defines what a rank is and how ties count.

Shape letters: Q queries; R positives of the query that has most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dcdctl.core.data import Direction, Index, Values
from dcdctl.core.evaluation.ranking import NO_POSITION, Ranking, Rankings

KS = (1, 5, 10)
"""The K of Recall@K that papers on image-text retrieval report."""
RECALL_NAMES = tuple(f"R@{k}" for k in KS)


def rsum(text_retrieval: Mapping[str, float], image_retrieval: Mapping[str, float]) -> float:
    """Sum of R@1, R@5 and R@10 of both directions, at most 600."""
    return sum(text_retrieval[name] for name in RECALL_NAMES) + sum(image_retrieval[name] for name in RECALL_NAMES)


def on_front(rsums: Sequence[float], times_ms: Sequence[float]) -> list[bool]:
    """Whether each system is on the Pareto front: no other is at least as good and as fast, and better or faster.

    >>> on_front([300.0, 400.0, 390.0], [1.0, 2.0, 3.0])
    [True, True, False]
    """
    points = list(zip(rsums, times_ms, strict=True))
    return [
        not any(other >= rsum and faster <= ms and (other, faster) != (rsum, ms) for other, faster in points)
        for rsum, ms in points
    ]


def recall_at_k(ranks: Index | Sequence[int]) -> dict[str, float]:
    """Recall@K for each of `KS`: the percentage of queries whose best positive has a rank of at most K.

    >>> recall_at_k([1, 2, 7, 30])
    {'R@1': 25.0, 'R@5': 50.0, 'R@10': 75.0}
    """
    return {f"R@{k}": 100 * int(np.count_nonzero(np.asarray(ranks) <= k)) / len(ranks) for k in KS}


def average_precision_at_r(positions_QR: Index) -> Values:
    """AP@R of each query, in [0, 1] (Musgrave et al. 2020).

    R is the number of positives of the query. AP@R sums, over the positives among the first R candidates, the share of
    positives up to that position, and divides by R.

    >>> average_precision_at_r(np.array([[1, 3, 4], [2, 9, NO_POSITION]])).round(4)
    array([0.5556, 0.25  ])
    """
    # NO_POSITION is beyond every R: absent positives add nothing to the sum.
    num_positives_Q = np.count_nonzero(positions_QR != NO_POSITION, axis=1)
    precision_QR = np.arange(1, positions_QR.shape[1] + 1) / positions_QR
    return np.where(positions_QR <= num_positives_Q[:, None], precision_QR, 0.0).sum(axis=1) / num_positives_Q


def measures(ranking: Ranking) -> dict[str, float]:
    """Recall@K and mAP@R in percent, and the median and the mean rank."""
    return recall_at_k(ranking.ranks) | {
        "mAP@R": 100 * float(average_precision_at_r(ranking.positions_QR).mean()),
        "median_rank": float(np.median(ranking.ranks)),
        "mean_rank": float(ranking.ranks.mean()),
    }


def mean_measures(folds: Sequence[Rankings]) -> dict[str, dict[str, float]]:
    """The measures of text_retrieval and of image_retrieval, averaged over folds."""
    both = {way.key: [measures(fold.of(way)) for fold in folds] for way in Direction}
    return {
        key: {name: float(np.mean([fold[name] for fold in side])) for name in side[0]} for key, side in both.items()
    }
