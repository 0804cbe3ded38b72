"""The inputs of models: images and texts as tensors, states that were encoded once, and the pairs of a training step.

Masks and positions decide the shapes of what is computed. A program that reads them from a GPU waits until the GPU has
finished all earlier work, and the GPU then waits for the program. So each class keeps a copy of them on the CPU
(`..._on_cpu`), made before they are moved.

Shape letters: I images, T texts, L text tokens, V image tokens, W width of features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Self, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from dcdctl.core.devices import on_device
from dcdctl.core.errors import InputError

Device = torch.device | str | int
T = TypeVar("T")
Raw = TypeVar("Raw", "ImageBatch", "TextBatch")


class RefusedTextError(InputError):
    """A text that a model cannot read, by its position in a batch."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(f"the text at position {position} {reason}", hint="remove it from the text")
        self.position, self.reason = position, reason


class _Rows:
    """What the three kinds of inputs share: rows, moved and cut together, and a copy of their mask on the CPU."""

    mask_on_cpu: cached_property[Any]
    """A Tensor, or None for images without a mask."""

    def __len__(self) -> int:
        return len(self._values()[0])

    def __getitem__(self, rows: slice | Tensor) -> Self:
        """Some of them."""
        part = self._changed(lambda tensor: tensor[rows])
        if "mask_on_cpu" in vars(self) and self.mask_on_cpu is not None:
            with_copies(part, mask_on_cpu=self.mask_on_cpu[rows])
        return part

    def to(self, device: Device, *, non_blocking: bool = False) -> Self:
        """The same rows on another device."""
        return self._with_mask_of(self._changed(lambda tensor: tensor.to(device, non_blocking=non_blocking)))

    def pin_memory(self) -> Self:
        """The same rows in pinned memory, from which a copy to a GPU is asynchronous."""
        return self._with_mask_of(self._changed(lambda tensor: tensor.pin_memory()))

    def _values(self) -> list[Any]:
        """The tensors of the rows; the first one is always there, another may be None."""
        return [getattr(self, field.name) for field in fields(self)]  # type: ignore[arg-type]

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(*(None if value is None else change(value) for value in self._values()))

    def _with_mask_of(self, item: Self) -> Self:
        """The item with this one's copy of the mask, if there is one, or if it costs nothing because the mask is on the
        CPU itself."""
        has_copy = self._values()[0].device.type == "cpu" or "mask_on_cpu" in vars(self)
        return with_copies(item, mask_on_cpu=self.mask_on_cpu) if has_copy else item


@dataclass(frozen=True)
class ImageBatch(_Rows):
    """Preprocessed images of one size, padded with zeros at the right and the bottom."""

    pixel_values: Tensor
    """I x 3 x H x W, normalized. For a model that takes sequences of patches, I x N x values of a patch, row by row."""
    pixel_mask: Tensor | None = None
    """I x H x W, or I x N for patches, True inside the image; None for a model that takes images of one size only."""
    grid: Tensor | None = None
    """I x 2, rows and columns of each image's patches; None for a model that takes pixels."""

    @cached_property
    def mask_on_cpu(self) -> Tensor | None:
        """`pixel_mask` on the CPU."""
        return None if self.pixel_mask is None else self.pixel_mask.cpu()

    @staticmethod
    def cat(parts: Sequence[ImageBatch]) -> ImageBatch:
        """All images in order, of parts that have one size and belong to one model."""
        masks = [part.pixel_mask for part in parts if part.pixel_mask is not None]
        grids = [part.grid for part in parts if part.grid is not None]
        pixels = torch.cat([part.pixel_values for part in parts])
        return ImageBatch(pixels, torch.cat(masks) if masks else None, torch.cat(grids) if grids else None)


@dataclass(frozen=True)
class TextBatch(_Rows):
    """Tokenized texts, padded at the right to the longest."""

    input_ids: Tensor
    """T x L."""
    attention_mask: Tensor
    """T x L, 1 for a real token, 0 for padding."""

    @cached_property
    def mask_on_cpu(self) -> Tensor:
        """`attention_mask` on the CPU."""
        return self.attention_mask.cpu()

    def states(self, tokens: Tensor) -> States:
        """The states of these texts, from one token T x L x D for each of theirs."""
        return with_copies(States(tokens, self.attention_mask.bool()), mask_on_cpu=self.mask_on_cpu.bool())


def with_copies(item: T, **copies: object) -> T:
    """The item itself, with what its cached properties would copy from its device."""
    # The classes are frozen; a cached property reads what its instance already holds.
    vars(item).update(copies)
    return item


def unencoded(batch: Raw | States) -> Raw:
    """The batch itself; ValueError for the features of an encoder, in a model that takes none."""
    if isinstance(batch, States):
        raise ValueError("this model takes images and captions, and has no encoder whose features it could take")
    return batch


def select_rows(tensor: Tensor, index: Tensor) -> Tensor:
    """The rows at these positions, which may repeat and may be on the CPU.

    Use this where gradients flow: on a CPU the gradient of `tensor[index]` is summed in the order of the threads, so a
    run is not repeatable; the gradient of `index_select` does not depend on it.
    """
    return tensor.index_select(0, index.to(tensor.device, non_blocking=True))


