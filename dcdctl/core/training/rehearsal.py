"""What a training refuses, before its scores are there: a teacher that scores for hours is not called for one that
cannot begin."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dcdctl.core import models
from dcdctl.core.config import naming_fields
from dcdctl.core.progress import Track, silent, unsaid
from dcdctl.core.training import corpus_data, initial_model, validation
from dcdctl.core.training.coverage import Preview
from dcdctl.core.training.inputs import InputRefs, TeacherUse
from dcdctl.core.training.loop import Learner, TrainingOptions
from dcdctl.core.training.runs import TrainingJob
from dcdctl.core.training.train import resolve
from dcdctl.core.training.training_data import TrainingPlan

TO_COME = Path("cache")
"""Stands for the cache that is not there yet."""


def rehearse(job: TrainingJob, inputs: InputRefs, options: TrainingOptions, track: Track = silent) -> Preview:
    """What a training on a pool would do, once this has scores of the teacher.

    Raises what `train_model` would raise then, but for what depends on the scores: how many queries they cover, and how
    many texts have a pick. Opens the corpora, and makes the initial model and its optimizer.
    """
    plan = resolve_for_scores(job, inputs, options)
    # As with a teacher that scores every pair, which is not read here.
    opened = replace(plan, inputs=inputs, use=TeacherUse(scores_batches=True, embeds=True))
    if plan.recipe.loss.temperature == "auto":
        recipe = replace(plan.recipe, loss=replace(plan.recipe.loss, temperature=1.0))
        opened = replace(opened, recipe=recipe)
    with naming_fields(plan.recipe):
        data = corpus_data.open_data(opened, track)
        # A cache of the validation split is no part of the pool's.
        validation.check_judged(data.judged, data.judged_caches)
        start = None
        if plan.recipe.model.starts_from_teacher:
            (ref,) = inputs.teachers
            start = models.load_scorer(ref, inputs.overrides, track)
        model = initial_model.load_start(data.recipe, data.captions, start, None, unsaid, track)
        corpus_data.check_features(model, options.compute)
        if options.checkpoint_activations:
            model.checkpoint_activations()
        objective = corpus_data.make_objective(data.recipe, [part.corpus for part in data.parts], has_scores=True)
        Learner(
            model,
            objective,
            data.recipe.optimizer,
            num_steps=data.preview.num_steps,
            seed=data.recipe.seed,
            options=plan.options,
        )
    return replace(data.preview, dual_teachers="none", temperature=None)


def resolve_for_scores(job: TrainingJob, inputs: InputRefs, options: TrainingOptions) -> TrainingPlan:
    """The plan of a training whose cache is not there yet."""
    return resolve(job, replace(inputs, caches=[TO_COME, *inputs.caches]), options)
