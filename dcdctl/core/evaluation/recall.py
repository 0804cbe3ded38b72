"""Ranks and what is summed up of them, and retrieval by inner product, without ever holding the full score matrix.

What a rank is, and how ties count, is in `tally`; docs/metrics.md has every number worked out by hand on two images.

Shape letters: I images, T texts (captions); Q queries, G gallery; R positives of the query with the most; K the first few; D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dcdctl.core.evaluation.ranks import NOWHERE, Ranking, Rankings, Ranks

KS = (1, 5, 10)
MAP, MEDIAN, MEAN = "mAP@R", "median_rank", "mean_rank"


@dataclass(frozen=True)
class Recalls:
    """Recall@1, 5 and 10 of both directions, in percent."""

    text_retrieval: dict[str, float]
    """Queries are images; a hit if any own caption is among the first K."""
    image_retrieval: dict[str, float]
    """Queries are captions; a hit if the image is among the first K."""

    @property
    def rsum(self) -> float:
        """Sum of all recalls, 600 at best."""
        return sum(self.text_retrieval.values()) + sum(self.image_retrieval.values())

    @property
    def mean_recall(self) -> float:
        """Mean of all recalls."""
        return self.rsum / (len(self.text_retrieval) + len(self.image_retrieval))


def recalls(ranks: NDArray[np.int64] | Sequence[int], ks: Sequence[int] = KS) -> dict[str, float]:
    """Percentage of queries whose rank is at most K, for each K.

    >>> recalls([1, 2, 7, 30])
    {'R@1': 25.0, 'R@5': 50.0, 'R@10': 75.0}
    """
    return {f"R@{k}": 100 * int(np.count_nonzero(np.asarray(ranks) <= k)) / len(ranks) for k in ks}


def summarize(ranks: Ranks) -> Recalls:
    """The recalls of both directions."""
    return Recalls(recalls(ranks.text), recalls(ranks.image))


def average_precisions(places_QR: NDArray[np.int64]) -> NDArray[np.float64]:
    """AP@R of each query, in [0, 1]: R is the number of its positives; for each of them that is among the first R, the share of
    positives up to there; the sum of these over R (Musgrave et al. 2020).

    >>> average_precisions(np.array([[1, 3, 4], [2, 9, NOWHERE]])).round(4)
    array([0.5556, 0.25  ])
    """
    num_Q = np.count_nonzero(places_QR != NOWHERE, axis=1)
    precisions_QR = np.arange(1, places_QR.shape[1] + 1) / places_QR
    return np.where(places_QR <= num_Q[:, None], precisions_QR, 0.0).sum(axis=1) / num_Q


def measures(ranking: Ranking) -> dict[str, float]:
    """Recalls and mAP@R in percent, and the median and the mean of the ranks."""
    found = recalls(ranking.ranks)
    mean_precision = 100 * float(average_precisions(ranking.places_QR).mean())
    return found | {MAP: mean_precision, MEDIAN: float(np.median(ranking.ranks)), MEAN: float(ranking.ranks.mean())}


def mean_measures(folds: Sequence[Rankings]) -> tuple[dict[str, float], dict[str, float]]:
    """The measures of text and of image retrieval, averaged over folds."""
    text, image = [measures(one.text) for one in folds], [measures(one.image) for one in folds]
    of_text, of_image = ({name: float(np.mean([one[name] for one in way])) for name in way[0]} for way in (text, image))
    return of_text, of_image


def recalls_in(text_retrieval: dict[str, float], image_retrieval: dict[str, float]) -> Recalls:
    """The recalls among the measures of both directions."""
    return Recalls(*({f"R@{k}": way[f"R@{k}"] for k in KS} for way in (text_retrieval, image_retrieval)))
