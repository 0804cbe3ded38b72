"""Attention with folded and shared projections, activation checkpointing, and dropout, for fusion layers.

Folding moves the projections of a long side into the short side: q . (W y) = (W^T q) . y, and sum_t a_t (W y_t) = W
(sum_t a_t y_t). A few vectors as wide as the stream then replace D x D products with every token of the long side. The
result equals projecting every token, including biases and dropout of attention probabilities.

Where several pairs have the same image, their queries share one row (`Groups`), so that the image is projected once for
all of them.

Shape letters: P pairs, I images, G groups of pairs of one image, R pairs of a group, S tokens of the short side, N and
M tokens of the long side, D width, H heads, d width of a head, C = S x H folded vectors.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from dcdctl.core.models.inputs import select_rows

if TYPE_CHECKING:  # transformers takes seconds
    from transformers import PreTrainedModel

Ts = TypeVarTuple("Ts")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Heads:
    """The projections of a multi-head attention."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    num_heads: int
    dropout: float
    """Of attention probabilities; 0 outside training."""

    def split(self, states_PND: Tensor) -> Tensor:
        """P x N x D to P x H x N x d."""
        return states_PND.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def by_head(self, projection: nn.Linear) -> Tensor:
        """The rows of a projection for each head, H x d x D."""
        return projection.weight.unflatten(0, (self.num_heads, -1))

    def context(self, query_PHSd: Tensor, key_PHMd: Tensor, value_PHMd: Tensor, mask_PM: Tensor | None) -> Tensor:
        """What queries take from a source, P x S x D, before the output projection."""
        context_PHSd = functional.scaled_dot_product_attention(
            query_PHSd,
            key_PHMd,
            value_PHMd,
            attn_mask=None if mask_PM is None else mask_PM[:, None, None, :],
            # This function drops in eval mode too, so the rate is 0 there.
            dropout_p=self.dropout,
        )
        return context_PHSd.transpose(1, 2).flatten(2)

    def is_worth_folding(self, short: int, long: int) -> bool:
        """Whether folding, and two products of each long token with the folded vectors, cost less than two projections
        of each token."""
        width = self.key.weight.shape[0]
        return short * (self.num_heads * long + width) < long * width


def attend_and_project(
    heads: Heads,
    dense: nn.Linear,
    tokens_PND: Tensor,
    source_PMD: Tensor,
    mask_PM: Tensor | None,
    num_queries: int | None = None,
) -> Tensor:
    """The output of attention of the first `num_queries` tokens to a source, projected by `dense`, by the cheapest of
    three equal ways.

    `mask_PM` is True for a real source token, None if all are real. Residual, LayerNorm and output dropout are left to
    the caller.
    """
    queries_PSD = tokens_PND[:, :num_queries]
    num_queries, num_sources = queries_PSD.shape[1], source_PMD.shape[1]
    if heads.is_worth_folding(num_queries, num_sources):
        return dense(into_queries(heads, queries_PSD, source_PMD, mask_PM))
    if heads.is_worth_folding(num_sources, num_queries):
        return into_source(heads, dense, queries_PSD, source_PMD, mask_PM)
    key, value = heads.split(heads.key(source_PMD)), heads.split(heads.value(source_PMD))
    return dense(heads.context(heads.split(heads.query(queries_PSD)), key, value, mask_PM))


def heads_of(attention: Any) -> Heads:
    """The projections of a self-attention or cross-attention module of transformers."""
    module = getattr(attention, "dropout", None)
    probability = module.p if isinstance(module, nn.Dropout) else attention.attention_dropout
    return Heads(
        query=attention.query,
        key=attention.key,
        value=attention.value,
        num_heads=attention.num_attention_heads,
        dropout=float(probability) if attention.training else 0.0,
    )


