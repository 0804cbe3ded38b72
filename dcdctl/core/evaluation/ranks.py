"""Ranks of the positives of every query, and its first candidates, from blocks of a score matrix that is never held as
a whole.

The position of a positive is 1 plus the number of candidates before it; the rank of a query is the position of its best
positive. A candidate with the score of a positive stands before it: a tie counts against the positive, so that no
constant model looks good. Other positives of the query stand before it only if they score higher. Scores are compared
in float32. docs/metrics.md has an example.

Counting takes two passes. The first scores the positives, one per caption. Then any block of the score matrix can be
counted and discarded, in any order.

Shape letters: I images, T texts (captions); Q queries, G gallery; R positives of the query that has most; K first
candidates, D the depth of a cascade or the dimensions of a vector; B a block.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dcdctl.core.data import Direction, Flags, Indices, Scores
from dcdctl.core.errors import ModelError
from dcdctl.core.evaluation.ranking import NO_POSITION, NUM_TOP, Ranking, Rankings, is_positive
from dcdctl.core.evaluation.tops import ColumnTops, RowTops, Waiting
from dcdctl.core.machine import read_in_threads
from dcdctl.core.scoring import BLOCK, GALLERY_BLOCK, finite_vectors, top_k_of_rows

COSINE_ROUNDING = 1e-6
"""Cosines of unit vectors this close are a tie: a matrix product rounds equal pairs differently, by their place in a
block."""
UINT8_ROWS = 255
"""Rows whose True entries a byte can count."""
MOST_THREADS = 8
"""Threads that count blocks; each has a block of scores in memory, 16 MiB."""


class RankCounter:
    """Rankings of both directions from blocks of a score matrix.

    `positive_T` holds the score of each caption with its image, `caption_image` the image index of each caption; every
    image has a caption. Candidates within `margin * max(1, |score|)` below a positive tie with it; leave it 0 if equal
    pairs have equal bits.
    """

    def __init__(
        self, positive_T: Scores, caption_image: Indices, *, num_top: int = NUM_TOP, margin: float = 0.0
    ) -> None:
        positive_T, self._image_T = checked_scores(positive_T), caption_image
        self._num_positives_I = counts_I = np.bincount(caption_image)
        # The positives of each image, best first: threshold r of an image belongs to its r-th best caption.
        order_T = np.lexsort((-positive_T, self._image_T))
        image_T = self._image_T[order_T]
        nth_T = np.arange(len(positive_T)) - (np.cumsum(counts_I) - counts_I)[image_T]
        self._positive_T, self._threshold_T = positive_T, tie_thresholds(positive_T, margin)
        # No score reaches infinity, so positives that an image does not have count no candidates.
        self._threshold_IR = np.full((len(counts_I), int(counts_I.max())), np.inf, dtype=np.float32)
        self._threshold_IR[image_T, nth_T] = self._threshold_T[order_T]
        self._best_positive_I = positive_T[order_T[nth_T == 0]]
        self._above_IR = np.zeros(self._threshold_IR.shape, dtype=np.int64)
        self._above_T = np.zeros(len(positive_T), dtype=np.int64)
        self._top_texts_I = RowTops(len(counts_I), min(num_top, len(positive_T)))
        self._top_images_T = ColumnTops(len(positive_T), min(num_top, len(counts_I)))

    def add(self, scores_IT: Scores, first_image: int = 0, first_text: int = 0) -> None:
        """Count a block that starts at this image and caption; ModelError if a score is NaN or infinite."""
        self.merge(self.count(scores_IT, first_image, first_text, self.kth_best_T))

    def count(self, scores_IT: Scores, first_image: int, first_text: int, kth_best_T: Scores) -> BlockCounts:
        """What `merge` needs of a block, whose scores may then be overwritten; several threads may count blocks at the
        same time.

        `kth_best_T` is the property of that name, now or at an earlier moment.
        """
        scores_IT = checked_scores(scores_IT)
        num_images, num_texts = scores_IT.shape
        images, texts = slice(first_image, first_image + num_images), slice(first_text, first_text + num_texts)
        above_IR = np.zeros((len(scores_IT), self._threshold_IR.shape[1]), dtype=np.int64)
        for score_T, threshold_R, above_R, num_positives in zip(
            scores_IT, self._threshold_IR[images], above_IR, self._num_positives_I[images].tolist(), strict=True
        ):
            # One positive at a time: all at once would need the memory of a block for each of them.
            for nth in range(num_positives):
                above_R[nth] = np.count_nonzero(score_T >= threshold_R[nth])
        above_T = _count_in_columns(scores_IT >= self._threshold_T[texts])
        # Positives of a query are ordered among themselves, and none beats itself, so they do not count in the block.
        row_T = self._image_T[texts] - first_image
        column = np.flatnonzero((row_T >= 0) & (row_T < len(scores_IT)))
        row = row_T[column]
        positive = scores_IT[row, column]
        is_above = positive[:, None] >= self._threshold_IR[row + first_image]
        # An image has several captions in a block, and `-=` would subtract only one of them.
        np.subtract.at(above_IR, row, is_above.astype(np.int64))
        above_T[column] -= positive >= self._threshold_T[column + first_text]
        score_IK, text_IK = top_k_of_rows(torch.from_numpy(scores_IT), self._top_texts_I.k)
        best = self._top_images_T.candidates(scores_IT, first_image, texts, kth_best_T[texts])
        return BlockCounts(
            images=images,
            texts=texts,
            above_IR=above_IR,
            above_T=above_T,
            score_IK=score_IK,
            text_IK=text_IK + first_text,
            best_images=best,
        )

    def merge(self, block: BlockCounts) -> None:
        """Add a counted block. Among equal scores, candidates of the blocks that are merged first are kept."""
        self._above_IR[block.images] += block.above_IR
        self._above_T[block.texts] += block.above_T
        self._top_texts_I.add(block.score_IK, block.text_IK, block.images)
        self._top_images_T.add(block.best_images)

    @property
    def kth_best_T(self) -> Scores:
        """(T,): scores that an image must exceed to be among the first of a caption, so far; -inf without enough
        images."""
        return self._top_images_T.kth_best_Q

    def rankings(self) -> Rankings:
        """The rankings, once every pair has been counted."""
        # The r-th best positive stands behind the better ones.
        positions_IR = self._above_IR + 1 + np.arange(self._above_IR.shape[1])
        positions_IR[self._num_positives_I[:, None] <= np.arange(positions_IR.shape[1])] = NO_POSITION
        texts_IK, text_scores_IK = self._top_texts_I.sorted()
        images_TK, image_scores_TK = self._top_images_T.sorted()
        return Rankings(
            text=_ranking(
                positions_QR=positions_IR,
                positive_score_Q=self._best_positive_I,
                top_QK=texts_IK,
                score_QK=text_scores_IK,
                is_positive_QK=is_positive(Direction.TEXT, texts_IK, self._image_T),
            ),
            image=_ranking(
                positions_QR=self._above_T[:, None] + 1,
                positive_score_Q=self._positive_T,
                top_QK=images_TK,
                score_QK=image_scores_TK,
                is_positive_QK=is_positive(Direction.IMAGE, images_TK, self._image_T),
            ),
        )


@dataclass(frozen=True)
class BlockCounts:
    """What a block adds to the rankings."""

    images: slice
    texts: slice
    above_IR: Indices
    """Candidates at or above each positive of the block's images, without other positives."""
    above_T: Indices
    score_IK: Tensor
    text_IK: Tensor
    """The first captions of each image, in the block."""
    best_images: Waiting
    """Images that may be among the first of a caption."""


