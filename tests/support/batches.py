"""Batches in one call, as a training makes them in two: the pairs of the steps, and what reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from dcdctl.core.data import Corpus
from dcdctl.core.scoring import Source
from dcdctl.core.teacher import EmbeddedScores, TeacherScores, false_negative_filter
from dcdctl.core.training.batches.all_pairs import AllPairs
from dcdctl.core.training.batches.batch import UNSPLIT, MicroBatchPlan
from dcdctl.core.training.batches.lists import CandidateLists
from dcdctl.core.training.batches.step_pairs import CorpusBatches
from dcdctl.core.training.losses.table import LossConfig
from dcdctl.core.training.recipe import BatchConfig, Recipe
from dcdctl.core.training.settled import choose_pairs


class Indices:
    """A source that gives the indices of images and captions in their place."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus

    def images(self, image_ix: Any) -> Any:
        return np.asarray(image_ix)

    def texts(self, text_ix: Any) -> Any:
        return np.asarray(text_ix)


def _batches(
    pairs: Callable[..., CandidateLists | AllPairs],
    source: Source,
    config: BatchConfig,
    seed: int,
    cache: TeacherScores | None,
    plan: MicroBatchPlan = UNSPLIT,
    **more: Any,
) -> CorpusBatches:
    # A loss without a teacher lets `config` keep fewer negatives than its default.
    recipe = Recipe(batch=config, seed=seed, loss=LossConfig(terms={"ranking": 1.0}))
    more.setdefault("false_negatives", false_negative_filter(source.corpus, None))
    return CorpusBatches(source, pairs(source.corpus, recipe, cache, **more), plan)


list_batches, pair_batches = partial(_batches, CandidateLists), partial(_batches, AllPairs)
"""Batches of candidate lists, and of all pairs."""


def recipe_batches(
    source: Source,
    recipe: Recipe,
    scores: TeacherScores | None,
    plan: MicroBatchPlan = UNSPLIT,
    vectors: EmbeddedScores | None = None,
) -> CorpusBatches:
    """The batches of a recipe's loss."""
    false_negatives = false_negative_filter(source.corpus, recipe.candidates.duplicate_bits)
    pairs = choose_pairs(source.corpus, recipe, scores, false_negatives)
    return CorpusBatches(source, pairs, replace(plan, by_side=recipe.model.embeds_sides), vectors)
