"""ViLT as a fusion scorer: transformers' weights, our own forward pass.

The forward pass here differs from transformers' in what it does not do: it draws nothing from the random state (patches keep
their order and masked ones stay masked), embeds each image and caption once however many pairs they are in, and in the last
layer follows only the class token. The scores are equal; `score` is the plain way.

Shape letters: I images, T texts, P pairs, L text tokens, V image tokens (class token first), N tokens of a pair, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import ViltForImageAndTextRetrieval

TEXT_EPS = 1e-12
"""LayerNorm epsilon of the text embeddings; the blocks and the final norm use the configuration's (1e-6 as released)."""


@dataclass(frozen=True)
class States:
    """Embedded images or texts: `tokens` of shape count x tokens x width, `mask` count x tokens, True where real."""

    tokens: Tensor
    mask: Tensor

    def take(self, index: Tensor) -> States:
        """The states at these positions, trimmed to the longest of them."""
        mask = self.mask[index]
        longest = int(mask.sum(dim=1).max()) if len(index) else 0
        if not bool(mask[:, longest:].any()):
            return States(self.tokens[index, :longest], mask[:, :longest])
        return States(self.tokens[index], mask)
