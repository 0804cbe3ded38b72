"""Parts of a batch that is too large to be computed at once, or shared by several processes.

The slices of a fusion model are of a batch's rows: lists, or images with all captions. Those of a dual model are of its images and of its
captions, so that each is embedded once; pairs are formed of all slices together. Each process reads its own slices alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dcdctl.core.devices import moved, pinned
from dcdctl.core.models import ImageBatch, Pairs, TextBatch

NO_IMAGES = ImageBatch(torch.empty(0, 3, 0, 0))
NO_TEXTS = TextBatch(torch.empty(0, 0, dtype=torch.int64), torch.empty(0, 0, dtype=torch.int64))
NO_PAIRS = torch.empty(0, 0, dtype=torch.int64)


@dataclass(frozen=True)
class Place:
    """Where a slice's rows stand among all of a batch."""

    start: int
    stop: int
    total: int

    @property
    def read(self) -> range:
        """The rows that are read: of none the next, which is computed and left out, so that no model sees an empty batch."""
        return range(self.start, max(self.stop, self.start + 1))


@dataclass(frozen=True)
class Slice(Pairs):
    """A part of a batch; of a dual model's no pairs are formed."""

    places: tuple[Place, ...]
    """Of each thing the model gives: of the logits, or of the images' vectors and of the captions'."""

    def to(self, device: torch.device) -> Slice:
        """The same slice on another device."""
        return moved(self, device)

    def pin_memory(self) -> Slice:
        """The same slice in memory that a GPU reads by itself."""
        return pinned(self)


@dataclass(frozen=True)
class Slicing:
    """How many slices a batch has in all processes together, and which of them this one computes."""

    count: int = 1
    own: range = range(1)
    of_sides: bool = False
    """Slices of images and of captions instead of rows of pairs: for a dual model."""

    def places(self, total: int) -> Iterator[Place]:
        """The places of the own slices, whose sizes differ by at most one."""
        return (Place(part * total // self.count, (part + 1) * total // self.count, total) for part in self.own)


WHOLE = Slicing()


@dataclass(frozen=True)
class Batch(Pairs):
    """What one step sees."""

    teacher_RC: Tensor
    """The teacher's logits, in the columns of the pairs; NaN where it has not scored a pair."""
    official_teacher_RC: Tensor
    """Lists: the teacher's logits in the order the released code hands them to its loss; elsewhere the same as `teacher_RC`."""
    same_RC: Tensor
    """All pairs: True off the diagonal where the caption belongs to the image all the same."""
    slices: tuple[Slice, ...] = ()
    """The parts that this process computes, where the batch comes in parts: then `images` and `texts` are empty."""
    true_IT: Tensor | None = None
    """Lists: which of the batch's images and captions belong together, in the order of the indices of the pairs."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device; its slices stay, for each is moved when it is computed."""
        return moved(self, device)

    def pin_memory(self) -> Batch:
        """The same batch in memory that a GPU reads by itself."""
        return replace(pinned(self), slices=tuple(part.pin_memory() for part in self.slices))
