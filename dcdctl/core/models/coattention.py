"""Co-attention between two encoders: METER (Dou et al., CVPR 2022), and the same over any other pair of encoders.

Two streams, text and image, go through fusion steps. A step updates both from what both were before it: self-attention on the own
stream, cross-attention to the other, feed forward, each followed by a LayerNorm of the sum with its input. The score is one linear
layer on the pooled first tokens of both streams, text first; to it the scaled cosine of a dual encoder over the same encoders may be added.

Shape letters: B aligned pairs, P pairs, I images, T texts, L text tokens, V image tokens, N tokens of a stream, M of its source,
D width, H heads, d width of a head.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel

from dcdctl.core.config import Between, Count, check_fields
from dcdctl.core.errors import ConfigError
from dcdctl.core.models import backbones
from dcdctl.core.models.attention import Heads, into_queries, into_source, recomputed
from dcdctl.core.models.backbones import Projections, ProjectionSize
from dcdctl.core.models.protocols import States, select_rows

FUSION_EPS = 1e-12
"""LayerNorm epsilon of the fusion layers: that of a fresh RoBERTa configuration, and not roberta-base's 1e-5."""
TEXT_ROW, IMAGE_ROW = 0, 1
INITIALIZER_RANGE = 0.02


@dataclass(frozen=True, kw_only=True)
class FusionSize:
    """The dimensions of the fusion steps."""

    hidden_size: Count = 768
    num_layers: Count = 6
    num_heads: Count = 12
    mlp_ratio: Count = 4
    """Width of the feed forward over the width of the stream."""
    dropout: Annotated[float, Between(0, 1, "[)")] = 0.1
    """Of each sublayer's output and of attention probabilities, in training."""

    def __post_init__(self) -> None:
        check_fields(self, "fusion")
        if self.hidden_size % self.num_heads:
            raise ConfigError(f"fusion.hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")


class Attention(nn.Module):
    """Multi-head attention of one stream to itself or to the other, and the LayerNorm after it."""

    def __init__(self, size: FusionSize) -> None:
        super().__init__()
        width = size.hidden_size
        self.num_heads = size.num_heads
        self.query, self.key, self.value, self.dense = (nn.Linear(width, width) for _ in range(4))
        self.norm = nn.LayerNorm(width, eps=FUSION_EPS)
        self.dropout = nn.Dropout(size.dropout)

    @property
    def parts(self) -> Heads:
        """The projections, and what is dropped out of their shares now."""
        return Heads(self.query, self.key, self.value, self.num_heads, self.dropout.p if self.training else 0.0)

    def forward(self, tokens_BND: Tensor, source_BMD: Tensor, mask_BM: Tensor | None) -> Tensor:
        """The tokens after attending to the source; `mask_BM` is True where a source token is real, None where all are."""
        heads = self.parts
        context_BHNd = functional.scaled_dot_product_attention(
            heads.split(self.query(tokens_BND)),
            heads.split(self.key(source_BMD)),
            heads.split(self.value(source_BMD)),
            attn_mask=None if mask_BM is None else mask_BM[:, None, None, :],
            dropout_p=heads.dropout,
        )
        return self.close(self.dense(context_BHNd.transpose(1, 2).flatten(2)), tokens_BND)

    def close(self, output_BND: Tensor, tokens_BND: Tensor) -> Tensor:
        """LayerNorm of the sublayer's output and its input."""
        normed: Tensor = self.norm(self.dropout(output_BND) + tokens_BND)
        return normed


class FeedForward(nn.Module):
    """Linear, exact GELU, linear, and the LayerNorm after them."""

    def __init__(self, size: FusionSize) -> None:
        super().__init__()
        self.up = nn.Linear(size.hidden_size, size.mlp_ratio * size.hidden_size)
        self.down = nn.Linear(size.mlp_ratio * size.hidden_size, size.hidden_size)
        self.norm = nn.LayerNorm(size.hidden_size, eps=FUSION_EPS)
        self.dropout = nn.Dropout(size.dropout)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.dropout(self.down(functional.gelu(self.up(tokens_BND)))) + tokens_BND)
        return normed


class FusionLayer(nn.Module):
    """One stream's half of a fusion step."""

    def __init__(self, size: FusionSize) -> None:
        super().__init__()
        self.self_attention = Attention(size)
        self.cross_attention = Attention(size)
        self.feed_forward = FeedForward(size)

    def forward(self, own_BND: Tensor, own_mask_BN: Tensor | None, other_BMD: Tensor, other_mask_BM: Tensor | None) -> Tensor:
        """The own stream after the step; both streams are given as they entered it."""
        tokens_BND = self.self_attention(own_BND, own_BND, own_mask_BN)
        tokens_BND = self.cross_attention(tokens_BND, other_BMD, other_mask_BM)
        fused: Tensor = self.feed_forward(tokens_BND)
        return fused


