"""The projections of a dual encoder over two encoders: one linear layer for each modality, and the logit scale.

Shape letters: I images, T texts, P pairs, V image tokens, L text tokens, W width of an encoder's tokens, D length of
vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from dcdctl.core.config import Count, Fraction, settle_fields

# Of the order of the first scale of CLIP, 1/0.07; it is trained.
FIRST_LOGIT_SCALE = 20.0
MAX_LOGIT_SCALE = 100.0
"""As in CLIP: a larger scale makes training unstable."""


@dataclass(frozen=True, kw_only=True)
class ProjectionSize:
    """The dimensions of the projections after two encoders."""

    projection_dim: Count = 512
    """Length of the vectors."""
    dropout: Fraction = 0.5
    """Dropout of the features: without it a linear layer memorizes a few thousand captions."""
    texts: Literal["mean", "pooled"] = "mean"
    """What of a text encoder is projected: the normalized mean of its tokens; or, as in a CLIP, its own pooled output
    as it is, without a bias."""

    def __post_init__(self) -> None:
        settle_fields(self)


class EncoderProjections(nn.Module):
    """An untrained linear layer for each modality, and the logit scale.

    They compute in float32 under autocast too, since bfloat16 would give close candidates equal scores.
    """

    def __init__(self, image_width: int, text_width: int, size: ProjectionSize) -> None:
        super().__init__()
        self.size = size
        self.dropout = nn.Dropout(size.dropout)
        self.image_projection = nn.Linear(image_width, size.projection_dim)
        self.text_projection = nn.Linear(text_width, size.projection_dim, bias=size.texts == "mean")
        self.logit_scale = nn.Parameter(torch.tensor(math.log(FIRST_LOGIT_SCALE)))

    @property
    def scale(self) -> Tensor:
        """Logit scale exp(s), clamped to 100; 0-dimensional."""
        return self.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)

    def project_images(self, tokens_IVW: Tensor) -> Tensor:
        """Unit vectors, I x D, of the first token of image features."""
        with torch.autocast(tokens_IVW.device.type, enabled=False):
            return self._project(self.image_projection, tokens_IVW[:, 0].to(self.image_projection.weight.dtype))

    def project_texts(self, tokens_TLW: Tensor, mask_TL: Tensor) -> Tensor:
        """Unit vectors, T x D, of the mean over the real tokens of text features, or of their one pooled output."""
        with torch.autocast(tokens_TLW.device.type, enabled=False):
            tokens_TLW = tokens_TLW.to(self.text_projection.weight.dtype)
            if self.size.texts == "pooled":
                return functional.normalize(self.text_projection(tokens_TLW[:, 0]), dim=-1)
            return self._project(self.text_projection, masked_mean(tokens_TLW, mask_TL))

    def _project(self, projection: nn.Linear, features: Tensor) -> Tensor:
        # The width as a plain number: tracing (`models.export_text_tower`) would take that of the tensor as a variable.
        normed = functional.layer_norm(features, (projection.in_features,))
        return functional.normalize(projection(self.dropout(normed)), dim=-1)

    def logits(self, image_PD: Tensor, text_PD: Tensor) -> Tensor:
        """The scaled cosines of P pairs of vectors."""
        return self.scale * (image_PD * text_PD).sum(dim=-1)


def masked_mean(states_TLH: Tensor, mask_TL: Tensor) -> Tensor:
    """The mean over the tokens of a mask, T x H; zeros for a text without one.

    >>> import torch
    >>> masked_mean(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]]))
    tensor([[2.]])
    """
    weights_TL1 = mask_TL[..., None].to(states_TLH.dtype)
    return (states_TLH * weights_TL1).sum(dim=1) / weights_TL1.sum(dim=1).clamp(min=1)
