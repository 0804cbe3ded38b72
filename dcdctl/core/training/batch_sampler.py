"""The batches of a training: candidate lists, or all pairs of some images and captions, with the teacher's scores.

A batch is a function of the seed and the step alone, so a run resumes from nothing but its step. `CandidateListBatches` draws the negatives
of each query; `AllPairsBatches` groups images that share scored pairs (`neighbor_batches`), so that they are each other's hard negatives.

Shape letters: B lists, N candidates of a list with the positive in column 0, Q x G all pairs of a batch's images and captions with the
positives on the diagonal; R rows and C columns stand for either.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcdctl.core.data import Corpus, Direction, Index, RaggedArray
from dcdctl.core.errors import ConfigError
from dcdctl.core.models import ImageBatch, States, TextBatch
from dcdctl.core.scoring import Features, Source
from dcdctl.core.teacher import Candidates, EmbeddedScores, FalseNegativeFilter, TeacherScores, false_negative_filter
from dcdctl.core.training import negatives
from dcdctl.core.training.batch import NO_IMAGES, NO_PAIRS, NO_TEXTS, UNSPLIT, Batch, MicroBatch, MicroBatchPlan, TeacherVectors
from dcdctl.core.training.losses.weights import select_as_official
from dcdctl.core.training.negatives import MinedNegatives
from dcdctl.core.training.recipe import BatchConfig

COVERED_STEPS = 16
"""Batches over which coverage is measured before a training: that of a single batch varies by a few percent."""
LEAST_QUERIES = 1 / 3
"""Below this share of the queries a training is refused: the teacher would teach nothing about most of them (docs/losses.md)."""


def check_size(config: BatchConfig, plan: MicroBatchPlan) -> None:
    """ConfigError if a batch has fewer rows than micro-batches."""
    if config.size < plan.count:
        hint = "set a smaller --accumulate, or start fewer processes"
        raise ConfigError(f"batch.size is {config.size}, too few for {plan.count} micro-batches in all processes together", hint=hint)


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
        return f"{self.queries:.0%} of {self.of_queries}, and has scores of {self.scored:.1%} of the negatives of a batch"

    def check(self) -> None:
        """ConfigError if most queries would learn nothing from the teacher."""
        if self.queries < LEAST_QUERIES:
            raise ConfigError(f"the cache covers {self}; {LEAST_QUERIES:.0%} of the queries are expected", hint=self.hint)


class _Batches(torch.utils.data.Dataset[Batch]):
    """A data set whose item number s is the batch of step s."""

    vectors: EmbeddedScores | None = None
    """Dual teachers whose vectors the loss needs."""

    def __init__(
        self, source: Source, config: BatchConfig, seed: int, plan: MicroBatchPlan, false_negatives: FalseNegativeFilter | None
    ) -> None:
        self.corpus, self.config, self.seed, self.plan = source.corpus, config, seed, plan
        self.false_negatives = false_negatives or false_negative_filter(source.corpus, None)
        # A dual encoder reads one token of its stored features, so the others stay on disk.
        self.source = replace(source, only_first=True) if plan.by_side and isinstance(source, Features) else source
        self._epoch = -1
        check_size(config, plan)

    def with_plan(self, plan: MicroBatchPlan) -> Self:
        """The same batches in other micro-batches; ConfigError if they have fewer rows than micro-batches."""
        check_size(self.config, plan)
        batches = copy.copy(self)
        batches.plan = replace(plan, by_side=self.plan.by_side)
        return batches

    def with_vectors(self, teachers: EmbeddedScores | None) -> Self:
        """The same batches with the vectors of dual teachers, which embed the corpus before the first batch is read."""
        batches = copy.copy(self)
        batches.vectors = teachers
        return batches

    def _assemble(self, image_RC: Index, text_RC: Index, teacher_RC: NDArray[np.float32], official_RC: NDArray[np.float32]) -> Batch:
        """The batch of these pairs. For all pairs `image_RC` may be a column and `text_RC` a row."""
        scores = (torch.from_numpy(teacher_RC.astype(np.float32)), torch.from_numpy(official_RC.astype(np.float32)))
        same_RC = torch.zeros(teacher_RC.shape, dtype=torch.bool)
        vectors = None if self.vectors is None else TeacherVectors(*self.vectors.vectors(np.unique(image_RC), np.unique(text_RC)))
        if self.plan.count == 1:
            return Batch(*self._read(image_RC, text_RC), *scores, same_RC, teacher_vectors=vectors)
        split = self._micro_batches_by_side if self.plan.by_side else self._micro_batches_by_row
        pair_ix = _broadcast(_distinct(image_RC)[1], _distinct(text_RC)[1])
        return Batch(NO_IMAGES, NO_TEXTS, *pair_ix, *scores, same_RC, tuple(split(image_RC, text_RC)), teacher_vectors=vectors)

    def _micro_batches_by_row(self, image_RC: Index, text_RC: Index) -> Iterator[MicroBatch]:
        image_RC, text_RC = np.broadcast_arrays(image_RC, text_RC)
        for rows in self.plan.row_ranges(len(image_RC)):
            yield MicroBatch(*self._read(image_RC[rows.computed], text_RC[rows.computed]), (rows,))

    def _micro_batches_by_side(self, image_RC: Index, text_RC: Index) -> Iterator[MicroBatch]:
        # Ascending as in `_distinct`: the indices of the pairs count the joined outputs of all micro-batches in this order.
        images, texts = np.unique(image_RC), np.unique(text_RC)
        for sides in zip(self.plan.row_ranges(len(images)), self.plan.row_ranges(len(texts)), strict=True):
            parts = self.source.images(images[sides[0].computed]), self.source.texts(texts[sides[1].computed])
            yield MicroBatch(*parts, NO_PAIRS, NO_PAIRS, sides)

    def _read(self, image_RC: Index, text_RC: Index) -> tuple[ImageBatch | States, TextBatch | States, Tensor, Tensor]:
        """The distinct images and captions of pairs, and the indices of each pair's among them."""
        (images, image_ix_RC), (texts, text_ix_RC) = _distinct(image_RC), _distinct(text_RC)
        return self.source.images(images), self.source.texts(texts), *_broadcast(image_ix_RC, text_ix_RC)

    def _is_match(self, image_QG: Index, text_QG: Index) -> NDArray[np.bool_]:
        """Whether each caption belongs to its image, or cannot be its negative for another reason (`FalseNegativeFilter`)."""
        return self.false_negatives(image_QG, text_QG) > 0

    def _rng(self, *key: int) -> np.random.Generator:
        # The first number of the key separates the order of an epoch (0) from the draws of a list or a step (1).
        return np.random.default_rng([self.seed, *key])


