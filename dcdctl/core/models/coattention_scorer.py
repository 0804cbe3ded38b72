"""Co-attention networks as fusion scorers: METER's and those over any two encoders."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from dcdctl.core import files
from dcdctl.core.errors import ModelError
from dcdctl.core.models import backbones, coattention
from dcdctl.core.models.checkpoint import check_complete, digest_of_model
from dcdctl.core.models.coattention import CoAttentionNetwork, FusionLayer, network_from_table
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
WEIGHTS_FILE = "model.safetensors"
POSITIONS = "vision.embeddings.position_embedding.weight"


class CoAttentionScorer(nn.Module):
    """Scores image-caption pairs; made in eval mode. `unused_keys` are the checkpoint's entries that scoring has no use for."""

    def __init__(self, network: CoAttentionNetwork, preprocess: Preprocess, unused_keys: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.network = network
        self.preprocess = preprocess
        self.unused_keys = unused_keys
        self.eval()

    @property
    def layers(self) -> list[tuple[FusionLayer, FusionLayer]]:
        """The layers of each fusion step, text first."""
        return self.network.steps

    @property
    def settings(self) -> dict[str, Any]:
        """What the files of a saved model do not say without us."""
        return {"kind": "fusion", "max_text_len": self.preprocess.max_text_len, "image_transform": self.preprocess.image_transform}

    @property
    def digest(self) -> str:
        """The fingerprint of all weights and all settings that change a score."""
        network = {"heads": [*self._heads, self.network.size.num_heads]}
        return digest_of_model(self, {**self.settings, **self.preprocess.settings, "network": network})

    @property
    def encoders_digest(self) -> str:
        """The fingerprint of all that decides what the encoders make of a picture and a caption."""
        sides = nn.ModuleDict({"vision": self.network.vision, "text": self.network.text})
        return digest_of_model(sides, {**self.preprocess.settings, "transform": self.preprocess.image_transform, "heads": self._heads})

    @property
    def _heads(self) -> list[Any]:
        """What the shapes of the encoders' weights do not show."""
        configs = (self.network.vision_config, self.network.text_config)
        return [*(getattr(config, "num_attention_heads", None) for config in configs), *backbones.reading_of(configs[0])]

    @property
    def is_frozen(self) -> bool:
        """Whether the encoders stay as they are in training, as those of the paper's student do."""
        return not any(parameter.requires_grad for side in self._encoders for parameter in side.parameters())

    def freeze_encoders(self) -> None:
        """Leave the encoders as they are in training; what comes after them is trained."""
        for side in self._encoders:
            side.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As always, except that frozen encoders drop nothing out, so that their output may be computed once, and that BatchNorms keep
        the statistics they were trained with: those of a batch would make an image's score depend on its neighbours."""
        super().train(mode)
        for side in self._encoders:
            if self.is_frozen:
                side.eval()
            for module in side.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    @property
    def _encoders(self) -> tuple[nn.Module, nn.Module]:
        return self.network.vision, self.network.text

    def forward(self, images: ImageBatch | States, texts: TextBatch | States, image_ix_P: Tensor, text_ix_P: Tensor) -> Tensor:
        """Logits of P pairs of a batch."""
        return self.score_pairs(self.encode_images(images), self.encode_texts(texts), image_ix_P, text_ix_P)

    def image_features(self, images: ImageBatch) -> States:
        """What the vision encoder makes of images, I x V x its width."""
        features = self.network.image_features(images.pixel_values)
        return States(features, torch.ones(features.shape[:2], dtype=torch.bool, device=features.device))

    def text_features(self, texts: TextBatch) -> States:
        """What the text encoder makes of captions, T x L x its width."""
        return States(self.network.text_features(texts.input_ids, texts.attention_mask), texts.attention_mask.bool())

    def encode_images(self, images: ImageBatch | States) -> States:
        """The image stream as it enters the fusion, I x V x D, of images or of their features."""
        features = self.image_features(images) if isinstance(images, ImageBatch) else images
        cosine = self.network.cosine
        vectors = None if cosine is None else cosine.project_images(features.tokens)
        return States(self.network.image_stream(self._in_own_type(features.tokens)), features.mask, vectors)

    def encode_texts(self, texts: TextBatch | States) -> States:
        """The text stream as it enters the fusion, T x L x D, of captions or of their features."""
        features = self.text_features(texts) if isinstance(texts, TextBatch) else texts
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
        state = _in_type(self.network.state_dict(), torch.float16 if half else torch.float32)
        files.write_json(folder / "config.json", {"model_type": MODEL_TYPE, **self.network.to_table()})
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS_FILE)


def from_folder(folder: Path, overrides: Mapping[str, Any], told: Mapping[str, Any]) -> CoAttentionScorer:
    """The scorer of a folder that `save_network` and `Preprocess.save` wrote; `told` is its dcdctl.json."""
    wanted = read_overrides(overrides)
    table = files.read_json(folder / "config.json", error=ModelError, hint="save the model again")
    with hub_errors(str(folder), hint="save the model again"):
        weights = _in_type(load_file(folder / WEIGHTS_FILE), torch.float32)
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


def _in_type(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}


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
