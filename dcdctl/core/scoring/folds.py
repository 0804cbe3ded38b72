"""Pairs of a gallery scored again and again, by whoever computes shards, and how long they will take.

All captions of the gallery stay in memory, its images come in chunks: a task of an engine is a chunk.

Shape letters: P pairs, T texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dcdctl.core import devices
from dcdctl.core.data import Indices, Scores
from dcdctl.core.devices import CPU
from dcdctl.core.engines import Compute, Task, ThisProcess
from dcdctl.core.machine import read_in_threads
from dcdctl.core.models import ImageBatch, Scorer, States
from dcdctl.core.progress import Advance
from dcdctl.core.scoring import pairs as of_pairs
from dcdctl.core.scoring.pairs import encode_chunk, encode_images, encode_texts, score_block
from dcdctl.core.scoring.shards import ShardItems, reader_of
from dcdctl.core.scoring.sources import PairSource, Source, read_images

TRIAL_S = 2.0
"""Seconds of trial scoring from which a rate is estimated: enough to be past the first, slower batches."""
TRIAL_IMAGES, TRIAL_TEXTS = 16, 128
"""Images and captions of a trial."""
WARM_UP = 32
"""Pairs scored before a trial, untimed: the first pass allocates memory and selects kernels."""
Chunk = tuple[Indices, Indices]
"""The images and the captions of pairs, of at most `IMAGE_CHUNK` images."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The cost of scoring pairs."""

    num_pairs: int
    pairs_per_s: float
    """Rate of a short trial on this device."""
    seconds: float
    """Time of all pairs at this rate, and of encoding the images and captions."""


@dataclass(frozen=True, kw_only=True)
class PairScorer:
    """Scores pairs of consecutive images and captions of a corpus, such as a fold, given by their positions within
    these ranges."""

    scorer: Scorer
    source: Source
    images: range
    texts: range
    compute: Compute

    @property
    def batch_size(self) -> int:
        """Pairs in one forward pass: the user's batch size, else the model's."""
        return self.compute.batch_size or self.scorer.pairs_per_batch

    def score(self, image_P: Indices, text_P: Indices, advance: Advance | None = None) -> NDArray[np.float32]:
        """Logits of the pairs, in the order given."""
        chunk_P = image_P // of_pairs.IMAGE_CHUNK
        places = [np.flatnonzero(chunk_P == chunk) for chunk in np.unique(chunk_P).tolist()]
        scores_P = np.empty(len(image_P), dtype=np.float32)
        chunks = ((image_P[place], text_P[place]) for place in places)
        for place, scores in zip(places, self.score_chunks(chunks, advance or (lambda count: None)), strict=True):
            scores_P[place] = scores
        return scores_P

    def score_chunks(self, chunks: Iterable[Chunk], advance: Advance) -> Iterator[Scores]:
        """The logits of the pairs of each chunk, in order."""
        # Scores of vectors that are known cost less than sending the vectors.
        engine = ThisProcess() if self.scorer.keeps_states else self.compute.engine
        make_worker = partial(_FoldWorker.make, _PackedFold(self))
        tasks = (self._task(number, *chunk) for number, chunk in enumerate(chunks))
        waiting: dict[int, Scores] = {}
        number = 0
        for task, scores_P in engine.map(tasks, make_worker, advance):
            waiting[task.shard] = scores_P
            while number in waiting:
                yield waiting.pop(number)
                number += 1

    def _task(self, number: int, image_P: Indices, text_P: Indices) -> Task[_ChunkPairs]:
        shifted_P = image_P + self.images.start
        return Task(
            number,
            f"images {shifted_P.min(initial=0)} to {shifted_P.max(initial=0)}",
            inputs=partial(_ChunkPairs.of, self.source, shifted_P, text_P),
            packed=partial(_ChunkPairs.packed, self.source, shifted_P, text_P),
        )

    def encode_images(self, images: Indices) -> States:
        """The states of images."""
        return encode_images(self.scorer, self.source, images + self.images.start, self.compute)

    def workload(self, num_pairs: int, num_images: int, num_texts: int) -> Workload:
        """The cost of scoring so many pairs and encoding so many images and captions, by a trial on random ones."""
        # Seeded, so that two runs estimate by the same pairs.
        rng = np.random.default_rng(0)
        image_ix = rng.permutation(len(self.images))[:TRIAL_IMAGES]
        text_ix = rng.permutation(len(self.texts))[:TRIAL_TEXTS]
        zeros = torch.zeros(WARM_UP, dtype=torch.int64)
        score_block(
            self.scorer, self.encode_images(image_ix[:1]), self._encode_texts(text_ix[:1]), zeros, zeros, self.compute
        )
        image_s, images = devices.timed(lambda: self.encode_images(image_ix), self.compute.device)
        text_s, texts = devices.timed(lambda: self._encode_texts(text_ix), self.compute.device)

        def trial(scale: int) -> tuple[int, Callable[[], object]]:
            count = min(scale * self.batch_size, num_pairs)
            image_P, text_P = (torch.from_numpy(rng.integers(len(states), size=count)) for states in (images, texts))
            return count, partial(score_block, self.scorer, images, texts, image_P, text_P, self.compute)

        rate = measure_rate(trial, num_pairs, self.compute.device)
        encoding_s = num_images * image_s / len(images) + num_texts * text_s / len(texts)
        return Workload(num_pairs=num_pairs, pairs_per_s=rate, seconds=num_pairs / rate + encoding_s)

    @cached_property
    def text_states(self) -> States:
        """The states of all captions."""
        return self._encode_texts(np.arange(len(self.texts)))

    def _encode_texts(self, texts: Indices) -> States:
        return encode_texts(self.scorer, self.source, texts + self.texts.start, self.compute)


