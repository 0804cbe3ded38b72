"""Rankings after a second model has put the first model's best candidates in a new order; what is below them stays where it was.

Shape letters: Q queries; R positives of the query that has the most; K candidates with a score by the second model, D the first of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dcdctl.core.tally import NUM_TOP, Ranking, lowered


def reranked(
    first: Ranking,
    scores_QK: NDArray[np.float32],
    is_own_QK: NDArray[np.bool_],
    depth: int,
    *,
    margin: float = 0.0,
    num_top: int = NUM_TOP,
) -> Ranking:
    """The ranking when the first model's `depth` best are ordered by the second model's scores of them; at depth 0 the first model's own.

    `scores_QK` and `is_own_QK` are those of `first.top_QK`, whose K is at least `depth`, or the gallery. Best and top scores are the
    second model's for candidates it has ordered, else the first one's: numbers on two scales.

    >>> first = Ranking(
    ...     places_QR=np.array([[2], [9]]),
    ...     best_Q=np.array([0.8, 0.1]),
    ...     top_QK=np.array([[4, 7, 5], [1, 2, 3]]),
    ...     top_score_QK=np.array([[0.9, 0.8, 0.7], [0.9, 0.8, 0.7]]),
    ... )
    >>> found = reranked(first, np.array([[0.1, 0.7, 0.5], [0.3, 0.2, 0.4]]), np.array([[0, 1, 0], [0, 0, 0]]) > 0, depth=3)
    >>> found.ranks, found.top_QK
    (array([1, 9]), array([[7, 5, 4],
           [3, 1, 2]]))
    """
    scores_QD, is_own_QD = scores_QK[:, :depth], is_own_QK[:, :depth]
    # A positive that stands in the first D only by luck, because it ties at their end, has a first place beyond D and keeps it.
    num_found_Q = np.count_nonzero(first.places_QR <= depth, axis=1)
    is_found_QD = is_own_QD & (np.cumsum(is_own_QD, axis=1) <= num_found_Q[:, None])
    others_QD = np.where(is_own_QD, -np.inf, scores_QD)
    found_QR = -np.sort(-np.where(is_found_QD, scores_QD, -np.inf), axis=1)[:, : first.places_QR.shape[1]]
    places_QR, best_Q = first.places_QR.copy(), first.best_Q
    for nth, own_Q in enumerate(found_QR.T):
        before_Q = np.count_nonzero(others_QD >= lowered(own_Q, margin)[:, None], axis=1)
        places_QR[:, nth] = np.where(own_Q > -np.inf, before_Q + nth + 1, places_QR[:, nth])
    if found_QR.shape[1]:
        best_Q = np.where(found_QR[:, 0] > -np.inf, found_QR[:, 0], first.best_Q)
    order_QD = np.lexsort((is_own_QD, -scores_QD), axis=1)
    top_QD = np.take_along_axis(first.top_QK[:, :depth], order_QD, axis=1)
    top_scores = [np.take_along_axis(scores_QD, order_QD, axis=1), first.top_score_QK[:, depth:]]
    return Ranking(
        places_QR=places_QR,
        best_Q=best_Q,
        top_QK=np.concatenate([top_QD, first.top_QK[:, depth:]], axis=1)[:, :num_top],
        top_score_QK=np.concatenate(top_scores, axis=1)[:, :num_top],
    )