@dataclass(frozen=True)
class Groups:
    """Pairs in rows by their image. Each row is padded with copies of pair 0 to the longest one; their results are not
    read."""

    image_ix_G: Tensor
    """The image of each group."""
    pair_ix_GR: Tensor
    """The pairs of each group."""
    cell_P: Tensor
    """Where each pair is in the flattened `pair_ix_GR`."""

    @classmethod
    def of(cls, image_ix_P: Tensor) -> Groups:
        """One group for each image; each pair is a group of its own where that would leave rows more than half empty on
        average.

        Give positions on the CPU: the number of rows depends on them.
        """
        cells = torch.arange(len(image_ix_P))
        images_G, group_P, counts_G = image_ix_P.unique(return_inverse=True, return_counts=True)
        width = int(counts_G.max()) if len(cells) else 1
        if len(images_G) * width > 2 * len(cells):
            return cls(image_ix_P, cells[:, None], cells)
        order_P = group_P.argsort(stable=True)
        rank_P = torch.empty_like(cells)
        rank_P[order_P] = cells - (counts_G.cumsum(0) - counts_G)[group_P[order_P]]
        cell_P = group_P * width + rank_P
        pair_ix = torch.zeros(len(images_G) * width, dtype=cells.dtype)
        pair_ix[cell_P] = cells
        return cls(images_G, pair_ix.view(len(images_G), width), cell_P)

    def to(self, device: torch.device) -> Groups:
        """The same groups on another device."""
        return Groups(
            self.image_ix_G.to(device, non_blocking=True),
            self.pair_ix_GR.to(device, non_blocking=True),
            self.cell_P.to(device, non_blocking=True),
        )

    def attend(self, heads: Heads, dense: nn.Linear, tokens_PSD: Tensor, image_GMD: Tensor) -> Tensor:
        """`attend_and_project` for the tokens of pairs and the images of their groups; all image tokens are real."""
        num_groups, width = self.pair_ix_GR.shape
        grouped = select_rows(tokens_PSD, self.pair_ix_GR.flatten()).unflatten(0, (num_groups, width)).flatten(1, 2)
        output = attend_and_project(heads, dense, grouped, image_GMD, mask_PM=None)
        return select_rows(output.unflatten(1, (width, -1)).flatten(0, 1), self.cell_P)


def into_queries(heads: Heads, short_PSD: Tensor, long_PMD: Tensor, mask_PM: Tensor | None) -> Tensor:
    """The context of few queries from a long source, P x S x D, before the output projection; the source is never
    projected."""
    num_heads, size = heads.num_heads, short_PSD.shape
    key_HdD, value_HdD = heads.by_head(heads.key), heads.by_head(heads.value)
    query_PHSd = heads.split(heads.query(short_PSD))
    folded_PCD = (query_PHSd @ key_HdD).flatten(1, 2)
    # The key's bias adds the same to all scores of a query, which a softmax ignores. It is added so that every
    # parameter has a gradient.
    bias_PC1 = (query_PHSd @ heads.key.bias.view(num_heads, -1, 1)).flatten(1, 2)
    scores_PCM = torch.baddbmm(bias_PC1, folded_PCD, long_PMD.transpose(1, 2))
    share_PCM = _shares(heads, scores_PCM, None if mask_PM is None else mask_PM[:, None, :])
    context_PHSD = (share_PCM @ long_PMD).unflatten(1, (num_heads, size[1]))
    value_PHSd = context_PHSD @ value_HdD.transpose(1, 2)
    # Attention probabilities sum to 1 unless some were dropped; the value's bias is weighted by that sum.
    total_PHS1 = share_PCM.sum(dim=-1).view(size[0], num_heads, size[1], 1)
    value_PHSd = value_PHSd + total_PHS1 * heads.value.bias.view(num_heads, 1, -1)
    return value_PHSd.transpose(1, 2).flatten(2)


