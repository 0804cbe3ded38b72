"""Features of encoders that may be stored: the pooled outputs of two towers, and what models over two encoders share
that dcdctl itself reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from dcdctl.core import files
from dcdctl.core.errors import ModelError
from dcdctl.core.models.checkpoint import WEIGHTS_FILE, check_complete, save_own_format, to_dtype
from dcdctl.core.models.fingerprint import digest_of, text_settings
from dcdctl.core.models.inputs import ImageBatch, States, TextBatch
from dcdctl.core.models.model import RetrievalModel
from dcdctl.core.models.networks.backbones import EncoderPair, NetworkOverEncoders, config_tables
from dcdctl.core.models.networks.lower_layers import LowerLayers
from dcdctl.core.models.preprocess import Preprocess
from dcdctl.core.models.protocols import Table
from dcdctl.core.models.references.loading import hub_errors

if TYPE_CHECKING:  # it imports this module
    from dcdctl.core.models.families.vision_text_dual import VisionTextDual


def read_folder(ref: str) -> tuple[Table, dict[str, Tensor]]:
    """The content of config.json and the weights of a folder that `save_network` wrote, as float32."""
    hint = "save the model again"
    config = files.read_json(Path(ref) / "config.json", error=ModelError, hint=hint)
    with hub_errors(ref, hint=hint):
        # A saved model may be float16; it computes in float32.
        return config, to_dtype(load_file(Path(ref) / WEIGHTS_FILE), torch.float32)


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], source: object, what: str) -> list[str]:
    """Load the weights into the network of `what`, and return the names that it does not use. ModelError names what is
    missing or of another shape."""
    state = network.state_dict()
    check_complete(source, set(state) - set(weights), what)
    for name, tensor in state.items():
        if weights[name].shape != tensor.shape:
            raise ModelError(f"{source}: {name} is {tuple(weights[name].shape)}, expected {tuple(tensor.shape)}")
    network.load_state_dict({name: weights[name] for name in state})
    return sorted(set(weights) - set(state))


class ModelOverEncoders(RetrievalModel):
    """A model whose network is a `NetworkOverEncoders`."""

    network: NetworkOverEncoders
    preprocess: Preprocess
    model_type: ClassVar[str]
    """In config.json."""

    @property
    def config(self) -> Table:
        """The type, and all settings of the network: its sizes, and the configurations of both encoders."""
        return {"model_type": self.model_type, **self.network.to_table()}

    @property
    def encoders(self) -> EncoderPair | LowerLayers:
        """Both encoders, whose features may be stored while they are frozen."""
        return self.encoder_pair

    @property
    def encoder_pair(self) -> EncoderPair:
        """Both encoders, whatever of them is trained."""
        network = self.network
        return EncoderPair(network.vision, network.text, network.image_width, self.preprocess, network.pools_texts)

    @property
    def _encoder_modules(self) -> tuple[nn.Module, ...]:
        return self.network.vision, self.network.text

    def save_network(self, folder: Path, *, half: bool = False) -> None:
        """Write config.json and the weights, in a format of our own."""
        save_own_format(self.network, self.config, folder, half=half)

    def features(self, inputs: ImageBatch | TextBatch | States) -> States:
        """The features of images or captions, or the given ones."""
        if isinstance(inputs, States):
            return inputs
        pair = self.encoder_pair
        return pair.image_features(inputs) if isinstance(inputs, ImageBatch) else pair.text_features(inputs)


@dataclass(frozen=True)
class FrozenTowers:
    """The `encoders` of a dual encoder whose towers are frozen and whose projections are trained.

    A feature is one pooled output for each image and each caption, or for late interaction the states of all tokens.
    Shape letters: I images, T texts, V and L tokens, W width of a tower.
    """

    model: VisionTextDual
    pools_texts: bool = True
    """Whether images and captions are pooled."""
    is_frozen = True

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides the features. Projections do not count, so a trained model shares the
        features of its start."""
        vision, text = self.model.towers
        both = nn.ModuleDict({"vision": vision.module, "text": text.module})
        tables = config_tables(vision.module, text.module)
        return self._digest_of(both, tables, self.model.preprocess.settings, "text.")

    @property
    def text_digest(self) -> str:
        """SHA-256 of all that decides the features of a caption."""
        vision, text = self.model.towers
        table = {"text": config_tables(vision.module, text.module)["text"]}
        return self._digest_of(text.module, table, text_settings(self.model.preprocess.settings))

    def _digest_of(self, encoders: nn.Module, config: Table, preprocess: Table, prefix: str = "") -> str:
        text = self.model.towers[1]
        inside = text.projection.removeprefix(f"{text.name}.")
        kind = "pooled" if self.pools_texts else "tokens"
        settings = {"features": kind, "model_type": self.model.network.config.model_type}
        leave_out = f"{prefix}{inside}." if inside else ""
        return digest_of(encoders, config=config, preprocess=preprocess, settings=settings, leave_out=leave_out)

    @property
    def text_width(self) -> int:
        """Width of the text encoder's output."""
        text = self.model.towers[1].module.config.hidden_size
        return int(getattr(self.model.projections[1], "in_features", text))

    def freeze(self) -> None:
        """Does nothing: `set_trained` has frozen them."""

    def image_features(self, images: ImageBatch) -> States:
        """Features of I images, I x 1 x W, or I x V x W."""
        if not self.pools_texts:
            return self.model.image_tokens(images)
        return _pooled(self.model.projections[0], lambda: self.model.image_output(images))

    def text_features(self, texts: TextBatch) -> States:
        """Features of T captions, T x 1 x W, or T x L x W."""
        if not self.pools_texts:
            return self.model.text_tokens(texts)
        return _pooled(self.model.projections[1], lambda: self.model.text_output(texts))


Encoders = EncoderPair | FrozenTowers | LowerLayers
"""Encoders whose outputs, the features, are computed once and stored while they are frozen. Models whose encoders have
equal digests share them."""


def _pooled(projection: nn.Module | None, encode: Callable[[], BaseModelOutputWithPooling]) -> States:
    """What a projection is given while an output is computed, one token for each item; without one, the vectors of the
    output."""
    inputs: list[Tensor] = []
    if projection is None:
        inputs.append(encode().pooler_output)
    else:
        with projection.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0])):
            encode()
    return States.of_full(inputs[0][:, None])
