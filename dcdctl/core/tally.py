"""Where the positives of every query stand, and its first candidates, from blocks of a score matrix that is never held as a whole.

The place of a positive is 1 plus the number of candidates before it. A candidate that scores as high as a positive stands before it: a
tie counts against the positive, so that no constant model looks good. The other positives of a query are before it only where they
score higher. Scores compare in float32.

It takes two passes. First the scores of the positives, one a caption; from then on any block of the score matrix can be counted and
forgotten, in any order.

Shape letters: I images, T texts (captions); Q queries, G gallery; R positives of the query that has the most; K the first few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcdctl.core.errors import ModelError

NUM_TOP = 10
"""Candidates that are kept of each query."""
NOWHERE = int(np.iinfo(np.int64).max)
"""The place of a positive that a query does not have."""
GROUP = 64
"""Scores of a row whose highest is looked at first."""
UINT8_ROWS = 255
"""Rows whose hits a byte can count."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """How a gallery was ranked for the queries of one direction."""

    places_QR: NDArray[np.int64]
    """Places of the query's positives, from 1, ascending; NOWHERE where it has fewer than another."""
    best_Q: NDArray[np.float32]
    """Score of the best positive."""
    top_QK: NDArray[np.int64]
    """The first candidates, best first, positives last where scores are equal; fewer than asked for where the gallery has no more."""
    top_score_QK: NDArray[np.float32]

    @property
    def ranks(self) -> NDArray[np.int64]:
        """Place of the best positive."""
        return self.places_QR[:, 0]


class Tally:
    """Rankings of both directions from blocks of a score matrix.

    `own_T` holds the score of each caption with its image, `caption_image` the image index of each caption; every image has a
    caption. Candidates within `margin * max(1, |positive|)` below a positive tie with it; leave it 0 where equal pairs have equal bits.
    """

    def __init__(
        self, own_T: NDArray[np.float32], caption_image: NDArray[np.int64], *, num_top: int = NUM_TOP, margin: float = 0.0
    ) -> None:
        own_T, self._owner_T = _checked(own_T), np.asarray(caption_image)
        if len(own_T) != len(self._owner_T) or not len(own_T):
            raise ValueError(f"{len(own_T)} positive scores for {len(self._owner_T)} captions")
        self._num_own_I = counts_I = np.bincount(self._owner_T)
        if not counts_I.all():
            raise ValueError("every image needs at least one caption")
        order_T = np.lexsort((-own_T, self._owner_T))
        owner_T = self._owner_T[order_T]
        nth_T = np.arange(len(own_T)) - (np.cumsum(counts_I) - counts_I)[owner_T]
        self._own_T, self._bar_T = own_T, lowered(own_T, margin)
        self._bars_IR = np.full((len(counts_I), int(counts_I.max())), np.inf, dtype=np.float32)
        self._bars_IR[owner_T, nth_T] = self._bar_T[order_T]
        self._best_I = own_T[order_T[nth_T == 0]]
        self._above_IR, self._above_T = np.zeros(self._bars_IR.shape, dtype=np.int64), np.zeros(len(own_T), dtype=np.int64)
        self._texts_of_I = _RowTops(len(counts_I), min(num_top, len(own_T)))
        self._images_of_T = _ColumnTops(len(own_T), min(num_top, len(counts_I)))
        self._num_counted = 0

    def add(self, scores_IT: NDArray[np.float32], first_image: int = 0, first_text: int = 0) -> None:
        """Count a block, whose corner is at this image and caption; ModelError if a score is NaN or infinite."""
        scores_IT = _checked(scores_IT)
        images, texts = (slice(first, first + size) for first, size in zip((first_image, first_text), scores_IT.shape, strict=True))
        for row_T, bars_R, above_R, num_own in zip(
            scores_IT, self._bars_IR[images], self._above_IR[images], self._num_own_I[images].tolist(), strict=True
        ):
            for nth in range(num_own):
                above_R[nth] += np.count_nonzero(row_T >= bars_R[nth])
        self._above_T[texts] += _true_in_columns(scores_IT >= self._bar_T[texts])
        self._forget_own(scores_IT, first_image, texts)
        self._texts_of_I.add(scores_IT, images, first_text)
        self._images_of_T.add(scores_IT, first_image, texts)
        self._num_counted += scores_IT.size

    def rankings(self) -> tuple[Ranking, Ranking]:
        """Of captions for images, and of images for captions, once every pair has been counted."""
        num_images, num_texts = len(self._best_I), len(self._own_T)
        if self._num_counted != num_images * num_texts:
            raise ValueError(f"{self._num_counted} pairs counted of {num_images} x {num_texts}")
        places_IR = self._above_IR + 1 + np.arange(self._above_IR.shape[1])
        places_IR[self._num_own_I[:, None] <= np.arange(places_IR.shape[1])] = NOWHERE
        texts_IK, text_scores_IK = self._texts_of_I.found()
        images_TK, image_scores_TK = self._images_of_T.found()
        return (
            _ranking(places_IR, self._best_I, texts_IK, text_scores_IK, self._owner_T[texts_IK] == np.arange(num_images)[:, None]),
            _ranking(self._above_T[:, None] + 1, self._own_T, images_TK, image_scores_TK, images_TK == self._owner_T[:, None]),
        )

    def _forget_own(self, scores_IT: NDArray[np.float32], first_image: int, texts: slice) -> None:
        """Take out what own pairs in a block were counted for: they stand before each other by their order alone."""
        row_T = self._owner_T[texts] - first_image
        column = np.flatnonzero((row_T >= 0) & (row_T < len(scores_IT)))
        row = row_T[column]
        own = scores_IT[row, column]
        np.subtract.at(self._above_IR, row + first_image, (own[:, None] >= self._bars_IR[row + first_image]).astype(np.int64))
        self._above_T[column + texts.start] -= own >= self._bar_T[column + texts.start]


