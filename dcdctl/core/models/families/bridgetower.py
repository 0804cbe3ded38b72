"""BridgeTower (Xu et al., AAAI 2023) with its matching head as a fusion scorer: the weights of transformers, our own
forward pass.

Both encoders run alone up to a level. From there on each of their layers feeds one fusion layer of two streams, text
and image: a link tower adds the encoder's tokens to the stream, then the stream attends to itself and to the other one.
With n fusion layers over encoders of L layers, fusion layer k reads encoder layer L - n + k; all but the first have a
link tower. No encoder layer reads the fusion.

So the encoders' lower layers are computed once per image or caption, the upper ones once for all pairs of a call, and
so is the self-attention of the first fusion layer. Projections are folded where that is cheaper (`attention`); the last
fusion layer computes only the first tokens. transformers pads no image stream and does not
read the pixel mask, and neither does this file.

Shape letters: I images, T texts, P pairs, B aligned pairs, L text tokens, M image tokens, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn
from transformers import BaseImageProcessor, BridgeTowerForImageAndTextRetrieval, BridgeTowerModel, PreTrainedConfig

from dcdctl.core.errors import ModelError
from dcdctl.core.models.families.coattention import Layers, Streams, cross_attention, self_attention
from dcdctl.core.models.families.matching import MatchingScorer, finish, self_attend
from dcdctl.core.models.inputs import States, TextBatch, select_rows
from dcdctl.core.models.networks.attention import attend_and_project, heads_of, recomputed

TEXT_ROW, IMAGE_ROW = 0, 1
"""Rows of the token type embeddings."""


class BridgeTowerScorer(MatchingScorer):
    """Scores image-caption pairs with the matching head of a BridgeTower."""

    network: BridgeTowerForImageAndTextRetrieval
    family = "BridgeTower"
    network_class = BridgeTowerForImageAndTextRetrieval
    processor_class = "BridgeTowerProcessor"
    layers_name = "bridgetower.cross_modal_text_layers"
    head = "itm_score.fc"
    unread = ("bridgetower.text_model.pooler",)
    max_text_len = 40  # `task_finetune_irtr_*` in microsoft/BridgeTower src/config.py
    example = "BridgeTower/bridgetower-base-itm-mlm"

    @property
    def _body(self) -> BridgeTowerModel:
        """The network without its head."""
        return self.network.bridgetower

    @property
    def _split(self) -> int:
        """Number of layers of each encoder that run before the first fusion layer."""
        return len(self._body.text_model.encoder.layer) - self.num_layers + 1

    def student(self, layers: Sequence[int]) -> Self:
        """A scorer with only these fusion layers; it reads the last layers of the encoders, as any BridgeTower of so
        many fusion layers does."""
        layers = self.checked_layers(layers)
        network = copy.deepcopy(self.network)
        body = network.bridgetower
        for name in ("cross_modal_text_layers", "cross_modal_image_layers"):
            setattr(body, name, nn.ModuleList([getattr(body, name)[index] for index in layers]))
        for name in ("cross_modal_text_link_tower", "cross_modal_image_link_tower"):
            # Fusion layer k has link tower k - 1. The first layer of a student has none.
            setattr(body, name, nn.ModuleList([getattr(body, name)[index - 1] for index in layers[1:]]))
        if not network.config.share_cross_modal_transformer_layers:
            for name in ("cross_modal_text_transform", "cross_modal_image_transform"):
                setattr(body, name, nn.ModuleList([getattr(body, name)[index] for index in layers]))
        network.config.num_hidden_layers = body.config.num_hidden_layers = len(layers)
        return type(self)(network, self.preprocess)

    def _image_tokens(self, pixel_values: Tensor) -> Tensor:
        """After the lower layers of the vision encoder."""
        visual = self._body.vision_model.visual
        tokens_MID: Tensor = visual.forward_pre(pixel_values)
        for block in visual.transformer.resblocks[: self._split]:
            tokens_MID = recomputed(self.network, block, tokens_MID)
        return tokens_MID.transpose(0, 1)

    def _text_tokens(self, texts: TextBatch) -> Tensor:
        """After the lower layers of the text encoder."""
        text_model, mask = self._body.text_model, texts.attention_mask.bool()
        tokens_TLD: Tensor = text_model.embeddings(input_ids=texts.input_ids)
        mask_TL = None if bool(texts.mask_on_cpu.all()) else mask
        for layer in text_model.encoder.layer[: self._split]:
            tokens_TLD = recomputed(self.network, _run_text_layer, layer, tokens_TLD, mask_TL)
        return tokens_TLD

    def score_pairs(self, images: States, texts: States, image_ix_P: Tensor, text_ix_P: Tensor) -> Tensor:
        """Logits of P pairs, given as positions in `images` and `texts`."""
        texts, text_at_P = texts.distinct(text_ix_P)
        images, image_at_P = images.distinct(image_ix_P)
        mask_TL = None if texts.is_full else texts.mask
        mask_PL = None if mask_TL is None else mask_TL[text_at_P]
        levels = self._levels(texts.tokens, mask_TL, images.tokens)
        streams = next(levels)

        def at_pairs(text_TLD: Tensor, image_IMD: Tensor) -> Streams:
            return select_rows(text_TLD, text_at_P), select_rows(image_IMD, image_at_P)

        def run_first(layers: Layers, streams: Streams, num_queries: int | None) -> Streams:
            # No stream depends on the other side yet, so each image and caption attends to itself once, whatever the
            # number of its pairs.
            attended = at_pairs(*self_attention(layers, streams, mask_TL, num_queries))
            return cross_attention(layers, attended, at_pairs(*streams), mask_PL)

        def run(layers: Layers, links: Layers, streams: Streams, level: Streams, num_queries: int | None) -> Streams:
            text, image = at_pairs(*level)
            streams = links[0](text, streams[0], None), links[1](image, streams[1], None)
            return cross_attention(layers, self_attention(layers, streams, mask_PL, num_queries), streams, mask_PL)

        body = self._body
        for index, pair in enumerate(zip(body.cross_modal_text_layers, body.cross_modal_image_layers, strict=True)):
            layers = _Part(pair[0]), _Part(pair[1])
            # The head reads only the first tokens of both streams.
            count = 1 if index == self.num_layers - 1 else None
            if index == 0:
                streams = recomputed(self.network, run_first, layers, streams, count)
            else:
                # Fusion layer k has link tower k - 1.
                links = body.cross_modal_text_link_tower[index - 1], body.cross_modal_image_link_tower[index - 1]
                streams = recomputed(self.network, run, layers, links, streams, next(levels), count)
        return self.match(body.get_cls_features(*streams))

    def _levels(self, text_TLD: Tensor, mask_TL: Tensor | None, image_IMD: Tensor) -> Iterator[Streams]:
        """What each fusion layer reads of the encoders, T x L x D and I x M x D, from the tokens after their lower
        layers."""
        body, types = self._body, self._body.token_type_embeddings.weight
        visual, text_layers = body.vision_model.visual, body.text_model.encoder.layer
        image_MID = image_IMD.transpose(0, 1)
        for index in range(self.num_layers):
            if index > 0:
                text_TLD = recomputed(
                    self.network, _run_text_layer, text_layers[self._split + index - 1], text_TLD, mask_TL
                )
                image_MID = recomputed(self.network, visual.transformer.resblocks[self._split + index - 1], image_MID)
            text = body._apply_text_transform(text_TLD, index) + types[TEXT_ROW]
            image = body._apply_image_transform(visual.forward_post(image_MID), index) + types[IMAGE_ROW]
            if index == 0:
                text, image = body.cross_modal_text_layernorm(text), body.cross_modal_image_layernorm(image)
            yield text, image

    @classmethod
    def _check_config(cls, config: PreTrainedConfig, ref: str) -> None:
        layers = config.text_config.num_hidden_layers, config.vision_config.num_hidden_layers
        if layers[0] != layers[1] or not 1 <= config.num_hidden_layers <= layers[0]:
            raise ModelError(
                f"{ref} has {config.num_hidden_layers} fusion layers over encoders of {layers[0]} and {layers[1]} "
                "layers",
                hint="both encoders need as many layers as each other, and at least as many as the fusion",
            )

    @classmethod
    def _checked_processor(
        cls, processor: BaseImageProcessor, config: PreTrainedConfig, ref: str
    ) -> BaseImageProcessor:
        """The image processor with a crop of the size that the vision encoder takes; it takes no other."""
        # Older files have no crop size, or a height and a width, which the Pillow processor of transformers cannot use.
        processor.crop_size = {"shortest_edge": config.vision_config.image_size}
        if not processor.do_center_crop:
            raise ModelError(
                f"{ref}: the image processor does not crop images to a square", hint="restore preprocessor_config.json"
            )
        return processor


def _run_text_layer(layer: Any, tokens_TLD: Tensor, mask_TL: Tensor | None) -> Tensor:
    attended_TLD = self_attend(layer.attention.self, layer.attention.output, tokens_TLD, mask_TL)
    return layer.feed_forward_chunk(attended_TLD)


@dataclass(frozen=True)
class _Part:
    """What updates one stream in a fusion layer, with the methods of a `coattention.FusionLayer`."""

    layer: Any

    def attend(self, tokens_PND: Tensor, mask_PN: Tensor | None, num_queries: int | None) -> Tensor:
        attention = self.layer.attention
        return self_attend(attention.self, attention.output, tokens_PND, mask_PN, num_queries=num_queries)

    def fuse(self, tokens_PND: Tensor, other_PMD: Tensor, mask_PM: Tensor | None) -> Tensor:
        cross = self.layer.crossattention
        projected_PND = attend_and_project(
            heads_of(cross.self), cross.output.dense, tokens_PND, source_PMD=other_PMD, mask_PM=mask_PM
        )
        return self.layer.feed_forward_chunk(finish(cross.output, projected_PND, tokens_PND))


load = BridgeTowerScorer.load
