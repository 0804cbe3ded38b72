"""Batches of images or captions through a model, by whoever computes shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
import torch

from dcdctl.core.data import Indices
from dcdctl.core.engines import Compute, Task
from dcdctl.core.machine import read_in_threads
from dcdctl.core.models import Preprocessor
from dcdctl.core.progress import Advance
from dcdctl.core.scoring.shards import ShardItems, reader_of
from dcdctl.core.scoring.sources import PairSource, Source, read_images

Output = TypeVar("Output")
OutputOfModel = TypeVar("OutputOfModel", covariant=True)
Side = Literal["images", "captions"]
Batch = Sequence[int] | Indices
IMAGE_BATCHES, TEXT_BATCHES = 2, 4
"""Batches of a task: enough that a worker seldom waits for the next one, and few enough to travel."""


class Encoder(Protocol[OutputOfModel]):
    """A model with what it gives of a batch; it can travel."""

    @property
    def preprocess(self) -> Preprocessor: ...

    def placed(self, compute: Compute) -> Callable[[Any], OutputOfModel]:
        """The function of a batch that was read, with the model on its device, in eval mode."""
        ...


@dataclass(frozen=True)
class SideBatches:
    """Images or captions of a source, in batches."""

    side: Side
    items: PairSource | ShardItems
    batches: Sequence[Batch]

    @classmethod
    def packed(cls, source: Source, side: Side, batches: Sequence[Batch]) -> SideBatches:
        """Batches of a source that travel: with the images and captions that they read."""
        ends = np.cumsum([len(batch) for batch in batches])
        rows, none = np.concatenate([np.asarray(batch, dtype=np.int64) for batch in batches]), np.empty(0, np.int64)
        items = ShardItems.packed(source, *((rows, none) if side == "images" else (none, rows)))
        return cls(side, items, np.split(np.arange(len(rows)), ends[:-1]))


@dataclass(frozen=True)
class BatchWorker(Generic[Output]):
    """Encodes batches, which are read ahead."""

    preprocess: Preprocessor
    encode: Callable[[Any], Output]
    compute: Compute

    @classmethod
    def make(cls, encoder: Encoder[Output], compute: Compute) -> BatchWorker[Output]:
        """A worker with the model on its device."""
        compute = compute.in_worker()
        return cls(encoder.preprocess, encoder.placed(compute), compute)

    def start(self, task: SideBatches) -> Callable[[Advance], list[Output]]:
        """The encoding of the batches of a task, in order."""
        reader = reader_of(task.items, self.preprocess)
        if task.side == "images":
            read = partial(_read_images, reader, self.compute)
            return partial(self._encode, task, read_in_threads(read, task.batches, self.compute.readers))
        return partial(self._encode, task, map(reader.texts, task.batches))

    @torch.inference_mode()
    def _encode(self, task: SideBatches, reading: Iterator[Any], advance: Advance) -> list[Output]:
        encoded = []
        for batch, read in zip(task.batches, reading, strict=True):
            encoded.append(self.encode(read.to(self.compute.device, non_blocking=True)))
            advance(len(batch))
        return encoded


def _read_images(reader: PairSource, compute: Compute, batch: Batch) -> Any:
    return read_images(reader, batch, compute)


def side_task(source: Source, side: Side, batches: Sequence[Batch], *, shard: int, name: str) -> Task[SideBatches]:
    """The task of encoding some batches of a source."""
    return Task(
        shard,
        name,
        inputs=lambda: SideBatches(side, source, batches),
        packed=lambda: SideBatches.packed(source, side, batches),
    )


def encoded_batches(
    encoder: Encoder[Output],
    source: Source,
    side: Side,
    batches: Sequence[Batch],
    compute: Compute,
    advance: Advance,
) -> Iterator[tuple[Batch, Output]]:
    """Each batch with what the model gives of it, in any order."""
    step = IMAGE_BATCHES if side == "images" else TEXT_BATCHES
    groups = [batches[start : start + step] for start in range(0, len(batches), step)]
    tasks = (
        side_task(source, side, group, shard=number, name=f"{side} {group[0][0]} and further ones")
        for number, group in enumerate(groups)
    )
    make_worker = partial(BatchWorker.make, encoder, compute.for_workers())
    for task, outputs in compute.engine.map(tasks, make_worker, advance):
        yield from zip(groups[task.shard], outputs, strict=True)
