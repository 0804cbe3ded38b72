"""Ranks and Recall@K of image-text retrieval, without ever holding the full score matrix.

A rank is 1 plus the number of candidates that score as high as the query's best positive or higher: a tie counts against the
positive, so that no constant model looks good. A query's other positives never count against it. Scores compare in float32.

Ranks take two passes. First the scores of the positives, one a caption; from then on any block of the score matrix can be counted
and forgotten, in any order.

Shape letters: I images, T texts (captions); Q queries, G gallery; K the first few; D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcdctl.core.errors import ModelError

KS = (1, 5, 10)
GALLERY_BLOCK = 32768
"""Gallery entries scored at a time."""
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


class RankCounter:
    """Ranks of every image and caption from blocks of their score matrix.

    `own_T` holds the score of each caption with its image, `caption_image` the image index of each caption; every image has a
    caption. Candidates within `margin * max(1, |positive|)` below a positive tie with it; leave it 0 where equal pairs have equal bits.
    """

    def __init__(self, own_T: Tensor, caption_image: NDArray[np.int64], *, margin: float = 0.0) -> None:
        own_T = _checked(own_T)
        self._caption_image = torch.tensor(caption_image, dtype=torch.int64, device=own_T.device)
        if len(own_T) != len(caption_image) or not len(caption_image):
            raise ValueError(f"{len(own_T)} positive scores for {len(caption_image)} captions")
        num_images = int(self._caption_image.max()) + 1
        if int(self._caption_image.unique().numel()) != num_images:
            raise ValueError("every image needs at least one caption")
        best_I = own_T.new_empty(num_images).scatter_reduce_(0, self._caption_image, own_T, "amax", include_self=False)
        self._bar_I, self._bar_T = _lowered(best_I, margin), _lowered(own_T, margin)
        self._above_I = torch.zeros(num_images, dtype=torch.int64, device=own_T.device)
        self._above_T = torch.zeros(len(own_T), dtype=torch.int64, device=own_T.device)
        self._num_counted = 0

    def add(self, scores_IT: Tensor, first_image: int = 0, first_text: int = 0) -> None:
        """Count a block, whose corner is at this image and caption. Own pairs in it count for nothing."""
        self._count(_checked(scores_IT), first_image, first_text)

    def ranks(self) -> Ranks:
        """The ranks, once every pair has been counted."""
        if self._num_counted != len(self._above_I) * len(self._above_T):
            raise ValueError(f"{self._num_counted} pairs counted of {len(self._above_I)} x {len(self._above_T)}")
        return Ranks((self._above_I + 1).cpu().numpy(), (self._above_T + 1).cpu().numpy())

    def _count(self, scores_IT: Tensor, first_image: int, first_text: int) -> None:
        images = slice(first_image, first_image + scores_IT.shape[0])
        texts = slice(first_text, first_text + scores_IT.shape[1])
        bar_I, bar_T = self._bar_I[images], self._bar_T[texts]
        self._above_I[images] += _count_true(scores_IT >= bar_I[:, None], 1)
        self._above_T[texts] += _count_true(scores_IT >= bar_T, 0)
        row_T = self._caption_image[texts] - first_image
        column = torch.nonzero((row_T >= 0) & (row_T < scores_IT.shape[0])).squeeze(1)
        row = row_T[column]
        own = scores_IT[row, column]
        self._above_I[images].index_add_(0, row, -(own >= bar_I[row]).long())
        self._above_T[texts].index_add_(0, column, -(own >= bar_T[column]).long())
        self._num_counted += scores_IT.numel()


def ranks_from_matrix(scores_IT: Tensor, caption_image: NDArray[np.int64]) -> Ranks:
    """Ranks from a score matrix that is there anyway.

    >>> ranks_from_matrix(torch.tensor([[3.0, 1.0, 2.0], [3.0, 0.0, 2.5]]), np.array([0, 0, 1]))
    Ranks(text=array([1, 2]), image=array([2, 1, 1]))
    """
    own_T = scores_IT[torch.tensor(caption_image), torch.arange(scores_IT.shape[1])]
    counter = RankCounter(own_T, caption_image)
    counter.add(scores_IT)
    return counter.ranks()


def ranks_from_embeddings(image_ID: Tensor, text_TD: Tensor, caption_image: NDArray[np.int64], *, block: int = 128) -> Ranks:
    """Ranks by inner product of unit vectors, `block` images at a time."""
    image_ID, text_TD = _checked(image_ID), _checked(text_TD)
    owner_T = torch.tensor(caption_image, dtype=torch.int64, device=image_ID.device)
    own_T = torch.cat(
        [(image_ID[owner] * text_D).sum(dim=1) for owner, text_D in zip(owner_T.split(block), text_TD.split(block), strict=True)]
    )
    counter = RankCounter(own_T, caption_image, margin=ROUNDING)
    for first_text in range(0, len(text_TD), GALLERY_BLOCK):
        texts_DT = text_TD[first_text : first_text + GALLERY_BLOCK].T
        for first_image in range(0, len(image_ID), block):
            # The vectors are finite, so their products are: no need to look for NaN again.
            counter._count(image_ID[first_image : first_image + block] @ texts_DT, first_image, first_text)
    return counter.ranks()


def top_k(queries_QD: Tensor, gallery_GD: Tensor, k: int, *, block: int = 128, gallery_block: int = GALLERY_BLOCK) -> tuple[Tensor, Tensor]:
    """Scores and gallery indices of each query's k best by inner product, best first; all of the gallery where it has fewer than k."""
    queries_QD, gallery_GD = _checked(queries_QD), _checked(gallery_GD)
    best = [_top_k_of_block(query_BD, gallery_GD, min(k, len(gallery_GD)), gallery_block) for query_BD in queries_QD.split(block)]
    return torch.cat([scores for scores, _ in best]), torch.cat([index for _, index in best])


