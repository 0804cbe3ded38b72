"""Top-k: the best candidates of each query, from blocks of scores or from unit vectors.

Shape letters: Q queries, G gallery, K best candidates, B queries of a block, D dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dcdctl.core.errors import ModelError

GROUP = 64
"""Scores of a row in one group, whose maximum is compared first."""
BLOCK, GALLERY_BLOCK = 256, 16384
"""Queries and gallery entries scored at a time: large enough for fast products, small enough for a processor's cache
(docs/evidence/performance.md)."""
CHECKED = 4096
"""Vectors checked for NaN at a time: checking all at once would copy them."""


def top_k_of_rows(scores_QG: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Scores and positions of the k highest scores of each row, best first; all of them if a row has fewer.

    The k highest lie in the k groups with the highest maxima, so most scores of a long row are read once.
    """
    num_groups = scores_QG.shape[1] // GROUP
    # With fewer groups the chosen ones would be more than half of the row, and little would be saved.
    if num_groups < 2 * k:
        return scores_QG.topk(min(k, scores_QG.shape[1]), dim=1)
    maxima = scores_QG[:, : num_groups * GROUP].unflatten(1, (num_groups, GROUP)).amax(dim=2)
    group_QK = maxima.topk(k, dim=1, sorted=False).indices
    inside = torch.arange(GROUP, device=scores_QG.device)
    # The scores after the last full group are in no maximum, so all of them are compared.
    rest = torch.arange(num_groups * GROUP, scores_QG.shape[1], device=scores_QG.device).expand(len(scores_QG), -1)
    index = torch.cat([(group_QK[:, :, None] * GROUP + inside).flatten(1), rest], dim=1)
    score_QK, position_QK = scores_QG.gather(1, index).topk(k, dim=1)
    return score_QK, index.gather(1, position_QK)


def top_k(queries_QD: Tensor, gallery_GD: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Scores and gallery indices of each query's k best by inner product, best first; the whole gallery if it has fewer
    than k."""
    queries_QD, gallery_GD = finite_vectors(queries_QD), finite_vectors(gallery_GD)
    best: list[tuple[Tensor, Tensor]] = []
    for query_BD in queries_QD.split(BLOCK):
        scores_BK = query_BD.new_empty(len(query_BD), 0)
        index_BK = torch.empty(len(query_BD), 0, dtype=torch.int64, device=query_BD.device)
        for start in range(0, len(gallery_GD), GALLERY_BLOCK):
            values_BK, position_BK = top_k_of_rows(query_BD @ gallery_GD[start : start + GALLERY_BLOCK].T, k)
            scores_BK = torch.cat([scores_BK, values_BK], dim=1)
            scores_BK, kept_BK = scores_BK.topk(min(k, scores_BK.shape[1]), dim=1)
            index_BK = torch.cat([index_BK, position_BK + start], dim=1).gather(1, kept_BK)
        best.append((scores_BK, index_BK))
    return torch.cat([scores for scores, _ in best]), torch.cat([index for _, index in best])


def finite_vectors(vectors: Tensor) -> Tensor:
    """The vectors in float32; ModelError if a number is NaN or infinite."""
    # In half precision close candidates would have equal scores.
    vectors = vectors.detach().float()
    if not all(bool(part.isfinite().all()) for part in vectors.split(CHECKED)):
        raise ModelError(
            "the model gives vectors that are NaN or infinite", hint="its training diverged: try a lower optimizer.lr"
        )
    return vectors
