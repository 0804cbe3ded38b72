"""What a training lowers of its recipe because its data have no more: decided here, and nowhere else.

Each function gives the settings that fit. `lowered` names the fields that differ, for run.json and for the line that a
user sees.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from dcdctl.core.data import Corpus, Indices, read_corpus_json
from dcdctl.core.training.recipe import BatchConfig, PoolConfig, Recipe


def fit_size(config: BatchConfig, num_items: int) -> BatchConfig:
    """All pairs, and texts: at most as many in a batch as there are."""
    return replace(config, size=min(config.size, num_items))


def fit_lists(config: BatchConfig, candidates_T: Indices, num_images: int) -> BatchConfig:
    """Candidate lists: no more negatives than nearly all captions have cached candidates, if the split has no more.

    `candidates_T` is the number of candidates of each caption. A cache that has too few of a larger split stays an
    error: more can be scored.
    """
    most = int(candidates_T.max())
    if not most or most >= config.random_negatives or config.random_negatives < num_images:
        return config
    # What nine of ten captions have: a few have less, such as those with equal texts.
    count = max(1, int(np.quantile(candidates_T, 0.1)))
    return replace(config, random_negatives=count, hard_negatives=min(config.hard_negatives, count))


def fit_pool(config: PoolConfig, batch_size: int, corpus: Corpus) -> PoolConfig:
    """Images and texts of a pool in a step, at most those of the pool; each number is set."""
    images = min(config.images or batch_size, corpus.num_images)
    return replace(config, images=images, texts=min(config.texts or images, corpus.num_captions))


def fit_validation(recipe: Recipe, corpus: Corpus) -> Recipe:
    """No validation for a corpus without a val split; another split was named on purpose, so it must exist."""
    config = recipe.validation
    if not config.every or config.split != "val" or "val" in read_corpus_json(corpus.folder).splits:
        return recipe
    return replace(recipe, validation=replace(config, every=0, at_start=False))


def lowered(table: str, asked: dict[str, Any], fitted: Any) -> dict[str, Any]:
    """The fields of a fitted table that are not as asked for, by their names in a recipe.

    >>> lowered("batch", {"size": 32}, BatchConfig(size=20))
    {'batch.size': 20}
    """
    values = {name: getattr(fitted, name) for name in asked}
    return {f"{table}.{name}": value for name, value in values.items() if value != asked[name]}
