"""Token pooling: fewer token vectors per image, by hierarchical clustering (Clavie et al. 2024, arXiv 2409.14683).

Shape letters: I images, N tokens of an image, D length of a token vector.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def pool_tokens(tokens_IND: Tensor, factor: int) -> Tensor:
    """Unit vectors of at most N / `factor` tokens per image, at least one, I x M x D. Padding is zeros, of both.

    Tokens are joined by Ward's method on their cosine distance, the cheapest two at a time, and a cluster becomes its
    mean. Float32, also under autocast; equal to scipy's `linkage(method="ward")` except on ties.
    """
    mask_IN, rows_I = tokens_IND.ne(0).any(dim=-1), torch.arange(len(tokens_IND), device=tokens_IND.device)
    with torch.autocast(tokens_IND.device.type, enabled=False):
        tokens_IND = tokens_IND.float()
        cost_INN = (1 - tokens_IND @ tokens_IND.mT).clamp(0, 2).square()
        is_pair_INN = mask_IN[:, :, None] & mask_IN[:, None]
        cost_INN.masked_fill_(~is_pair_INN | torch.eye(mask_IN.shape[1], device=mask_IN.device).bool(), torch.inf)
        size_IN, sum_IND = mask_IN.float(), tokens_IND.clone()
        kept_I = (mask_IN.sum(dim=1) // factor).clamp(min=1)
        merges_I = mask_IN.sum(dim=1) - kept_I
        for done in range(int(merges_I.max())):
            ix = rows_I[merges_I > done]
            least, place = cost_INN[ix].flatten(1).min(dim=1)
            first, second = place // mask_IN.shape[1], place % mask_IN.shape[1]
            # The cost of joining each other cluster with the union (Lance & Williams 1967).
            sizes, other = size_IN[ix], size_IN[ix, second][:, None]
            own = size_IN[ix, first][:, None]
            joined = (sizes + own) * cost_INN[ix, first] + (sizes + other) * cost_INN[ix, second]
            joined = (joined - sizes * least[:, None]) / (sizes + own + other)
            cost_INN[ix, first], cost_INN[ix, :, first] = joined, joined
            cost_INN[ix, second], cost_INN[ix, :, second] = torch.inf, torch.inf
            size_IN[ix, first] += size_IN[ix, second]
            sum_IND[ix, first] += sum_IND[ix, second]
            size_IN[ix, second], sum_IND[ix, second] = 0, 0
        order_IN = size_IN.gt(0).float().sort(dim=1, descending=True, stable=True).indices[:, : int(kept_I.max())]
        return functional.normalize(sum_IND.gather(1, order_IN[:, :, None].expand(-1, -1, sum_IND.shape[2])), dim=-1)
