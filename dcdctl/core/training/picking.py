"""Which captions count by a teacher's scores, and its picks of a pool: above which score a pick is sure and counts as a
caption, and how many are sure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dcdctl.core.data import Corpus, Direction, Flags, Indices
from dcdctl.core.errors import ConfigError
from dcdctl.core.places import shown
from dcdctl.core.teacher import (
    NO_PICK,
    CandidateConfig,
    CaptionPicks,
    CheckedCaptions,
    NoPicks,
    TeacherCache,
    TeacherScores,
    Threshold,
    check_captions,
    find_picks,
    find_threshold,
    read_caches,
)
from dcdctl.core.training.inputs import InputRefs, caches_of
from dcdctl.core.training.recipe import PoolConfig, Recipe

FEWEST_CAPTIONS = 100
"""Captions with a score, below which they say nothing: of 100 whose other images all score low, 3 could be wrong."""


def check_of(recipe: Recipe, corpus: Corpus, scores: TeacherScores | None) -> CheckedCaptions | None:
    """Which captions of a corpus count for a training. None if no score tells, or no loss reads which image a caption
    belongs to. ConfigError for a limit above which there are too few."""
    limit = recipe.captions.checked
    if limit is None or scores is None or corpus.is_pool or not recipe.loss.with_positive:
        return None
    checked = check_captions(corpus, scores, limit)
    if len(np.setdiff1d(checked.image_C, NO_PICK)) < min(2, corpus.num_images):
        raise ConfigError(
            f"captions.checked is {limit}, and captions of two images or more must count: "
            f"{checked.num_doubted:,} of {corpus.num_captions:,} score no higher with their image",
            hint="set it lower, or to auto",
        )
    return checked


def choose_threshold(
    recipe: Recipe,
    corpora: Sequence[Corpus],
    scores: Sequence[TeacherScores | None],
    checked: CheckedCaptions | None = None,
) -> Threshold | NoPicks | None:
    """What `pool.pseudo_positive_above` auto stands for, by the scores of the pool and those of captioned images, if
    the teacher has scored their pairs and does not doubt them. None if the recipe has a number, or no pool has
    scores."""
    pool, of_pool = corpora[-1], scores[-1]
    if recipe.pool.pseudo_positive_above != "auto" or not pool.is_pool or of_pool is None:
        return None
    captions = _picks_of_captions(corpora[0], scores[0], checked)
    return find_threshold(find_picks(of_pool, pool), recipe.pool.precision, captions)


def check_teaches(recipe: Recipe, found: Threshold | NoPicks | None, caches: Sequence[TeacherCache] = ()) -> None:
    """ConfigError if there are no picks, and no loss that learns from the scores alone. The scores are in `caches`."""
    if not isinstance(found, NoPicks) or recipe.loss.learns_from_scores_alone:
        return
    kept = "".join(f" --cache {shown(cache.folder)}" for cache in caches)
    raise ConfigError(
        f"loss {', '.join(recipe.loss.terms)} learns from picks alone, and none is taken: {found.reason}",
        hint=f"add a loss that learns from the scores, such as --set loss.terms={{infonce=1.0,kl=1.0}}{kept}",
    )


def _picks_of_captions(
    captioned: Corpus, scores: TeacherScores | None, checked: CheckedCaptions | None
) -> CaptionPicks | None:
    """The picks of the captions that the teacher has scored and does not doubt; None if they are too few."""
    if captioned.is_pool or scores is None:
        return None
    picks = find_picks(scores, captioned)
    is_known_C = (picks.image_T != NO_PICK) & _is_kept(captioned, checked)
    if is_known_C.sum() < FEWEST_CAPTIONS:
        return None
    return CaptionPicks(picks.at(is_known_C), captioned.caption_image[is_known_C])


def _is_kept(captioned: Corpus, checked: CheckedCaptions | None) -> Flags:
    """Which captions the teacher does not doubt."""
    return np.ones(captioned.num_captions, dtype=bool) if checked is None else ~checked.is_doubted_C


def with_number(recipe: Recipe, threshold: Threshold | NoPicks | None) -> Recipe:
    """The recipe with the number that was found for its picks, or without picks."""
    if threshold is None:
        return recipe
    pool = replace(recipe.pool, pseudo_positive_above=threshold.value, precision=PoolConfig.precision)
    return replace(recipe, pool=pool)


def picked_images(corpus: Corpus, scores: TeacherScores, threshold: float) -> Indices:
    """The sure pick of each text of a pool, an image whose score is above the threshold; NO_PICK for the others.
    ConfigError if no score is."""
    picks = find_picks(scores, corpus)
    image_T = picks.above(threshold)
    if (image_T == NO_PICK).all():
        raise ConfigError(
            f"pool.pseudo_positive_above is {threshold:g}, and no text has an image with such a score: the highest is "
            f"{picks.score_T.max():.4g}",
            hint="set it lower, or to auto",
        )
    return image_T


@dataclass(frozen=True, kw_only=True)
class Picked:
    """How many texts of a corpus have a sure pick, and how often sure picks are right."""

    num_texts: int
    num_sure: int = 0
    threshold: float | None = None
    """The score above which a pick is sure; None before the first scores, and for a student that learns from no
    picks. Minus infinity where every caption counts."""
    precision: float | None = None
    """Share of the captions' sure picks that are their own image; None without captioned images."""

    @property
    def num_unsure(self) -> int:
        """The texts without a sure pick, which need further images."""
        return self.num_texts - self.num_sure

    def spread(self, candidates: CandidateConfig, num_images: int) -> CandidateConfig:
        """The candidates of a round: the texts without a sure pick share what was meant for all texts."""
        if not self.num_sure or candidates.kind == "blocks" or candidates.directions != (Direction.IMAGE,):
            return candidates
        per_query = candidates.per_query * self.num_texts // max(self.num_unsure, 1)
        return replace(candidates, per_query=min(per_query, num_images))

    def to_json(self) -> dict[str, Any]:
        """The facts for run.json."""
        if self.threshold is None or not math.isfinite(self.threshold):
            return {}
        return {"picks": self.num_sure, "picks_above": self.threshold, "precision": self.precision}


