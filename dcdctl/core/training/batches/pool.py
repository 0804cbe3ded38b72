"""Batches of a pool, whose images and texts belong to nobody: all pairs of some of them, lists without a positive, or
pairs that the teacher takes for positives.

Shape letters as in `batches`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from dcdctl.core.data import Corpus, Direction, Indices, RaggedArray
from dcdctl.core.errors import ConfigError
from dcdctl.core.teacher import TeacherScores
from dcdctl.core.training.adapted import fit_pool, lowered
from dcdctl.core.training.batches.all_pairs import AllPairs, PairGrid, image_batches
from dcdctl.core.training.batches.lists import Lists
from dcdctl.core.training.batches.step_pairs import Coverage


@dataclass
class PickedPairs(AllPairs):
    """Images of a pool, each with a text that the teacher picked it for, and images that no text picked: these are
    negatives of every text of the batch.

    They have the share of a batch that they have in the pool, at most half.
    """

    def __post_init__(self) -> None:
        assert self.image_T is not None
        self._unpicked = np.setdiff1d(np.arange(self.corpus.num_images), self.image_T)
        size = min(self.recipe.batch.size, self.corpus.num_images)
        share = min(len(self._unpicked) / self.corpus.num_images, 1 / 2)
        # A loss that compares texts needs two of them.
        self.num_unpicked = max(0, min(int(share * size), size - 2))
        batch = replace(self.recipe.batch, size=size - self.num_unpicked)
        self.recipe = replace(self.recipe, batch=batch)
        super().__post_init__()

    @property
    def size_of_step(self) -> tuple[int, int]:
        num_images = self.config.size + self.num_unpicked
        return num_images, num_images * self.config.size

    def _pairs(self, step: int) -> tuple[Indices, Indices]:
        image_Q1, text_1G = super()._pairs(step)
        others = self._rng(2, step).choice(self._unpicked, self.num_unpicked, replace=False)
        return np.concatenate([image_Q1, np.sort(others)[:, None]]), text_1G


class PoolPairs(PairGrid):
    """Some images and some texts of a pool, all pairs of which are candidates.

    With a cache, a batch is a neighborhood of it: images and texts that share scored pairs come together. Each image is
    in at most one batch of an epoch. Texts are drawn without repetition until too few are left.
    """

    counted, hint = "of the pool with two candidates or more", "pool.images lower"
    has_positives = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.config = self.recipe.batch
        self.pool = fit_pool(self.recipe.pool, self.config.size, self.corpus)
        assert self.pool.images is not None
        assert self.pool.texts is not None
        self.sizes = self.pool.images, self.pool.texts
        self.batches_per_epoch = float(self.corpus.num_images // self.pool.images)
        self._lists = _scored_lists(self.scores, self.corpus)

    @property
    def adapted(self) -> dict[str, int]:
        """The sizes of a batch that are lower than asked for, because the pool has no more."""
        pool = self.recipe.pool
        asked = {"images": pool.images or self.config.size, "texts": pool.texts or self.sizes[0]}
        return lowered("pool", asked, self.pool)

    @property
    def size_of_step(self) -> tuple[int, int]:
        num_images, num_texts = self.sizes
        return num_images, num_images * num_texts

    def _pairs(self, step: int) -> tuple[Indices, Indices]:
        image_Q, text_G = self._batch(step)
        return np.sort(image_Q)[:, None], np.sort(text_G)[None]

    def _batches(self, rng: np.random.Generator) -> Iterator[tuple[Indices, Indices]]:
        if self._lists is None:
            for image_Q in image_batches(None, np.ones(self.corpus.num_images, dtype=bool), self.sizes[0], rng):
                yield image_Q, rng.choice(self.corpus.num_captions, self.sizes[1], replace=False)
            return
        free = [np.ones(len(lists), dtype=bool) for lists in self._lists]
        for _ in range(int(self.batches_per_epoch)):
            for is_free, size in zip(free, self.sizes, strict=True):
                if is_free.sum() < size:
                    is_free[:] = True
            # Shared pairs are whole numbers, so a random number in [0, 1) decides only between equal counts.
            priorities = [np.where(is_free, rng.random(len(is_free)), -np.inf) for is_free in free]
            chosen: tuple[list[int], list[int]] = ([], [])
            # From a random image on, what has most scored pairs with the batch, in proportion to the sizes.
            while sum(map(len, chosen)) < sum(self.sizes):
                side = int(len(chosen[1]) / self.sizes[1] < len(chosen[0]) / self.sizes[0])
                item = int(priorities[side].argmax())
                chosen[side].append(item)
                free[side][item] = False
                priorities[side][item] = -np.inf
                priorities[1 - side][self._lists[side][item]] += 1
            yield np.array(chosen[0]), np.array(chosen[1])


def _scored_lists(scores: TeacherScores | None, corpus: Corpus) -> tuple[RaggedArray, RaggedArray] | None:
    """The scored texts of each image, and the scored images of each text; None if every pair is scored."""
    if scores is None or scores.scored_pairs is None:
        return None
    image_P, text_P = scores.scored_pairs
    return (
        RaggedArray.from_pairs(image_P, text_P, corpus.num_images),
        RaggedArray.from_pairs(text_P, image_P, corpus.num_captions),
    )


class PoolLists(Lists):
    """Candidate lists of a pool: a query and the best of some of its candidates, by the teacher's scores.

    Of `random_negatives` + 1 drawn candidates the `hard_negatives` + 1 with the highest scores are kept, in descending
    order: column 0 is the best of them, and no positive.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.config = self.recipe.batch
        self._lists = _scored_lists(self.scores, self.corpus)
        self._queries = {direction: self._with_enough(direction) for direction in self.config.directions}
        self._orders: dict[Direction, tuple[int, Indices]] = {}
        self.batches_per_epoch = sum(map(len, self._queries.values())) / self.config.size

    def _select(self, teacher_BK: Tensor) -> tuple[Tensor, Tensor]:
        column_BN = teacher_BK.argsort(dim=1, descending=True, stable=True)[:, : self.config.hard_negatives + 1]
        return column_BN, teacher_BK.gather(1, column_BN)

    def coverage(self, num_steps: int) -> Coverage:
        """How many queries lists are made for; every candidate of a list has a score."""
        population = {Direction.TEXT: self.corpus.num_images, Direction.IMAGE: self.corpus.num_captions}
        return Coverage(
            queries=sum(map(len, self._queries.values())) / sum(population[each] for each in self._queries),
            of_queries=f"the queries of the pool with {self.config.random_negatives + 1} candidates",
            scored=1.0,
            hint="set batch.random_negatives lower, or cache more",
        )

    def _with_enough(self, direction: Direction) -> Indices:
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

    def _draw(self, direction: Direction, sample: int) -> tuple[int, Indices]:
        queries, count = self._queries[direction], self.config.random_negatives + 1
        epoch, position = divmod(sample // len(self.config.directions), len(queries))
        if self._orders.get(direction, (-1,))[0] != epoch:
            # Kept for the epoch, all of whose lists read it.
            rng = self._rng(0, epoch, 1 if direction == Direction.TEXT else 2)
            self._orders[direction] = epoch, rng.permutation(queries)
        query = int(self._orders[direction][1][position])
        if self._lists is None:
            drawn_from = np.arange(direction.query_first(self.corpus.num_captions, self.corpus.num_images)[0])
        else:
            drawn_from = direction.query_first(*self._lists)[0][query]
        return query, self._rng(1, sample).choice(drawn_from, count, replace=False)
