"""Co-attention networks as fusion scorers: METER's and those over any two encoders."""

from __future__ import annotations

import json
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
from dcdctl.core.models import coattention_pairs
from dcdctl.core.models.checkpoint import check_complete
from dcdctl.core.models.coattention import CoAttentionNetwork, FusionLayer, network_from_table
from dcdctl.core.models.digests import digest_of_model
from dcdctl.core.models.overrides import read_overrides
from dcdctl.core.models.preprocess import (
    Preprocess,
    check_text_length,
    check_vocabulary,
    load_image_processor,
    load_tokenizer,
    meter_image_processor,
    num_text_positions,
    reaching,
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
        heads = [getattr(config, "num_attention_heads", None) for config in (self.network.vision_config, self.network.text_config)]
        network = {"heads": [*heads, self.network.size.num_heads]}
        return digest_of_model(self, {**self.settings, **self.preprocess.settings, "network": network})

    @property
    def is_frozen(self) -> bool:
        """Whether the encoders, the transforms and the modality's vectors stay as they are in training: those of the paper's student."""
        return not self.network.modality.weight.requires_grad

    def train(self, mode: bool = True) -> Self:
        """As always, except that frozen encoders drop nothing out, so that their output may be computed once."""
        super().train(mode)
        if self.is_frozen:
            self.network.vision.eval()
            self.network.text.eval()
        return self

    def forward(self, images: ImageBatch, texts: TextBatch, image_ix_P: Tensor, text_ix_P: Tensor) -> Tensor:
        """Logits of P pairs of a batch."""
        return self.score_pairs(self.encode_images(images), self.encode_texts(texts), image_ix_P, text_ix_P)

    def encode_images(self, images: ImageBatch) -> States:
        """The image stream as it enters the fusion, I x V x D."""
        tokens = self.network.image_tokens(images.pixel_values)
        return States(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device))

    def encode_texts(self, texts: TextBatch) -> States:
        """The text stream as it enters the fusion, T x L x D."""
        return States(self.network.text_tokens(texts.input_ids, texts.attention_mask), texts.attention_mask.bool())

    def score_pairs(self, images: States, texts: States, image_ix_P: Tensor, text_ix_P: Tensor) -> Tensor:
        """Logits of P pairs, given as positions in `images` and `texts`."""
        return coattention_pairs.score_pairs(self.network, images, texts, image_ix_P, text_ix_P)

    def score(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
        """Logits of B aligned pairs, each encoded for itself and run through every layer as a whole; the oracle."""
        image, text = self.network.image_tokens(pixel_values), self.network.text_tokens(input_ids, attention_mask)
        mask = attention_mask.bool()
        for text_layer, image_layer in self.layers:
            text, image = text_layer(text, mask, image, None), image_layer(image, None, text, mask)
        return self.network.rank(text, image)

    def save_network(self, folder: Path, *, half: bool = False) -> None:
        """Write config.json and the weights."""
        state = {name: tensor.half() if half else tensor for name, tensor in self.network.state_dict().items()}
        files.write_json(folder / "config.json", {"model_type": MODEL_TYPE, **self.network.to_table()})
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS_FILE)


def from_folder(folder: Path, overrides: Mapping[str, Any], told: Mapping[str, Any]) -> CoAttentionScorer:
    """The scorer of a folder that `save_network` and `Preprocess.save` wrote; `told` is its dcdctl.json."""
    wanted = read_overrides(overrides)
    table: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    with reaching(str(folder), hint="save the model again"):
        weights = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS_FILE).items()}
    processor = load_image_processor(str(folder))
    if wanted.image_size is not None:
        if POSITIONS not in weights:
            raise ModelError(f"{folder} has a {table['vision']['model_type']} vision encoder, whose image size cannot be changed")
        check_image_size(wanted.image_size, table["vision"]["patch_size"])
        table["vision"]["image_size"] = wanted.image_size
        weights[POSITIONS] = resize_positions(weights[POSITIONS], wanted.image_size // table["vision"]["patch_size"])
        processor = meter_image_processor(wanted.image_size)
    if wanted.num_attention_heads is not None:
        table["fusion"]["num_heads"] = wanted.num_attention_heads
    if wanted.text.num_attention_heads is not None:
        table["text"]["num_attention_heads"] = wanted.text.num_attention_heads
    network = network_from_table(table)
    load_weights(network, weights, folder)
    tokenizer = load_tokenizer(wanted.tokenizer or str(folder))
    check_vocabulary(tokenizer, network.text_config.vocab_size)
    length = check_text_length(wanted.max_text_len or told["max_text_len"], num_text_positions(network.text_config))
    preprocess = Preprocess(tokenizer=tokenizer, image_processor=processor, max_text_len=length, image_transform=told["image_transform"])
    return CoAttentionScorer(network, preprocess)


def load_weights(network: CoAttentionNetwork, weights: Mapping[str, Tensor], source: object) -> list[str]:
    """Put the weights into the network; names it has no use for. ModelError names what is missing or of another shape."""
    own = dict(network.named_parameters())
    check_complete(source, set(own) - set(weights), "a co-attention scorer")
    for name, parameter in own.items():
        if weights[name].shape != parameter.shape:
            found, wanted = tuple(weights[name].shape), tuple(parameter.shape)
            raise ModelError(f"{source}: {name} is {found}, but {wanted} is wanted")
    network.load_state_dict({name: weights[name] for name in own}, strict=False)
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
