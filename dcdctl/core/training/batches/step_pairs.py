"""The pairs of each step of a training on a corpus, and the batches that read them.

Which pairs a step has depends on no model: a preview counts them, and a trial of the first step reads them in several
ways. Shape letters as in `batches`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dcdctl.core import distributed, machine
from dcdctl.core.data import Corpus, Flags, Indices, RaggedArray, Scores
from dcdctl.core.errors import ConfigError
from dcdctl.core.models import ImageBatch, States, TextBatch
from dcdctl.core.scoring import Reader, Source
from dcdctl.core.teacher import EmbeddedTeacher, FalseNegativeFilter, LateTeacher, TeacherScores
from dcdctl.core.training.adapted import lowered
from dcdctl.core.training.batches.batch import (
    NO_IMAGES,
    NO_PAIRS,
    NO_TEXTS,
    UNSPLIT,
    Batch,
    MicroBatch,
    MicroBatchPlan,
    MixedBatch,
)
from dcdctl.core.training.recipe import BatchConfig, Recipe

LEAST_QUERIES = 1 / 3
"""Below this share of the queries a training is refused, if the cache was made for another recipe: the teacher would
teach nothing about most of them (docs/losses.md)."""
BYTES_PER_PAIR = 20
"""A drawn pair has the numbers of its image and its text, and its score."""


def check_size(config: BatchConfig, plan: MicroBatchPlan) -> None:
    """ConfigError if a batch has fewer rows than micro-batches."""
    if config.size < plan.count:
        raise ConfigError(
            f"batch.size is {config.size}, too few for {plan.count} micro-batches in all processes together",
            hint="set a smaller --accumulate, or start fewer processes",
        )


def check_images(recipe: Recipe, num_images: int) -> None:
    """ConfigError if the pixels of a step's images do not fit into memory; each process reads its share."""
    machine.require_memory(
        recipe.model.bytes_per_image * num_images // distributed.world_size(),
        f"the {num_images:,} images of a step",
        "set model.image_size or batch.size lower",
    )


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How far a cache covers what the loss of a recipe needs."""

    queries: float
    """The share of the queries that the cache has enough scores for; the others learn nothing from the teacher."""
    of_queries: str
    scored: float
    """The share of the negatives of a batch with a teacher score."""
    hint: str

    def __str__(self) -> str:
        return (
            f"{self.queries:.0%} of {self.of_queries}, and has scores of {self.scored:.1%} of the negatives of a batch"
        )

    @property
    def is_enough(self) -> bool:
        return self.queries >= LEAST_QUERIES

    def check(self) -> None:
        """ConfigError if most queries would learn nothing from the teacher."""
        if not self.is_enough:
            raise ConfigError(
                f"the cache covers {self}; {LEAST_QUERIES:.0%} of the queries are expected", hint=self.hint
            )

    def warnings(self) -> Iterator[str]:
        """A line if most queries learn nothing from the teacher, for a cache that is small and nothing else."""
        if not self.is_enough:
            yield f"warning: the teacher teaches nothing about {1 - self.queries:.0%} of the queries: let it score more"


@dataclass(frozen=True, kw_only=True)
class PairsOfStep:
    """The pairs of a step, by their indices, and the teacher's scores of them (`Batch`)."""

    image_RC: Indices
    """For all pairs a column, and `text_RC` a row."""
    text_RC: Indices
    teacher_RC: Scores
    official_RC: Scores
    same_RC: Flags
    true_IT: Flags | None = None


