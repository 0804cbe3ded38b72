"""The pairs that a recipe's loss asks for."""

from __future__ import annotations

from dataclasses import replace

from dcdctl.core.data import Corpus
from dcdctl.core.teacher import Candidates, FalseNegativeFilter, TeacherScores, false_negative_filter, text_classes
from dcdctl.core.training.batches.all_pairs import AllPairs
from dcdctl.core.training.batches.lists import CandidateLists
from dcdctl.core.training.batches.pool import PoolLists, PoolPairs, pseudo_positives
from dcdctl.core.training.batches.step_pairs import StepPairs
from dcdctl.core.training.recipe import Recipe


def choose_pairs(
    corpus: Corpus,
    recipe: Recipe,
    scores: TeacherScores | None,
    false_negatives: FalseNegativeFilter,
    mined: Candidates | None = None,
) -> StepPairs:
    """Which pairs each step of a recipe sees. Negatives of lists without scores are `mined`, or random."""
    if corpus.is_pool:
        if (threshold := recipe.pool.pseudo_positive_above) is not None and scores is not None:
            image_T = pseudo_positives(scores, corpus, threshold)
            batch = replace(recipe.batch, size=recipe.pool.images or recipe.batch.size)
            matches = FalseNegativeFilter(image_T, text_classes(corpus.captions))
            return AllPairs(corpus, replace(recipe, batch=batch), scores, matches, image_T=image_T)
        # A pool has no positives, so no image is looked for that is a duplicate of one.
        kind = PoolLists if recipe.loss.on_lists else PoolPairs
        return kind(corpus, recipe, scores, false_negative_filter(corpus, None))
    if recipe.loss.on_lists:
        return CandidateLists(corpus, recipe, scores, false_negatives, mined=mined)
    return AllPairs(corpus, recipe, scores, false_negatives)
