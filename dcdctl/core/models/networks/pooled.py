"""The frozen towers of a dual encoder whose projections are trained: a feature is one pooled output for each image and
each caption.

Shape letters: I images, T texts, W width of a tower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dcdctl.core.models.fingerprint import digest_of, text_settings
from dcdctl.core.models.inputs import ImageBatch, States, TextBatch
from dcdctl.core.models.networks.backbones import config_tables

if TYPE_CHECKING:
    from dcdctl.core.models.families.vision_text_dual import VisionTextDual


@dataclass(frozen=True)
class PooledTowers:
    """The `encoders` of a dual encoder whose towers are frozen."""

    model: VisionTextDual
    is_frozen = True
    pools_texts = True

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides the pooled outputs. Projections do not count, so a trained model shares the
        features of its start."""
        vision, text = self.model.towers
        both = nn.ModuleDict({"vision": vision.module, "text": text.module})
        tables = config_tables(vision.module.config, text.module.config)
        return self._digest_of(both, tables, self.model.preprocess.settings, "text.")

    @property
    def text_digest(self) -> str:
        """SHA-256 of all that decides the pooled output of a caption."""
        vision, text = self.model.towers
        table = {"text": config_tables(vision.module.config, text.module.config)["text"]}
        return self._digest_of(text.module, table, text_settings(self.model.preprocess.settings))

    def _digest_of(self, encoders: nn.Module, config: Any, preprocess: Any, prefix: str = "") -> str:
        text = self.model.towers[1]
        inside = text.projection.removeprefix(f"{text.name}.")
        settings = {"features": "pooled", "model_type": self.model.network.config.model_type}
        leave_out = f"{prefix}{inside}." if inside else ""
        return digest_of(encoders, config=config, preprocess=preprocess, settings=settings, leave_out=leave_out)

    @property
    def text_width(self) -> int:
        """Width of the text encoder's pooled output."""
        return int(self.model.towers[1].module.config.hidden_size)

    def freeze(self) -> None:
        """Does nothing: `set_trained` has frozen them."""

    def image_features(self, images: ImageBatch) -> States:
        """Features of I images, I x 1 x W."""
        return _one_token(self.model.pool_images(images))

    def text_features(self, texts: TextBatch) -> States:
        """Features of T captions, T x 1 x W."""
        return _one_token(self.model.pool_texts(texts))


def _one_token(pooled: Tensor) -> States:
    return States(pooled[:, None], torch.ones(len(pooled), 1, dtype=torch.bool, device=pooled.device))
