"""Batches of texts with a teacher's vectors, from a cache of any size: for a query encoder, which needs no images.

An epoch reads the parts of the cache in random order, as many at a time as fit into a window, and shuffles the texts of
each window. A batch is a function of the cache, the seed and the step, so a run resumes without reading what it has
seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dcdctl.core.data import Index
from dcdctl.core.devices import Compute
from dcdctl.core.models import Preprocessor, States, TextBatch
from dcdctl.core.teacher import TextCache
from dcdctl.core.training.batches.batch import NO_IMAGES, NO_PAIRS, NO_TEXTS, UNSPLIT, Batch, MicroBatch, MicroBatchPlan
from dcdctl.core.training.batches.step_pairs import check_size
from dcdctl.core.training.losses.table import LossConfig
from dcdctl.core.training.objective import PairObjective
from dcdctl.core.training.recipe import Recipe

WINDOW_BYTES = 2**30
"""Texts and vectors in memory; smaller caches are read once."""
BYTES_PER_TEXT = 400
"""A text and its objects in memory, without its vectors."""
MOST_HELD_OUT = 2000
COSINE = PairObjective(LossConfig(terms={"embedding-cosine": 1.0}))
Row = tuple[str, Any]
"""A text and its vector, or those of its tokens; float16."""


@dataclass
class TextBatches(torch.utils.data.Dataset[Batch]):
    """A data set whose item number s is the batch of step s. With `holds_out`, a hundredth of the texts is left out."""

    cache: TextCache
    recipe: Recipe
    preprocess: Preprocessor | None = None
    plan: MicroBatchPlan = UNSPLIT
    holds_out: bool = False

    def __post_init__(self) -> None:
        sizes = np.array(self.cache.part_sizes)
        starts = sizes.cumsum() - sizes
        # Rounded up, so that a small cache has one too.
        num_held = min(MOST_HELD_OUT, -(-self.cache.num_texts // 100)) if self.holds_out else 0
        held = self._rng(2).choice(self.cache.num_texts, num_held, replace=False)
        self._held = [
            held[(held >= first) & (held < first + size)] - first for first, size in zip(starts, sizes, strict=True)
        ]
        self._rows = [np.setdiff1d(np.arange(size), held) for size, held in zip(sizes, self._held, strict=True)]
        num_texts = self.cache.num_texts - num_held
        self.recipe = replace(
            self.recipe, batch=replace(self.recipe.batch, size=min(self.recipe.batch.size, num_texts))
        )
        check_size(self.recipe.batch, self.plan)
        self.batches_per_epoch = float(num_texts // self.recipe.batch.size)
        # Of one window in memory: its number, its parts, its texts and their order.
        self._number: tuple[int, int] | None = None
        self._parts: Index = np.array([-1])
        self._texts: list[Row] = []

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step, as this process reads it: whole, or its micro-batches."""
        assert self.preprocess is not None
        return batch_of(list(self._of_step(step)), self.preprocess, self.cache.space.dim, self.plan)

    @property
    def fingerprint(self) -> str:
        """That of the cache."""
        return self.cache.fingerprint

    @torch.inference_mode()
    def cosine(self, model: Any, compute: Compute) -> float:
        """The mean cosine of the model's vectors of the held-out texts with the teacher's, in percent."""
        model.to(compute.device).eval()
        total, size = 0.0, compute.batch_size or 256
        for first in range(0, len(self.held_out), size):
            rows = self.held_out[first : first + size]
            batch = batch_of(rows, model.preprocess, self.cache.space.dim).to(compute.device)
            terms = COSINE.loss(model, model.outputs(batch), batch)
            total += (1 - terms["embedding-cosine"].item()) * len(rows)
        return 100 * total / len(self.held_out)

    @cached_property
    def held_out(self) -> list[Row]:
        """The texts that no batch has, in the order of the cache."""
        parts = [part for part, held in enumerate(self._held) if len(held)]
        # Copies, because a view would keep the vectors of its part.
        return [(text, vector.copy()) for text, vector in self._read(self._held, parts)]

    def first_texts(self) -> list[str]:
        """The texts of the first window."""
        return [text for text, _ in self._read(self._rows, self._windows(0)[0])]

    def _of_step(self, step: int) -> Iterator[Row]:
        epoch, position = divmod(step, int(self.batches_per_epoch))
        first = position * self.recipe.batch.size
        end = first + self.recipe.batch.size
        for number, parts in enumerate(self._windows(epoch)):
            count = sum(len(self._rows[part]) for part in parts)
            # A batch at the end of a window takes the rest from the next one.
            if first < count and end > 0:
                self._open((epoch, number), parts, count)
                yield from (self._texts[row] for row in self._order[max(first, 0) : end])
            first, end = first - count, end - count

    def _windows(self, epoch: int) -> list[Index]:
        """The parts of each window of an epoch."""
        # Numbers of unit vectors hardly shrink, so a file is as large as its vectors in memory.
        of_files = np.array([file["bytes"] for file in self.cache.seal["files"].values()])
        sizes = of_files + BYTES_PER_TEXT * np.array(self.cache.part_sizes)
        order = self._rng(0, epoch).permutation(len(sizes))
        window_P = (sizes[order].cumsum() - 1) // WINDOW_BYTES
        # Ascending, so that a window of all parts is the same one in every epoch.
        return [np.sort(order[window_P == number]) for number in np.unique(window_P)]

    def _open(self, number: tuple[int, int], parts: Index, count: int) -> None:
        if number == self._number:
            return
        if not np.array_equal(parts, self._parts):
            # Emptied first, so that two windows are never in memory.
            self._texts = []
            self._texts = list(self._read(self._rows, parts))
        self._number, self._parts, self._order = number, parts, self._rng(1, *number).permutation(count)

    def _read(self, rows: Sequence[Index], parts: Sequence[int] | Index) -> Iterator[Row]:
        for number in parts:
            part = self.cache.part(int(number))
            yield from ((text, vector) for text, _, vector in (part[row] for row in rows[number]))

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.recipe.seed, *key])


def batch_of(rows: Sequence[Row], preprocess: Preprocessor, width: int, plan: MicroBatchPlan = UNSPLIT) -> Batch:
    """The batch of these texts: without images, pairs and scores."""
    none = torch.empty(0, 1, width), torch.empty(0, 1, dtype=torch.bool), torch.empty(0, width)
    texts, vectors = zip(*rows, strict=True)
    teacher = pad_sequence([torch.tensor(vector) for vector in vectors], batch_first=True)

    def inputs(rows: range) -> tuple[States, TextBatch, Tensor, Tensor]:
        return States(*none), preprocess.texts(texts[rows.start : rows.stop]), NO_PAIRS, NO_PAIRS

    known = NO_PAIRS, NO_PAIRS, NO_PAIRS
    if plan.count == 1:
        return Batch(*inputs(range(len(texts))), *known, teacher_texts_TE=teacher)
    parts = (MicroBatch(*inputs(rows), (range(0), rows), (0, len(texts))) for rows in plan.row_ranges(len(texts)))
    return Batch(NO_IMAGES, NO_TEXTS, NO_PAIRS, NO_PAIRS, *known, tuple(parts), teacher_texts_TE=teacher)
