"""The co-attention network between two encoders: METER's fusion (Dou et al., CVPR 2022), over any pair of encoders.

Two streams, text and image, pass through fusion steps. A step updates both streams from their values before it:
self-attention within the stream, cross-attention to the other stream, and a feed-forward layer, each followed by a
LayerNorm of the sum with its input. A linear layer on the pooled first tokens of both streams, text first, gives the
logit. The scaled cosine of a dual encoder over the same encoders may be added to it.

`score_pairs` computes many pairs with little work: tokens are self-attended once for each image and caption in the
first step, projections are folded where that is cheaper (`attention`), and the last step computes only the first
tokens.

Shape letters: B aligned pairs, P pairs, I images, T texts, L text tokens, V image tokens, N tokens of a stream, M of
the stream it attends to, D width, H heads, d width of a head.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel

from dcdctl.core.config import Count, Fraction, settle_fields
from dcdctl.core.errors import ConfigError
from dcdctl.core.models.inputs import States, select_rows
from dcdctl.core.models.networks import backbones
from dcdctl.core.models.networks.attention import Heads, attend_and_project, recomputed
from dcdctl.core.models.networks.backbones import NetworkOverEncoders
from dcdctl.core.models.networks.projections import EncoderProjections, ProjectionSize
from dcdctl.core.models.protocols import Table

FUSION_EPS = 1e-12
"""LayerNorm epsilon of the fusion layers: the default of a RoBERTa configuration, not the 1e-5 of roberta-base."""
TEXT_ROW, IMAGE_ROW = 0, 1
"""Rows of the modality embeddings."""
INITIALIZER_RANGE = 0.02
"""Standard deviation of new weights, as in METER."""


@dataclass(frozen=True, kw_only=True)
class FusionSize:
    """The dimensions of the fusion steps."""

    hidden_size: Count = 768
    num_layers: Count = 6
    num_heads: Count = 12
    mlp_ratio: Count = 4
    """Width of the feed-forward layer divided by the width of the stream."""
    dropout: Fraction = 0.1
    """Dropout of each sublayer's output and of attention probabilities."""

    def __post_init__(self) -> None:
        settle_fields(self, "fusion")
        if self.hidden_size % self.num_heads:
            raise ConfigError(f"fusion.hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")


class Attention(nn.Module):
    """Multi-head attention of a stream to itself or to the other one, and the LayerNorm after it."""

    def __init__(self, size: FusionSize) -> None:
        super().__init__()
        width = size.hidden_size
        self.num_heads = size.num_heads
        self.query, self.key, self.value, self.dense = (nn.Linear(width, width) for _ in range(4))
        self.norm = nn.LayerNorm(width, eps=FUSION_EPS)
        self.dropout = nn.Dropout(size.dropout)

    @property
    def heads(self) -> Heads:
        """The projections, and the dropout that applies in the current mode."""
        return Heads(
            query=self.query,
            key=self.key,
            value=self.value,
            num_heads=self.num_heads,
            dropout=self.dropout.p if self.training else 0.0,
        )

    def attend(
        self, tokens_PND: Tensor, source_PMD: Tensor, mask_PM: Tensor | None, num_queries: int | None = None
    ) -> Tensor:
        """The first `num_queries` tokens after attending to the source; `mask_PM` is True for a real source token, None
        if all are real."""
        output_PND = attend_and_project(
            self.heads, self.dense, tokens_PND, source_PMD, mask_PM=mask_PM, num_queries=num_queries
        )
        return self.norm(self.dropout(output_PND) + tokens_PND[:, :num_queries])


class FeedForward(nn.Module):
    """Linear, exact GELU, linear, and the LayerNorm after them."""

    def __init__(self, size: FusionSize) -> None:
        super().__init__()
        self.up = nn.Linear(size.hidden_size, size.mlp_ratio * size.hidden_size)
        self.down = nn.Linear(size.mlp_ratio * size.hidden_size, size.hidden_size)
        self.norm = nn.LayerNorm(size.hidden_size, eps=FUSION_EPS)
        self.dropout = nn.Dropout(size.dropout)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        return self.norm(self.dropout(self.down(functional.gelu(self.up(tokens_BND)))) + tokens_BND)


class FusionLayer(nn.Module):
    """The part of a fusion step that updates one stream."""

    def __init__(self, size: FusionSize) -> None:
        super().__init__()
        self.self_attention = Attention(size)
        self.cross_attention = Attention(size)
        self.feed_forward = FeedForward(size)

    def attend(self, tokens_PND: Tensor, mask_PN: Tensor | None, num_queries: int | None) -> Tensor:
        """The first `num_queries` tokens of the stream after attending to itself."""
        return self.self_attention.attend(tokens_PND, tokens_PND, mask_PN, num_queries)

    def fuse(self, tokens_PND: Tensor, other_PMD: Tensor, other_mask_PM: Tensor | None) -> Tensor:
        """The stream after the step, from its self-attended tokens and the other stream before the step."""
        return self.feed_forward(self.cross_attention.attend(tokens_PND, other_PMD, other_mask_PM))


