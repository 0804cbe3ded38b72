"""A training from its request to its finished run, in five steps.

resolve   recipe, overrides, options and output folder; opens nothing
open      the corpus or the stream, its caches and its validation
settle    teachers, initial model, temperature, precision and micro-batches; final
start     the run folder, new or resumed, with what the data keep in it
run       the steps (`loop`), and the saved model

Each step needs only the ones before it, and the cheap ones come first. A stream and texts alone are kinds of data
(`TrainingData`), and the fine-tuning of a teacher is a training by a recipe without one.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from torch import nn

from dcdctl.core import distributed, files
from dcdctl.core.config import naming_fields, to_table
from dcdctl.core.data import counted_corpus, prepare_command
from dcdctl.core.errors import ConfigError, resumed_by
from dcdctl.core.models import Model
from dcdctl.core.progress import Say, Track, Watch, silent, step_bar, unsaid
from dcdctl.core.teacher import false_negative_filter
from dcdctl.core.training import (
    grad_cache,
    initial_model,
    loggers,
    loop,
    memory,
    negatives,
    runs,
    stream_data,
    text_data,
    wise_ft,
)
from dcdctl.core.training.batches.make import choose_pairs
from dcdctl.core.training.batches.step_pairs import check_size
from dcdctl.core.training.corpus_data import CorpusData
from dcdctl.core.training.coverage import Preview
from dcdctl.core.training.grad_cache import Step
from dcdctl.core.training.inputs import InputRefs, check_teachers, embeds_corpus
from dcdctl.core.training.loop import TrainingOptions
from dcdctl.core.training.objective import PairObjective
from dcdctl.core.training.recipe import load_recipe
from dcdctl.core.training.runs import Run, TrainingJob
from dcdctl.core.training.stream_data import StreamData
from dcdctl.core.training.text_data import TextData
from dcdctl.core.training.training_data import TrainingData, TrainingPlan
from dcdctl.core.training.validation import Validation, check_corpora


@dataclass(frozen=True)
class Settings:
    """The final settings of a training."""

    model: Model
    """The initial model, trained in place."""
    objective: PairObjective
    """With a number as the temperature."""
    options: TrainingOptions
    """With the precision and the micro-batches that the training has."""


def train_model(
    job: TrainingJob,
    inputs: InputRefs,
    *,
    options: TrainingOptions,
    track: Track = silent,
    watch: Watch | None = None,
    say: Say = unsaid,
) -> Run:
    """Train a model and return its finished run; `watch` sees the steps, `track` the other work, and also the steps if
    `watch` is None.

    `say` gets a line for each field in which the candidates of a cache differ from the recipe's, for what the caches
    cover, and for each choice of a trial.

    Raises what `resolve` raises before it opens anything, StaleError if another run is writing to the folder, then what
    the files and the models raise, and ConfigError if the caches cover too little of what the recipe needs.
    """
    # Before the folder is locked: a misspelled recipe is an error before anything is opened.
    plan = resolve(job, inputs, options)
    again = "run the same command again" if job.resume else "resume with --resume"
    with distributed.lock(job.out), resumed_by(again, (job.out / "run.json").exists), naming_fields(plan.recipe):
        # Opening a stream looks up every shard, also on the network, and a finished run needs none.
        if inputs.is_stream and Run(job.out).is_finished:
            return Run(job.out)
        data = open_data(plan)
        settings = settle(data, say, track)
        started = start(data, settings, track)
        if not started.is_finished:
            with memory.memory_errors(settings.options, data.recipe.batch.size):
                run(started, data, settings, watch or step_bar(track), say)
    return started


def preview(job: TrainingJob, inputs: InputRefs, options: TrainingOptions, track: Track = silent) -> Preview:
    """What `train_model` would do: its steps, and how its batches and caches fit the recipe. Opens files, loads no
    model and writes nothing.

    If the data name a manifest, only the steps are known, by its counts; teachers, caches and a pool are not looked at.
    Raises what `train_model` raises before it loads a model; too little coverage is part of the answer.
    """
    recipe = load_recipe(job.recipe, job.sets)
    if (rounds := recipe.pool.rounds) is not None and not inputs.caches:
        raise ConfigError(
            f"pool.rounds is {rounds}, and a dry run shows one training with its cache",
            hint="`dcdctl cache-teacher --dry-run` shows what the first round scores",
        )
    if (corpus := counted_corpus(Path(*inputs.places), inputs.split, inputs.max_images)) is None:
        return open_data(resolve(job, inputs, options)).measure(track)
    pairs = choose_pairs(corpus, recipe, None, false_negative_filter(corpus, None))
    return Preview(
        recipe=replace(recipe, batch=pairs.config),
        batches_per_epoch=pairs.batches_per_epoch,
        has_cache=recipe.loss.needs_teacher,
        adapted=pairs.adapted,
        made_by=prepare_command(corpus.folder),
    )


def resolve(job: TrainingJob, inputs: InputRefs, options: TrainingOptions) -> TrainingPlan:
    """The plan of a training. Reads the recipe and looks at the output folder; opens no corpus, no cache, no shard and
    no weights.

    ConfigError for a wrong recipe or override, for a recipe of another kind of training, for one that needs scores
    where none are given, or for what a stream cannot give; ModelError if it needs a teacher where none is given, or one
    of the other kind; MissingError if a package is not installed; StaleError or InputError if the output folder is
    taken or cannot be written.
    """
    recipe = load_recipe(job.recipe, job.sets)
    plan = TrainingPlan(job, inputs, recipe, options)
    if inputs.is_texts:
        text_data.check(plan)
    elif inputs.is_stream:
        stream_data.check(plan)
    elif job.kind == "finetune-teacher" and (recipe.model.kind != "fusion" or recipe.loss.needs_teacher):
        raise ConfigError(
            f"recipe {job.recipe} trains a student",
            hint="finetune-teacher expects a fusion model and a loss without a teacher, such as ranking",
        )
    if options.wandb is not None:
        loggers.require()
    initial_model.check(recipe, has_teacher=bool(inputs.teacher_kinds) and not embeds_corpus(recipe, inputs))
    if not inputs.is_texts:
        check_teachers(recipe, inputs)
    check_corpora(recipe, inputs.validation_data)
    if recipe.loss.temperature == "auto" and not inputs.caches:
        raise ConfigError(
            "loss.temperature is auto, which is taken from the scores of a cache, and there is none",
            hint="name one with --cache, or set a number",
        )
    negatives.check(recipe, has_cache=bool(inputs.caches))
    if recipe.batch.negatives == "mined":
        recipe.candidates.require_packages()
    check_size(recipe.batch, options.micro_batch_plan)
    earlier = runs.check_folder(job.out, {"what": job.kind, "recipe": to_table(recipe)}, resume=job.resume)
    # Features are written before the first step, and may take hours.
    if options.compute.features is not None:
        files.check_output_folder(options.compute.features)
    return replace(plan, options=memory.recorded(options, earlier))


def open_data(plan: TrainingPlan) -> TrainingData:
    """The files of a training; they are read later."""
    if plan.inputs.is_texts:
        return TextData(plan)
    return StreamData(plan) if plan.inputs.is_stream else CorpusData(plan)


def settle(data: TrainingData, say: Say, track: Track) -> Settings:
    """Load the models and choose the settings that depend on them, by a trial of the first step."""
    options = data.plan.options
    data.load_teachers(track)
    recipe = data.recipe
    for line in data.preview.adaptations():
        say(line)
    model = initial_model.make_model(recipe, data.captions, data.teacher, track)
    initial_model.check_loss(recipe.loss, model)
    for line in initial_model.caption_notes(data.captions, model.preprocess):
        say(line)
    if data.vector_width is not None:
        assert model.kind == "dual"
        model.add_projection(data.vector_width)
    # After the model, whose preprocessing and encoders decide what is read.
    data.read_for(model, track)
    for line in data.check():
        say(line)
    objective = data.objective(replace(recipe.loss, temperature=data.temperature or recipe.loss.temperature))
    # Before the trial, which measures what fits into memory with it.
    if options.checkpoint_activations:
        model.checkpoint_activations()
    network = cast(nn.Module, model)  # the contract lists only the part of nn.Module that other rooms use

    def try_first_step(options: TrainingOptions) -> None:
        micro_batches = options.micro_batch_plan
        step = Step(number=0, seed=recipe.seed, compute=options.compute, micro_batch_plan=micro_batches)
        grad_cache.backward(network, objective, data.batches(micro_batches)[0], step)

    options = memory.settle(options, network, recipe.batch.size, try_first_step, say)
    return Settings(model, objective, options)


def start(data: TrainingData, settings: Settings, track: Track) -> Run:
    """The run, started or resumed by the main process."""
    job, options, preview = data.plan.job, settings.options, data.preview
    measured = {
        **preview.measured(),
        "micro_batches": options.micro_batches,
        "batches_per_epoch": preview.batches_per_epoch,
        "validated_on": list(data.validation),
        **runs.equivalent_command(job, data.plan.inputs.options()),
    }
    with distributed.main_first():
        if distributed.is_main():
            # Mining comes before the folder is made, so that a failure leaves no folder.
            keep = data.collect(options.compute, track)
            facts = data.facts(settings.model.digest, options.compute)
            keep(runs.start_run(job.out, data.plan.recipe, job.kind, facts, resume=job.resume, measured=measured))
    return Run(job.out)


def run(started: Run, data: TrainingData, settings: Settings, watch: Watch, say: Say) -> None:
    """Train the model, and save it or the best one by validation, averaged with its start if the recipe says so."""
    recipe, model, options = data.recipe, settings.model, settings.options
    validation = (
        Validation(started, data.validation, recipe, options.compute, data.validation_teachers)
        if data.validation
        else None
    )
    unit, per_step = data.preview.work_per_step
    learner = loop.Learner(
        cast(nn.Module, model),
        settings.objective,
        recipe.optimizer,
        num_steps=data.preview.num_steps,
        seed=recipe.seed,
        options=options,
    )
    loop.train(
        started,
        learner,
        data.batches(options.micro_batch_plan, started),
        validation,
        functools.partial(watch, unit=unit, per_step=per_step),
    )
    with distributed.main_first():
        if distributed.is_main():
            finish(started, data, model, validation, say)


def finish(started: Run, data: TrainingData, model: Model, validation: Validation | None, say: Say) -> None:
    """Choose and average the weights of a trained model, and save it."""
    # First, because the best weights were saved with the adapters still apart.
    if validation is not None:
        validation.choose(model, say)
    # Before the average: the start has no adapters, and its weights have other names than adapted ones.
    if model.as_dual is not None:
        model.as_dual.merge_adapters()
    share = data.recipe.model.average_with_start
    if share:
        start = started.facts()["inputs"]["start"]
        average = wise_ft.averages_with_start(model, data.recipe, data.captions, data.teacher, start)
        if share == "auto":
            assert validation is not None
            say(f"model.average_with_start is auto: {validation.choose_share(model, average):g}")
        else:
            average(share)
    if validation is not None and share != "auto" and (share or len(data.validation) > 1):
        validation.log_saved(model, share)
    runs.finish(started, model)
