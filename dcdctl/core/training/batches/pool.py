"""Batches of a pool, whose images and texts belong to nobody: all pairs of some of them, lists without a positive, or
pairs that the teacher takes for positives.

Shape letters as in `batches`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dcdctl.core.data import Corpus, Direction, Index, RaggedArray
from dcdctl.core.errors import ConfigError
from dcdctl.core.teacher import TeacherScores
from dcdctl.core.training.batches.all_pairs import COVERED_STEPS, random_batches
from dcdctl.core.training.batches.step_pairs import Coverage, PairsOfStep, StepPairs
from dcdctl.core.training.recipe import BatchConfig, Recipe

MORE_SCORES = "make a cache with the student's recipe (dcdctl cache-teacher --recipe), or set pool.images lower"
_ROWS_AT_ONCE = 256
"""Texts whose scores with all images are looked up at once."""


class PoolPairs(StepPairs):
    """Some images and some texts of a pool, all pairs of which are candidates.

    With a cache, a batch is a neighborhood of it: images and texts that share scored pairs come together. Each image is
    in at most one batch of an epoch. Texts are drawn without repetition until too few are left.
    """

    def __init__(self, corpus: Corpus, recipe: Recipe, scores: TeacherScores | None) -> None:
        batch, pool = recipe.batch, recipe.pool
        super().__init__(corpus, batch, recipe.seed)
        # None: the loss compares vectors, or the dual teachers are not loaded and batches are only counted.
        self.scores = scores
        self.num_images = min(pool.images or batch.size, corpus.num_images)
        self.num_texts = min(pool.texts or self.num_images, corpus.num_captions)
        self.batches_per_epoch = float(corpus.num_images // self.num_images)
        self._lists = _scored_lists(scores, corpus)

    def of_step(self, step: int) -> PairsOfStep:
        """All pairs of the images and texts of a step."""
        epoch, position = divmod(step, int(self.batches_per_epoch))
        image_Q, text_G = self._epoch_batches(epoch)[position]
        image_Q1, text_1G = np.sort(image_Q)[:, None], np.sort(text_G)[None]
        missing_QG = np.full((len(image_Q), len(text_G)), np.nan, dtype=np.float32)
        teacher_QG = missing_QG if self.scores is None else self.scores.lookup(image_Q1, text_1G)
        return PairsOfStep(
            image_RC=image_Q1,
            text_RC=text_1G,
            teacher_RC=teacher_QG,
            official_RC=teacher_QG,
            same_RC=np.zeros(teacher_QG.shape, dtype=bool),
        )

    def coverage(self, num_steps: int) -> Coverage:
        """How many queries of the first batches, in both directions, have two scored candidates, and how many pairs are
        scored."""
        parts = [~np.isnan(self.of_step(step).teacher_RC) for step in range(min(num_steps, COVERED_STEPS))]
        scored = np.stack(parts)
        return Coverage(
            queries=float(((scored.sum(axis=1) >= 2).mean() + (scored.sum(axis=2) >= 2).mean()) / 2),
            of_queries="the queries of a batch of the pool with two candidates or more",
            scored=float(scored.mean()),
            hint=MORE_SCORES,
        )

    def _epoch_batches(self, epoch: int) -> list[tuple[Index, Index]]:
        # Kept for the epoch, whose images are all grouped at once.
        if epoch != self._epoch:
            rng = self._rng(0, epoch)
            batches = self._random(rng) if self._lists is None else self._neighborhoods(rng)
            self._epoch, self._epoch_images = epoch, list(batches)
        return self._epoch_images

    def _random(self, rng: np.random.Generator) -> Iterator[tuple[Index, Index]]:
        for image_Q in random_batches(np.ones(self.corpus.num_images, dtype=bool), self.num_images, rng):
            yield image_Q, rng.choice(self.corpus.num_captions, self.num_texts, replace=False)

    def _neighborhoods(self, rng: np.random.Generator) -> Iterator[tuple[Index, Index]]:
        assert self._lists is not None
        sides = (_Side(self._lists[0], self.num_images), _Side(self._lists[1], self.num_texts))
        for _ in range(int(self.batches_per_epoch)):
            yield _neighborhood(sides, rng)


class _Side:
    """The images or the texts of a pool: which are taken, and with what each has scored pairs."""

    def __init__(self, lists: RaggedArray, size: int) -> None:
        self.lists, self.size = lists, size
        self.is_free = np.ones(len(lists), dtype=bool)

    def begin(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """The priority of each for a new batch: random, and none for those that are taken."""
        if self.is_free.sum() < self.size:
            self.is_free[:] = True
        # Shared pairs are whole numbers, so a random number in [0, 1) decides only between equal counts.
        return np.where(self.is_free, rng.random(len(self.is_free)), -np.inf)


def _neighborhood(sides: tuple[_Side, _Side], rng: np.random.Generator) -> tuple[Index, Index]:
    """A batch that starts from a random image and grows on both sides by what has most scored pairs with it, in
    proportion to the sizes."""
    priorities = [side.begin(rng) for side in sides]
    chosen: tuple[list[int], list[int]] = ([], [])
    while any(len(part) < side.size for part, side in zip(chosen, sides, strict=True)):
        shares = [len(part) / side.size for part, side in zip(chosen, sides, strict=True)]
        this = int(shares[1] < shares[0])
        item = int(priorities[this].argmax())
        chosen[this].append(item)
        sides[this].is_free[item] = False
        priorities[this][item] = -np.inf
        priorities[1 - this][sides[this].lists[item]] += 1
    return np.array(chosen[0], dtype=np.int64), np.array(chosen[1], dtype=np.int64)


def _scored_lists(scores: TeacherScores | None, corpus: Corpus) -> tuple[RaggedArray, RaggedArray] | None:
    """The scored texts of each image, and the scored images of each text; None if every pair is scored."""
    if scores is None or scores.scored_pairs is None:
        return None
    image_P, text_P = scores.scored_pairs[0], scores.scored_pairs[1].astype(np.int64)
    return (
        RaggedArray.from_pairs(image_P, text_P, corpus.num_images),
        RaggedArray.from_pairs(text_P, image_P, corpus.num_captions),
    )


class PoolLists(StepPairs):
    """Candidate lists of a pool: a query and the best of some of its candidates, by the teacher's scores.

    Of `random_negatives` + 1 drawn candidates the `hard_negatives` + 1 with the highest scores are kept, in descending
    order: column 0 is the best of them, and no positive.
    """

    def __init__(self, corpus: Corpus, config: BatchConfig, seed: int, scores: TeacherScores | None) -> None:
        super().__init__(corpus, config, seed)
        self.scores = scores
        self._lists = _scored_lists(scores, corpus)
        self._queries = {direction: self._with_enough(direction) for direction in config.directions}
        self.batches_per_epoch = sum(map(len, self._queries.values())) / config.size

    def of_step(self, step: int) -> PairsOfStep:
        """The lists of a batch."""
        size = self.config.size
        lists = [self._list(sample) for sample in range(step * size, (step + 1) * size)]
        image_BK, text_BK = (np.stack(side) for side in zip(*lists, strict=True))
        assert self.scores is not None
        teacher_BK = self.scores.lookup(image_BK, text_BK)
        column_BN = np.argsort(-teacher_BK, axis=1, kind="stable")[:, : self.config.hard_negatives + 1]
        image_BN, text_BN, teacher_BN = (
            np.take_along_axis(each, column_BN, axis=1) for each in (image_BK, text_BK, teacher_BK)
        )
        return PairsOfStep(
            image_RC=image_BN,
            text_RC=text_BN,
            teacher_RC=teacher_BN,
            official_RC=teacher_BN,
            same_RC=np.zeros(image_BN.shape, dtype=bool),
            true_IT=np.zeros((len(np.unique(image_BN)), len(np.unique(text_BN))), dtype=bool),
        )

    def coverage(self, num_steps: int) -> Coverage:
        """How many queries lists are made for; every candidate of a list has a score."""
        population = {Direction.TEXT: self.corpus.num_images, Direction.IMAGE: self.corpus.num_captions}
        return Coverage(
            queries=sum(map(len, self._queries.values())) / sum(population[each] for each in self._queries),
            of_queries=f"the queries of the pool with {self.config.random_negatives + 1} candidates",
            scored=1.0,
            hint="set batch.random_negatives lower, or cache more",
        )

    def _with_enough(self, direction: Direction) -> Index:
        """The queries that have enough candidates."""
        count = self.config.random_negatives + 1
        num_queries, num_candidates = direction.query_first(self.corpus.num_images, self.corpus.num_captions)
        lengths = np.full(num_queries, num_candidates)
        if self._lists is not None:
            lengths = direction.query_first(*self._lists)[0].lengths
        queries = np.flatnonzero(lengths >= count)
        if not len(queries):
            raise ConfigError(
                f"batch.random_negatives is {count - 1}, and no {direction.query} of the pool has {count} scored "
                f"candidates (at most {lengths.max(initial=0)})",
                hint="set it lower, cache more, or leave this direction out of batch.directions",
            )
        return queries

    def _list(self, sample: int) -> tuple[Index, Index]:
        """The drawn candidates of a list. List s has the direction s modulo their number."""
        directions = self.config.directions
        direction = Direction(directions[sample % len(directions)])
        epoch, position = divmod(sample // len(directions), len(self._queries[direction]))
        query = int(self._order(direction, epoch)[position])
        count = self.config.random_negatives + 1
        if self._lists is None:
            drawn_from = np.arange(direction.query_first(self.corpus.num_captions, self.corpus.num_images)[0])
        else:
            drawn_from = direction.query_first(*self._lists)[0][query]
        # Seeded by the number of the list, so that a resumed run draws it without drawing the earlier ones.
        candidates = self._rng(1, sample).choice(drawn_from, count, replace=False)
        return direction.query_first(np.full(count, query), candidates)

    def _order(self, direction: Direction, epoch: int) -> Index:
        key = [0, epoch, 1 if direction == Direction.TEXT else 2]
        return self._rng(*key).permutation(self._queries[direction])


def pseudo_positives(scores: TeacherScores, corpus: Corpus, threshold: float) -> Index:
    """The best image of each text, by the teacher; -1 where its score is not above the threshold."""
    image_T, score_T = best_images(scores, corpus)
    return np.where(score_T > threshold, image_T, -1)


def best_images(scores: TeacherScores, corpus: Corpus) -> tuple[Index, NDArray[np.float32]]:
    """The image with the highest score of each text, and that score: -1 and NaN for a text without scores."""
    if (scored := scores.scored_pairs) is not None:
        image_P, text_P = scored
        score_P = scores.lookup(image_P, text_P)
        order = np.lexsort((-score_P, text_P))
        texts, first = np.unique(text_P[order], return_index=True)
        image_T = np.full(corpus.num_captions, -1)
        score_T = np.full(corpus.num_captions, np.nan, dtype=np.float32)
        image_T[texts], score_T[texts] = image_P[order][first], score_P[order][first]
        return image_T, score_T
    images, parts = np.arange(corpus.num_images)[:, None], []
    for start in range(0, corpus.num_captions, _ROWS_AT_ONCE):
        texts = np.arange(start, min(start + _ROWS_AT_ONCE, corpus.num_captions))
        score_IT = scores.lookup(images, texts[None])
        best_T = score_IT.argmax(axis=0)
        parts.append((best_T, score_IT[best_T, np.arange(len(texts))]))
    image_T, score_T = (np.concatenate(side) for side in zip(*parts, strict=True))
    return image_T, score_T
