"""Corpus, cache and recipe to the tensors of one optimisation step.

A batch is a function of the seed and the step alone, so that a run that goes on needs nothing but its step. Shape letters: B lists,
N candidates of a list with the positive in column 0, Q x G all pairs of a batch's images and captions with the positives on the
diagonal; R rows and C columns stand for either.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcdctl.core.data import Corpus, Direction, RaggedArray
from dcdctl.core.errors import ConfigError
from dcdctl.core.models import ImageBatch, States, TextBatch
from dcdctl.core.scoring import Features, Source
from dcdctl.core.teacher import FalseNegativeFilter, Index, TeacherCache, TeacherEnsemble, text_classes
from dcdctl.core.training import negatives
from dcdctl.core.training.batch import NO_IMAGES, NO_PAIRS, NO_TEXTS, WHOLE, Batch, Slice, Slicing
from dcdctl.core.training.losses import weights
from dcdctl.core.training.negatives import MinedNegatives
from dcdctl.core.training.recipe import BatchConfig

Scores = TeacherCache | TeacherEnsemble


@dataclass(frozen=True)
class Neighbours:
    """For each image, the images it shares scored pairs with, and with how many pairs."""

    images: RaggedArray
    num_pairs: Index


def neighbours(cache: Scores, corpus: Corpus) -> Neighbours:
    """Who shares scored pairs with whom."""
    num_images = corpus.num_images
    owner = corpus.caption_image[cache.text_P]
    between = cache.image_P != owner
    one, other = cache.image_P[between], owner[between]
    keys, counts = np.unique(np.concatenate([one * num_images + other, other * num_images + one]), return_counts=True)
    return Neighbours(RaggedArray.from_pairs(keys // num_images, keys % num_images, num_images), counts)


def gather(near: Neighbours, size: int, rng: np.random.Generator) -> list[Index]:
    """Batches of one size, each image in at most one: from an image taken at random, always the one that shares most scored pairs
    with those already in the batch; of equal ones a random one. What is left at the end and fills no batch is left out."""
    num_images = len(near.images)
    is_free = np.ones(num_images, dtype=bool)
    parts = []
    for _ in range(num_images // size):
        luck = rng.random(num_images)
        claim = np.where(is_free, luck, -np.inf)
        part: list[int] = []
        while len(part) < size:
            image = int(claim.argmax())
            part.append(image)
            here = slice(near.images.offsets[image], near.images.offsets[image + 1])
            claim[near.images.values[here]] += near.num_pairs[here]
            claim[image] = -np.inf
        is_free[part] = False
        parts.append(np.array(part, dtype=np.int64))
    return [parts[i] for i in rng.permutation(len(parts))]


def scatter(num_images: int, size: int, rng: np.random.Generator) -> list[Index]:
    """Batches as `gather` makes them where no images share scored pairs, up to the order in a batch, without a search for each image."""
    is_free = np.ones(num_images, dtype=bool)
    parts = []
    for _ in range(num_images // size):
        claim = np.where(is_free, rng.random(num_images), -np.inf)
        part = np.argpartition(claim, -size)[-size:]
        is_free[part] = False
        parts.append(part)
    return [parts[i] for i in rng.permutation(len(parts))]


def check_size(config: BatchConfig, slicing: Slicing) -> None:
    """ConfigError if a batch has fewer rows than slices."""
    if config.size < slicing.count:
        hint = "set a smaller --accumulate, or start fewer processes"
        raise ConfigError(f"batch.size is {config.size}, too few for {slicing.count} slices in all processes together", hint=hint)


class _Steps(torch.utils.data.Dataset[Batch]):
    """A data set whose item number s is the batch of step s."""

    def __init__(self, source: Source, config: BatchConfig, seed: int, slicing: Slicing) -> None:
        self.corpus, self.config, self.seed, self.slicing = source.corpus, config, seed, slicing
        self.source = replace(source, only_first=True) if slicing.of_sides and isinstance(source, Features) else source
        self._epoch = -1
        check_size(config, slicing)

    def _assemble(self, image_RC: Index, text_RC: Index, teacher_RC: NDArray[np.float32], official_RC: NDArray[np.float32]) -> Batch:
        """The batch of these pairs; of all pairs `image_RC` may be a column and `text_RC` a row."""
        scores = (torch.from_numpy(teacher_RC.astype(np.float32)), torch.from_numpy(official_RC.astype(np.float32)))
        nothing_RC = torch.zeros(teacher_RC.shape, dtype=torch.bool)
        if self.slicing.count == 1:
            return Batch(*self._read(image_RC, text_RC), *scores, nothing_RC)
        slices = tuple(self._slices_of_sides(image_RC, text_RC) if self.slicing.of_sides else self._slices_of_rows(image_RC, text_RC))
        places = _broadcast(_distinct(image_RC)[1], _distinct(text_RC)[1])
        return Batch(NO_IMAGES, NO_TEXTS, *places, *scores, nothing_RC, slices)

    def _slices_of_rows(self, image_RC: Index, text_RC: Index) -> Iterator[Slice]:
        image_RC, text_RC = np.broadcast_arrays(image_RC, text_RC)
        for rows in self.slicing.places(len(image_RC)):
            yield Slice(*self._read(image_RC[rows.read], text_RC[rows.read]), (rows,))

    def _slices_of_sides(self, image_RC: Index, text_RC: Index) -> Iterator[Slice]:
        images, texts = np.unique(image_RC), np.unique(text_RC)
        for sides in zip(self.slicing.places(len(images)), self.slicing.places(len(texts)), strict=True):
            some = self.source.images(images[sides[0].read]), self.source.texts(texts[sides[1].read])
            yield Slice(*some, NO_PAIRS, NO_PAIRS, sides)

    def _read(self, image_RC: Index, text_RC: Index) -> tuple[ImageBatch | States, TextBatch | States, Tensor, Tensor]:
        """The images and captions of pairs, and which of them each pair has."""
        (images, image_places_RC), (texts, text_places_RC) = _distinct(image_RC), _distinct(text_RC)
        return self.source.images(images), self.source.texts(texts), *_broadcast(image_places_RC, text_places_RC)

    @cached_property
    def _text_class(self) -> Index:
        return text_classes(self.corpus.captions)

    def _is_true(self, image_QG: Index, text_QG: Index) -> NDArray[np.bool_]:
        """Whether each caption is one of its image, or says the same as one."""
        return self._guards(image_QG, text_QG) > 0

    @cached_property
    def _guards(self) -> FalseNegativeFilter:
        return FalseNegativeFilter(self.corpus.caption_image, self._text_class)

    def _rng(self, *what: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *what])


class ListSteps(_Steps):
    """Batches of candidate lists: a query, its positive and its hardest negatives.

    With a cache the negatives are drawn from the query's cached candidates and the hardest by the teacher's score are kept; without
    one they are drawn from the whole corpus, or from what was mined (`with_mined`), and all are kept.
    """

    mined: MinedNegatives | None = None

    def __init__(self, source: Source, config: BatchConfig, seed: int, cache: Scores | None, slicing: Slicing = WHOLE) -> None:
        super().__init__(source, config, seed, slicing)
        corpus = source.corpus
        self.cache = cache
        self._captions = np.arange(corpus.num_captions) if cache is None else self._with_enough_candidates(cache)
        self.batches_per_epoch = len(self._captions) / config.size

    def with_mined(self, mined: MinedNegatives) -> ListSteps:
        """The same queries with mined negatives: from a share of the steps on, whose number must be known first."""
        steps = copy.copy(self)
        steps.mined = mined
        return steps

    def _with_enough_candidates(self, cache: Scores) -> Index:
        """The captions that can be a query, and their image a query, in the directions of the recipe."""
        num_texts_I = cache.candidates.texts_of_image.lengths
        num_images_T = cache.candidates.images_of_text.lengths
        counts = {Direction.TEXT: num_texts_I[self.corpus.caption_image], Direction.IMAGE: num_images_T}
        fewest = np.min([counts[direction] for direction in self.config.directions], axis=0)
        enough: Index = np.flatnonzero(fewest >= self.config.random_negatives)
        if not len(enough):
            raise ConfigError(
                f"batch.random_negatives is {self.config.random_negatives}, the cache has at most {fewest.max()} candidates for a query",
                hint="set it lower, or cache more: --set candidates.per_query=N, or candidates.block_size=N for blocks",
            )
        return enough

    def __getitem__(self, step: int) -> Batch:
        rows = [self._row(sample) for sample in range(step * self.config.size, (step + 1) * self.config.size)]
        image_BN, text_BN = np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows])
        if self.cache is None:
            missing = np.full(image_BN.shape, np.nan, dtype=np.float32)
            return self._with_truth(image_BN, text_BN, missing, missing)
        teacher_BK = torch.from_numpy(self.cache.lookup(image_BN, text_BN))
        chosen_BN = weights.select_hardest(teacher_BK, self.config.hard_negatives)
        _, official_BN = weights.select_as_official(teacher_BK, self.config.hard_negatives)
        chosen = chosen_BN.numpy()
        return self._with_truth(
            np.take_along_axis(image_BN, chosen, axis=1),
            np.take_along_axis(text_BN, chosen, axis=1),
            teacher_BK.gather(1, chosen_BN).numpy(),
            official_BN.numpy(),
        )

    def _with_truth(self, image_BN: Index, text_BN: Index, teacher_BN: NDArray[np.float32], official_BN: NDArray[np.float32]) -> Batch:
        true_IT = self._is_true(*np.broadcast_arrays(np.unique(image_BN)[:, None], np.unique(text_BN)))
        return replace(self._assemble(image_BN, text_BN, teacher_BN, official_BN), true_IT=torch.from_numpy(true_IT))

    def _row(self, sample: int) -> tuple[Index, Index]:
        """Images and captions of one list: the positive, then drawn negatives."""
        epoch, place = divmod(sample, len(self._captions))
        text = int(self._order(epoch)[place])
        image = int(self.corpus.caption_image[text])
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
        if self.cache is not None:
            return self._some(rng, self.cache.candidates.texts_of_image[image])
        own = set(self._text_class[list(self.corpus.captions_of(image))].tolist())
        mined = self._mined_of(rng, Direction.TEXT, image, step)
        return self._draw(rng, mined, self.corpus.num_captions, own, lambda text: int(self._text_class[text]))

    def _negative_images(self, rng: np.random.Generator, text: int, step: int) -> Index:
        if self.cache is not None:
            return self._some(rng, self.cache.candidates.images_of_text[text])
        own = set(self.corpus.caption_image[self._text_class == self._text_class[text]].tolist())
        return self._draw(rng, self._mined_of(rng, Direction.IMAGE, text, step), self.corpus.num_images, own, int)

    def _some(self, rng: np.random.Generator, candidates: Index) -> Index:
        return rng.choice(candidates, self.config.random_negatives, replace=False)

    def _mined_of(self, rng: np.random.Generator, direction: Direction, query: int, step: int) -> Index | None:
        """A query's mined negatives; None in a step whose negatives are all random."""
        if self.config.negatives == "random":
            return None
        assert self.mined is not None
        return None if step < self.mined.first_step else self.mined.some_of(rng, direction, query)

    def _draw(self, rng: np.random.Generator, mined: Index | None, population: int, own: set[int], class_of: Callable[[int], int]) -> Index:
        count = self.config.random_negatives
        if mined is None:
            return negatives.draw(rng, population, count, lambda i: class_of(i) in own)
        return negatives.filled_up(rng, mined, count, population, own, class_of)


