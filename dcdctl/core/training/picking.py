"""The pairs of a pool that a teacher picks: above which score they are captions, and how many they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dcdctl.core.data import Corpus, Indices
from dcdctl.core.errors import ConfigError
from dcdctl.core.teacher import (
    NO_PICK,
    TeacherScores,
    Threshold,
    find_picks,
    threshold_by_captions,
    threshold_by_modes,
)
from dcdctl.core.training.recipe import PoolConfig, Recipe

FEWEST_CAPTIONS = 100
"""Captions with a pick of the teacher, half of which find a threshold and half of which measure it."""


def choose_threshold(
    recipe: Recipe, corpora: Sequence[Corpus], scores: Sequence[TeacherScores | None]
) -> Threshold | None:
    """What `pool.pseudo_positive_above` auto stands for: by the captioned images, if the teacher has scored some of
    their pairs, else by the best scores of the pool. None if the recipe has a number, or no pool has scores."""
    precision = recipe.pool.precision
    if recipe.pool.pseudo_positive_above != "auto":
        return None
    scored = [(corpus, each) for corpus, each in zip(corpora, scores, strict=True) if each is not None]
    for corpus, each in scored:
        if not corpus.is_pool:
            image_T, score_T = find_picks(each, corpus)
            has_pick = image_T != NO_PICK
            if has_pick.sum() >= FEWEST_CAPTIONS:
                is_right = (image_T == corpus.caption_image)[has_pick]
                return threshold_by_captions(score_T[has_pick], is_right, precision)
    for corpus, each in scored:
        if corpus.is_pool:
            score_T = find_picks(each, corpus).score_T
            return threshold_by_modes(score_T[np.isfinite(score_T)], precision)
    return None


def with_number(recipe: Recipe, threshold: Threshold | None) -> Recipe:
    """The recipe with the number that was found for its picks."""
    if threshold is None:
        return recipe
    pool = replace(recipe.pool, pseudo_positive_above=threshold.value, precision=PoolConfig.precision)
    return replace(recipe, pool=pool)


def picked_images(corpus: Corpus, scores: TeacherScores, threshold: float) -> Indices:
    """The image of each text of a pool whose score is above the threshold, NO_PICK for the others. ConfigError if no
    score is."""
    picks = find_picks(scores, corpus)
    image_T = picks.above(threshold)
    if (image_T == NO_PICK).all():
        raise ConfigError(
            f"pool.pseudo_positive_above is {threshold:g}, and no text has an image with such a score: the highest is "
            f"{picks.score_T.max():.4g}",
            hint="set it lower, or to auto",
        )
    return image_T


def picks_line(corpus: Corpus, scores: TeacherScores, threshold: float) -> str:
    """How many texts have a pseudo positive, and how many of those of captioned images are right."""
    image_T = find_picks(scores, corpus).above(threshold)
    texts = np.flatnonzero(image_T >= 0)
    name = "texts of the pool" if corpus.is_pool else "captions"
    line = f"{len(texts):,} of {len(image_T):,} {name} have a pseudo positive above {threshold:g}"
    if corpus.is_pool or not len(texts):
        return line
    right = (image_T[texts] == corpus.caption_image[texts]).mean()
    return f"{line}, which is the own image of {right:.1%} of them"