class CoAttentionNetwork(NetworkOverEncoders):
    """Two encoders, the transforms to one width, the fusion steps, the poolers and the ranking head; all but the
    encoders are untrained.

    `cosine` holds the projections of a dual encoder over the same encoders, whose logit is added to the fusion's.
    """

    cosine: EncoderProjections | None

    def __init__(self, vision: PreTrainedModel, text: PreTrainedModel, size: FusionSize) -> None:
        super().__init__(vision, text)
        self.size, width = size, size.hidden_size
        self.image_transform = nn.Linear(self.image_width, width)
        self.text_transform = nn.Linear(text.config.hidden_size, width)
        self.modality = nn.Embedding(2, width)
        self.text_layers = nn.ModuleList([FusionLayer(size) for _ in range(size.num_layers)])
        self.image_layers = nn.ModuleList([FusionLayer(size) for _ in range(size.num_layers)])
        self.text_pooler, self.image_pooler = nn.Linear(width, width), nn.Linear(width, width)
        self.rank_output = nn.Linear(2 * width, 1)
        for name, module in self.named_modules():
            # The encoders keep their pretrained weights.
            if not name.startswith(("vision.", "text.")) and isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INITIALIZER_RANGE)
                if isinstance(module, nn.Linear):
                    nn.init.zeros_(module.bias)
        self.cosine = None

    @classmethod
    def from_configs(cls, vision: PreTrainedConfig, text: PreTrainedConfig, size: FusionSize) -> Self:
        """The network over untrained encoders of these configurations."""
        return cls(backbones.new_encoder(vision), backbones.new_encoder(text), size)

    @property
    def steps(self) -> list[tuple[FusionLayer, FusionLayer]]:
        """The layers of each fusion step, text first."""
        return cast(list[tuple[FusionLayer, FusionLayer]], list(zip(self.text_layers, self.image_layers, strict=True)))

    def rank(self, text_BND: Tensor, image_BND: Tensor) -> Tensor:
        """Logits of B pairs from the first tokens of both streams."""
        pooled = [self.text_pooler(text_BND[:, 0]).tanh(), self.image_pooler(image_BND[:, 0]).tanh()]
        # Autocast would round the logit itself: to one of 128 steps between 8 and 16 in bfloat16, so that close
        # candidates tie.
        with torch.autocast(text_BND.device.type, enabled=False):
            logits: Tensor = self.rank_output(torch.cat(pooled, dim=-1).to(self.rank_output.weight.dtype)).squeeze(-1)
        return logits

    def to_table(self) -> Table:
        """The contents of config.json."""
        cosine = None if self.cosine is None else dataclasses.asdict(self.cosine.size)
        return {**super().to_table(), "fusion": dataclasses.asdict(self.size), "cosine": cosine}


def network_from_table(table: Table, ref: object) -> CoAttentionNetwork:
    """The untrained network of a table from `CoAttentionNetwork.to_table`."""
    vision, text = backbones.new_pair(table, ref)
    network = CoAttentionNetwork(vision, text, FusionSize(**table["fusion"]))
    if cosine := table["cosine"]:
        network.cosine = EncoderProjections(network.image_width, text.config.hidden_size, ProjectionSize(**cosine))
    return network


Layers = tuple[Any, Any]
"""What updates the text and the image stream in one step: a `FusionLayer`, or what has its `attend` and `fuse`."""
Streams = tuple[Tensor, Tensor]
"""Text and image."""


def score_pairs(
    network: CoAttentionNetwork, images: States, texts: States, image_ix_P: Tensor, text_ix_P: Tensor
) -> Tensor:
    """Logits of P pairs, given as positions in `images` and `texts`. All image tokens are real."""
    texts, text_at_P = texts.distinct(text_ix_P)
    images, image_at_P = images.distinct(image_ix_P)
    mask_TL = None if texts.is_full else texts.mask
    mask_PL = None if mask_TL is None else mask_TL[text_at_P]
    streams = select_rows(texts.tokens, text_at_P), select_rows(images.tokens, image_at_P)
    for step, layers in enumerate(network.steps):
        # The ranking head reads only the first tokens of the last step.
        num_queries = 1 if step == len(network.steps) - 1 else None
        if step == 0:
            # Before the first cross-attention a stream depends on one image or caption alone, not on the pair.
            alone = texts.tokens, images.tokens
            text, image = recomputed(network, self_attention, layers, alone, mask_TL, num_queries)
            attended = select_rows(text, text_at_P), select_rows(image, image_at_P)
            streams = recomputed(network, cross_attention, layers, attended, streams, mask_PL)
        else:
            streams = recomputed(network, _step, layers, streams, mask_PL, num_queries)
    logits_P = network.rank(*streams)
    if network.cosine is None:
        return logits_P
    assert images.vectors is not None
    assert texts.vectors is not None
    vectors = select_rows(images.vectors, image_at_P), select_rows(texts.vectors, text_at_P)
    return logits_P + network.cosine.logits(*vectors)


def _step(layers: Layers, streams: Streams, text_mask: Tensor | None, num_queries: int | None) -> Streams:
    """The first `num_queries` tokens of both streams after a step."""
    return cross_attention(layers, self_attention(layers, streams, text_mask, num_queries), streams, text_mask)


def self_attention(layers: Layers, streams: Streams, text_mask: Tensor | None, num_queries: int | None) -> Streams:
    """The first `num_queries` tokens of both streams after self-attention."""
    text, image = streams
    return layers[0].attend(text, text_mask, num_queries), layers[1].attend(image, None, num_queries)


def cross_attention(layers: Layers, attended: Streams, before: Streams, text_mask: Tensor | None) -> Streams:
    """Both streams after cross-attention and feed-forward: self-attended tokens attend to the other stream as it was
    before the step."""
    return layers[0].fuse(attended[0], before[1], None), layers[1].fuse(attended[1], before[0], text_mask)