class MatrixSteps(_Steps):
    """Batches of images with one caption each, all pairs of which are candidates.

    With a cache, a batch is a neighbourhood of it: images whose pairs the teacher has scored come together, so that the hard
    candidates of one query are the positives of others.
    """

    def __init__(self, source: Source, config: BatchConfig, seed: int, cache: Scores | None, slicing: Slicing = WHOLE) -> None:
        super().__init__(source, config, seed, slicing)
        corpus = source.corpus
        if corpus.num_images < config.size:
            raise ConfigError(f"batch.size is {config.size}, the split has only {corpus.num_images} images")
        self.cache = cache
        self.batches_per_epoch = float(corpus.num_images // config.size)
        self._near = None if cache is None else neighbours(cache, corpus)

    def __getitem__(self, step: int) -> Batch:
        epoch, place = divmod(step, self.corpus.num_images // self.config.size)
        image_Q = np.sort(self._epoch_batches(epoch)[place])
        first_Q, end_Q = (np.searchsorted(self.corpus.caption_image, image_Q, side) for side in ("left", "right"))
        text_G = first_Q + self._rng(1, step).integers(end_Q - first_Q)
        image_QG, text_QG = np.broadcast_arrays(image_Q[:, None], text_G[None, :])
        missing = np.full(image_QG.shape, np.nan, dtype=np.float32)
        teacher_QG = missing if self.cache is None else self.cache.lookup(image_QG, text_QG)
        batch = self._assemble(image_Q[:, None], text_G[None, :], teacher_QG, teacher_QG)
        return replace(batch, same_RC=torch.from_numpy(self._is_same(image_QG, text_QG)))

    def _is_same(self, image_QG: Index, text_QG: Index) -> NDArray[np.bool_]:
        """Off the diagonal: whether a caption that stands for another image is true of this one too."""
        same_QG = np.zeros(image_QG.shape, dtype=bool)
        # What is said once is true of one image alone.
        columns = np.flatnonzero(self._is_said_again[text_QG[0]])
        same_QG[:, columns] = self._is_true(image_QG[:, columns], text_QG[:, columns])
        np.fill_diagonal(same_QG, False)
        return same_QG

    @cached_property
    def _is_said_again(self) -> NDArray[np.bool_]:
        return np.bincount(self._text_class)[self._text_class] > 1

    def _epoch_batches(self, epoch: int) -> list[Index]:
        if epoch != self._epoch:
            rng, size = self._rng(0, epoch), self.config.size
            parts = scatter(self.corpus.num_images, size, rng) if self._near is None else gather(self._near, size, rng)
            self._epoch, self._epoch_parts = epoch, parts
        return self._epoch_parts


def _distinct(ix_RC: Index) -> tuple[Index, Tensor]:
    """The different images or captions of pairs, ascending, and where each pair's stands among them."""
    values, places = np.unique(ix_RC, return_inverse=True)
    return values, torch.from_numpy(places.reshape(ix_RC.shape))


def _broadcast(image_RC: Tensor, text_RC: Tensor) -> tuple[Tensor, Tensor]:
    """An image and a caption for each pair, of the column and the row of all pairs too."""
    image_RC, text_RC = torch.broadcast_tensors(image_RC, text_RC)
    return image_RC.contiguous(), text_RC.contiguous()