class _RowTops:
    """The first K of each query, where queries are rows."""

    def __init__(self, num_queries: int, k: int) -> None:
        self._score_QK = torch.full((num_queries, k), -torch.inf)
        self._index_QK = torch.zeros(num_queries, k, dtype=torch.int64)

    def add(self, scores_QG: NDArray[np.float32], queries: slice, first: int) -> None:
        score, index = first_k(torch.from_numpy(scores_QG), self._score_QK.shape[1])
        score, index = torch.cat([self._score_QK[queries], score], dim=1), torch.cat([self._index_QK[queries], index + first], dim=1)
        self._score_QK[queries], place = score.topk(self._score_QK.shape[1], dim=1)
        self._index_QK[queries] = index.gather(1, place)

    def found(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        return self._index_QK.numpy(), self._score_QK.numpy()


class _ColumnTops:
    """The first K of each query, where queries are columns.

    Scores above a query's K-th best so far wait, a few from each block, and are sorted in when many do.
    """

    def __init__(self, num_queries: int, k: int) -> None:
        self._score_QK = np.full((num_queries, k), -np.inf, dtype=np.float32)
        self._index_QK = np.zeros((num_queries, k), dtype=np.int64)
        self._waiting: list[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]] = []

    def add(self, scores_GQ: NDArray[np.float32], first: int, queries: slice) -> None:
        bar_Q = self._score_QK[queries, -1]
        if len(scores_GQ) >= self._score_QK.shape[1] and np.isinf(bar_Q).all():
            # Of the first block all scores would wait.
            score_KQ, index_KQ = torch.from_numpy(scores_GQ).topk(self._score_QK.shape[1], dim=0)
            self._score_QK[queries], self._index_QK[queries] = score_KQ.T.numpy(), index_KQ.T.numpy() + first
            return
        row, column = np.divmod(np.flatnonzero(scores_GQ > bar_Q), len(bar_Q))
        self._waiting.append((column + queries.start, scores_GQ[row, column], row + first))
        if sum(len(query) for query, _, _ in self._waiting) > self._score_QK.size:
            self._sort_in()

    def found(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        self._sort_in()
        return self._index_QK, self._score_QK

    def _sort_in(self) -> None:
        num_queries, k = self._score_QK.shape
        kept = (np.repeat(np.arange(num_queries), k), self._score_QK.ravel(), self._index_QK.ravel())
        query, score, index = (np.concatenate(parts) for parts in zip(kept, *self._waiting, strict=True))
        order = _by_query_and_score(query, score)
        starts_Q = np.searchsorted(query[order], np.arange(num_queries))
        first_QK = order[starts_Q[:, None] + np.arange(k)]
        self._score_QK, self._index_QK, self._waiting = score[first_QK], index[first_QK], []


def first_k(scores_QG: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Scores and positions of each row's k highest, best first; all of them where there are fewer.

    The k highest are to be found in the k groups with the highest maxima, so most of a long row is looked at once.
    """
    num_groups = scores_QG.shape[1] // GROUP
    if num_groups < 2 * k:
        return scores_QG.topk(min(k, scores_QG.shape[1]), dim=1)
    maxima = scores_QG[:, : num_groups * GROUP].unflatten(1, (num_groups, GROUP)).amax(dim=2)
    group_QK = maxima.topk(k, dim=1, sorted=False).indices
    inside = torch.arange(GROUP, device=scores_QG.device)
    rest = torch.arange(num_groups * GROUP, scores_QG.shape[1], device=scores_QG.device).expand(len(scores_QG), -1)
    index = torch.cat([(group_QK[:, :, None] * GROUP + inside).flatten(1), rest], dim=1)
    score_QK, place_QK = scores_QG.gather(1, index).topk(k, dim=1)
    return score_QK, index.gather(1, place_QK)


def lowered(scores: NDArray[np.float32], margin: float) -> NDArray[np.float32]:
    """The scores from which on a candidate ties with positives of these scores."""
    return (scores - margin * np.maximum(np.abs(scores), 1)).astype(np.float32) if margin else scores


def joined(parts: Sequence[Ranking], offsets: Sequence[int]) -> Ranking:
    """The queries of several galleries one after the other; `offsets` say where each gallery begins among all."""
    most, k = max(part.places_QR.shape[1] for part in parts), min(part.top_QK.shape[1] for part in parts)
    widened = [np.pad(part.places_QR, ((0, 0), (0, most - part.places_QR.shape[1])), constant_values=NOWHERE) for part in parts]
    return Ranking(
        places_QR=np.concatenate(widened),
        best_Q=np.concatenate([part.best_Q for part in parts]),
        top_QK=np.concatenate([part.top_QK[:, :k] + offset for part, offset in zip(parts, offsets, strict=True)]),
        top_score_QK=np.concatenate([part.top_score_QK[:, :k] for part in parts]),
    )


def _ranking(
    places_QR: NDArray[np.int64],
    best_Q: NDArray[np.float32],
    top_QK: NDArray[np.int64],
    score_QK: NDArray[np.float32],
    is_own_QK: NDArray[np.bool_],
) -> Ranking:
    order_QK = np.lexsort((is_own_QK, -score_QK), axis=1)
    return Ranking(
        places_QR=places_QR,
        best_Q=best_Q,
        top_QK=np.take_along_axis(top_QK, order_QK, axis=1),
        top_score_QK=np.take_along_axis(score_QK, order_QK, axis=1),
    )


def _by_query_and_score(query: NDArray[np.int64], score: NDArray[np.float32]) -> NDArray[np.int64]:
    """The order of ascending queries and, within a query, descending scores: one sort of whole numbers, far faster than two."""
    bits = (-score).view(np.int32)
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return np.argsort((query << 32) + rising)


def _true_in_columns(is_above: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Number of True in each column: added up in bytes, which is an order of magnitude faster than in longer numbers."""
    blocks = (is_above[start : start + UINT8_ROWS].view(np.uint8) for start in range(0, len(is_above), UINT8_ROWS))
    return sum((np.add.reduce(block, axis=0, dtype=np.uint8).astype(np.int64) for block in blocks), np.zeros(is_above.shape[1], np.int64))


def _checked(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """The scores; ModelError if any is NaN or infinite."""
    if scores.size and not (np.isfinite(scores.min()) and np.isfinite(scores.max())):
        raise ModelError("the model gives scores that are NaN or infinite", hint="its training diverged: try a lower optimizer.lr")
    return np.ascontiguousarray(scores, dtype=np.float32)
