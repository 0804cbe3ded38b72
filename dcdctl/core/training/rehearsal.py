"""What a training refuses, before its scores are there: a teacher that scores for hours is not called for one that
cannot begin."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from dcdctl.core import devices
from dcdctl.core.models import Model, naming_fields
from dcdctl.core.progress import Track, silent
from dcdctl.core.training import corpus_data, grad_cache
from dcdctl.core.training.batches.batch import UNSPLIT
from dcdctl.core.training.batches.pool import PickedPairs
from dcdctl.core.training.batches.step_pairs import CorpusBatches, StepPairs
from dcdctl.core.training.corpus_data import CorpusData
from dcdctl.core.training.coverage import Preview
from dcdctl.core.training.grad_cache import Step
from dcdctl.core.training.inputs import InputRefs, TeacherUse
from dcdctl.core.training.loop import TrainingOptions
from dcdctl.core.training.runs import TrainingJob
from dcdctl.core.training.settled import choose_pairs
from dcdctl.core.training.train import load_models, make_learner, resolve
from dcdctl.core.training.training_data import TrainingPlan

TO_COME = Path("cache")
"""Stands for the cache that is not there yet."""
TRIED = 8
"""Images, and texts of a pool, whose gradient is timed."""


def rehearse(
    job: TrainingJob, inputs: InputRefs, options: TrainingOptions, track: Track = silent, *, is_timed: bool = False
) -> Preview:
    """What a training on a pool would do, once this has scores of the teacher; with `is_timed`, also how long it takes.

    Raises what `train_model` would raise then, but for what depends on the scores: how many queries they cover, and how
    many texts have a pick. Opens the corpora, and makes the initial model and its optimizer.
    """
    plan = resolve_for_scores(job, inputs, options)
    recipe = plan.recipe
    if recipe.loss.temperature == "auto":
        recipe = replace(recipe, loss=replace(recipe.loss, temperature=1.0))
    # As with a teacher that scores every pair, and is not read.
    unread = TeacherUse(scores_batches=True, embeds=False)
    notes: list[str] = []
    with naming_fields(plan.recipe):
        data = corpus_data.open_data(replace(plan, inputs=inputs, recipe=recipe, use=unread), track)
        _, model = load_models(data, notes.append, track)
        corpus_data.check_features(model, options.compute)
        if options.checkpoint_activations:
            model.checkpoint_activations()
        make_learner(model, data.settled, plan.options)
        seconds = None
        # Stored features are not there yet.
        if is_timed and options.compute.features is None:
            seconds = data.preview.num_steps * _seconds_of_step(data, model, options, track)
    return replace(data.preview, dual_teachers="none", temperature=None, notes=notes, seconds=seconds)


def _seconds_of_step(data: CorpusData, model: Model, options: TrainingOptions, track: Track) -> float:
    """About how long a step takes: the gradient of a few images, in proportion to those of a step."""
    recipe, parts, num_images = data.recipe, [], 0
    few = replace(
        recipe,
        batch=replace(recipe.batch, size=min(recipe.batch.size, TRIED)),
        pool=replace(recipe.pool, images=TRIED, texts=TRIED),
    )
    for part in data.parts:
        corpus = part.corpus
        pairs: StepPairs
        if corpus.is_pool and recipe.pool.pseudo_positive_above is not None:
            # Any picks cost the same.
            image_T = np.arange(corpus.num_captions) % corpus.num_images
            pairs = PickedPairs(corpus, few, None, part.false_negatives.with_owners(image_T), image_T=image_T)
        else:
            pairs = choose_pairs(corpus, few, None, part.false_negatives)
        parts.append(CorpusBatches(corpus_data.make_source(model, corpus, options.compute, track), pairs))
        num_images += pairs.size_of_step[0]
    batch = corpus_data.make_batches(parts, recipe, UNSPLIT, None)[0]
    step = Step(number=0, seed=recipe.seed, compute=options.compute)
    model.to(options.compute.device).train()
    # The first pass of a process takes longer.
    for _ in range(2):
        seconds, _ = devices.timed(
            lambda: grad_cache.backward(model, data.settled.objective, batch, step), options.compute.device
        )
    return seconds * data.preview.work_per_step[1] / num_images


def resolve_for_scores(job: TrainingJob, inputs: InputRefs, options: TrainingOptions) -> TrainingPlan:
    """The plan of a training whose cache is not there yet."""
    return resolve(job, replace(inputs, caches=[TO_COME, *inputs.caches]), options)
