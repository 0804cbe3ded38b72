"""Batches of images with one caption each, all pairs of which are candidates: random, or neighborhoods of a cache.

Shape letters as in `batches`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dcdctl.core.data import Flags, Indices, RaggedArray
from dcdctl.core.errors import ConfigError
from dcdctl.core.teacher import TeacherScores
from dcdctl.core.training.adapted import fit_size
from dcdctl.core.training.batches.step_pairs import Coverage, PairsOfStep, StepPairs

COVERED_STEPS = 16
"""Batches over which coverage is measured before a training: a single batch varies by a few percent."""


class PairGrid(StepPairs):
    """Some images and some captions, all pairs of which are candidates."""

    counted: str
    """The queries that `coverage` counts, and what to do if they are few."""
    hint: str
    has_positives = True
    """Whether the captions of a batch belong to its images, in their order."""

    @abstractmethod
    def _pairs(self, step: int) -> tuple[Indices, Indices]:
        """A column of the images and a row of the captions of a batch."""

    @abstractmethod
    def _batches(self, rng: np.random.Generator) -> Iterable[Any]:
        """The batches of an epoch."""

    def of_step(self, step: int) -> PairsOfStep:
        """All pairs of the images and captions of a batch."""
        image_Q1, text_1G = self._pairs(step)
        teacher_QG = self._known(image_Q1, text_1G)
        return PairsOfStep(
            image_RC=image_Q1,
            text_RC=text_1G,
            teacher_RC=teacher_QG,
            official_RC=teacher_QG,
            same_RC=self._is_same(*np.broadcast_arrays(image_Q1, text_1G)),
        )

    def coverage(self, num_steps: int) -> Coverage:
        """How many queries of the first batches, in both directions, have two scored candidates, the positive among
        them, and how many pairs are scored, without the positives."""
        steps = range(min(num_steps, COVERED_STEPS))
        scored = np.stack([~np.isnan(self._known(*self._pairs(step))) for step in steps])
        is_counted_QG = np.ones(scored.shape[1:], dtype=bool)
        if self.has_positives:
            np.fill_diagonal(is_counted_QG, False)
        # A query with its positive alone has no order to teach: the losses leave it out.
        is_enough = [(scored & is_counted_QG).sum(axis=axis) >= 2 - self.has_positives for axis in (1, 2)]
        return Coverage(
            queries=float((is_enough[0].mean() + is_enough[1].mean()) / 2),
            of_queries=f"the queries of a batch {self.counted}",
            scored=float(scored[:, is_counted_QG].mean()),
            hint=f"make a cache with the student's recipe (dcdctl cache-teacher --recipe), or set {self.hint}",
        )

    def _is_same(self, image_QG: Indices, text_QG: Indices) -> Flags:
        """Off the diagonal: whether the caption of another image also matches this one."""
        same_QG = np.zeros(image_QG.shape, dtype=bool)
        # A text that occurs once matches only its own image, on the diagonal, and the duplicates of that.
        is_checked_G = self.false_negatives.is_repeated_T[text_QG[0]] | self.false_negatives.knows_duplicates
        columns = np.flatnonzero(is_checked_G)
        same_QG[:, columns] = self._is_match(image_QG[:, columns], text_QG[:, columns])
        np.fill_diagonal(same_QG, False)
        return same_QG

    def _batch(self, step: int) -> Any:
        epoch, position = divmod(step, int(self.batches_per_epoch))
        # Kept for the epoch, whose images are all grouped at once.
        if epoch != self._epoch:
            self._epoch, self._of_epoch = epoch, list(self._batches(self._rng(0, epoch)))
        return self._of_epoch[position]


@dataclass
class AllPairs(PairGrid):
    """Images with one caption each, all pairs of which are candidates.

    With a cache, a batch is a neighborhood of it: images that share scored pairs come together, so the hard candidates
    of one query are the positives of others. Images without a text have no place in the batches.
    """

    counted, hint = "with a negative or more", "batch.size to candidates.block_size"

    def __post_init__(self) -> None:
        super().__post_init__()
        texts_of = self.texts_of_image
        self._has_text_I = texts_of.lengths > 0
        self._sums = None if self.weight_T is None else np.concatenate([[0], self.weight_T[texts_of.values].cumsum()])
        num_images = int(self._has_text_I.sum())
        if num_images < 2:
            way = "prepare more images" if self.image_T is None else "set pool.pseudo_positive_above lower"
            raise ConfigError(f"a batch needs 2 or more images, and there is at most one ({num_images})", hint=way)
        # All images of a small split in each step; the steps of an epoch are then one.
        self.config = fit_size(self.recipe.batch, num_images)
        self.batches_per_epoch = float(num_images // self.config.size)
        # A teacher that scores every pair has no neighbors, so its batches are those of a training without a teacher.
        self._neighbors = None if self.scores is None else find_neighbors(self.scores, self.owner_T, len(texts_of))

    @property
    def size_of_step(self) -> tuple[int, int]:
        return self.config.size, self.config.size**2

    def _pairs(self, step: int) -> tuple[Indices, Indices]:
        image_Q = np.sort(self._batch(step))
        texts_of, rng = self.texts_of_image, self._rng(1, step)
        first_Q, end_Q = texts_of.offsets[image_Q], texts_of.offsets[image_Q + 1]
        if self._sums is None:
            chosen_Q = first_Q + rng.integers(end_Q - first_Q)
        else:
            # Each caption is a stretch as long as its weight: a random point of its image falls into one.
            point_Q = self._sums[first_Q] + rng.random(len(first_Q)) * (self._sums[end_Q] - self._sums[first_Q])
            # Rounding may put a point on the end of the last stretch.
            chosen_Q = np.clip(np.searchsorted(self._sums, point_Q, side="right") - 1, first_Q, end_Q - 1)
        return image_Q[:, None], texts_of.values[chosen_Q][None]

    def _batches(self, rng: np.random.Generator) -> list[Indices]:
        return image_batches(self._neighbors, self._has_text_I.copy(), self.config.size, rng)


class ImagesAlone(StepPairs):
    """Images without texts, each in at most one batch of an epoch, for a loss of their vectors."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.config = fit_size(self.recipe.batch, self.corpus.num_images)
        self.batches_per_epoch = float(self.corpus.num_images // self.config.size)

    @property
    def size_of_step(self) -> tuple[int, int]:
        return self.config.size, 0

    def of_step(self, step: int) -> PairsOfStep:
        """Images, and no pair."""
        epoch, position = divmod(step, int(self.batches_per_epoch))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._rng(0, epoch).permutation(self.corpus.num_images)
        start = position * self.config.size
        image_Q1 = np.sort(self._order[start : start + self.config.size])[:, None]
        text_1G = np.empty((1, 0), dtype=np.int64)
        teacher_QG = self._known(image_Q1, text_1G)
        return PairsOfStep(
            image_RC=image_Q1,
            text_RC=text_1G,
            teacher_RC=teacher_QG,
            official_RC=teacher_QG,
            same_RC=np.zeros(teacher_QG.shape, dtype=bool),
        )

    def coverage(self, num_steps: int) -> Coverage:
        """Every image has a vector of the teacher."""
        return Coverage(queries=1.0, of_queries="the images", scored=1.0, hint="")


Neighbors = tuple[RaggedArray, Indices]
"""For each image, the images that it shares scored pairs with, and how many pairs."""


def find_neighbors(scores: TeacherScores, owner_T: Indices, num_images: int) -> Neighbors | None:
    """The images that share scored pairs: a caption of one is scored with the other. None if every pair is scored.

    `owner_T` is the image of each caption, -1 for none.
    """
    if scores.scored_pairs is None:
        return None
    image_P, text_P = scores.scored_pairs
    owner_P = owner_T[text_P]
    is_between_P = (image_P != owner_P) & (owner_P >= 0)
    image, other = image_P[is_between_P], owner_P[is_between_P]
    keys, counts = np.unique(
        np.concatenate([image * num_images + other, other * num_images + image]), return_counts=True
    )
    return RaggedArray.from_pairs(keys // num_images, keys % num_images, num_images), counts


def image_batches(neighbors: Neighbors | None, is_free: Flags, size: int, rng: np.random.Generator) -> list[Indices]:
    """Batches of one size of the free images, in random order, each in at most one; `is_free` is changed.

    A batch starts from a random image and adds the image that shares most scored pairs with it, ties broken at random;
    without neighbors its images are random. Their order within a batch has no meaning. Images that fill no batch at the
    end are left out.
    """
    batches = []
    for _ in range(int(is_free.sum()) // size):
        # Shared pairs are integers, so a random number in [0, 1) decides only between equal counts.
        priority = np.where(is_free, rng.random(len(is_free)), -np.inf)
        if neighbors is None:
            # A partition, because a search per image would take longer and give the same images.
            batch = np.argpartition(priority, -size)[-size:]
        else:
            near, num_pairs = neighbors
            batch = np.empty(size, dtype=np.int64)
            for place in range(size):
                image = batch[place] = priority.argmax()
                row = slice(near.offsets[image], near.offsets[image + 1])
                priority[near.values[row]] += num_pairs[row]
                # Minus infinity stays itself whatever is added to it, so an image that is taken is not chosen again.
                priority[image] = -np.inf
        is_free[batch] = False
        batches.append(batch)
    return [batches[i] for i in rng.permutation(len(batches))]
