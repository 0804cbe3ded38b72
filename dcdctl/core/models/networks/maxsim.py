"""MaxSim, the score of late interaction: for each token of a text, the largest inner product with a token of an image,
averaged over the text's tokens (Khattab & Zaharia 2020, ColBERT, arXiv 2004.12832, who add them up; FILIP, arXiv
2111.07783, averages).

All texts times all images have hundreds of products of tokens each, so they are computed in blocks, and with a graph
once more in the backward pass.

Shape letters: I images, T texts, N tokens of an image, L tokens of a text, D length of a token vector, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

PRODUCTS_AT_A_TIME = 1 << 21
"""Products of tokens in memory on a CPU: 8 MB, which stay in its cache."""
PRODUCTS_ON_GPU = 1 << 27
"""Products of tokens in memory on a GPU: 512 MB in float32."""
FILLED = -1e4
"""The product with a token that is padding: below any product of unit vectors."""


def all_maxsims(
    images_IND: Tensor, mask_IN: Tensor | None, texts_TLD: Tensor, mask_TL: Tensor, *, is_mean: bool = True
) -> Tensor:
    """The MaxSim of every image with every text, I x T, float32, also under autocast; 0 for a text without tokens.

    `mask_IN` is None if no token of an image is padding. Without `is_mean`, the products are added up.
    """
    (num_images, num_tokens, _), (num_texts, length, _) = images_IND.shape, texts_TLD.shape
    limit = PRODUCTS_AT_A_TIME if images_IND.device.type == "cpu" else PRODUCTS_ON_GPU
    # Many images are in blocks too: their products with a single text would leave the cache.
    num_rows = max(1, min(num_images, limit // max(1, num_tokens * length)))
    step = max(1, limit // max(1, num_rows * num_tokens * length))
    is_recomputed = torch.is_grad_enabled() and (step < num_texts or num_rows < num_images)
    compute: Callable[..., Tensor] = partial(checkpoint, _block, use_reentrant=False) if is_recomputed else _block
    rows = []
    for start in range(0, num_images, num_rows):
        images, mask = images_IND[start : start + num_rows], None
        if mask_IN is not None:
            mask = mask_IN[start : start + num_rows]
        parts = zip(texts_TLD.split(step), mask_TL.split(step), strict=True)
        blocks = [compute(images, mask, texts, mask_L, is_mean) for texts, mask_L in parts]
        rows.append(torch.cat(blocks, dim=1) if blocks else images.new_zeros(len(images), 0))
    return torch.cat(rows) if rows else images_IND.new_zeros(0, num_texts)


def _block(images_IND: Tensor, mask_IN: Tensor | None, texts_TLD: Tensor, mask_TL: Tensor, is_mean: bool) -> Tensor:
    with torch.autocast(images_IND.device.type, enabled=False):
        (num_images, num_tokens, width), (num_texts, length, _) = images_IND.shape, texts_TLD.shape
        # Image tokens first: the maximum is then over rows, which a processor reads in order.
        products = images_IND.float().reshape(-1, width) @ texts_TLD.float().reshape(-1, width).T
        products_INC = products.view(num_images, num_tokens, num_texts * length)
        if mask_IN is not None:
            products_INC = products_INC.masked_fill(~mask_IN[:, :, None], FILLED)
        largest_ITL = products_INC.amax(dim=1).view(num_images, num_texts, length)
        return _over_tokens(largest_ITL, mask_TL, is_mean=is_mean)


def pair_maxsims(
    images_PND: Tensor, mask_PN: Tensor | None, texts_PLD: Tensor, mask_PL: Tensor, *, is_mean: bool = True
) -> Tensor:
    """The MaxSim of P aligned pairs, float32, also under autocast."""
    with torch.autocast(images_PND.device.type, enabled=False):
        products_PNL = images_PND.float() @ texts_PLD.float().mT
        if mask_PN is not None:
            products_PNL = products_PNL.masked_fill(~mask_PN[:, :, None], FILLED)
        return _over_tokens(products_PNL.amax(dim=1), mask_PL, is_mean=is_mean)


def _over_tokens(largest: Tensor, mask: Tensor, *, is_mean: bool) -> Tensor:
    """The mean, or the sum, over the real tokens of texts."""
    weights = mask.to(largest.dtype)
    total = (largest * weights).sum(dim=-1)
    return total / weights.sum(dim=-1).clamp(min=1) if is_mean else total