class CandidateListBatches(_Batches):
    """Batches of candidate lists: a query, its positive and its hardest negatives.

    With a cache, the negatives are drawn from the query's cached candidates and the hardest by the teacher's score are kept. Without one
    they are drawn from the whole corpus, or from mined negatives (`with_mined`), and all are kept.
    """

    mined: MinedNegatives | None = None

    def __init__(
        self,
        source: Source,
        config: BatchConfig,
        seed: int,
        cache: TeacherScores | None,
        plan: MicroBatchPlan = UNSPLIT,
        false_negatives: FalseNegativeFilter | None = None,
    ) -> None:
        super().__init__(source, config, seed, plan, false_negatives)
        self.cache = cache
        cached = None if cache is None else cache.candidates
        self._candidates = None if cached is None else self._allowed(cached)
        self._captions = np.arange(source.corpus.num_captions) if self._candidates is None else self._with_enough(self._candidates)
        # Not rounded: a batch may end one epoch and begin the next.
        self.batches_per_epoch = len(self._captions) / config.size

    def with_mined(self, mined: MinedNegatives) -> CandidateListBatches:
        """The same queries with mined negatives. They come after counting the batches, because `mined_from` is a share of all steps."""
        batches = copy.copy(self)
        batches.mined = mined
        return batches

    def with_random(self) -> CandidateListBatches:
        """The same queries with random negatives, as many as are to be mined."""
        batches = copy.copy(self)
        batches.config = replace(self.config, negatives="random")
        return batches

    def coverage(self, num_steps: int) -> Coverage:
        """How many captions lists are made for; every negative of a list has a teacher score."""
        return Coverage(
            queries=len(self._captions) / self.corpus.num_captions,
            of_queries=f"the captions with batch.random_negatives = {self.config.random_negatives} candidates",
            scored=1.0,
            hint="set batch.random_negatives lower, or cache more: --set candidates.per_query=N, or candidates.block_size=N for blocks",
        )

    def _allowed(self, candidates: Candidates) -> Candidates:
        """A cache's candidates without duplicate images: the cache may have been made without looking for them."""
        return candidates.without_false_negatives(self.false_negatives) if self.false_negatives.knows_duplicates else candidates

    def _with_enough(self, candidates: Candidates) -> Index:
        """The captions with enough candidates in each direction of the recipe, for the caption or for its image."""
        num_texts_I, num_images_T = candidates.texts_of_image.lengths, candidates.images_of_text.lengths
        counts = {Direction.TEXT: num_texts_I[self.corpus.caption_image], Direction.IMAGE: num_images_T}
        fewest_T = np.min([counts[direction] for direction in self.config.directions], axis=0)
        captions: Index = np.flatnonzero(fewest_T >= self.config.random_negatives)
        if not len(captions):
            raise ConfigError(
                f"batch.random_negatives is {self.config.random_negatives}, the cache has at most {fewest_T.max()} candidates for a query",
                hint="set it lower, or cache more: --set candidates.per_query=N, or candidates.block_size=N for blocks",
            )
        return captions

    def __getitem__(self, step: int) -> Batch:
        return self._with_matches(*self.kept(range(step * self.config.size, (step + 1) * self.config.size)))

    def queries(self, direction: Direction) -> Index:
        """The images (text retrieval) or the captions that lists are made for, ascending."""
        return np.unique(self.corpus.caption_image[self._captions]) if direction == Direction.TEXT else self._captions

    def num_candidates(self, direction: Direction, query: int) -> int:
        """How many candidates a query's negatives are drawn from: those of the cache or, without one, the captions or images of others."""
        if self._candidates is not None:
            lists = self._candidates.texts_of_image if direction == Direction.TEXT else self._candidates.images_of_text
            return len(lists[query])
        return self.corpus.num_captions - len(self.corpus.captions_of(query)) if direction == Direction.TEXT else self.corpus.num_images - 1

    def samples_of(self, direction: Direction, queries: Index, num_steps: int) -> Index:
        """The numbers of all lists that these queries have in a training, ascending. List s has the direction s modulo their number."""
        sides, num_lists = self.config.directions, num_steps * self.config.size
        is_counted_T = np.isin(self.corpus.caption_image if direction == Direction.TEXT else np.arange(self.corpus.num_captions), queries)
        per_epoch = len(self._captions)
        epochs = range(-(-num_lists // per_epoch))
        sample_S = np.concatenate([epoch * per_epoch + np.flatnonzero(is_counted_T[self._order(epoch)]) for epoch in epochs])
        return sample_S[(sample_S < num_lists) & (sample_S % len(sides) == sides.index(direction))]

    def kept(self, samples: Iterable[int]) -> tuple[Index, Index, NDArray[np.float32], NDArray[np.float32]]:
        """Images and captions of the lists of these numbers, the positive in column 0, and the teacher's scores in two orders (`Batch`)."""
        image_BN, text_BN = (np.stack(indices) for indices in zip(*map(self._list, samples), strict=True))
        if self.cache is None:
            missing_BN = np.full(image_BN.shape, np.nan, dtype=np.float32)
            return image_BN, text_BN, missing_BN, missing_BN
        teacher_BK = torch.from_numpy(self.cache.lookup(image_BN, text_BN))
        # The released code hands its loss sorted scores, which are not in the order of the columns. Only the released losses read these.
        column_BN, official_BN = select_as_official(teacher_BK, self.config.hard_negatives)
        return (
            np.take_along_axis(image_BN, column_BN.numpy(), axis=1),
            np.take_along_axis(text_BN, column_BN.numpy(), axis=1),
            teacher_BK.gather(1, column_BN).numpy(),
            official_BN.numpy(),
        )

    def _with_matches(self, image_BN: Index, text_BN: Index, teacher_BN: NDArray[np.float32], official_BN: NDArray[np.float32]) -> Batch:
        true_IT = self._is_match(*np.broadcast_arrays(np.unique(image_BN)[:, None], np.unique(text_BN)))
        return replace(self._assemble(image_BN, text_BN, teacher_BN, official_BN), true_IT=torch.from_numpy(true_IT))

    def _list(self, sample: int) -> tuple[Index, Index]:
        """Images and captions of one list: the positive, then the drawn negatives."""
        epoch, position = divmod(sample, len(self._captions))
        text = int(self._order(epoch)[position])
        image = int(self.corpus.caption_image[text])
        # Seeded by the number of the list, so that a resumed run draws it without drawing the earlier ones.
        rng = self._rng(1, sample)
        direction = self.config.directions[sample % len(self.config.directions)]
        step = sample // self.config.size
        if direction == Direction.TEXT:
            texts = np.concatenate([[text], self._negative_texts(rng, image, step)])
            return np.full(len(texts), image), texts
        images = np.concatenate([[image], self._negative_images(rng, text, step)])
        return images, np.full(len(images), text)

    def _order(self, epoch: int) -> Index:
        if epoch != self._epoch:
            self._epoch, self._epoch_order = epoch, self._rng(0, epoch).permutation(self._captions)
        return self._epoch_order

    def _negative_texts(self, rng: np.random.Generator, image: int, step: int) -> Index:
        if self._candidates is not None:
            return self._sample(rng, self._candidates.texts_of_image[image])
        text_class, duplicates = self.false_negatives.text_class, self.false_negatives.duplicates_of(image)
        positive_classes = set(text_class[list(self.corpus.captions_of(image))].tolist())

        def is_positive(text: int) -> bool:
            return int(text_class[text]) in positive_classes or int(self.corpus.caption_image[text]) in duplicates

        mined = self._mined_of(rng, Direction.TEXT, image, step)
        return self._draw(rng, mined, self.corpus.num_captions, is_positive, lambda text: int(text_class[text]))

    def _negative_images(self, rng: np.random.Generator, text: int, step: int) -> Index:
        if self._candidates is not None:
            return self._sample(rng, self._candidates.images_of_text[text])
        # An image whose caption has the same text matches too, so it is no negative.
        text_class = self.false_negatives.text_class
        positives = set(self.corpus.caption_image[text_class == text_class[text]].tolist())
        positives |= self.false_negatives.duplicates_of(int(self.corpus.caption_image[text]))
        mined = self._mined_of(rng, Direction.IMAGE, text, step)
        return self._draw(rng, mined, self.corpus.num_images, positives.__contains__, int)

    def _sample(self, rng: np.random.Generator, candidates: Index) -> Index:
        # The released code draws with replacement from all captions; a query's cached candidates are distinct, and so are these.
        return rng.choice(candidates, self.config.random_negatives, replace=False)

    def _mined_of(self, rng: np.random.Generator, direction: Direction, query: int, step: int) -> Index | None:
        """A query's mined negatives; None in a step whose negatives are all random."""
        if self.config.negatives == "random":
            return None
        assert self.mined is not None
        return None if step < self.mined.first_step else self.mined.sample(rng, direction, query)

    def _draw(
        self,
        rng: np.random.Generator,
        mined: Index | None,
        population: int,
        is_positive: Callable[[int], bool],
        class_of: Callable[[int], int],
    ) -> Index:
        count = self.config.random_negatives
        if mined is None:
            return negatives.draw(rng, population, count, is_positive)
        return negatives.pad_with_random(rng, mined, count, population, is_positive, class_of)


class AllPairsBatches(_Batches):
    """Batches of images with one caption each, all pairs of which are candidates.

    With a cache, a batch is a neighborhood of it: images that share scored pairs come together, so the hard candidates of one query are the
    positives of others.
    """

    def __init__(
        self,
        source: Source,
        config: BatchConfig,
        seed: int,
        cache: TeacherScores | None,
        plan: MicroBatchPlan = UNSPLIT,
        false_negatives: FalseNegativeFilter | None = None,
    ) -> None:
        super().__init__(source, config, seed, plan, false_negatives)
        corpus = source.corpus
        if corpus.num_images < config.size:
            raise ConfigError(f"batch.size is {config.size}, the split has only {corpus.num_images} images")
        self.cache = cache
        self.batches_per_epoch = float(corpus.num_images // config.size)
        # A teacher that scores every pair has no neighbors, so its batches are those of a training without a teacher.
        self._neighbors = None if cache is None else find_neighbors(cache, corpus)

    def coverage(self, num_steps: int) -> Coverage:
        """How many queries of the first batches, in both directions, have a scored negative, and how many negatives are scored."""
        assert self.cache is not None
        is_negative_QG = ~np.eye(self.config.size, dtype=bool)
        pairs = (self._pairs(step) for step in range(min(num_steps, COVERED_STEPS)))
        scored = np.stack([~np.isnan(self.cache.lookup(*pair)) & is_negative_QG for pair in pairs])
        return Coverage(
            # A query with its positive alone has no order to teach: the losses leave it out.
            queries=float((scored.any(axis=1).mean() + scored.any(axis=2).mean()) / 2),
            of_queries="the queries of a batch with a negative or more",
            scored=float(scored[:, is_negative_QG].mean()),
            hint="make a cache with the student's recipe (dcdctl cache-teacher --recipe), or set batch.size to candidates.block_size",
        )

    def __getitem__(self, step: int) -> Batch:
        image_QG, text_QG = self._pairs(step)
        missing_QG = np.full(image_QG.shape, np.nan, dtype=np.float32)
        teacher_QG = missing_QG if self.cache is None else self.cache.lookup(image_QG[:, :1], text_QG[:1])
        batch = self._assemble(image_QG[:, :1], text_QG[:1], teacher_QG, teacher_QG)
        return replace(batch, same_RC=torch.from_numpy(self._is_same(image_QG, text_QG)))

    def _pairs(self, step: int) -> tuple[Index, Index]:
        """The images and captions of all pairs of a batch."""
        epoch, position = divmod(step, self.corpus.num_images // self.config.size)
        # Sorting removes the order within a batch, in which `random_batches` and `neighbor_batches` differ.
        image_Q = np.sort(self._epoch_batches(epoch)[position])
        # The captions of an image are consecutive in a corpus.
        first_Q, end_Q = (np.searchsorted(self.corpus.caption_image, image_Q, side) for side in ("left", "right"))
        text_G = first_Q + self._rng(1, step).integers(end_Q - first_Q)
        image_QG, text_QG = np.broadcast_arrays(image_Q[:, None], text_G[None, :])
        return image_QG, text_QG

    def _is_same(self, image_QG: Index, text_QG: Index) -> NDArray[np.bool_]:
        """Off the diagonal: whether the caption of another image also matches this one."""
        same_QG = np.zeros(image_QG.shape, dtype=bool)
        # A text that occurs once matches only its own image, on the diagonal, and the duplicates of that.
        is_checked_G = self.false_negatives.is_repeated_T[text_QG[0]] | self.false_negatives.knows_duplicates
        columns = np.flatnonzero(is_checked_G)
        same_QG[:, columns] = self._is_match(image_QG[:, columns], text_QG[:, columns])
        np.fill_diagonal(same_QG, False)
        return same_QG

    def _epoch_batches(self, epoch: int) -> list[Index]:
        if epoch != self._epoch:
            rng, size = self._rng(0, epoch), self.config.size
            near = self._neighbors
            batches = random_batches(self.corpus.num_images, size, rng) if near is None else neighbor_batches(near, size, rng)
            self._epoch, self._epoch_images = epoch, batches
        return self._epoch_images


TrainingBatches = CandidateListBatches | AllPairsBatches


@dataclass(frozen=True)
class Neighbors:
    """For each image, the images that it shares scored pairs with, and how many pairs."""

    images: RaggedArray
    num_pairs: Index


def find_neighbors(scores: TeacherScores, corpus: Corpus) -> Neighbors | None:
    """The images that share scored pairs: a caption of one is scored with the other. None if every pair is scored."""
    if scores.scored_pairs is None:
        return None
    image_P, text_P = scores.scored_pairs
    num_images = corpus.num_images
    owner_P = corpus.caption_image[text_P]
    is_between_P = image_P != owner_P
    image, other = image_P[is_between_P], owner_P[is_between_P]
    keys, counts = np.unique(np.concatenate([image * num_images + other, other * num_images + image]), return_counts=True)
    return Neighbors(RaggedArray.from_pairs(keys // num_images, keys % num_images, num_images), counts)


def neighbor_batches(neighbors: Neighbors, size: int, rng: np.random.Generator) -> list[Index]:
    """Batches of one size, in random order, each image in at most one.

    A batch starts from a random image and adds the image that shares most scored pairs with it, ties broken at random. Images that fill no
    batch at the end are left out.
    """
    num_images = len(neighbors.images)
    is_free = np.ones(num_images, dtype=bool)
    batches = []
    for _ in range(num_images // size):
        # Shared pairs are integers, so a random number in [0, 1) decides only between equal counts.
        priority = np.where(is_free, rng.random(num_images), -np.inf)
        batch: list[int] = []
        while len(batch) < size:
            image = int(priority.argmax())
            batch.append(image)
            row = slice(neighbors.images.offsets[image], neighbors.images.offsets[image + 1])
            priority[neighbors.images.values[row]] += neighbors.num_pairs[row]
            priority[image] = -np.inf
        is_free[batch] = False
        batches.append(np.array(batch, dtype=np.int64))
    return [batches[i] for i in rng.permutation(len(batches))]


def random_batches(num_images: int, size: int, rng: np.random.Generator) -> list[Index]:
    """The batches of `neighbor_batches` for images without neighbors, up to the order within a batch, without its search per image."""
    is_free = np.ones(num_images, dtype=bool)
    batches = []
    for _ in range(num_images // size):
        priority = np.where(is_free, rng.random(num_images), -np.inf)
        batch = np.argpartition(priority, -size)[-size:]
        is_free[batch] = False
        batches.append(batch)
    return [batches[i] for i in rng.permutation(len(batches))]


def _distinct(ix_RC: Index) -> tuple[Index, Tensor]:
    """The distinct images or captions of pairs, ascending, and the index of each pair's among them."""
    values, inverse = np.unique(ix_RC, return_inverse=True)
    return values, torch.from_numpy(inverse.reshape(ix_RC.shape))


def _broadcast(image_RC: Tensor, text_RC: Tensor) -> tuple[Tensor, Tensor]:
    """An image and a caption for each pair, also from the column and the row of all pairs."""
    image_RC, text_RC = torch.broadcast_tensors(image_RC, text_RC)
    return image_RC.contiguous(), text_RC.contiguous()
