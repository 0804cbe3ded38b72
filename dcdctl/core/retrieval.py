"""Ranks and what is summed up of them, and retrieval by inner product, without ever holding the full score matrix.

What a rank is, and how ties count, is in `tally`; docs/metrics.md has every number worked out by hand on two images.

Shape letters: I images, T texts (captions); Q queries, G gallery; R positives of the query with the most; K the first few; D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcdctl.core.errors import ModelError
from dcdctl.core.tally import NOWHERE, NUM_TOP, Ranking, Tally, first_k

KS = (1, 5, 10)
MAP, MEDIAN, MEAN = "mAP@R", "median_rank", "mean_rank"
BLOCK, GALLERY_BLOCK = 256, 16384
"""Queries and gallery entries scored at a time: enough for fast products, and a processor's cache holds them (benchmarks/retrieval.py)."""
CHECKED = 4096
"""Vectors that are looked at for NaN at a time: of all at once there would be copies."""
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
    image_ID, text_TD = _checked(image_ID), _checked(text_TD)
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


def top_k(
    queries_QD: Tensor, gallery_GD: Tensor, k: int, *, block: int = BLOCK, gallery_block: int = GALLERY_BLOCK
) -> tuple[Tensor, Tensor]:
    """Scores and gallery indices of each query's k best by inner product, best first; all of the gallery where it has fewer than k."""
    queries_QD, gallery_GD = _checked(queries_QD), _checked(gallery_GD)
    best = [_top_k_of_block(query_BD, gallery_GD, min(k, len(gallery_GD)), gallery_block) for query_BD in queries_QD.split(block)]
    return torch.cat([scores for scores, _ in best]), torch.cat([index for _, index in best])


def _top_k_of_block(query_BD: Tensor, gallery_GD: Tensor, k: int, gallery_block: int) -> tuple[Tensor, Tensor]:
    scores_BK = query_BD.new_empty(len(query_BD), 0)
    index_BK = torch.empty(len(query_BD), 0, dtype=torch.int64, device=query_BD.device)
    for start in range(0, len(gallery_GD), gallery_block):
        values_BK, place_BK = first_k(query_BD @ gallery_GD[start : start + gallery_block].T, k)
        scores_BK, index_BK = torch.cat([scores_BK, values_BK], dim=1), torch.cat([index_BK, place_BK + start], dim=1)
        scores_BK, kept_BK = scores_BK.topk(min(k, scores_BK.shape[1]), dim=1)
        index_BK = index_BK.gather(1, kept_BK)
    return scores_BK, index_BK


def _checked(vectors: Tensor) -> Tensor:
    """The vectors in float32; ModelError if any number is NaN or infinite."""
    vectors = vectors.detach().float()
    if not all(bool(part.isfinite().all()) for part in vectors.split(CHECKED)):
        raise ModelError("the model gives vectors that are NaN or infinite", hint="its training diverged: try a lower optimizer.lr")
    return vectors