class CoAttentionNetwork(nn.Module):
    """Two encoders, the transforms to one width, the fusion steps, the poolers and the ranking head; all but the encoders untrained.

    `cosine` is what a dual encoder over the same encoders has after them; its logit is added to the fusion's.
    """

    def __init__(self, vision: nn.Module, text: nn.Module, size: FusionSize, cosine: Projections | None = None) -> None:
        super().__init__()
        self.vision, self.text, self.size = vision, text, size
        for encoder in (vision, text):
            backbones.drop_pooler(encoder)
        width = size.hidden_size
        self.image_width = backbones.image_width(vision)
        self.image_transform = nn.Linear(self.image_width, width)
        self.text_transform = nn.Linear(self.text_config.hidden_size, width)
        self.modality = nn.Embedding(2, width)
        self.text_layers = nn.ModuleList([FusionLayer(size) for _ in range(size.num_layers)])
        self.image_layers = nn.ModuleList([FusionLayer(size) for _ in range(size.num_layers)])
        self.text_pooler, self.image_pooler = nn.Linear(width, width), nn.Linear(width, width)
        self.rank_output = nn.Linear(2 * width, 1)
        for name, module in self.named_modules():
            if not name.startswith(("vision.", "text.")) and isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INITIALIZER_RANGE)
                if isinstance(module, nn.Linear):
                    nn.init.zeros_(module.bias)
        self.cosine = cosine

    @classmethod
    def from_configs(cls, vision_config: Any, text_config: Any, size: FusionSize, cosine: ProjectionSize | None = None) -> Self:
        """The network over untrained encoders of these configurations."""
        with backbones.needing_timm(f"the vision encoder {getattr(vision_config, 'architecture', '')}"):
            vision = AutoModel.from_config(vision_config)
        text = AutoModel.from_config(text_config)
        if cosine is None:
            return cls(vision, text, size)
        return cls(vision, text, size, Projections(backbones.image_width(vision), text.config.hidden_size, cosine))

    def start_from(self, cosine: Projections) -> None:
        """Add a copy of these projections' logit, which at first is the whole logit: the head starts at zero."""
        self.cosine = copy.deepcopy(cosine).requires_grad_(True)
        nn.init.zeros_(self.rank_output.weight)
        nn.init.zeros_(self.rank_output.bias)

    @property
    def vision_config(self) -> Any:
        return self.vision.config

    @property
    def text_config(self) -> Any:
        return self.text.config

    @property
    def steps(self) -> list[tuple[FusionLayer, FusionLayer]]:
        """The layers of each fusion step, text first."""
        return cast(list[tuple[FusionLayer, FusionLayer]], list(zip(self.text_layers, self.image_layers, strict=True)))

    @property
    def shared_modules(self) -> list[nn.Module]:
        """What a student has in common with its teacher: all that comes before the fusion."""
        return [self.vision, self.text, self.image_transform, self.text_transform, self.modality]

    def image_stream(self, features: Tensor) -> Tensor:
        """Image features as they enter the fusion, I x V x D: transformed, with the modality's vector."""
        tokens: Tensor = self.image_transform(features) + self.modality.weight[IMAGE_ROW]
        return tokens

    def text_stream(self, features: Tensor) -> Tensor:
        """Text features as they enter the fusion, T x L x D."""
        tokens: Tensor = self.text_transform(features) + self.modality.weight[TEXT_ROW]
        return tokens

    def rank(self, text_BND: Tensor, image_BND: Tensor) -> Tensor:
        """Logits of B pairs from the first tokens of both streams."""
        pooled = [self.text_pooler(text_BND[:, 0]).tanh(), self.image_pooler(image_BND[:, 0]).tanh()]
        logits: Tensor = self.rank_output(torch.cat(pooled, dim=-1)).squeeze(-1)
        return logits

    def add_cosine(self, logits_P: Tensor, image_PD: Tensor | None, text_PD: Tensor | None) -> Tensor:
        """The logits of P pairs with those of their vectors added; as they are in a network without a cosine."""
        if self.cosine is None:
            return logits_P
        assert image_PD is not None
        assert text_PD is not None
        return logits_P + self.cosine.logits(image_PD, text_PD)

    def to_table(self) -> dict[str, Any]:
        """What config.json holds."""
        sides = {"vision": self.vision_config.to_dict(), "text": self.text_config.to_dict()}
        for told in sides.values():
            told.pop("_name_or_path", None)  # where the encoder once came from, perhaps a folder of this machine
        cosine = None if self.cosine is None else dataclasses.asdict(self.cosine.size)
        return {**sides, "fusion": dataclasses.asdict(self.size), "cosine": cosine}