def rank_embeddings(
    image_ID: Tensor, text_TD: Tensor, caption_image: Indices, *, num_top: int = NUM_TOP, block: int = BLOCK
) -> Rankings:
    """Rankings by inner product of unit vectors, `block` images at a time."""
    image_ID, text_TD = finite_vectors(image_ID), finite_vectors(text_TD)
    image_T = torch.tensor(caption_image, dtype=torch.int64, device=image_ID.device)
    # Products of single pairs round differently from the blocks below; the margin of the counter covers that.
    products = []
    for image_B, text_BD in zip(image_T.split(block), text_TD.split(block), strict=True):
        products.append((image_ID[image_B] * text_BD).sum(dim=1))
    positive_T = torch.cat(products)
    counter = RankCounter(positive_T.cpu().numpy(), caption_image, num_top=num_top, margin=COSINE_ROUNDING)
    _count_in_threads(counter, image_ID, text_TD, block)
    return counter.rankings()


def _count_in_threads(counter: RankCounter, image_ID: Tensor, text_TD: Tensor, block: int) -> None:
    """Count the score matrix in blocks, each computed and counted by one thread, and merged in order.

    Torch's own threads share the work of one product, and would have nothing to do while its scores are counted by
    NumPy.
    """
    texts_BD, memory = text_TD.split(GALLERY_BLOCK), threading.local()

    def counted(key: tuple[int, int, Scores]) -> BlockCounts:
        image, number, kth_best_T = key
        images, texts = image_ID[image : image + block], texts_BD[number]
        if not hasattr(memory, "scores"):
            memory.scores = image_ID.new_empty(min(block, len(image_ID)) * len(texts_BD[0]))
        scores_IT = memory.scores[: len(images) * len(texts)].view(len(images), len(texts))
        torch.mm(images, texts.T, out=scores_IT)
        return counter.count(scores_IT.cpu().numpy(), image, number * GALLERY_BLOCK, kth_best_T)

    places = itertools.product(range(len(texts_BD)), range(0, len(image_ID), block))
    # The K-th best scores of the moment when a block is handed to the threads: when one gets to it, they depend on the
    # speed of the others.
    keys = ((image, number, counter.kth_best_T) for number, image in places)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with closing(read_in_threads(counted, keys, min(num_threads, MOST_THREADS))) as blocks:
            for counts in blocks:
                counter.merge(counts)
    finally:
        torch.set_num_threads(num_threads)