@dataclass(frozen=True)
class _ChunkPairs:
    """The pairs of a chunk, and what its images are read from."""

    items: PairSource | ShardItems
    images: Indices
    """Each once, by its position in the items."""
    image_P: Indices
    """By position in `images`."""
    text_P: Indices

    @classmethod
    def of(cls, source: Source, image_P: Indices, text_P: Indices) -> _ChunkPairs:
        images, image_at_P = np.unique(image_P, return_inverse=True)
        return cls(source, images, image_at_P, text_P)

    @classmethod
    def packed(cls, source: Source, image_P: Indices, text_P: Indices) -> _ChunkPairs:
        images, image_at_P = np.unique(image_P, return_inverse=True)
        items = ShardItems.packed(source, images, np.empty(0, dtype=np.int64))
        return cls(items, np.arange(len(images)), image_at_P, text_P)


@dataclass(frozen=True)
class _PackedFold:
    """A gallery, which travels as its scorer and the captions that all chunks need."""

    fold: PairScorer

    def __getstate__(self) -> dict[str, Any]:
        fold = self.fold
        texts = np.arange(fold.texts.start, fold.texts.stop)
        items = ShardItems.packed(fold.source, np.empty(0, dtype=np.int64), texts)
        source: Any = reader_of(items, fold.scorer.preprocess)
        return {"fold": replace(fold, source=source, texts=range(len(texts)), compute=fold.compute.for_workers())}


@dataclass(frozen=True)
class _FoldWorker:
    """Scores chunks of a gallery, whose captions are encoded once."""

    fold: PairScorer

    @classmethod
    def make(cls, packed: _PackedFold) -> _FoldWorker:
        fold = packed.fold
        if fold.compute.of_worker is not None:  # in a worker
            compute = fold.compute.in_worker()
            fold = replace(fold, scorer=fold.scorer.to(compute.device).eval(), compute=compute)
        return cls(fold)

    def start(self, chunk: _ChunkPairs) -> Callable[[Advance], Scores]:
        """Begin to read the images of a chunk, and return the scoring of its pairs."""
        fold = self.fold
        reader = reader_of(chunk.items, fold.scorer.preprocess)
        read = partial(read_images, reader, compute=fold.compute)
        return partial(self._score, chunk, read_in_threads(read, [chunk.images], fold.compute.readers))

    @torch.inference_mode()
    def _score(self, chunk: _ChunkPairs, reading: Iterator[ImageBatch | States], advance: Advance) -> Scores:
        fold = self.fold
        if not len(chunk.image_P):
            return np.empty(0, dtype=np.float32)
        images = encode_chunk(fold.scorer, next(reading), fold.compute)
        ix = torch.from_numpy(chunk.image_P), torch.from_numpy(chunk.text_P)
        return score_block(fold.scorer, images, fold.text_states, *ix, fold.compute, advance).numpy()


def measure_rate(
    trial: Callable[[int], tuple[int, Callable[[], object]]], num_pairs: int, device: torch.device = CPU
) -> float:
    """Pairs per second of the last of several trials, each about four times as large as the one before.

    `trial(scale)` returns a number of pairs, about proportional to the scale, and the work that scores them. The trials
    end when one takes `TRIAL_S` or has scored all `num_pairs`, of which there is at least one.
    """
    scale, count, seconds = 1, 0, 0.0
    while seconds < TRIAL_S and count < num_pairs:
        count, work = trial(scale)
        seconds, _ = devices.timed(work, device)
        # By four, so that all earlier trials together take about a third of the last one.
        scale *= 4
    return count / seconds
