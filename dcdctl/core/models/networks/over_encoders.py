"""What models over two encoders share that dcdctl itself reads and writes: their features may be stored, and their
folders are dcdctl's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

from torch import nn

from dcdctl.core.models.checkpoint import save_own
from dcdctl.core.models.model import RetrievalModel
from dcdctl.core.models.networks.backbones import EncoderPair


class ModelOverEncoders(RetrievalModel):
    """A model whose network is a `NetworkOverEncoders`."""

    model_type: ClassVar[str]
    """In config.json."""

    @property
    def config(self) -> dict[str, Any]:
        """See `RetrievalModel.config`; the configurations of both encoders are part of it."""
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
        save_own(self.network, self.config, folder, half=half)
