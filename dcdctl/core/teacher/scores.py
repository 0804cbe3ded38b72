"""What a training asks of its teachers: the scores of pairs, and which pairs have one; and the average of several
teachers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from dcdctl.core.data import Indices, Scores
from dcdctl.core.errors import StaleError
from dcdctl.core.teacher.candidate_lists import Candidates


class TeacherScores(ABC):
    """Scores of one teacher or of several: of the pairs of a cache, or of every pair, computed when they are looked
    up."""

    plan: Any
    """What the scores depend on, as JSON values: a table that names the corpus, or a list of them for several
    teachers."""

    @property
    def candidates(self) -> Candidates | None:
        """The negatives of every query that have a score; None if every pair has one."""
        return None

    @property
    def scored_pairs(self) -> tuple[Indices, Indices] | None:
        """The images and the captions of all pairs that have a score; None if every pair has one."""
        return None

    @property
    def has_drawn_pairs(self) -> bool:
        """Whether a caption's other images were drawn, and not proposed by a model: a wrong caption scores with its
        image as with a drawn one, and lower than with a proposed one."""
        return True

    @abstractmethod
    def lookup(self, image_ix: Indices, text_ix: Indices) -> Scores:
        """The scores of these pairs, in their common shape; NaN for pairs without a score."""


class AverageScores(TeacherScores):
    """Several teachers as one.

    Each teacher's scores are standardized over the pairs that all teachers have scored, averaged, and scaled to the
    mean of the teachers' means and standard deviations. The average is thus a logit like theirs, and a temperature
    keeps its meaning. Pairs without a score of every teacher have none: an average over fewer teachers would be another
    kind of score.
    """

    noun: str
    """What messages call the teachers."""

    def __init__(self, teachers: Sequence[TeacherScores]) -> None:
        """StaleError for teachers of different corpora."""
        if len({teacher.plan["corpus"] for teacher in teachers}) > 1:
            raise StaleError(
                f"the {self.noun} are of different corpora",
                hint="make each with the same --data, --split and --max-images",
            )
        self.plan = [teacher.plan for teacher in teachers]
        self.teachers = teachers

    @property
    @abstractmethod
    def _moments(self) -> list[tuple[float, float]]:
        """Mean and standard deviation of each teacher's scores, over the pairs that all teachers have scored."""

    def lookup(self, image_ix: Indices, text_ix: Indices) -> Scores:
        total: Any = 0.0
        # Of NumPy's type, so that the sum is in float64: a number of Python would leave it in float32.
        share = np.float64(1 / len(self.teachers))
        for teacher, (mean, spread) in zip(self.teachers, self._moments, strict=True):
            total = total + share * (teacher.lookup(image_ix, text_ix) - mean) / spread
        mean, spread = np.mean(self._moments, axis=0)
        return np.asarray(total * spread + mean, dtype=np.float32)


def in_range(image_ix: Indices, text_ix: Indices, num_images: int, num_texts: int) -> tuple[Indices, Indices]:
    """The indices of pairs as int64; ValueError if one is outside of the corpus."""
    images, texts = np.asarray(image_ix, dtype=np.int64), np.asarray(text_ix, dtype=np.int64)
    for what, index, count in (("image", images, num_images), ("caption", texts, num_texts)):
        if index.size and not 0 <= index.min() <= index.max() < count:
            raise ValueError(f"{what} indices must lie in [0, {count}), got {index.min()} to {index.max()}")
    return images, texts