def network_from_table(table: Mapping[str, Any]) -> CoAttentionNetwork:
    """The network, untrained, that `CoAttentionNetwork.to_table` describes."""
    vision, text = (AutoConfig.for_model(**table[name]) for name in ("vision", "text"))
    told = table.get("cosine")  # not in older files
    cosine = None if told is None else ProjectionSize(**told)
    return CoAttentionNetwork.from_configs(vision, text, FusionSize(**table["fusion"]), cosine)


Layers = tuple[FusionLayer, FusionLayer]
Streams = tuple[Tensor, Tensor]
"""Text and image."""


def score_pairs(network: CoAttentionNetwork, images: States, texts: States, image_ix_P: Tensor, text_ix_P: Tensor) -> Tensor:
    """Logits of P pairs, given as positions in `images` and `texts`; image tokens are all real."""
    used_images, image_at_P = image_ix_P.unique(return_inverse=True)
    used_texts, text_at_P = text_ix_P.unique(return_inverse=True)
    texts = texts.take(used_texts)
    image_IVD, text_TLD, mask_TL = select_rows(images.tokens, used_images), texts.tokens, texts.mask
    mask_PL = None if bool(mask_TL.all()) else mask_TL[text_at_P]
    streams = select_rows(text_TLD, text_at_P), select_rows(image_IVD, image_at_P)
    for step, layers in enumerate(network.steps):
        count = 1 if step == len(network.steps) - 1 else None
        if step == 0:
            own_mask = None if mask_PL is None else mask_TL
            text, image = recomputed(network, _look_around, layers, (text_TLD, image_IVD), own_mask, count)
            streams = recomputed(network, _meet, layers, (select_rows(text, text_at_P), select_rows(image, image_at_P)), streams, mask_PL)
        else:
            streams = recomputed(network, _step, layers, streams, mask_PL, count)
    image_PD = None if images.vectors is None else select_rows(images.vectors, image_ix_P)
    text_PD = None if texts.vectors is None else select_rows(texts.vectors, text_at_P)
    return network.add_cosine(network.rank(*streams), image_PD, text_PD)


def _step(layers: Layers, streams: Streams, mask_PL: Tensor | None, num_queries: int | None) -> Streams:
    return _meet(layers, _look_around(layers, streams, mask_PL, num_queries), streams, mask_PL)


def _look_around(layers: Layers, streams: Streams, text_mask: Tensor | None, num_queries: int | None) -> Streams:
    """Both streams after attending to themselves."""
    (text_layer, image_layer), (text, image) = layers, streams
    return (
        attend(text_layer.self_attention, text, text, text_mask, num_queries),
        attend(image_layer.self_attention, image, image, None, num_queries),
    )


def _meet(layers: Layers, own: Streams, entered: Streams, text_mask: Tensor | None) -> Streams:
    """Both streams after attending to the other as it entered the step."""
    (text_layer, image_layer), (text, image) = layers, entered
    return _fuse(text_layer, own[0], image, None), _fuse(image_layer, own[1], text, text_mask)


def _fuse(layer: FusionLayer, own_PND: Tensor, other_PMD: Tensor, other_mask_PM: Tensor | None) -> Tensor:
    fused: Tensor = layer.feed_forward(attend(layer.cross_attention, own_PND, other_PMD, other_mask_PM))
    return fused


def attend(attention: Attention, tokens_PND: Tensor, source_PMD: Tensor, mask_PM: Tensor | None, num_queries: int | None = None) -> Tensor:
    """`Attention.forward` for the first `num_queries` tokens, the way that is least work."""
    queries_PND, heads = tokens_PND[:, :num_queries], attention.parts
    num_queries, num_sources = queries_PND.shape[1], source_PMD.shape[1]
    if heads.is_worth_folding(num_queries, num_sources):
        output_PND = attention.dense(into_queries(heads, queries_PND, source_PMD, mask_PM))
    elif heads.is_worth_folding(num_sources, num_queries):
        output_PND = into_source(heads, attention.dense, queries_PND, source_PMD, mask_PM)
    else:
        plain: Tensor = attention(queries_PND, source_PMD, mask_PM)
        return plain
    return attention.close(output_PND, queries_PND)
