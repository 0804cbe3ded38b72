"""Batches of candidate lists: a query, its positive, and negatives drawn from a cache, from the corpus, or from mined
ones.

Shape letters as in `batches`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dcdctl.core.data import Direction, Indices, Scores
from dcdctl.core.errors import ConfigError
from dcdctl.core.teacher import Candidates
from dcdctl.core.training import negatives
from dcdctl.core.training.adapted import fit_lists
from dcdctl.core.training.batches.step_pairs import Coverage, PairsOfStep, StepPairs
from dcdctl.core.training.losses.weights import select_as_official


class Lists(StepPairs):
    """Candidate lists: queries, each with some of its candidates."""

    @abstractmethod
    def _draw(self, direction: Direction, sample: int) -> tuple[int, Indices]:
        """The query of a list, and its drawn candidates. Seeded by the number of the list, so that a resumed run draws
        it without drawing the earlier ones."""

    @abstractmethod
    def _select(self, teacher_BK: Tensor) -> tuple[Tensor, Tensor]:
        """The columns to keep of drawn candidates with scores, and the scores that the released losses read."""

    @property
    def size_of_step(self) -> tuple[int, int]:
        # A list has one image or more; the lists of an epoch that is shorter than a batch have the same ones.
        num_images = min(self.config.size // len(self.config.directions), self.corpus.num_images)
        return num_images, self.config.size * (1 + self.config.random_negatives)

    def of_step(self, step: int) -> PairsOfStep:
        """The lists of a batch."""
        size = self.config.size
        image_BN, text_BN, teacher_BN, official_BN = self.kept(range(step * size, (step + 1) * size))
        image_IT, text_IT = np.broadcast_arrays(np.unique(image_BN)[:, None], np.unique(text_BN))
        return PairsOfStep(
            image_RC=image_BN,
            text_RC=text_BN,
            teacher_RC=teacher_BN,
            official_RC=official_BN,
            same_RC=np.zeros(image_BN.shape, dtype=bool),
            true_IT=self._is_match(image_IT, text_IT),
        )

    def kept(self, samples: Iterable[int]) -> tuple[Indices, Indices, Scores, Scores]:
        """Images, captions and teacher scores of the lists with these numbers, the positive in column 0; then the
        scores in the order that the released losses read (`Batch`)."""
        lists = [self._list(sample) for sample in samples]
        image_BK = np.stack([images for images, _ in lists])
        text_BK = np.stack([texts for _, texts in lists])
        teacher_BK = self._known(image_BK, text_BK)
        if self.scores is None:
            return image_BK, text_BK, teacher_BK, teacher_BK
        columns, official_BN = self._select(torch.from_numpy(teacher_BK))
        column_BN = columns.numpy()
        image_BN = np.take_along_axis(image_BK, column_BN, axis=1)
        text_BN = np.take_along_axis(text_BK, column_BN, axis=1)
        return image_BN, text_BN, np.take_along_axis(teacher_BK, column_BN, axis=1), official_BN.numpy()

    def _list(self, sample: int) -> tuple[Indices, Indices]:
        """Images and captions of one list. Directions take turns: list s has direction s modulo their number."""
        direction = Direction(self.config.directions[sample % len(self.config.directions)])
        query, candidates = self._draw(direction, sample)
        return direction.query_first(np.full(len(candidates), query), candidates)


@dataclass
class CandidateLists(Lists):
    """Candidate lists: a query, its positive and its hardest negatives.

    With a cache, the negatives are drawn from the query's cached candidates and the hardest by the teacher's score are
    kept. Without one they are drawn from `mined` negatives of the query, or from the whole corpus, and all are kept.
    """

    mined: Candidates | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._candidates = None if self.scores is None else self.scores.candidates
        if self._candidates is not None and (self.false_negatives.knows_duplicates or self.image_T is not None):
            # The cache may have been made without looking for duplicate images, and knows no picks.
            self._candidates = self._candidates.where(lambda image, text: ~self._is_match(image, text))
        if self._candidates is None:
            self.config = self.recipe.batch
            self._captions = np.flatnonzero(self.owner_T >= 0)
        else:
            fewest_T = self._fewest_candidates(self._candidates)
            self.config = fit_lists(self.recipe.batch, fewest_T, self.corpus.num_images)
            self._captions = self._with_enough(fewest_T)
        # Not rounded: a batch may end one epoch and begin the next.
        self.batches_per_epoch = len(self._captions) / self.config.size

    def coverage(self, num_steps: int) -> Coverage:
        """How many captions lists are made for; every negative of a list has a teacher score."""
        return Coverage(
            queries=len(self._captions) / self.corpus.num_captions,
            of_queries=f"the captions with batch.random_negatives = {self.config.random_negatives} candidates",
            scored=1.0,
            hint="set batch.random_negatives lower, or cache more: --set candidates.per_query=N, or "
            "candidates.block_size=N for blocks",
        )

    def _fewest_candidates(self, candidates: Candidates) -> Indices:
        """How many candidates each caption has, or its image if that has fewer, over the directions of the recipe."""
        counts = {
            Direction.TEXT: candidates.texts_of_image.lengths[self.owner_T],
            Direction.IMAGE: candidates.images_of_text.lengths,
        }
        fewest_T: Indices = np.min([counts[direction] for direction in self.recipe.batch.directions], axis=0)
        # A caption that counts for no image has no list.
        return np.where(self.owner_T >= 0, fewest_T, 0)

    def _with_enough(self, fewest_T: Indices) -> Indices:
        """The captions with enough candidates."""
        most = int(fewest_T.max())
        captions: Indices = np.flatnonzero(fewest_T >= self.config.random_negatives)
        if not len(captions):
            raise ConfigError(
                f"batch.random_negatives is {self.config.random_negatives}, the cache has at most {most} candidates "
                "for a query",
                hint=f"--set batch.random_negatives={most}, or cache more: --set candidates.per_query=N, or "
                "candidates.block_size=N for blocks",
            )
        return captions

    def queries(self, direction: Direction) -> Indices:
        """The images (text retrieval) or the captions that lists are made for, ascending."""
        return np.unique(self.owner_T[self._captions]) if direction == Direction.TEXT else self._captions

    def num_candidates(self, direction: Direction, query: int) -> int:
        """How many candidates a query's negatives are drawn from: those of the cache or, without one, the captions or
        images of others."""
        if self._candidates is not None:
            return len(self._candidates.lists(direction)[query])
        if direction == Direction.TEXT:
            return self.corpus.num_captions - len(self.texts_of_image[query])
        return self.corpus.num_images - 1

    def samples_of(self, direction: Direction, queries: Indices, num_lists: int) -> Indices:
        """The numbers of all lists that these queries have among so many of a training, ascending."""
        directions = self.config.directions
        query_T = self.owner_T if direction == Direction.TEXT else np.arange(self.corpus.num_captions)
        is_counted_T = np.isin(query_T, queries)
        per_epoch = len(self._captions)
        samples = []
        for epoch in range(math.ceil(num_lists / per_epoch)):
            samples.append(epoch * per_epoch + np.flatnonzero(is_counted_T[self._order(epoch)]))
        sample_S = np.concatenate(samples)
        is_of_direction_S = sample_S % len(directions) == directions.index(direction)
        return sample_S[(sample_S < num_lists) & is_of_direction_S]

    def _select(self, teacher_BK: Tensor) -> tuple[Tensor, Tensor]:
        # The released code gives its losses sorted scores, out of the order of the columns. No other loss reads them.
        return select_as_official(teacher_BK, self.config.hard_negatives)

    def _draw(self, direction: Direction, sample: int) -> tuple[int, Indices]:
        epoch, position = divmod(sample, len(self._captions))
        text = int(self._order(epoch)[position])
        query, own = direction.query_first(int(self.owner_T[text]), text)
        return query, np.concatenate([[own], self._negatives(self._rng(1, sample), direction, query)])

    def _order(self, epoch: int) -> Indices:
        if epoch != self._epoch:
            # Kept for the epoch, all of whose lists read it.
            rng = self._rng(0, epoch)
            order = rng.permutation(self._captions)
            if self.weight_T is not None:
                # Systematic sampling: equal steps through the summed weights. A caption of n times the mean weight
                # has n lists in an epoch, rounded up or down at random.
                sums = self.weight_T[order].cumsum()
                points = (np.arange(len(order)) + rng.random()) / len(order) * sums[-1]
                order = rng.permutation(order[np.searchsorted(sums, points)])
            self._epoch, self._epoch_order = epoch, order
        return self._epoch_order

    def _negatives(self, rng: np.random.Generator, direction: Direction, query: int) -> Indices:
        count = self.config.random_negatives
        if self._candidates is not None:
            # Distinct, as cached candidates are; the released code draws from all captions, with replacement.
            return rng.choice(self._candidates.lists(direction)[query], count, replace=False)
        owner_T = self.owner_T
        text_class = self.false_negatives.text_class
        is_positive: Callable[[int], bool]
        class_of: Callable[[int], int]
        if direction == Direction.TEXT:
            duplicates = self.false_negatives.duplicates_of(query)
            classes = set(text_class[self.texts_of_image[query]].tolist())

            def is_positive_text(text: int) -> bool:
                return int(text_class[text]) in classes or int(owner_T[text]) in duplicates

            population = self.corpus.num_captions
            is_positive = is_positive_text
            class_of = text_class.item
        else:
            # An image whose caption has the same text matches too, so it is no negative.
            same_text = set(owner_T[text_class == text_class[query]].tolist())
            positives = same_text | self.false_negatives.duplicates_of(int(owner_T[query]))
            population = self.corpus.num_images
            is_positive = positives.__contains__
            class_of = int  # each image is a class of its own
        if self.mined is None:
            return negatives.draw(rng, population, count, is_positive)
        mined = self.mined.lists(direction)[query]
        drawn = rng.choice(mined, min(count, len(mined)), replace=False)
        return negatives.pad_with_random(
            rng, drawn, count, population=population, is_positive=is_positive, class_of=class_of
        )