@dataclass
class StepPairs(ABC):
    """Which pairs each step of a training sees; a function of the corpus, the recipe, the scores and the step."""

    corpus: Corpus
    recipe: Recipe
    scores: TeacherScores | None
    """None where the loss has no teacher, or before dual teachers are loaded."""
    false_negatives: FalseNegativeFilter
    """By the images of `image_T`, if there are some."""
    image_T: Indices | None = field(default=None, kw_only=True)
    """The image that each text counts for, -1 for none: in a pool the picks of a teacher. None: the corpus says it."""
    config: BatchConfig = field(init=False)
    """That of the recipe, or what fits the data (`adapted`)."""
    batches_per_epoch: float = field(init=False)

    def __post_init__(self) -> None:
        self.seed = self.recipe.seed
        self.owner_T = self.corpus.caption_image if self.image_T is None else self.image_T
        # Captions are drawn in proportion to their weights; None if all are equal.
        self.weight_T = self.corpus.caption_weights
        self._epoch = -1

    @cached_property
    def texts_of_image(self) -> RaggedArray:
        """The texts that count for each image."""
        texts = np.flatnonzero(self.owner_T >= 0)
        return RaggedArray.from_pairs(self.owner_T[texts], texts, self.corpus.num_images)

    @property
    def adapted(self) -> dict[str, int]:
        """The recipe fields that are lower than in the recipe, because the split has no more."""
        return lowered("batch", vars(self.recipe.batch), self.config)

    @property
    @abstractmethod
    def size_of_step(self) -> tuple[int, int]:
        """How many different images a step has at least, and how many pairs are drawn for it."""

    def check_memory(self) -> None:
        """ConfigError for a step whose pixels, or scores and places of its pairs, do not fit into memory."""
        num_images, num_pairs = self.size_of_step
        check_images(self.recipe, num_images)
        machine.require_memory(
            BYTES_PER_PAIR * num_pairs,
            f"the {num_pairs:,} pairs of a step",
            "set batch.size, batch.random_negatives or, of a pool, pool.images lower",
        )

    @abstractmethod
    def of_step(self, step: int) -> PairsOfStep:
        """The pairs of a step."""

    @abstractmethod
    def coverage(self, num_steps: int) -> Coverage:
        """How far the cache covers the queries of a training of `num_steps`."""

    def _is_match(self, image_QG: Indices, text_QG: Indices) -> Flags:
        """Whether each caption belongs to its image, or cannot be its negative for another reason
        (`FalseNegativeFilter`)."""
        return self.false_negatives(image_QG, text_QG) > 0

    def _known(self, image_RC: Indices, text_RC: Indices) -> Scores:
        """The teacher's scores of pairs; NaN where it has none."""
        if self.scores is None:
            return np.full(np.broadcast_shapes(image_RC.shape, text_RC.shape), np.nan, dtype=np.float32)
        return self.scores.lookup(image_RC, text_RC)

    def _rng(self, *key: int) -> np.random.Generator:
        # The first number of the key separates the order of an epoch (0), the draws of a list or a step (1), and the
        # unpicked images of a pool (2).
        return np.random.default_rng([self.seed, *key])


