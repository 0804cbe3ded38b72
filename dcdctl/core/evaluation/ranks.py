"""Where the positives of every query stand, and its first candidates, from blocks of a score matrix that is never held as a whole.

The place of a positive is 1 plus the number of candidates before it. A candidate that scores as high as a positive stands before it: a
tie counts against the positive, so that no constant model looks good. The other positives of a query are before it only where they
score higher. Scores compare in float32.

It takes two passes. First the scores of the positives, one a caption; from then on any block of the score matrix can be counted and
forgotten, in any order.

Shape letters: I images, T texts (captions); Q queries, G gallery; R positives of the query that has the most; K the first few.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcdctl.core.data import Direction
from dcdctl.core.errors import ModelError
from dcdctl.core.scoring import BLOCK, GALLERY_BLOCK, finite_vectors, top_k_of_rows

NUM_TOP = 10
"""Candidates that are kept of each query."""
NOWHERE = int(np.iinfo(np.int64).max)
"""The place of a positive that a query does not have."""
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
        score, index = top_k_of_rows(torch.from_numpy(scores_QG), self._score_QK.shape[1])
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


ROUNDING = 1e-6
"""Scores of unit vectors this close are a tie: a matrix product rounds equal pairs differently by where in a block they stand."""


@dataclass(frozen=True)
class Ranks:
    """The rank of the best positive of every query, from 1."""

    text: NDArray[np.int64]
    """Text retrieval: one an image."""
    image: NDArray[np.int64]
    """Image retrieval: one a caption."""


@dataclass(frozen=True)
class Rankings:
    """How captions were ranked for every image, and images for every caption."""

    text: Ranking
    image: Ranking

    @property
    def ranks(self) -> Ranks:
        return Ranks(self.text.ranks, self.image.ranks)


def rank_matrix(scores_IT: Tensor, caption_image: NDArray[np.int64], *, num_top: int = NUM_TOP) -> Rankings:
    """Rankings from a score matrix that is there anyway.

    >>> rank_matrix(torch.tensor([[3.0, 1.0, 2.0], [3.0, 0.0, 2.5]]), np.array([0, 0, 1])).ranks
    Ranks(text=array([1, 2]), image=array([2, 1, 1]))
    """
    scores = scores_IT.detach().float().cpu().numpy()
    tally = Tally(scores[caption_image, np.arange(scores.shape[1])], caption_image, num_top=num_top)
    tally.add(scores)
    return Rankings(*tally.rankings())


def rank_embeddings(
    image_ID: Tensor, text_TD: Tensor, caption_image: NDArray[np.int64], *, num_top: int = NUM_TOP, block: int = BLOCK
) -> Rankings:
    """Rankings by inner product of unit vectors, `block` images at a time."""
    image_ID, text_TD = finite_vectors(image_ID), finite_vectors(text_TD)
    owner_T = torch.tensor(caption_image, dtype=torch.int64, device=image_ID.device)
    own_T = torch.cat(
        [(image_ID[owner] * text_D).sum(dim=1) for owner, text_D in zip(owner_T.split(block), text_TD.split(block), strict=True)]
    )
    tally = Tally(own_T.cpu().numpy(), caption_image, num_top=num_top, margin=ROUNDING)
    for scores_IT, first_image, first_text in _blocks(image_ID, text_TD, block):
        tally.add(scores_IT.cpu().numpy(), first_image, first_text)
    return Rankings(*tally.rankings())


def _blocks(image_ID: Tensor, text_TD: Tensor, block: int) -> Iterator[tuple[Tensor, int, int]]:
    """The score matrix in blocks, each with the indices of its corner; while one is looked at the next is computed, into the memory of the
    one before."""
    texts_BD, corners = text_TD.split(GALLERY_BLOCK), []
    for number, texts in enumerate(texts_BD):
        corners += [(image, number, len(texts)) for image in range(0, len(image_ID), block)]
    memory = [image_ID.new_empty(min(block, len(image_ID)) * len(texts_BD[0])) for _ in range(2)]

    def product(place: int) -> Tensor:
        image, number, num_texts = corners[place]
        images = image_ID[image : image + block]
        scores = memory[place % 2][: len(images) * num_texts].view(len(images), num_texts)
        return torch.mm(images, texts_BD[number].T, out=scores)

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(product, 0)
        for place, (image, number, _) in enumerate(corners):
            scores_IT = coming.result()
            if place + 1 < len(corners):
                coming = pool.submit(product, place + 1)
            yield scores_IT, image, number * GALLERY_BLOCK


RANKS_HINT = "`dcdctl eval ... --ranks FILE` writes such a table"


@dataclass(frozen=True)
class RankTable:
    """The rank of every query of a run, from 1; every image has a caption."""

    image_ids: tuple[str, ...]
    caption_ids: NDArray[np.int64]
    """(T,): the source's number of each caption."""
    caption_image: NDArray[np.int64]
    """(T,): the image index of each caption."""
    text_ranks: NDArray[np.int64]
    """(I,): of the best own caption of each image."""
    image_ranks: NDArray[np.int64]
    """(T,): of the image of each caption."""

    def ranks(self, direction: Direction) -> NDArray[np.int64]:
        """(Q,): the rank of each query's best positive."""
        return self.text_ranks if direction == Direction.TEXT else self.image_ranks
