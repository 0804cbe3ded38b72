"""Co-attention networks as fusion scorers, METER among them.

Shape letters: I images, T texts, P pairs, B aligned pairs, L text tokens, V image tokens, N tokens of a position table,
D width.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from dcdctl.core.errors import ModelError
from dcdctl.core.models.families import coattention
from dcdctl.core.models.families.coattention import (
    IMAGE_ROW,
    TEXT_ROW,
    CoAttentionNetwork,
    FusionLayer,
    network_from_table,
)
from dcdctl.core.models.fusion import FusionScorer
from dcdctl.core.models.inputs import ImageBatch, States, TextBatch
from dcdctl.core.models.networks import backbones
from dcdctl.core.models.networks.over_encoders import ModelOverEncoders, load_weights, read_folder
from dcdctl.core.models.overrides import read_overrides
from dcdctl.core.models.preprocess import METER, fitted_preprocess, meter_image_processor
from dcdctl.core.models.protocols import Table
from dcdctl.core.models.tokenizer import load_tokenizer

MAX_TEXT_LEN = 40
"""Tokens of a caption unless set otherwise, as in METER."""
POSITIONS = "vision.embeddings.position_embedding.weight"
"""The position table of METER's vision encoder, which is resized for another image size."""


class CoAttentionScorer(ModelOverEncoders, FusionScorer):
    """Scores image-caption pairs with co-attention over two encoders."""

    model_type = "dcdctl-co-attention"
    network: CoAttentionNetwork

    @property
    def layers(self) -> list[tuple[FusionLayer, FusionLayer]]:
        """The layers of each fusion step, text first."""
        return self.network.steps

    def student(self, layers: Sequence[int]) -> Self:
        layers = self.checked_layers(layers)
        teacher = self.network
        before_fusion = teacher.vision, teacher.text, teacher.image_transform, teacher.text_transform, teacher.modality
        shared: dict[int, nn.Module] = {id(module): module for module in before_fusion}
        # deepcopy does not copy what its memo holds, so the student keeps the teacher's own modules.
        network = copy.deepcopy(teacher, memo=dict(shared))
        # In this order: the network contains the shared parts, which must end up frozen.
        network.requires_grad_(True)
        for module in shared.values():
            module.requires_grad_(False)
        network.text_layers = nn.ModuleList([network.text_layers[index] for index in layers])
        network.image_layers = nn.ModuleList([network.image_layers[index] for index in layers])
        network.size = dataclasses.replace(self.network.size, num_layers=len(layers))
        return type(self)(network, self.preprocess)

    @property
    def settings(self) -> Table:
        """What dcdctl.json holds."""
        return {**super().settings, "image_transform": self.preprocess.image_transform}

    def set_dropout(self, probability: float) -> None:
        """Set the dropout of the fusion layers; this is drop_rate in METER's code, whose RoBERTa keeps its own too."""
        # config.json is written from the size, the modules below compute.
        self.network.size = dataclasses.replace(self.network.size, dropout=probability)
        for module in nn.ModuleList([self.network.text_layers, self.network.image_layers]).modules():
            if isinstance(module, nn.Dropout):
                module.p = probability

    def encode_images(self, images: ImageBatch | States) -> States:
        """The image stream before the fusion, I x V x D, of images or of their features."""
        features = self.features(images)
        cosine = self.network.cosine
        vectors = None if cosine is None else cosine.project_images(features.tokens)
        return self._stream(features, self.network.image_transform, IMAGE_ROW, vectors)

    def encode_texts(self, texts: TextBatch | States) -> States:
        """The text stream before the fusion, T x L x D, of captions or of their features."""
        features = self.features(texts)
        cosine = self.network.cosine
        vectors = None if cosine is None else cosine.project_texts(features.tokens, features.mask)
        return self._stream(features, self.network.text_transform, TEXT_ROW, vectors)

    def _stream(self, features: States, transform: nn.Linear, row: int, vectors: Tensor | None) -> States:
        """Features at the width of the fusion, with the vector of their modality added."""
        modality = self.network.modality.weight
        # Stored features are float16.
        return features.with_tokens(transform(features.tokens.to(modality.dtype)) + modality[row], vectors)

    def score_pairs(self, images: States, texts: States, image_ix_P: Tensor, text_ix_P: Tensor) -> Tensor:
        """Logits of P pairs, given as positions in `images` and `texts`."""
        return coattention.score_pairs(self.network, images, texts, image_ix_P, text_ix_P)


def load(ref: str, table: Table, saved: Table | None) -> CoAttentionScorer:
    """The scorer of a folder that `load_save.save` wrote; `table` are the user's overrides, `saved` is its
    dcdctl.json."""
    assert saved is not None
    folder, overrides = Path(ref), read_overrides(table)
    config, weights = read_folder(ref)
    if overrides.image_size is not None:
        if saved["image_transform"] != METER:
            raise ModelError(
                f"{folder} has a {config['vision']['model_type']} vision encoder, whose image size cannot be changed"
            )
        check_image_size(overrides.image_size, config["vision"]["patch_size"])
        config["vision"]["image_size"] = overrides.image_size
        weights[POSITIONS] = resize_positions(
            weights[POSITIONS], overrides.image_size // config["vision"]["patch_size"]
        )
    if overrides.num_attention_heads is not None:
        config["fusion"]["num_heads"] = overrides.num_attention_heads
    if overrides.text_num_attention_heads is not None:
        config["text"]["num_attention_heads"] = overrides.text_num_attention_heads
    network = network_from_table(config, folder)
    load_weights(network, weights, folder, "a co-attention scorer")
    if overrides.image_size is None:
        processor = backbones.load_processor(ref, network.vision.config)
    else:
        processor = meter_image_processor(overrides.image_size)
    tokenizer = load_tokenizer(overrides.tokenizer or ref)
    length = overrides.max_text_len or saved["max_text_len"]
    preprocess = fitted_preprocess(tokenizer, processor, network.text.config, max_text_len=length)
    return CoAttentionScorer(network, dataclasses.replace(preprocess, image_transform=saved["image_transform"]))


def check_image_size(image_size: int, patch_size: int) -> None:
    """ModelError if patches do not fill the image."""
    if image_size % patch_size:
        raise ModelError(f"image_size {image_size} is not a multiple of the patch size {patch_size}")


def resize_positions(table_ND: Tensor, side: int) -> Tensor:
    """A position table for side x side patches: the class row is kept, the square of the other rows is resized
    bicubically."""
    first, rest = table_ND[:1], table_ND[1:]
    old_side = math.isqrt(len(rest))
    square = rest.T.reshape(1, -1, old_side, old_side)
    # As in METER's code: corners are not aligned, and there is no antialiasing.
    resized = functional.interpolate(square, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([first, resized.flatten(2)[0].T])
