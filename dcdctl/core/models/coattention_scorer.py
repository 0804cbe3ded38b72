"""Co-attention networks as fusion scorers: METER's and those over any two encoders."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from dcdctl.core import files
from dcdctl.core.errors import ModelError
from dcdctl.core.models import backbones, coattention
from dcdctl.core.models.backbones import EncoderPair
from dcdctl.core.models.checkpoint import WEIGHTS_FILE, check_complete, digest_of_model, save_own, to_dtype
from dcdctl.core.models.coattention import CoAttentionNetwork, FusionLayer, network_from_table
from dcdctl.core.models.fusion import FusionModel
from dcdctl.core.models.overrides import read_overrides
from dcdctl.core.models.preprocess import (
    METER,
    Preprocess,
    check_text_length,
    check_vocabulary,
    hub_errors,
    load_tokenizer,
    meter_image_processor,
    num_text_positions,
)
from dcdctl.core.models.protocols import ImageBatch, States, TextBatch

MODEL_TYPE = "dcdctl-co-attention"
POSITIONS = "vision.embeddings.position_embedding.weight"


class CoAttentionScorer(FusionModel):
    """Scores image-caption pairs with co-attention over two encoders."""

    network: CoAttentionNetwork

    @property
    def layers(self) -> list[tuple[FusionLayer, FusionLayer]]:
        """The layers of each fusion step, text first."""
        return self.network.steps

    @property
    def num_layers(self) -> int:
        """Number of fusion steps."""
        return len(self.layers)

    def _with_layers(self, layers: list[int]) -> Self:
        shared = {id(module): module for module in self.network.shared_modules}
        # deepcopy takes what is in its memo for copied already, so the student keeps the teacher's own modules.
        network = copy.deepcopy(self.network, memo=dict(shared))
        network.requires_grad_(True)
        for module in shared.values():
            module.requires_grad_(False)
        network.text_layers, network.image_layers = (
            nn.ModuleList([stream[index] for index in layers]) for stream in (network.text_layers, network.image_layers)
        )
        network.size = dataclasses.replace(self.network.size, num_layers=len(layers))
        return type(self)(network, self.preprocess)

    @property
    def settings(self) -> dict[str, Any]:
        """What the files of a saved model do not say without us."""
        return {"kind": "fusion", "max_text_len": self.preprocess.max_text_len, "image_transform": self.preprocess.image_transform}

    @property
    def digest(self) -> str:
        """The fingerprint of all weights and all settings that change a score."""
        network = {"heads": [*self.encoders.unseen_settings, self.network.size.num_heads]}
        return digest_of_model(self, {**self.settings, **self.preprocess.settings, "network": network})

    @property
    def encoders(self) -> EncoderPair:
        """Both encoders, whose features may be stored while they are frozen."""
        return EncoderPair(self.network.vision, self.network.text, self.network.image_width, self.preprocess)

    @property
    def _encoder_modules(self) -> tuple[nn.Module, ...]:
        return self.network.vision, self.network.text

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all parts but those of the encoders that stay in eval mode (`EncoderPair.restore_eval_mode`)."""
        super().train(mode)
        self.encoders.restore_eval_mode()
        return self

    def encode_images(self, images: ImageBatch | States) -> States:
        """The image stream as it enters the fusion, I x V x D, of images or of their features."""
        features = self.encoders.image_features(images) if isinstance(images, ImageBatch) else images
        cosine = self.network.cosine
        vectors = None if cosine is None else cosine.project_images(features.tokens)
        return States(self.network.image_stream(self._in_own_type(features.tokens)), features.mask, vectors)

    def encode_texts(self, texts: TextBatch | States) -> States:
        """The text stream as it enters the fusion, T x L x D, of captions or of their features."""
        features = self.encoders.text_features(texts) if isinstance(texts, TextBatch) else texts
        cosine = self.network.cosine
        vectors = None if cosine is None else cosine.project_texts(features.tokens, features.mask)
        return States(self.network.text_stream(self._in_own_type(features.tokens)), features.mask, vectors)

    def _in_own_type(self, features: Tensor) -> Tensor:
        """Features from disk are float16."""
        return features.to(self.network.modality.weight.dtype)

    def score_pairs(self, images: States, texts: States, image_ix_P: Tensor, text_ix_P: Tensor) -> Tensor:
        """Logits of P pairs, given as positions in `images` and `texts`."""
        return coattention.score_pairs(self.network, images, texts, image_ix_P, text_ix_P)

    def score(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
        """Logits of B aligned pairs, each encoded for itself and run through every layer as a whole; the oracle."""
        mask = attention_mask.bool()
        images = self.encode_images(ImageBatch(pixel_values))
        texts = self.encode_texts(TextBatch(input_ids, attention_mask))
        image, text = images.tokens, texts.tokens
        for text_layer, image_layer in self.layers:
            text, image = text_layer(text, mask, image, None), image_layer(image, None, text, mask)
        return self.network.add_cosine(self.network.rank(text, image), images.vectors, texts.vectors)

    def save_network(self, folder: Path, *, half: bool = False) -> None:
        """Write config.json and the weights."""
        save_own(self.network, {"model_type": MODEL_TYPE, **self.network.to_table()}, folder, half=half)


def from_folder(folder: Path, overrides: Mapping[str, Any], told: Mapping[str, Any]) -> CoAttentionScorer:
    """The scorer of a folder that `save_network` and `Preprocess.save` wrote; `told` is its dcdctl.json."""
    wanted = read_overrides(overrides)
    table = files.read_json(folder / "config.json", error=ModelError, hint="save the model again")
    with hub_errors(str(folder), hint="save the model again"):
        weights = to_dtype(load_file(folder / WEIGHTS_FILE), torch.float32)
    if wanted.image_size is not None:
        if told["image_transform"] != METER:
            raise ModelError(f"{folder} has a {table['vision']['model_type']} vision encoder, whose image size cannot be changed")
        check_image_size(wanted.image_size, table["vision"]["patch_size"])
        table["vision"]["image_size"] = wanted.image_size
        weights[POSITIONS] = resize_positions(weights[POSITIONS], wanted.image_size // table["vision"]["patch_size"])
    if wanted.num_attention_heads is not None:
        table["fusion"]["num_heads"] = wanted.num_attention_heads
    if wanted.text.num_attention_heads is not None:
        table["text"]["num_attention_heads"] = wanted.text.num_attention_heads
    network = network_from_table(table)
    load_weights(network, weights, folder)
    processor = backbones.load_processor(str(folder), network.vision_config)
    if wanted.image_size is not None:
        processor = meter_image_processor(wanted.image_size)
    tokenizer = load_tokenizer(wanted.tokenizer or str(folder))
    check_vocabulary(tokenizer, network.text_config.vocab_size)
    length = check_text_length(wanted.max_text_len or told["max_text_len"], num_text_positions(network.text_config))
    preprocess = Preprocess(tokenizer=tokenizer, image_processor=processor, max_text_len=length, image_transform=told["image_transform"])
    return CoAttentionScorer(network, preprocess)


def load_weights(network: CoAttentionNetwork, weights: Mapping[str, Tensor], source: object) -> list[str]:
    """Put the weights into the network; names it has no use for. ModelError names what is missing or of another shape."""
    own = network.state_dict()
    check_complete(source, set(own) - set(weights), "a co-attention scorer")
    for name, tensor in own.items():
        if weights[name].shape != tensor.shape:
            found, wanted = tuple(weights[name].shape), tuple(tensor.shape)
            raise ModelError(f"{source}: {name} is {found}, but {wanted} is wanted")
    network.load_state_dict({name: weights[name] for name in own})
    return sorted(set(weights) - set(own))


def check_image_size(image_size: int, patch_size: int) -> None:
    """ModelError if patches do not fill the image."""
    if image_size % patch_size:
        raise ModelError(f"image_size {image_size} is not a multiple of the patch size {patch_size}")


def resize_positions(table_ND: Tensor, side: int) -> Tensor:
    """A position table for side x side patches: the class row kept, the square of the others resized bicubically."""
    first, rest = table_ND[:1], table_ND[1:]
    old = math.isqrt(len(rest))
    square = rest.T.reshape(1, -1, old, old)
    resized = functional.interpolate(square, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([first, resized.flatten(2)[0].T])
