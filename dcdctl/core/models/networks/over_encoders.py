"""What models over two encoders share that dcdctl itself reads and writes: their features may be stored, and their
folders are dcdctl's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dcdctl.core import files
from dcdctl.core.errors import ModelError
from dcdctl.core.models.checkpoint import WEIGHTS_FILE, check_complete, to_dtype
from dcdctl.core.models.model import RetrievalModel
from dcdctl.core.models.networks.backbones import EncoderPair
from dcdctl.core.models.preprocess import hub_errors


def read_folder(ref: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
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

    model_type: ClassVar[str]
    """In config.json."""

    @property
    def config(self) -> dict[str, Any]:
        """The type, and all settings of the network: its sizes, and the configurations of both encoders."""
        return {"model_type": self.model_type, **self.network.to_table()}

    @property
    def encoders(self) -> EncoderPair:
        """Both encoders, whose features may be stored while they are frozen."""
        return EncoderPair(self.network.vision, self.network.text, self.network.image_width, self.preprocess)

    @property
    def _encoder_modules(self) -> tuple[nn.Module, ...]:
        return self.network.vision, self.network.text

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all parts but those of the encoders that stay in eval mode
        (`EncoderPair.restore_eval_mode`)."""
        super().train(mode)
        self.encoders.restore_eval_mode()
        return self

    def save_network(self, folder: Path, *, half: bool = False) -> None:
        """Write config.json and the weights, which no other library reads."""
        state = to_dtype(self.network.state_dict(), torch.float16 if half else torch.float32)
        files.write_json(folder / "config.json", self.config)
        # safetensors refuses tensors that are not contiguous.
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS_FILE)
