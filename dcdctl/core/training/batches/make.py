"""The batches that a recipe's loss asks for, and how many steps they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dcdctl.core.data import Corpus, Index
from dcdctl.core.models import ImageBatch, TextBatch
from dcdctl.core.progress import Track, silent
from dcdctl.core.scoring import Source
from dcdctl.core.teacher import TeacherScores, false_negative_filter
from dcdctl.core.training.batches.all_pairs import AllPairsBatches
from dcdctl.core.training.batches.batch import UNSPLIT, MicroBatchPlan
from dcdctl.core.training.batches.lists import CandidateListBatches
from dcdctl.core.training.recipe import Recipe

TrainingBatches = CandidateListBatches | AllPairsBatches


def make_batches(
    source: Source, recipe: Recipe, scores: TeacherScores | None, plan: MicroBatchPlan = UNSPLIT, track: Track = silent
) -> TrainingBatches:
    """The batches of a recipe's loss, which has scores if it needs them."""
    assert scores is not None or not recipe.loss.needs_teacher or recipe.teachers.ema is not None
    return _make_batches(source, recipe, scores, plan, track)


def _make_batches(
    source: Source, recipe: Recipe, scores: TeacherScores | None, plan: MicroBatchPlan, track: Track
) -> TrainingBatches:
    kind = CandidateListBatches if recipe.loss.on_lists else AllPairsBatches
    # The recipe decides, not the plan of a cache: a loss without a teacher needs the filter too.
    false_negatives = false_negative_filter(source.corpus, recipe.candidates.duplicate_bits, track)
    return kind(
        source, recipe.batch, recipe.seed, scores, replace(plan, by_side=recipe.model.kind == "dual"), false_negatives
    )


def preview_batches(
    corpus: Corpus, recipe: Recipe, scores: TeacherScores | None, plan: MicroBatchPlan, track: Track
) -> TrainingBatches:
    """The same batches to be counted and never read, so that no model is needed; dual teachers, which choose no batch,
    may be absent."""
    return _make_batches(_UnreadSource(corpus), recipe, scores, plan, track)


@dataclass(frozen=True)
class _UnreadSource:
    """A corpus whose images and captions are never read."""

    corpus: Corpus

    def images(self, image_ix: Sequence[int] | Index) -> ImageBatch:
        raise AssertionError("a preview reads no images")

    def texts(self, text_ix: Sequence[int] | Index) -> TextBatch:
        raise AssertionError("a preview reads no captions")


def count_steps(recipe: Recipe, batches_per_epoch: float) -> int:
    """Optimizer steps of a run."""
    if recipe.optimizer.steps is not None:
        return recipe.optimizer.steps
    # Rounded down, as in the released code.
    return max(1, int(recipe.optimizer.epochs * batches_per_epoch))


def work_per_step(recipe: Recipe, scores: TeacherScores | None) -> tuple[str, int]:
    """What a step computes, and how many: images for a dual model, pairs for a fusion model."""
    size = recipe.batch.size
    if recipe.model.kind == "dual":
        return "images", size
    num_negatives = recipe.batch.random_negatives if scores is None else recipe.batch.hard_negatives
    return "pairs", size * (1 + num_negatives if recipe.loss.on_lists else size)