def _top_k_of_block(query_BD: Tensor, gallery_GD: Tensor, k: int, gallery_block: int) -> tuple[Tensor, Tensor]:
    scores_BK = query_BD.new_empty(len(query_BD), 0)
    index_BK = torch.empty(len(query_BD), 0, dtype=torch.int64, device=query_BD.device)
    for start in range(0, len(gallery_GD), gallery_block):
        block_BG = query_BD @ gallery_GD[start : start + gallery_block].T
        values_BK, place_BK = block_BG.topk(min(k, block_BG.shape[1]), dim=1)
        scores_BK, index_BK = torch.cat([scores_BK, values_BK], dim=1), torch.cat([index_BK, place_BK + start], dim=1)
        scores_BK, kept_BK = scores_BK.topk(min(k, scores_BK.shape[1]), dim=1)
        index_BK = index_BK.gather(1, kept_BK)
    return scores_BK, index_BK


def reranked(first_Q: NDArray[np.int64], scores_QK: Tensor, is_own_QK: Tensor, *, margin: float = 0.0) -> NDArray[np.int64]:
    """Ranks after a second model has put the first model's K best in a new order; what is below them stays where it was.

    `first_Q` are the ranks by the first model, `scores_QK` the second one's scores of its K best, `is_own_QK` which are the query's own.

    >>> reranked(np.array([2, 9]), torch.tensor([[0.1, 0.7, 0.5], [0.3, 0.2, 0.1]]), torch.tensor([[0, 1, 0], [0, 0, 0]]) > 0)
    array([1, 9])
    """
    scores_QK = _checked(scores_QK).cpu()
    is_own_QK = is_own_QK.cpu()
    best_Q = scores_QK.masked_fill(~is_own_QK, -torch.inf).amax(dim=1)
    above_Q = ((scores_QK >= _lowered(best_Q, margin)[:, None]) & ~is_own_QK).sum(dim=1)
    # A positive that stands in the first K only by luck, because it ties at their end, has a first rank beyond K and keeps it.
    is_found_Q = is_own_QK.any(dim=1).numpy() & (first_Q <= scores_QK.shape[1])
    return np.where(is_found_Q, above_Q.numpy() + 1, first_Q)


def _lowered(scores: Tensor, margin: float) -> Tensor:
    return scores - margin * scores.abs().clamp(min=1) if margin else scores


def _count_true(is_above: Tensor, dim: int) -> Tensor:
    """Number of True along a dimension; on the CPU by NumPy, which sums booleans several times faster than torch."""
    if is_above.device.type == "cpu":
        return torch.from_numpy(is_above.numpy().sum(axis=dim, dtype=np.int64))
    return is_above.sum(dim=dim)


def _checked(values: Tensor) -> Tensor:
    """The values in float32; ModelError if any is NaN or infinite."""
    values = values.detach().float()
    if not bool(values.isfinite().all()):
        raise ModelError("the model gives scores that are NaN or infinite", hint="its training diverged: try a lower optimizer.lr")
    return values