def into_source(heads: Heads, dense: nn.Linear, long_PND: Tensor, short_PSD: Tensor, mask_PS: Tensor | None) -> Tensor:
    """The output of attention of many queries to a short source, P x N x D, projected by `dense`; the long side is
    never projected."""
    num_heads = heads.num_heads
    query_HdD = heads.by_head(heads.query)
    key_PHSd, value_PHSd = heads.split(heads.key(short_PSD)), heads.split(heads.value(short_PSD))
    folded_PCD = (key_PHSd @ query_HdD).flatten(1, 2)
    # The query's bias adds a different amount for each source token, so unlike the key's bias it changes the softmax.
    bias_P1C = (key_PHSd @ heads.query.bias.view(num_heads, -1, 1)).flatten(1)[:, None, :]
    scores_PNC = torch.baddbmm(bias_P1C, long_PND, folded_PCD.transpose(1, 2))
    mask = None if mask_PS is None else mask_PS[:, None, None, :]
    share_PNHS = _shares(heads, scores_PNC.unflatten(-1, (num_heads, -1)), mask)
    out_HdD = dense.weight.view(-1, num_heads, key_PHSd.shape[3]).permute(1, 2, 0)
    moved_PCD = (value_PHSd @ out_HdD).flatten(1, 2)
    return share_PNHS.flatten(2) @ moved_PCD + dense.bias


def _shares(heads: Heads, scores: Tensor, mask: Tensor | None) -> Tensor:
    """Attention probabilities: the softmax of the scaled scores over the last dimension, with dropout in training."""
    scores = scores / math.sqrt(heads.key.weight.shape[0] // heads.num_heads)
    if mask is not None:
        # METER adds -10000 to padding instead; the probabilities are equal.
        scores = scores.masked_fill(~mask, -torch.inf)
    # This function drops in every mode by default; outside training the rate of `heads` is 0.
    return functional.dropout(scores.softmax(dim=-1), heads.dropout)


def recomputed(module: nn.Module, run: Callable[[*Ts], R], *arguments: *Ts) -> R:
    """The result of `run`.

    In training, if `module.recomputes` is set, its activations are not kept but computed again in the backward pass,
    with the same dropout.
    """
    if getattr(module, "recomputes", False) and module.training and torch.is_grad_enabled():
        # The reentrant form gives weights no gradient if no input requires one, as behind frozen encoders.
        result: R = checkpoint(run, *arguments, use_reentrant=False)
        return result
    return run(*arguments)


def compute_by(fused: type[nn.Module], plain: type[nn.Module], network: nn.Module) -> None:
    """Let the modules of class `plain` in a network compute as its subclass `fused` does, with the same parameters."""
    for module in network.modules():
        if type(module) is plain:
            # No other way keeps the names of the parameters and survives a deep copy: a forward pass that is set on the
            # instance stays bound to the original, and a wrapper adds a level to every name.
            module.__class__ = fused


def enable_checkpointing(encoders: Iterable[nn.Module]) -> bool:
    """Let those of these encoders of transformers and timm that are trained compute their activations again in the
    backward pass.

    False if none of them is trained and supports it.
    """
    is_enabled = False
    for encoder in encoders:
        is_trained = any(parameter.requires_grad for parameter in encoder.parameters())
        if not is_trained or not getattr(encoder, "supports_gradient_checkpointing", False):
            continue
        # The second is its older name.
        names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
        enable = next(getattr(encoder, name) for name in names if hasattr(encoder, name))
        enable({"use_reentrant": False})
        is_enabled = True
    return is_enabled


def set_hidden_dropout(network: PreTrainedModel, probability: float, part: str = "") -> bool:
    """Set the dropout of embeddings and sublayer outputs in a network of transformers, its configuration included.

    `part` names the part of the configuration that has it, such as text_config. Attention probabilities then have none.
    False if there is no hidden dropout, as in CLIP.
    """
    config = getattr(network.config, part) if part else network.config
    if not hasattr(config, "hidden_dropout_prob"):
        return False
    config.hidden_dropout_prob, config.attention_probs_dropout_prob = probability, 0.0
    # A network without storage has the settings that the configuration gives. Architectures keep them under many names,
    # some as numbers. Its attention computes nothing, and each architecture has the plain one.
    settings = copy.deepcopy(network.config)
    settings._attn_implementation = "eager"
    with torch.device("meta"):
        twin: nn.Module = type(network)(settings)
    for name, module in network.named_modules():
        for key, value in vars(twin.get_submodule(name)).items():
            if isinstance(value, float) and (key == "p" or "drop" in key):
                setattr(module, key, value)
    return True
