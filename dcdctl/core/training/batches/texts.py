"""Batches of texts with a teacher's vectors, from a cache of any size: for a query encoder, which needs no images.

An epoch reads the parts of the cache in random order, as many at a time as fit into a window, and shuffles the texts of
each window. A batch is a function of the cache, the seed and the step, so a run resumes without reading what it has
seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from dcdctl.core.data import Indices
from dcdctl.core.engines import Compute
from dcdctl.core.models import Preprocessor, States
from dcdctl.core.teacher import TextCache
from dcdctl.core.training.adapted import fit_size
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


class TextRows:
    """The texts of a cache in batches and windows, and those that are held out of the training."""

    def __init__(self, cache: TextCache, recipe: Recipe, *, holds_out: bool = False) -> None:
        """With `holds_out`, a hundredth of the texts is in no batch, at most MOST_HELD_OUT."""
        self.cache, self.seed, self.holds_out = cache, recipe.seed, holds_out
        sizes = np.array(cache.part_sizes)
        starts = sizes.cumsum() - sizes
        # Rounded up, so that a small cache has one too.
        num_held = min(MOST_HELD_OUT, math.ceil(cache.num_texts / 100)) if holds_out else 0
        held = self.rng(2).choice(cache.num_texts, num_held, replace=False)
        self._held: list[Indices] = []
        self.trained: list[Indices] = []
        """The rows of each part that are trained on."""
        for first, size in zip(starts, sizes, strict=True):
            held_here = held[(held >= first) & (held < first + size)] - first
            self._held.append(held_here)
            self.trained.append(np.setdiff1d(np.arange(size), held_here))
        num_texts = cache.num_texts - num_held
        self.batch = fit_size(recipe.batch, num_texts)
        self.batches_per_epoch = float(num_texts // self.batch.size)

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

    def read(self, parts: Sequence[int] | Indices) -> list[Row]:
        """The texts of these parts that are trained on."""
        return list(self._read(self.trained, parts))

    def windows(self, epoch: int) -> list[Indices]:
        """The parts of each window of an epoch."""
        # Numbers of unit vectors hardly shrink, so a file is as large as its vectors in memory.
        of_files = np.array([file["bytes"] for file in self.cache.seal["files"].values()])
        sizes = of_files + BYTES_PER_TEXT * np.array(self.cache.part_sizes)
        order = self.rng(0, epoch).permutation(len(sizes))
        window_P = (sizes[order].cumsum() - 1) // WINDOW_BYTES
        # Ascending, so that a window of all parts is the same one in every epoch.
        return [np.sort(order[window_P == number]) for number in np.unique(window_P)]

    def first_texts(self) -> list[str]:
        """The texts of the first window."""
        return [text for text, _ in self.read(self.windows(0)[0])]

    def rng(self, *key: int) -> np.random.Generator:
        """The first number of the key: 0 for the order of parts, 1 for that of a window, 2 for what is held out."""
        return np.random.default_rng([self.seed, *key])

    def _read(self, rows: Sequence[Indices], parts: Sequence[int] | Indices) -> Iterator[Row]:
        for number in parts:
            part = self.cache.part(int(number))
            for row in rows[number]:
                text, _, vector = part[row]
                yield text, vector


@dataclass
class TextBatches(torch.utils.data.Dataset[Batch]):
    """A data set whose item number s is the batch of step s, tokenized for one model."""

    rows: TextRows
    preprocess: Preprocessor
    plan: MicroBatchPlan = UNSPLIT
    _window: _Window | None = field(default=None, init=False)
    """The last one that was read."""

    def __post_init__(self) -> None:
        check_size(self.rows.batch, self.plan)

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step, as this process reads it: whole, or its micro-batches."""
        return batch_of(list(self._of_step(step)), self.preprocess, self.rows.cache.space.dim, self.plan)

    def _of_step(self, step: int) -> Iterator[Row]:
        epoch, position = divmod(step, int(self.rows.batches_per_epoch))
        first = position * self.rows.batch.size
        end = first + self.rows.batch.size
        for number, parts in enumerate(self.rows.windows(epoch)):
            count = sum(len(self.rows.trained[part]) for part in parts)
            # A batch at the end of a window takes the rest from the next one.
            if first < count and end > 0:
                window = self._open((epoch, number), parts, count)
                yield from (window.texts[row] for row in window.order[max(first, 0) : end])
            first, end = first - count, end - count

    def _open(self, number: tuple[int, int], parts: Indices, count: int) -> _Window:
        window = self._window
        if window is not None and window.number == number:
            return window
        if window is not None and np.array_equal(window.parts, parts):
            texts = window.texts
        else:
            # Emptied first, so that two windows are never in memory.
            self._window = window = None
            texts = self.rows.read(parts)
        order = self.rows.rng(1, *number).permutation(count)
        self._window = _Window(number, parts, texts, order)
        return self._window


@dataclass(frozen=True)
class _Window:
    """Some parts of a cache in memory."""

    number: tuple[int, int]
    """The epoch, and the window in it."""
    parts: Indices
    texts: list[Row]
    order: Indices


def batch_of(rows: Sequence[Row], preprocess: Preprocessor, width: int, plan: MicroBatchPlan = UNSPLIT) -> Batch:
    """The batch of these texts: without images, pairs and scores."""
    texts = [text for text, _ in rows]
    teacher = pad_sequence([torch.tensor(vector) for _, vector in rows], batch_first=True)
    without_scores: dict[str, Any] = {"teacher_RC": NO_PAIRS, "official_teacher_RC": NO_PAIRS, "same_RC": NO_PAIRS}
    if plan.count == 1:
        return Batch(**_inputs(texts, preprocess, width), **without_scores, teacher_texts_TE=teacher)
    parts = []
    for rows_of_part in plan.row_ranges(len(texts)):
        inputs = _inputs(texts[rows_of_part.start : rows_of_part.stop], preprocess, width)
        parts.append(MicroBatch(**inputs, row_ranges=(range(0), rows_of_part), totals=(0, len(texts))))
    return Batch(
        images=NO_IMAGES,
        texts=NO_TEXTS,
        image_ix_RC=NO_PAIRS,
        text_ix_RC=NO_PAIRS,
        **without_scores,
        micro_batches=tuple(parts),
        teacher_texts_TE=teacher,
    )


def _inputs(texts: Sequence[str], preprocess: Preprocessor, width: int) -> dict[str, Any]:
    """What a query encoder reads of a batch: these texts, no image and no pairs."""
    no_images = States(torch.empty(0, 1, width), torch.empty(0, 1, dtype=torch.bool), torch.empty(0, width))
    return {"images": no_images, "texts": preprocess.texts(texts), "image_ix_RC": NO_PAIRS, "text_ix_RC": NO_PAIRS}
