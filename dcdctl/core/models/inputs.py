"""The inputs of models: images and texts as tensors, states that were encoded once, and the pairs of a training step.

Shape letters as in `protocols`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Device = torch.device | str | int


@dataclass(frozen=True)
class ImageBatch:
    """Preprocessed images of one size, padded with zeros at the right and the bottom."""

    pixel_values: Tensor
    """I x 3 x H x W, normalized. For a model that takes sequences of patches, I x N x values of a patch, row by row."""
    pixel_mask: Tensor | None = None
    """I x H x W, or I x N for patches, True inside the image; None for a model that takes images of one size only."""
    grid: Tensor | None = None
    """I x 2, rows and columns of each image's patches; None for a model that takes pixels."""

    def __len__(self) -> int:
        return len(self.pixel_values)

    def to(self, device: Device, *, non_blocking: bool = False) -> ImageBatch:
        """The same batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> ImageBatch:
        """The same batch in pinned memory, from which a copy to a GPU is asynchronous."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> ImageBatch:
        mask, grid = (None if tensor is None else change(tensor) for tensor in (self.pixel_mask, self.grid))
        return ImageBatch(change(self.pixel_values), mask, grid)

    @staticmethod
    def cat(parts: Sequence[ImageBatch]) -> ImageBatch:
        """All images in order, of parts that have one size and belong to one model."""
        masks = [part.pixel_mask for part in parts if part.pixel_mask is not None]
        grids = [part.grid for part in parts if part.grid is not None]
        pixels = torch.cat([part.pixel_values for part in parts])
        return ImageBatch(pixels, torch.cat(masks) if masks else None, torch.cat(grids) if grids else None)


@dataclass(frozen=True)
class TextBatch:
    """Tokenized texts, padded at the right to the longest."""

    input_ids: Tensor
    """T x L."""
    attention_mask: Tensor
    """T x L, 1 for a real token, 0 for padding."""

    def __len__(self) -> int:
        return len(self.input_ids)

    def to(self, device: Device, *, non_blocking: bool = False) -> TextBatch:
        """The same batch on another device."""
        return TextBatch(self.input_ids.to(device, non_blocking=non_blocking), self.attention_mask.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> TextBatch:
        """The same batch in pinned memory, from which a copy to a GPU is asynchronous."""
        return TextBatch(self.input_ids.pin_memory(), self.attention_mask.pin_memory())


def select_rows(tensor: Tensor, index: Tensor) -> Tensor:
    """The rows at these positions, which may repeat.

    Use this where gradients flow: on a CPU the gradient of `tensor[index]` is summed in the order of the threads, so a run is not
    repeatable; the gradient of `index_select` does not depend on it.
    """
    return tensor.index_select(0, index)


@dataclass(frozen=True)
class States:
    """Images or texts encoded once, to be scored in any number of pairs; also the features of frozen encoders."""

    tokens: Tensor
    """count x N x D."""
    mask: Tensor
    """count x N, True for a real token."""
    vectors: Tensor | None = None
    """Unit vectors, count x D', of a model that adds their scaled cosine to a pair's logit; else None."""

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, index: Tensor) -> States:
        """The states at these positions, which may repeat, trimmed to the longest of them. Gradients flow back."""
        mask = self.mask[index]
        used = mask.any(dim=0).nonzero()
        longest = int(used.max()) + 1 if len(used) else 1
        vectors = None if self.vectors is None else select_rows(self.vectors, index)
        return States(select_rows(self.tokens[:, :longest], index), mask[:, :longest], vectors)

    def to(self, device: Device, *, non_blocking: bool = False) -> States:
        """The same states on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> States:
        """The same states in pinned memory, from which a copy to a GPU is asynchronous."""
        return self._each(lambda tensor: tensor.pin_memory())

    def detach(self) -> States:
        """The same states without their graph."""
        return self._each(lambda tensor: tensor.detach())

    def _each(self, change: Callable[[Tensor], Tensor]) -> States:
        return States(change(self.tokens), change(self.mask), None if self.vectors is None else change(self.vectors))

    @staticmethod
    def cat(parts: Sequence[States]) -> States:
        """All states in order, padded to the longest part. ValueError if only some parts have vectors."""
        longest = max(part.tokens.shape[1] for part in parts)
        missing = [longest - part.tokens.shape[1] for part in parts]
        tokens = [functional.pad(part.tokens, (0, 0, 0, count)) for part, count in zip(parts, missing, strict=True)]
        masks = [functional.pad(part.mask, (0, count)) for part, count in zip(parts, missing, strict=True)]
        vectors = [part.vectors for part in parts if part.vectors is not None]
        if len(vectors) not in (0, len(parts)):
            raise ValueError("some parts have vectors and some have none")
        return States(torch.cat(tokens), torch.cat(masks), torch.cat(vectors) if vectors else None)


@dataclass(frozen=True)
class Pairs:
    """Images, texts and the R x C pairs of them that a step of training computes; each image and text appears once, whatever its pairs."""

    images: ImageBatch | States
    """Pixels, or the stored features of frozen encoders."""
    texts: TextBatch | States
    image_ix_RC: Tensor
    """Position in `images` of each pair's image."""
    text_ix_RC: Tensor