@dataclass
class CorpusBatches(torch.utils.data.Dataset[Batch]):
    """A data set whose item number s is the batch of step s.

    `vectors` is the teacher whose vectors the loss needs.
    """

    source: Source
    pairs: StepPairs
    plan: MicroBatchPlan = UNSPLIT
    vectors: EmbeddedTeacher | LateTeacher | None = None

    def __post_init__(self) -> None:
        check_size(self.pairs.config, self.plan)

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step, as this process reads it: whole, or its micro-batches."""
        pairs = self.pairs.of_step(step)
        batch = assemble(self.source, self.plan, pairs)
        if self.vectors is None:
            return batch
        images_IE, texts_TE = self.vectors.vectors(np.unique(pairs.image_RC), np.unique(pairs.text_RC))
        # The images of a query encoder, and the texts of an image student, have these vectors.
        model = self.pairs.recipe.model
        return replace(
            batch,
            teacher_images_IE=None if model.learns_teacher_space else images_IE,
            teacher_texts_TE=None if model.has_teacher_texts else texts_TE,
        )


@dataclass
class MixedBatches(torch.utils.data.Dataset[MixedBatch]):
    """The batches of captioned images and those of a pool, step by step."""

    pairs: CorpusBatches
    pool: CorpusBatches

    def __getitem__(self, step: int) -> MixedBatch:
        return MixedBatch(self.pairs[step], self.pool[step])


def assemble(source: Reader, plan: MicroBatchPlan, pairs: PairsOfStep) -> Batch:
    """The batch of these pairs, as this process reads it: whole, or its micro-batches."""
    image_RC, text_RC = pairs.image_RC, pairs.text_RC
    teacher_RC, official_RC = torch.from_numpy(pairs.teacher_RC), torch.from_numpy(pairs.official_RC)
    same_RC = torch.from_numpy(pairs.same_RC)
    true_IT = None if pairs.true_IT is None else torch.from_numpy(pairs.true_IT)
    if plan.count == 1:
        return Batch(
            *_read(source, image_RC, text_RC),
            teacher_RC=teacher_RC,
            official_teacher_RC=official_RC,
            same_RC=same_RC,
            true_IT=true_IT,
        )
    split = _micro_batches_by_side if plan.by_side else _micro_batches_by_row
    image_ix_RC, text_ix_RC = _broadcast(_distinct(image_RC)[1], _distinct(text_RC)[1])
    return Batch(
        images=NO_IMAGES,
        texts=NO_TEXTS,
        image_ix_RC=image_ix_RC,
        text_ix_RC=text_ix_RC,
        teacher_RC=teacher_RC,
        official_teacher_RC=official_RC,
        same_RC=same_RC,
        micro_batches=tuple(split(source, plan, image_RC, text_RC)),
        true_IT=true_IT,
    )


def _computed(rows: range) -> range:
    """The rows to compute. An empty micro-batch still computes one row, which is discarded, because models reject
    empty batches."""
    return range(rows.start, max(rows.stop, rows.start + 1))


def _micro_batches_by_row(
    source: Reader, plan: MicroBatchPlan, image_RC: Indices, text_RC: Indices
) -> Iterator[MicroBatch]:
    image_RC, text_RC = np.broadcast_arrays(image_RC, text_RC)
    for rows in plan.row_ranges(len(image_RC)):
        computed = _computed(rows)
        yield MicroBatch(*_read(source, image_RC[computed], text_RC[computed]), (rows,), (len(image_RC),))


def _micro_batches_by_side(
    source: Reader, plan: MicroBatchPlan, image_RC: Indices, text_RC: Indices
) -> Iterator[MicroBatch]:
    # Ascending as in `_distinct`: the indices of the pairs count the joined outputs of all micro-batches in this order.
    images, texts = np.unique(image_RC), np.unique(text_RC)
    totals = len(images), len(texts)
    for image_rows, text_rows in zip(plan.row_ranges(len(images)), plan.row_ranges(len(texts)), strict=True):
        yield MicroBatch(
            images=source.images(images[_computed(image_rows)]),
            texts=_texts(source, texts[_computed(text_rows)] if len(texts) else texts),
            image_ix_RC=NO_PAIRS,
            text_ix_RC=NO_PAIRS,
            row_ranges=(image_rows, text_rows),
            totals=totals,
        )


def _read(
    source: Reader, image_RC: Indices, text_RC: Indices
) -> tuple[ImageBatch | States, TextBatch | States, Tensor, Tensor]:
    """The distinct images and captions of pairs, and the indices of each pair's among them."""
    (images, image_ix_RC), (texts, text_ix_RC) = _distinct(image_RC), _distinct(text_RC)
    return source.images(images), _texts(source, texts), *_broadcast(image_ix_RC, text_ix_RC)


def _texts(source: Reader, text_ix: Indices) -> TextBatch | States:
    """Texts of a source; a training on images alone has none."""
    return source.texts(text_ix) if len(text_ix) else NO_TEXTS


def _distinct(ix_RC: Indices) -> tuple[Indices, Tensor]:
    """The distinct images or captions of pairs, ascending, and the index of each pair's among them."""
    values, inverse = np.unique(ix_RC, return_inverse=True)
    return values, torch.from_numpy(inverse.reshape(ix_RC.shape))


def _broadcast(image_RC: Tensor, text_RC: Tensor) -> tuple[Tensor, Tensor]:
    """An image and a caption for each pair, also from the column and the row of all pairs."""
    image_RC, text_RC = torch.broadcast_tensors(image_RC, text_RC)
    return image_RC.contiguous(), text_RC.contiguous()