def rerank(
    first: Ranking, scores_QK: Scores, is_positive_QK: Flags, depth: int, *, margin: float = 0.0, num_top: int = NUM_TOP
) -> Ranking:
    """The ranking of a cascade: the first model's best `depth` candidates, ordered by the second model's scores.

    `scores_QK` and `is_positive_QK` belong to `first.top_QK`, whose K is at least `depth`, or the gallery size.
    Candidates below `depth` keep the first model's order; at depth 0 all do. The positive and top scores are the second
    model's for candidates that it ordered and the first model's for others: numbers on two scales.

    >>> first = Ranking(
    ...     positions_QR=np.array([[2], [9]]),
    ...     positive_score_Q=np.array([0.8, 0.1]),
    ...     top_QK=np.array([[4, 7, 5], [1, 2, 3]]),
    ...     top_score_QK=np.array([[0.9, 0.8, 0.7], [0.9, 0.8, 0.7]]),
    ... )
    >>> ranking = rerank(first, np.array([[0.1, 0.7, 0.5], [0.3, 0.2, 0.4]]), np.array([[0, 1, 0], [0, 0, 0]]) > 0,
    ...     depth=3)
    >>> ranking.ranks.tolist(), ranking.top_QK.tolist()
    ([1, 9], [[7, 5, 4], [3, 1, 2]])
    """
    scores_QD, is_positive_QD = scores_QK[:, :depth], is_positive_QK[:, :depth]
    # A positive that ties with the last of the first D candidates may be among them by chance. Its position is beyond
    # D, and stays there.
    num_within_Q = np.count_nonzero(first.positions_QR <= depth, axis=1)
    is_within_QD = is_positive_QD & (np.cumsum(is_positive_QD, axis=1) <= num_within_Q[:, None])
    negatives_QD = np.where(is_positive_QD, -np.inf, scores_QD)
    within_QR = -np.sort(-np.where(is_within_QD, scores_QD, -np.inf), axis=1)[:, : first.positions_QR.shape[1]]
    # A copy, because all depths of a cascade start from the same ranking.
    positions_QR, positive_score_Q = first.positions_QR.copy(), first.positive_score_Q
    for nth, score_Q in enumerate(within_QR.T):
        before_Q = np.count_nonzero(negatives_QD >= tie_thresholds(score_Q, margin)[:, None], axis=1)
        positions_QR[:, nth] = np.where(score_Q > -np.inf, before_Q + nth + 1, positions_QR[:, nth])
    if within_QR.shape[1]:
        positive_score_Q = np.where(within_QR[:, 0] > -np.inf, within_QR[:, 0], first.positive_score_Q)
    ordered = _ranking(
        positions_QR=positions_QR,
        positive_score_Q=positive_score_Q,
        top_QK=first.top_QK[:, :depth],
        score_QK=scores_QD,
        is_positive_QK=is_positive_QD,
    )
    return replace(
        ordered,
        top_QK=np.concatenate([ordered.top_QK, first.top_QK[:, depth:]], axis=1)[:, :num_top],
        top_score_QK=np.concatenate([ordered.top_score_QK, first.top_score_QK[:, depth:]], axis=1)[:, :num_top],
    )


