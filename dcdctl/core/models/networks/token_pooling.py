"""Token pooling: fewer token vectors per image, by hierarchical clustering (Clavie et al. 2024, arXiv 2409.14683).

Shape letters: I images, N tokens of an image, D length of a token vector.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def pool_tokens(tokens_IND: Tensor, factor: int) -> Tensor:
    """Unit vectors of at most N / `factor` tokens per image, at least one, I x M x D, of float32 tokens. Padding is
    zeros, of both.

    Tokens are joined by Ward's method on their cosine distance, the cheapest two at a time, and a cluster becomes its
    mean: equal to scipy's `linkage(method="ward")` except on ties.
    """
    size_IN, sum_IND = tokens_IND.ne(0).any(dim=-1).float(), tokens_IND.clone()
    cost_INN = (1 - tokens_IND @ tokens_IND.mT).clamp(0, 2).square()
    is_pair_INN = size_IN[:, :, None] * size_IN[:, None] * (1 - torch.eye(size_IN.shape[1], device=size_IN.device))
    cost_INN.masked_fill_(is_pair_INN == 0, torch.inf)
    num_I = size_IN.sum(dim=1).long()
    kept_I = (num_I // factor).clamp(min=1)
    for done in range(int((num_I - kept_I).max())):
        ix = (num_I - kept_I > done).nonzero()[:, 0]
        least, place = cost_INN[ix].flatten(1).min(dim=1)
        first, second = place // size_IN.shape[1], place % size_IN.shape[1]
        # The cost of joining each other cluster with the union (Lance & Williams 1967).
        sizes, one, other = size_IN[ix], size_IN[ix, first][:, None], size_IN[ix, second][:, None]
        cost = (sizes + one) * cost_INN[ix, first] + (sizes + other) * cost_INN[ix, second] - sizes * least[:, None]
        cost_INN[ix, first] = cost_INN[ix, :, first] = cost / (sizes + one + other)
        cost_INN[ix, second] = cost_INN[ix, :, second] = cost.new_tensor(torch.inf)
        for sums in (size_IN, sum_IND):
            sums[ix, first] += sums[ix, second]
            sums[ix, second] = 0
    order_IN = size_IN.gt(0).float().sort(dim=1, descending=True, stable=True).indices[:, : int(kept_I.max())]
    return functional.normalize(sum_IND.take_along_dim(order_IN[:, :, None], dim=1), dim=-1)
