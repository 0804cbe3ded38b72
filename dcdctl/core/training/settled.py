"""The recipe of a training as its data settle it, once: numbers in place of auto, batches that the data fill, and which
pairs and losses come of that."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dcdctl.core.data import Corpus, Indices
from dcdctl.core.errors import ConfigError
from dcdctl.core.teacher import (
    Candidates,
    CheckedCaptions,
    FalseNegativeFilter,
    NoPicks,
    TeacherCache,
    TeacherEnsemble,
    TeacherScores,
    Threshold,
    false_negative_filter,
    measure_spread,
)
from dcdctl.core.training.batches.all_pairs import AllPairs, ImagesAlone
from dcdctl.core.training.batches.lists import CandidateLists
from dcdctl.core.training.batches.pool import PickedPairs, PoolLists, PoolPairs
from dcdctl.core.training.batches.step_pairs import StepPairs
from dcdctl.core.training.coverage import DualTeachers, Preview, measure_preview
from dcdctl.core.training.objective import PairObjective
from dcdctl.core.training.picking import check_of, check_teaches, choose_threshold, picked_images, with_number
from dcdctl.core.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class ScoredCorpus:
    """The captioned images of a training, or its pool, and what is known of its pairs before a model is loaded."""

    corpus: Corpus
    caches: Sequence[TeacherCache]
    cached: TeacherCache | TeacherEnsemble | None
    """The scores of all caches together."""
    false_negatives: FalseNegativeFilter

    def facts(self) -> dict[str, Any]:
        """What a run depends on."""
        return {
            "corpus": self.corpus.fingerprint,
            "split": self.corpus.split,
            "images": self.corpus.num_images,
            "cache": None if self.cached is None else self.cached.plan,
        }


@dataclass(frozen=True, kw_only=True)
class Settled:
    """What a training does on its data, by one recipe."""

    recipe: Recipe
    """With numbers in place of auto, but for picks by dual teachers that are not loaded yet."""
    pairs: Sequence[StepPairs]
    """The pairs of each step, of each part."""
    objective: PairObjective
    preview: Preview
    temperature: float | None
    """What `loss.temperature` auto stood for; None if the recipe has a number."""
    checked: CheckedCaptions | None
    """Which captions count; None if all do unchecked, and before dual teachers are loaded."""
    threshold: Threshold | NoPicks | None
    """What `pool.pseudo_positive_above` auto stood for; None if the recipe has a number, and before dual teachers are
    loaded."""


def settle(
    asked: Recipe,
    recipe: Recipe,
    parts: Sequence[ScoredCorpus],
    scores: Sequence[TeacherScores | None],
    dual_teachers: DualTeachers,
) -> Settled:
    """Settle a recipe by the scores of each part, cached or of dual teachers; these are None while they are unread.
    `asked` is the recipe before `fit_validation`.

    ConfigError for scores that give no temperature, for picks that teach nothing, and for a step that does not fit into
    memory.
    """
    corpora = [part.corpus for part in parts]
    temperature = threshold = None
    checked = check_of(recipe, corpora[0], scores[0])
    if recipe.loss.temperature == "auto":
        # From the cached scores alone, so that a preview shows it without a model.
        temperature = _auto_temperature([part.cached for part in parts])
        recipe = replace(recipe, loss=replace(recipe.loss, temperature=temperature))
    # Dual teachers that are not loaded yet choose no batch: they choose among the drawn negatives.
    if dual_teachers != "unread":
        threshold = choose_threshold(recipe, corpora, scores, checked)
        check_teaches(recipe, threshold, parts[-1].caches)
        recipe = with_number(recipe, threshold)
    image_T = checked.image_C if checked is not None and checked.num_doubted else None
    pairs = []
    for part, of_part in zip(parts, scores, strict=True):
        owner_T = None if part.corpus.is_pool else image_T
        pairs.append(choose_pairs(part.corpus, recipe, of_part, part.false_negatives, image_T=owner_T))
    recipe, adapted = _fitted(asked, recipe, pairs)
    preview = measure_preview(recipe, parts[0].caches, pairs[0], dual_teachers=dual_teachers, temperature=temperature)
    preview = replace(
        preview, adapted=adapted, checked=checked, pool_images=sum(pool.size_of_step[0] for pool in pairs[1:])
    )
    has_scores = parts[0].cached is not None or dual_teachers != "none"
    return Settled(
        recipe=recipe,
        pairs=pairs,
        objective=make_objective(recipe, corpora, has_scores=has_scores),
        preview=preview,
        temperature=temperature,
        checked=checked,
        threshold=threshold,
    )


def _fitted(asked: Recipe, recipe: Recipe, pairs: Sequence[StepPairs]) -> tuple[Recipe, dict[str, int]]:
    """The recipe with the batch of its pairs, and the fields that are other than asked for."""
    every = recipe.validation.every
    adapted = {} if every == asked.validation.every else {"validation.every": every}
    for each in pairs:
        adapted |= each.adapted
    main = pairs[0]
    if not main.corpus.is_pool:
        return replace(recipe, batch=main.config), adapted
    if recipe.loss.on_lists:
        return recipe, adapted
    # A step has what the pool has, whatever the size of a batch of captioned images would be.
    return replace(recipe, batch=replace(recipe.batch, size=main.size_of_step[0])), adapted


def _auto_temperature(cached: Sequence[TeacherCache | TeacherEnsemble | None]) -> float:
    """The temperature for the first cached scores. From them alone, so that a preview shows it without a model."""
    spread = measure_spread(next(scores for scores in cached if scores is not None))
    if spread is None or spread.temperature is None:
        raise ConfigError(
            "loss.temperature is auto, and the best scores of too many lists of the cache are equal",
            hint="set a number",
        )
    return spread.temperature


def make_objective(recipe: Recipe, corpora: Sequence[Corpus], *, has_scores: bool) -> PairObjective:
    """The loss of captioned images, of a pool, or of both; each has the terms that it has what they need for."""
    loss, pool = recipe.loss, recipe.pool
    without = [] if pool.pseudo_positive_above is not None else loss.with_positive
    of_pool = [name for name in loss.terms if name not in without]
    if len(corpora) == 1:
        return PairObjective(loss.with_terms(of_pool, 1.0) if corpora[0].is_pool else loss)
    of_pairs: Collection[str] = loss.terms if has_scores else loss.own_terms
    return PairObjective(loss.with_terms(of_pairs, 1 - pool.weight), loss.with_terms(of_pool, pool.weight))


def learns_images_alone(recipe: Recipe) -> bool:
    """Whether the loss reads no text: an image student without a loss of scores."""
    return recipe.model.has_teacher_texts and not recipe.loss.of_scores


def choose_pairs(
    corpus: Corpus,
    recipe: Recipe,
    scores: TeacherScores | None,
    false_negatives: FalseNegativeFilter,
    mined: Candidates | None = None,
    image_T: Indices | None = None,
) -> StepPairs:
    """Which pairs each step of a recipe sees. Negatives of lists without scores are `mined`, or random. `image_T` is
    the image that each caption counts for, if the corpus is not to say it.

    ConfigError for a step that does not fit into memory.
    """
    matches = false_negatives if image_T is None else false_negatives.with_owners(image_T)
    pairs = _pairs_of(corpus, recipe, scores, matches, mined, image_T)
    pairs.check_memory()
    return pairs


def _pairs_of(
    corpus: Corpus,
    recipe: Recipe,
    scores: TeacherScores | None,
    false_negatives: FalseNegativeFilter,
    mined: Candidates | None,
    image_T: Indices | None,
) -> StepPairs:
    if learns_images_alone(recipe):
        return ImagesAlone(corpus, recipe, None, false_negatives)
    if corpus.is_pool:
        threshold = recipe.pool.pseudo_positive_above
        if isinstance(threshold, int | float) and scores is not None:
            image_T = picked_images(corpus, scores, threshold)
            batch = replace(recipe.batch, size=recipe.pool.images or recipe.batch.size)
            matches = false_negatives.with_owners(image_T)
            return PickedPairs(corpus, replace(recipe, batch=batch), scores, matches, image_T=image_T)
        # A pool has no positives, so no image is looked for that is a duplicate of one.
        kind = PoolLists if recipe.loss.on_lists else PoolPairs
        return kind(corpus, recipe, scores, false_negative_filter(corpus, None))
    if recipe.loss.on_lists:
        return CandidateLists(corpus, recipe, scores, false_negatives, image_T=image_T, mined=mined)
    return AllPairs(corpus, recipe, scores, false_negatives, image_T=image_T)