def concatenate(rankings: Sequence[Ranking], offsets: Sequence[int]) -> Ranking:
    """The rankings of several galleries as one; gallery i starts at index `offsets[i]` of the joint gallery."""
    # Galleries may differ in size, and rows of one array may not.
    widest = max(ranking.positions_QR.shape[1] for ranking in rankings)
    k = min(ranking.top_QK.shape[1] for ranking in rankings)
    positions, tops = [], []
    for ranking, offset in zip(rankings, offsets, strict=True):
        missing = widest - ranking.positions_QR.shape[1]
        positions.append(np.pad(ranking.positions_QR, ((0, 0), (0, missing)), constant_values=NO_POSITION))
        tops.append(ranking.top_QK[:, :k] + offset)
    return Ranking(
        positions_QR=np.concatenate(positions),
        positive_score_Q=np.concatenate([ranking.positive_score_Q for ranking in rankings]),
        top_QK=np.concatenate(tops),
        top_score_QK=np.concatenate([ranking.top_score_QK[:, :k] for ranking in rankings]),
    )


def tie_thresholds(scores: Scores, margin: float) -> Scores:
    """The lowest scores that tie with positives of these scores."""
    # Rounding errors grow with the magnitude of a score; below 1 the margin is absolute.
    return (scores - margin * np.maximum(np.abs(scores), 1)).astype(np.float32) if margin else scores


def _ranking(
    *, positions_QR: Indices, positive_score_Q: Scores, top_QK: Indices, score_QK: Scores, is_positive_QK: Flags
) -> Ranking:
    # The last key sorts first: by score, and positives after other candidates with the same score.
    order_QK = np.lexsort((is_positive_QK, -score_QK), axis=1)
    return Ranking(
        positions_QR=positions_QR,
        positive_score_Q=positive_score_Q,
        top_QK=np.take_along_axis(top_QK, order_QK, axis=1),
        top_score_QK=np.take_along_axis(score_QK, order_QK, axis=1),
    )


def _count_in_columns(is_above: Flags) -> Indices:
    """Number of True entries in each column. Sums of bytes are an order of magnitude faster than sums of int64."""
    counts = np.zeros(is_above.shape[1], np.int64)
    for start in range(0, len(is_above), UINT8_ROWS):
        block = is_above[start : start + UINT8_ROWS].view(np.uint8)
        counts += np.add.reduce(block, axis=0, dtype=np.uint8)
    return counts


def checked_scores(scores: Scores) -> Scores:
    """The scores as contiguous float32; ModelError if one is NaN or infinite."""
    # NaN and infinity reach the minimum or the maximum, which need no mask as large as the block.
    if scores.size and not (np.isfinite(scores.min()) and np.isfinite(scores.max())):
        raise ModelError(
            "the model gives scores that are NaN or infinite", hint="its training diverged: try a lower optimizer.lr"
        )
    return np.ascontiguousarray(scores, dtype=np.float32)
