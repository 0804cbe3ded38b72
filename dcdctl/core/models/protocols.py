"""What every model takes and gives, whatever its family.

Shape letters: I images, T texts, P pairs, C channels, H and W pixels, L text tokens, N tokens of an encoded input, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

Device = torch.device | str | int


@dataclass(frozen=True)
class ImageBatch:
    """Preprocessed images, padded with zeros at the right and the bottom to one size."""

    pixel_values: Tensor
    """I x C x H x W, normalized."""
    pixel_mask: Tensor | None = None
    """I x H x W, True where the image is; None where a model takes images of one size only."""

    def __len__(self) -> int:
        return len(self.pixel_values)

    def to(self, device: Device, *, non_blocking: bool = False) -> ImageBatch:
        """The same batch on another device."""
        mask = None if self.pixel_mask is None else self.pixel_mask.to(device, non_blocking=non_blocking)
        return ImageBatch(self.pixel_values.to(device, non_blocking=non_blocking), mask)

    def pin_memory(self) -> ImageBatch:
        """The same batch in memory that a GPU reads by itself."""
        return ImageBatch(self.pixel_values.pin_memory(), None if self.pixel_mask is None else self.pixel_mask.pin_memory())


@dataclass(frozen=True)
class TextBatch:
    """Tokenized texts, padded at the right to the longest of them."""

    input_ids: Tensor
    """T x L."""
    attention_mask: Tensor
    """T x L, 1 where the token is real."""

    def __len__(self) -> int:
        return len(self.input_ids)

    def to(self, device: Device, *, non_blocking: bool = False) -> TextBatch:
        """The same batch on another device."""
        return TextBatch(self.input_ids.to(device, non_blocking=non_blocking), self.attention_mask.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> TextBatch:
        """The same batch in memory that a GPU reads by itself."""
        return TextBatch(self.input_ids.pin_memory(), self.attention_mask.pin_memory())


def select_rows(tensor: Tensor, index: Tensor) -> Tensor:
    """The rows at these positions; repeats are fine.

    The gradient of `tensor[index]` depends on the order in which a CPU's threads add it up; this one's does not, and a run is repeatable.
    """
    return tensor.index_select(0, index)


@dataclass(frozen=True)
class States:
    """Images or texts encoded once, ready to be scored in any number of pairs."""

    tokens: Tensor
    """count x N x D."""
    mask: Tensor
    """count x N, True where the token is real."""
    vectors: Tensor | None = None
    """count x D', unit vectors whose scaled cosine is added to a pair's logit; of a model that adds one."""

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, index: Tensor) -> States:
        """The states at these positions (repeats are fine), trimmed to the longest of them; gradients flow back."""
        mask = self.mask[index]
        used = mask.any(dim=0).nonzero()
        longest = int(used.max()) + 1 if len(used) else 1
        vectors = None if self.vectors is None else select_rows(self.vectors, index)
        return States(select_rows(self.tokens[:, :longest], index), mask[:, :longest], vectors)

    def to(self, device: Device, *, non_blocking: bool = False) -> States:
        """The same states on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> States:
        """The same states in memory that a GPU reads by itself."""
        return self._each(lambda tensor: tensor.pin_memory())

    def detach(self) -> States:
        """The same states, cut from the graph."""
        return self._each(lambda tensor: tensor.detach())

    def _each(self, change: Callable[[Tensor], Tensor]) -> States:
        return States(change(self.tokens), change(self.mask), None if self.vectors is None else change(self.vectors))

    @staticmethod
    def cat(parts: Sequence[States]) -> States:
        """All states in order, padded to the longest part."""
        longest = max(part.tokens.shape[1] for part in parts)
        missing = [longest - part.tokens.shape[1] for part in parts]
        tokens = [functional.pad(part.tokens, (0, 0, 0, count)) for part, count in zip(parts, missing, strict=True)]
        masks = [functional.pad(part.mask, (0, count)) for part, count in zip(parts, missing, strict=True)]
        vectors = [part.vectors for part in parts if part.vectors is not None]
        if len(vectors) not in (0, len(parts)):
            raise ValueError("some parts have vectors and some have none")
        return States(torch.cat(tokens), torch.cat(masks), torch.cat(vectors) if vectors else None)


class Preprocessor(Protocol):
    """Pictures and captions to tensors, as the model was trained on them."""

    @property
    def max_text_len(self) -> int: ...

    @property
    def image_size_px(self) -> int: ...

    def images(self, images: Sequence[Image.Image]) -> ImageBatch:
        """One batch of pictures of any size and mode."""
        ...

    def texts(self, texts: Sequence[str]) -> TextBatch:
        """One batch of captions, cut to `max_text_len` tokens (specials counted), padded to the longest."""
        ...


class _Module(Protocol):
    """The part of torch.nn.Module that callers of a model use."""

    training: bool

    def parameters(self, recurse: bool = ...) -> Iterator[nn.Parameter]: ...

    def named_parameters(
        self, prefix: str = ..., recurse: bool = ..., remove_duplicate: bool = ...
    ) -> Iterator[tuple[str, nn.Parameter]]: ...

    def train(self, mode: bool = ...) -> Self: ...

    def eval(self) -> Self: ...

    def requires_grad_(self, requires_grad: bool = ...) -> Self: ...

    def to(self, device: Device) -> Self: ...

    def state_dict(self) -> dict[str, Any]: ...


class FusionScorer(_Module, Protocol):
    """A model that looks at an image and a caption together; a score is a raw logit, higher is better."""

    @property
    def preprocess(self) -> Preprocessor: ...

    @property
    def digest(self) -> str: ...

    def encode_images(self, images: ImageBatch | States) -> States:
        """Everything about I images that no caption changes; of a scorer with encoders of its own, from their features as well."""
        ...

    def encode_texts(self, texts: TextBatch | States) -> States:
        """Everything about T captions that no image changes, likewise."""
        ...

    def score_pairs(self, images: States, texts: States, image_ix_P: Tensor, text_ix_P: Tensor) -> Tensor:
        """Logits of P pairs, given as positions in `images` and `texts`."""
        ...

    def score(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
        """Logits of B aligned pairs, the plain and slow way: the oracle of `score_pairs`."""
        ...


class DualEncoder(_Module, Protocol):
    """A model that gives an image a vector and a caption a vector; a score is their cosine times `logit_scale`."""

    @property
    def preprocess(self) -> Preprocessor: ...

    @property
    def digest(self) -> str: ...

    @property
    def logit_scale(self) -> Tensor: ...

    def embed_images(self, images: ImageBatch) -> Tensor:
        """Unit vectors, I x D."""
        ...

    def embed_texts(self, texts: TextBatch) -> Tensor:
        """Unit vectors, T x D."""
        ...
