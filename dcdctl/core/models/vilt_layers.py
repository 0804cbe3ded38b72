"""One pre-norm block of ViLT, whole or in the parts that pairs share.

Shape letters: P pairs, N tokens, H heads, d width of a head, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional

from dcdctl.core.models import folding
from dcdctl.core.models.folding import Heads


def run(layer: Any, tokens_PND: Tensor, mask_PN: Tensor | None, num_queries: int | None = None) -> Tensor:
    """The first `num_queries` tokens after the block; they attend to all, or to those where the mask is True."""
    normed, heads = layer.layernorm_before(tokens_PND), _heads(layer)
    queries_PND = normed[:, :num_queries]
    if heads.is_worth_folding(queries_PND.shape[1], normed.shape[1]):
        return finish(layer, tokens_PND, folding.into_queries(heads, queries_PND, normed, mask_PN))
    linears = ((heads.query, queries_PND), (heads.key, normed), (heads.value, normed))
    return finish(layer, tokens_PND, attend(layer, [heads.split(linear(states)) for linear, states in linears], mask_PN))


def project(layer: Any, tokens_PND: Tensor) -> list[Tensor]:
    """Queries, keys and values, P x H x N x d each."""
    normed, heads = layer.layernorm_before(tokens_PND), _heads(layer)
    return [heads.split(linear(normed)) for linear in (heads.query, heads.key, heads.value)]


def attend(layer: Any, projected: Sequence[Tensor], mask_PN: Tensor | None, num_queries: int | None = None) -> Tensor:
    """What the first `num_queries` tokens take from all, P x N x D, of `project`'s queries, keys and values."""
    query_PHNd, key_PHNd, value_PHNd = projected
    context_PHNd = functional.scaled_dot_product_attention(
        query_PHNd[:, :, :num_queries],
        key_PHNd,
        value_PHNd,
        attn_mask=None if mask_PN is None else mask_PN[:, None, None, :],
        dropout_p=_heads(layer).dropout,
    )
    return context_PHNd.transpose(1, 2).flatten(2)


def finish(layer: Any, tokens_PND: Tensor, context_PND: Tensor) -> Tensor:
    """The block after its attention, for as many of the first tokens as `context_PND` has."""
    tokens = tokens_PND[:, : context_PND.shape[1]] + layer.attention.output(context_PND, None)
    return layer.output(layer.intermediate(layer.layernorm_after(tokens)), tokens)


def _heads(layer: Any) -> Heads:
    attention = layer.attention.attention
    dropout = attention.dropout.p if attention.training else 0.0
    return Heads(attention.query, attention.key, attention.value, attention.num_attention_heads, dropout)