@dataclass(frozen=True)
class States(_Rows):
    """Images or texts encoded once, to be scored in any number of pairs; also the features of frozen encoders."""

    tokens: Tensor
    """count x N x D."""
    mask: Tensor
    """count x N, True for a real token."""
    vectors: Tensor | None = None
    """Unit vectors, count x D', of a model that adds their scaled cosine to a pair's logit; else None."""

    @staticmethod
    def of_full(tokens: Tensor, vectors: Tensor | None = None) -> States:
        """States whose tokens are all real."""
        return States(tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool), vectors)

    def take(self, index: Tensor) -> States:
        """The states at these positions, which may repeat, trimmed to the longest of them. Gradients flow back."""
        mask = self.mask_on_cpu[index.cpu()]
        used = mask.any(dim=0).nonzero()
        longest = int(used.max()) + 1 if len(used) else 1
        index = index.to(self.tokens.device, non_blocking=True)
        vectors = None if self.vectors is None else select_rows(self.vectors, index)
        taken = States(select_rows(self.tokens[:, :longest], index), self.mask[:, :longest][index], vectors)
        return with_copies(taken, mask_on_cpu=mask[:, :longest])

    def distinct(self, index_P: Tensor) -> tuple[States, Tensor]:
        """The states at P positions without repeats, ascending, and where each position is among them.

        Give positions on the CPU: reading them from a GPU waits for it.
        """
        used, at_P = index_P.cpu().unique(return_inverse=True)
        if len(used) == len(self):
            return self, at_P.to(self.tokens.device, non_blocking=True)
        return self.take(used), at_P.to(self.tokens.device, non_blocking=True)

    @cached_property
    def mask_on_cpu(self) -> Tensor:
        """`mask` on the CPU."""
        return self.mask.cpu()

    @property
    def is_full(self) -> bool:
        """Whether every token is real."""
        return bool(self.mask_on_cpu.all())

    def with_tokens(self, tokens: Tensor, vectors: Tensor | None = None) -> States:
        """States of the same mask."""
        return self._with_mask_of(States(tokens, self.mask, vectors))

    def room_for(self, count: int, num_tokens: int) -> States:
        """States of `count` items that are all padding, with the widths and types of these."""
        vectors = None if self.vectors is None else self.vectors.new_zeros(count, self.vectors.shape[1])
        tokens = self.tokens.new_zeros(count, num_tokens, self.tokens.shape[2])
        room = States(tokens, self.mask.new_zeros(count, num_tokens), vectors)
        return with_copies(room, mask_on_cpu=torch.zeros(count, num_tokens, dtype=torch.bool))

    def put(self, rows: Tensor, part: States) -> None:
        """Overwrite the states of these rows, which must be padding as far as the part has fewer tokens."""
        width, moved_rows = part.tokens.shape[1], rows.to(self.tokens.device, non_blocking=True)
        self.tokens[moved_rows, :width] = part.tokens
        self.mask[moved_rows, :width] = part.mask
        self.mask_on_cpu[rows, :width] = part.mask_on_cpu
        if self.vectors is not None and part.vectors is not None:
            self.vectors[moved_rows] = part.vectors

    @staticmethod
    def cat(parts: Sequence[States]) -> States:
        """All states in order, padded to the longest part."""
        longest = max(part.tokens.shape[1] for part in parts)
        missing = [longest - part.tokens.shape[1] for part in parts]
        tokens = [functional.pad(part.tokens, (0, 0, 0, count)) for part, count in zip(parts, missing, strict=True)]
        masks = [functional.pad(part.mask, (0, count)) for part, count in zip(parts, missing, strict=True)]
        vectors = [part.vectors for part in parts if part.vectors is not None]
        joined = States(torch.cat(tokens), torch.cat(masks), torch.cat(vectors) if vectors else None)
        if not all("mask_on_cpu" in vars(part) for part in parts):
            return joined
        copies = [functional.pad(part.mask_on_cpu, (0, count)) for part, count in zip(parts, missing, strict=True)]
        return with_copies(joined, mask_on_cpu=torch.cat(copies))


def up_to_padding(texts: TextBatch, padding_id: int) -> Tensor:
    """The tokens of texts up to the last that is no padding, T x L, of a model that attends to padding: CLIP's own
    tokenizer of open_clip pads with the id of an exclamation mark."""
    is_word_TL = texts.input_ids != padding_id
    return is_word_TL.long().flip(1).cumsum(dim=1).flip(1) > 0


@dataclass(frozen=True)
class PairBatch:
    """Images, texts and the R x C pairs of them that a step of training computes; each image and text appears once,
    whatever its pairs."""

    images: ImageBatch | States
    """Pixels, or the stored features of frozen encoders."""
    texts: TextBatch | States
    image_ix_RC: Tensor
    """Position in `images` of each pair's image."""
    text_ix_RC: Tensor

    @cached_property
    def indices_on_cpu(self) -> tuple[Tensor, Tensor]:
        """Both positions on the CPU."""
        return self.image_ix_RC.cpu(), self.text_ix_RC.cpu()

    def to(self, device: torch.device) -> Self:
        """The same batch on another device, with its positions on the CPU. Micro-batches stay: each is moved when it is
        computed."""
        # Reading a position from a GPU would wait for all of its work.
        return with_copies(on_device(self, device), indices_on_cpu=self.indices_on_cpu)