def count_picks(recipe: Recipe, inputs: InputRefs) -> Picked:
    """The sure picks that a training by a recipe learns from on these inputs: those of a pool's texts, or without a
    pool those of captions, most of which are their own images."""
    corpora, caches = inputs.open()
    last, prints = corpora[-1], [corpus.fingerprint for corpus in corpora]
    # Not those of validation corpora.
    caches = [cache for cache in caches if cache.plan["corpus"] in prints]
    scores = [read_caches(group) for group in caches_of(corpora, caches)]
    checked = check_of(recipe, corpora[0], scores[0])
    if not last.is_pool:
        num_unsure = 0 if checked is None else checked.num_doubted - checked.num_picked
        threshold = None if checked is None else checked.sure_above
        return Picked(num_texts=last.num_captions, num_sure=last.num_captions - num_unsure, threshold=threshold)
    recipe = with_number(recipe, choose_threshold(recipe, corpora, scores, checked))
    above = recipe.pool.pseudo_positive_above
    if above is None:
        return Picked(num_texts=last.num_captions)
    assert isinstance(above, int | float)
    assert scores[-1] is not None
    is_sure_T = find_picks(scores[-1], last).above(above) != NO_PICK
    precision = None
    if len(corpora) == 2 and scores[0] is not None:
        precision = _share_right(corpora[0], scores[0], above, checked)
    return Picked(num_texts=last.num_captions, num_sure=int(is_sure_T.sum()), threshold=above, precision=precision)


def _share_right(
    captioned: Corpus, scores: TeacherScores, threshold: float, checked: CheckedCaptions | None
) -> float | None:
    """The share of the sure picks of captions that are their own images, of those that are not doubted; None if no pick
    is sure."""
    image_T = find_picks(scores, captioned).above(threshold)
    texts = np.flatnonzero((image_T != NO_PICK) & _is_kept(captioned, checked))
    return float((image_T[texts] == captioned.caption_image[texts]).mean()) if len(texts) else None


def picks_line(corpus: Corpus, scores: TeacherScores, threshold: float, checked: CheckedCaptions | None) -> str:
    """How many texts have a sure pick, and how many of those of captioned images are right."""
    num_sure = int((find_picks(scores, corpus).above(threshold) != NO_PICK).sum())
    name = "texts of the pool" if corpus.is_pool else "captions"
    line = f"{num_sure:,} of {corpus.num_captions:,} {name} have a sure pick, above {threshold:g}"
    right = None if corpus.is_pool else _share_right(corpus, scores, threshold, checked)
    return line if right is None else f"{line}, which is the own image of {right:.1%} of them"
