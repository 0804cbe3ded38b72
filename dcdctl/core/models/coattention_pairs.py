"""Scores of many pairs of a co-attention network, with nothing computed twice and little computed for nothing.

Equal to running every pair through `FusionLayer`, but

- the first step's self-attention is computed once an image and once a caption: there neither stream has met the other;
- a projection of the long stream is folded into the short one where that is less work: q.(W y) = (W^T q).y, and
  sum_t a_t (W y_t) = W (sum_t a_t y_t). The heads' projections of a short caption's L tokens are L x H vectors as wide as the stream,
  which take the place of d x d products with every image token;
- in the last step only the two first tokens are followed: one query each.

Shape letters as in `coattention`; S tokens of the short side, C = S x H its folded vectors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from dcdctl.core.models.coattention import Attention, CoAttentionNetwork, FusionLayer
from dcdctl.core.models.protocols import States


def score_pairs(network: CoAttentionNetwork, images: States, texts: States, image_ix_P: Tensor, text_ix_P: Tensor) -> Tensor:
    """Logits of P pairs, given as positions in `images` and `texts`; image tokens are all real."""
    used_images, image_at_P = image_ix_P.unique(return_inverse=True)
    used_texts, text_at_P = text_ix_P.unique(return_inverse=True)
    texts = texts.take(used_texts)
    image_IVD, text_TLD, mask_TL = images.tokens[used_images], texts.tokens, texts.mask
    mask_PL = None if bool(mask_TL.all()) else mask_TL[text_at_P]
    image_PVD, text_PLD = image_IVD[image_at_P], text_TLD[text_at_P]
    for step, (text_layer, image_layer) in enumerate(network.steps):
        count = 1 if step == len(network.steps) - 1 else None
        if step == 0:
            own_mask = None if mask_PL is None else mask_TL
            text_own = attend(text_layer.self_attention, text_TLD, text_TLD, own_mask, count)[text_at_P]
            image_own = attend(image_layer.self_attention, image_IVD, image_IVD, None, count)[image_at_P]
        else:
            text_own = attend(text_layer.self_attention, text_PLD, text_PLD, mask_PL, count)
            image_own = attend(image_layer.self_attention, image_PVD, image_PVD, None, count)
        # Both streams see the other as it entered the step.
        text_PLD, image_PVD = _meet(text_layer, text_own, image_PVD, None), _meet(image_layer, image_own, text_PLD, mask_PL)
    return network.rank(text_PLD, image_PVD)


def _meet(layer: FusionLayer, own_PND: Tensor, other_PMD: Tensor, other_mask_PM: Tensor | None) -> Tensor:
    fused: Tensor = layer.feed_forward(attend(layer.cross_attention, own_PND, other_PMD, other_mask_PM))
    return fused


def attend(attention: Attention, tokens_PND: Tensor, source_PMD: Tensor, mask_PM: Tensor | None, num_queries: int | None = None) -> Tensor:
    """`Attention.forward` for the first `num_queries` tokens, the way that is least work."""
    queries_PND = tokens_PND[:, :num_queries]
    num_queries, num_sources = queries_PND.shape[1], source_PMD.shape[1]
    if _is_worth_folding(attention, num_queries, num_sources):
        output_PND = _folded_into_queries(attention, queries_PND, source_PMD, mask_PM)
    elif _is_worth_folding(attention, num_sources, num_queries):
        output_PND = _folded_into_source(attention, queries_PND, source_PMD, mask_PM)
    else:
        plain: Tensor = attention(queries_PND, source_PMD, mask_PM)
        return plain
    return attention.close(output_PND, queries_PND)


def _is_worth_folding(attention: Attention, short: int, long: int) -> bool:
    """Whether two products of each long token with the short side's folded vectors, and the folding, are less than two projections."""
    width = attention.key.weight.shape[0]
    return short * (attention.num_heads * long + width) < long * width


def _folded_into_queries(attention: Attention, short_PSD: Tensor, long_PMD: Tensor, mask_PM: Tensor | None) -> Tensor:
    """The output of attention of few queries to a long source: the source is never projected."""
    num_heads, size = attention.num_heads, short_PSD.shape
    key_HdD, value_HdD = (_by_head(linear.weight, num_heads) for linear in (attention.key, attention.value))
    query_PHSd = attention.heads(attention.query(short_PSD))
    folded_PCD = (query_PHSd @ key_HdD).flatten(1, 2)
    # The key's bias adds the same to all scores of a query, which a softmax does not see; but every parameter keeps its gradient.
    bias_PC1 = (query_PHSd @ attention.key.bias.view(num_heads, -1, 1)).flatten(1, 2)
    scores_PCM = torch.baddbmm(bias_PC1, folded_PCD, long_PMD.transpose(1, 2))
    share_PCM = _shares(attention, scores_PCM, None if mask_PM is None else mask_PM[:, None, :])
    context_PHSD = (share_PCM @ long_PMD).unflatten(1, (num_heads, size[1]))
    value_PHSd = context_PHSD @ value_HdD.transpose(1, 2)
    # Shares sum to 1 unless some were dropped, and so does what the value's bias counts.
    total_PHS1 = share_PCM.sum(dim=-1).view(size[0], num_heads, size[1], 1)
    value_PHSd = value_PHSd + total_PHS1 * attention.value.bias.view(num_heads, 1, -1)
    output: Tensor = attention.dense(value_PHSd.transpose(1, 2).flatten(2))
    return output


def _folded_into_source(attention: Attention, long_PND: Tensor, short_PSD: Tensor, mask_PS: Tensor | None) -> Tensor:
    """The output of attention of many queries to a short source: the queries are never projected, nor is the context."""
    num_heads = attention.num_heads
    query_HdD = _by_head(attention.query.weight, num_heads)
    key_PHSd, value_PHSd = attention.heads(attention.key(short_PSD)), attention.heads(attention.value(short_PSD))
    folded_PCD = (key_PHSd @ query_HdD).flatten(1, 2)
    bias_P1C = (key_PHSd @ attention.query.bias.view(num_heads, -1, 1)).flatten(1)[:, None, :]
    scores_PNC = torch.baddbmm(bias_P1C, long_PND, folded_PCD.transpose(1, 2))
    mask = None if mask_PS is None else mask_PS[:, None, None, :]
    share_PNHS = _shares(attention, scores_PNC.unflatten(-1, (num_heads, -1)), mask)
    out_HdD = attention.dense.weight.view(-1, num_heads, key_PHSd.shape[3]).permute(1, 2, 0)
    moved_PCD = (value_PHSd @ out_HdD).flatten(1, 2)
    return share_PNHS.flatten(2) @ moved_PCD + attention.dense.bias


def _shares(attention: Attention, scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax of the scaled scores over the last dimension, dropped out in training."""
    width_of_head = attention.key.weight.shape[0] // attention.num_heads
    scores = scores / math.sqrt(width_of_head)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return functional.dropout(scores.softmax(dim=-1), attention.dropout.p, attention.training)


def _by_head(weight_DD: Tensor, num_heads: int) -> Tensor:
    """The rows of a projection that make each head, H x d x D."""
    return weight_DD.unflatten(0, (num_heads, -1))
