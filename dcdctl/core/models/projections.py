"""From the features of two encoders to vectors of one space: one linear layer a side, and the scale of their cosines.

Shape letters: I images, T texts, P pairs, V image tokens, L text tokens, W width of an encoder, D length of the vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from dcdctl.core.errors import ConfigError

FIRST_LOGIT_SCALE = 20.0
MAX_LOGIT_SCALE = 100.0


@dataclass(frozen=True, kw_only=True)
class ProjectionSize:
    """What comes after the encoders."""

    projection_dim: int = 512
    """Length of the vectors."""
    dropout: float = 0.5
    """Of the features, in training: the one thing that keeps a linear layer from learning a few thousand captions by heart."""

    def __post_init__(self) -> None:
        if self.projection_dim < 1:
            raise ConfigError(f"projection_dim must be at least 1, got {self.projection_dim}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must lie in [0, 1), got {self.dropout}")


class Projections(nn.Module):
    """Both projections, untrained, and the scale; float32 under autocast too, whose bfloat16 would tie close candidates."""

    def __init__(self, image_width: int, text_width: int, size: ProjectionSize) -> None:
        super().__init__()
        self.size = size
        self.dropout = nn.Dropout(size.dropout)
        self.image_projection = nn.Linear(image_width, size.projection_dim)
        self.text_projection = nn.Linear(text_width, size.projection_dim)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(FIRST_LOGIT_SCALE)))

    @property
    def scale(self) -> Tensor:
        """What cosines are multiplied by to be logits: 0-dimensional, at most 100."""
        return self.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)

    def project_images(self, tokens_IVW: Tensor) -> Tensor:
        """Unit vectors I x D of image features, of which the first stands for the whole (its class token, or the mean of its places)."""
        with torch.autocast(tokens_IVW.device.type, enabled=False):
            return self._project(self.image_projection, tokens_IVW[:, 0].to(self.image_projection.weight.dtype))

    def project_texts(self, tokens_TLW: Tensor, mask_TL: Tensor) -> Tensor:
        """Unit vectors T x D of text features: of the mean of their tokens."""
        with torch.autocast(tokens_TLW.device.type, enabled=False):
            tokens_TLW = tokens_TLW.to(self.text_projection.weight.dtype)
            real_TL1 = mask_TL[:, :, None].to(tokens_TLW.dtype)
            return self._project(self.text_projection, (tokens_TLW * real_TL1).sum(dim=1) / real_TL1.sum(dim=1).clamp(min=1))

    def _project(self, projection: nn.Linear, features: Tensor) -> Tensor:
        normed = functional.layer_norm(features, features.shape[-1:])
        return functional.normalize(projection(self.dropout(normed)), dim=-1)

    def logits(self, image_PD: Tensor, text_PD: Tensor) -> Tensor:
        """The scaled cosines of P pairs of vectors."""
        return self.scale * (image_PD * text_PD).sum(dim=-1)
