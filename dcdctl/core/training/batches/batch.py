"""The batch of one optimizer step, whole or in micro-batches.

A batch that needs too much memory, or that several processes share, is computed in micro-batches. For a fusion model a
micro-batch holds rows of the batch: lists, or images with all captions. For a dual model it holds some of the batch's
images and some of its captions, so that each is embedded once; pairs are formed from the vectors of all micro-batches.
Each process reads only its own micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dcdctl.core.devices import in_pinned_memory
from dcdctl.core.models import ImageBatch, PairBatch, TextBatch

NO_IMAGES = ImageBatch(torch.empty(0, 3, 0, 0))
NO_PAIRS = torch.empty(0, 0, dtype=torch.int64)
NO_TEXTS = TextBatch(NO_PAIRS, NO_PAIRS)


@dataclass(frozen=True)
class MicroBatch(PairBatch):
    """A part of a batch that is computed at once; for a dual model it forms no pairs."""

    row_ranges: tuple[range, ...]
    """One per output of the model: the logits, or the vectors of images and of captions."""
    totals: tuple[int, ...]
    """The rows of the whole batch, for each of them."""

    def pin_memory(self) -> MicroBatch:
        """The same micro-batch in pinned memory, which a GPU reads directly."""
        return in_pinned_memory(self)


@dataclass(frozen=True)
class MicroBatchPlan:
    """How many micro-batches a batch has over all processes, and which of them this process computes."""

    count: int = 1
    local: range = range(1)
    by_side: bool = False
    """Split the images and the captions instead of the rows of pairs: for a dual model."""

    def row_ranges(self, total: int) -> Iterator[range]:
        """The rows of each local micro-batch; sizes differ by at most one."""
        return (range(index * total // self.count, (index + 1) * total // self.count) for index in self.local)


UNSPLIT = MicroBatchPlan()


@dataclass(frozen=True)
class Batch(PairBatch):
    """What one step sees."""

    teacher_RC: Tensor
    """The teacher's logits, in the columns of the pairs; NaN for pairs without a score."""
    official_teacher_RC: Tensor
    """Lists: the teacher's logits in the order in which the released code hands them to its loss; otherwise the same as
    `teacher_RC`."""
    same_RC: Tensor
    """All pairs: True off the diagonal where the caption also matches the image (a false negative)."""
    micro_batches: tuple[MicroBatch, ...] = ()
    """The micro-batches that this process computes, if the batch is split; `images` and `texts` are then empty."""
    true_IT: Tensor | None = None
    """Lists: which of the batch's images and captions match, in the order of the indices of the pairs."""
    teacher_images_IE: Tensor | None = None
    """For losses of vectors: the dual teacher's unit vectors of the images, each once, in the order of the indices of
    the pairs. None for a query encoder, whose images have these vectors."""
    teacher_texts_TE: Tensor | None = None
    """The teacher's vectors of the captions; of a late-interaction teacher those of their tokens, T x L x E, zeros for
    padding. None for an image student, whose texts have these vectors."""

    @property
    def scored_share(self) -> float:
        """The share of the negatives with a teacher score: the pairs outside column 0 of lists, or off the diagonal of
        all pairs."""
        is_negative_RC = torch.ones(self.teacher_RC.shape, dtype=torch.bool)
        if self.true_IT is None:
            is_negative_RC.fill_diagonal_(False)
        else:
            is_negative_RC[:, 0] = False
        return float((~self.teacher_RC[is_negative_RC].isnan()).float().mean())

    def pin_memory(self) -> Batch:
        """The same batch in pinned memory, which a GPU reads directly."""
        # `in_pinned_memory` pins only fields that can pin themselves, and a tuple cannot.
        return replace(
            in_pinned_memory(self), micro_batches=tuple(micro_batch.pin_memory() for micro_batch in self.micro_batches)
        )


@dataclass(frozen=True)
class MixedBatch:
    """What a step sees of captioned images and of a pool."""

    pairs: Batch
    pool: Batch

    def pin_memory(self) -> MixedBatch:
        """Both batches in pinned memory, which a GPU reads directly."""
        return MixedBatch(self.pairs.pin_memory(), self.pool.pin_memory())
