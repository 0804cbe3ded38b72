"""The measures of a ranking: pure functions, and the table MEASURES with a row for each. docs/metrics.md works out each
number by hand on two images.

Documents, tables on the terminal, reports, comparisons and their intervals read the rows; `agreement` has a table of
such rows for its own measures. `evaluation.ranks` defines what a rank is and how ties count.

Shape letters: Q queries; R positives of the query that has most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from dcdctl.core.data import Direction, Flags, Indices, Values
from dcdctl.core.evaluation.ranking import NO_POSITION, Ranking, Rankings

KS = (1, 5, 10)
"""The K of Recall@K that papers on image-text retrieval report, and that RSUM adds up."""
RECALL_NAMES = tuple(f"R@{k}" for k in KS)
Ordered = TypeVar("Ordered")


@dataclass(frozen=True, kw_only=True)
class Measure(Generic[Ordered]):
    """A number that says how well the queries of a direction were answered."""

    name: str
    """Its key in documents."""
    of: Callable[[Ordered], float] | None = None
    """Its value; None for a row that no ranking alone gives, or that only comparisons have."""
    of_rank: Callable[[Indices], Values | Flags] | None = None
    """(Q,): the value of each query by its rank, in [0, 1], for a measure that is the mean of these in percent. It has
    an interval, and is compared."""
    show: Callable[[float], str] = "{:.2f}".format
    """Its text on the terminal and in notebooks."""
    brief: Callable[[float], str] = "{:.1f}".format
    """Its text in a report."""
    in_report: bool = True
    factor: float = 100.0
    """agreement: what the mean over queries is multiplied by; also the highest value."""
    lowest: float = 0.0

    @property
    def title(self) -> str:
        """The head of its column."""
        return self.name.replace("_", " ")

    @property
    def column(self) -> str:
        """Its column in Parquet files: nDCG@10 is ndcg."""
        return self.name.partition("@")[0].lower()


def rsum(text_retrieval: Mapping[str, float], image_retrieval: Mapping[str, float]) -> float:
    """Sum of R@1, R@5 and R@10 of both directions, at most 600."""
    return sum(text_retrieval[name] for name in RECALL_NAMES) + sum(image_retrieval[name] for name in RECALL_NAMES)


def on_front(rsums: Sequence[float], times_ms: Sequence[float]) -> list[bool]:
    """Whether each system is on the Pareto front: no other is at least as good and as fast, and better or faster.

    >>> on_front([300.0, 400.0, 390.0], [1.0, 2.0, 3.0])
    [True, True, False]
    """
    points, is_on_front = list(zip(rsums, times_ms, strict=True)), []
    for rsum, ms in points:
        better = [(other, time) for other, time in points if other >= rsum and time <= ms]
        is_on_front.append(all(point == (rsum, ms) for point in better))
    return is_on_front


def recall_at(ranks: Indices | Sequence[int], k: int) -> float:
    """Recall@K: the percentage of queries whose best positive has a rank of at most K."""
    return 100 * int(np.count_nonzero(np.asarray(ranks) <= k)) / len(ranks)


def recall_at_k(ranks: Indices | Sequence[int]) -> dict[str, float]:
    """Recall@K for each of `KS`.

    >>> recall_at_k([1, 2, 7, 30])
    {'R@1': 25.0, 'R@5': 50.0, 'R@10': 75.0}
    """
    return {f"R@{k}": recall_at(ranks, k) for k in KS}


def average_precision_at_r(positions_QR: Indices) -> Values:
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


def of_ranking(ranking: Ranking) -> dict[str, float]:
    """The measures of a ranking by name: Recall@K and mAP@R in percent, and the median and the mean rank."""
    return {row.name: row.of(ranking) for row in MEASURES if row.of is not None}


def mean_measures(folds: Sequence[Rankings]) -> dict[str, dict[str, float]]:
    """The measures of text_retrieval and of image_retrieval, averaged over folds."""
    means = {}
    for direction in Direction:
        of_folds = [of_ranking(fold.of(direction)) for fold in folds]
        means[direction.key] = {name: float(np.mean([fold[name] for fold in of_folds])) for name in of_folds[0]}
    return means


def _recall(k: int) -> Measure[Ranking]:
    return Measure(name=f"R@{k}", of=lambda ranking: recall_at(ranking.ranks, k), of_rank=lambda rank_Q: rank_Q <= k)


MRR: Measure[Ranking] = Measure(name="MRR", of_rank=lambda rank_Q: 1 / rank_Q)
"""The mean reciprocal rank, of comparisons alone: it changes with ranks beyond 10, which no recall does."""
NDCG: Measure[Ranking] = Measure(name="nDCG@10")
"""With a file of relevance (`relevance`)."""
MEASURES: tuple[Measure[Ranking], ...] = (
    *map(_recall, KS),
    MRR,
    NDCG,
    Measure(name="mAP@R", of=lambda ranking: 100 * float(average_precision_at_r(ranking.positions_QR).mean())),
    Measure(
        name="median_rank",
        of=lambda ranking: float(np.median(ranking.ranks)),
        show=lambda rank: f"{rank:,.1f}".removesuffix(".0"),
        brief="{:g}".format,
    ),
    Measure(name="mean_rank", of=lambda ranking: float(ranking.ranks.mean()), show="{:,.1f}".format, in_report=False),
)
"""In the order of documents and tables."""
ESTIMATED = tuple(row for row in MEASURES if row.of is not None and row.of_rank is not None)
"""Those that an evaluation has with an interval."""
COMPARED = [(row.name, row.of_rank) for row in MEASURES if row.of_rank is not None]
"""Name and values by rank of the measures that comparisons test."""
IN_RSUM = np.array([name in RECALL_NAMES for name, _ in COMPARED])
