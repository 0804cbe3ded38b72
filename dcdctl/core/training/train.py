"""A training from its request to its finished run.

resolve   recipe, overrides, options and output folder; opens nothing
open      the corpus, the stream or the texts, with caches and validation: `TrainingData`, measured
load      the teachers, then the initial model
read      the data as the model reads them, with the teachers' scores: `Prepared`
try       precision and micro-batches, by a trial of the first step
start     the run folder, new or resumed, with what the data keep in it
run       the steps (`loop`), and the saved model

Each step gives a value that is complete, and needs only the values before it; the cheap steps come first. The
fine-tuning of a teacher is a training by a recipe without one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from dcdctl.core import distributed, files
from dcdctl.core.config import to_table
from dcdctl.core.data import counted_corpus, prepare_command
from dcdctl.core.errors import ConfigError, resumed_by
from dcdctl.core.models import Model, naming_fields
from dcdctl.core.progress import Say, Track, Watch, silent, step_bar, unsaid
from dcdctl.core.teacher import false_negative_filter
from dcdctl.core.training import (
    corpus_data,
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
from dcdctl.core.training.batches.step_pairs import check_size
from dcdctl.core.training.corpus_data import CorpusData
from dcdctl.core.training.coverage import Preview
from dcdctl.core.training.inputs import InputRefs, TeacherUse, check_teachers
from dcdctl.core.training.loop import TrainingOptions
from dcdctl.core.training.recipe import load_recipe
from dcdctl.core.training.runs import Run, TrainingJob
from dcdctl.core.training.settled import Settled, choose_pairs
from dcdctl.core.training.stream_data import StreamData
from dcdctl.core.training.text_data import TextData
from dcdctl.core.training.training_data import Prepared, Teachers, TrainingPlan
from dcdctl.core.training.validation import Validation, check_corpora, cosine_note

TrainingData = CorpusData | StreamData | TextData
CHECKS = {"corpus": corpus_data.check, "stream": stream_data.check, "texts": text_data.check}
OPENERS: dict[str, Callable[..., TrainingData]] = {
    "corpus": corpus_data.open_data,
    "stream": stream_data.open_data,
    "texts": text_data.open_data,
}
"""The kinds of data: what each refuses before anything is opened, and how it is opened."""


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
        is_finished = Run(job.out).is_finished
        # Opening a stream looks up every shard, also on the network, and a finished run needs none.
        if is_finished and inputs.form == "stream":
            return Run(job.out)
        data = OPENERS[inputs.form](plan, track)
        for line in data.preview.adaptations():
            say(line)
        teachers, model = load_models(data, say, track)
        facts = {**data.facts(teachers), "start": model.digest}
        if is_finished:
            # What it was made from is compared; its scores, images and batches are not needed.
            return start(plan, facts, plan.options)
        prepared = data.read(model, teachers, say, track)
        # Before the trial, which measures what fits into memory with it.
        if plan.options.checkpoint_activations:
            model.checkpoint_activations()
        options = memory.try_first_step(prepared, model, plan.options, say)
        started = start(plan, facts, options, prepared)
        with memory.memory_errors(options, prepared.recipe.batch.size):
            validation = None
            if prepared.validation:
                judged = prepared.validation_teachers
                validation = Validation(started, prepared.validation, prepared.recipe, options.compute, judged)
            learner = make_learner(model, prepared, options)
            unit, per_step = prepared.preview.work_per_step
            watch = functools.partial(watch or step_bar(track), unit=unit, per_step=per_step)
            loop.train(started, learner, prepared.make_batches(options.micro_batch_plan, started), validation, watch)
            distributed.in_main(lambda: finish(started, data, teachers, model, validation, say))
    return started


def load_models(data: TrainingData, say: Say, track: Track) -> tuple[Teachers, Model]:
    """The teachers of a training and its initial model; `say` gets what the captions lack."""
    teachers = data.load_teachers(track)
    model = initial_model.load_start(data.recipe, data.captions, teachers.start, teachers.vector_width, say, track)
    return teachers, model


def make_learner(model: Model, data: Prepared | Settled, options: TrainingOptions) -> loop.Learner:
    """A model with the optimizer of its recipe."""
    return loop.Learner(
        model,
        data.objective,
        data.recipe.optimizer,
        num_steps=data.preview.num_steps,
        seed=data.recipe.seed,
        options=options,
    )


def preview(job: TrainingJob, inputs: InputRefs, options: TrainingOptions, track: Track = silent) -> Preview:
    """What `train_model` would do: its steps, and how its batches and caches fit the recipe. Opens files, loads no
    model and writes nothing.

    If the data name a manifest, only the steps are known, by its counts; teachers, caches and a pool are not looked at.
    Raises what `train_model` raises before it loads a model; too little coverage is part of the answer.
    """
    recipe = load_recipe(job.recipe, job.sets)
    if (corpus := counted_corpus(Path(*inputs.places), inputs.split, inputs.max_images)) is None:
        return OPENERS[inputs.form](resolve(job, inputs, options), track, is_preview=True).preview
    memory.check_weights(recipe.model, options.compute.device)
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
    plan = TrainingPlan(job=job, inputs=inputs, recipe=recipe, options=options, use=TeacherUse.of(recipe, inputs))
    CHECKS[inputs.form](plan)
    if options.wandb is not None:
        loggers.require()
    memory.check_weights(recipe.model, options.compute.device)
    initial_model.check(recipe, has_teacher=bool(inputs.teacher_kinds) and not plan.use.embeds)
    if inputs.form != "texts":
        check_teachers(recipe, inputs, plan.use)
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


def check_new_model(job: TrainingJob, inputs: InputRefs, options: TrainingOptions) -> None:
    """Raise what `resolve` raises, and what the model of a recipe without a teacher raises when it is made: for a
    command that prepares the data first, which may take hours.

    The model is made a second time for the training. Encoders take seconds to load, and only loading shows that all
    their files are there.
    """
    recipe = resolve(job, inputs, options).recipe
    with naming_fields(recipe):
        # A model with a vocabulary of its own learns it from captions, which are not there yet.
        initial_model.make_model(recipe, ["a photo"], None)


def start(plan: TrainingPlan, facts: dict[str, Any], options: TrainingOptions, prepared: Prepared | None = None) -> Run:
    """The run, started or resumed by the main process; StaleError if it was made from other `facts`. A finished run has
    nothing prepared."""
    job, compute = plan.job, options.compute
    facts = {
        **facts,
        "precision": compute.precision,
        # Stored features are rounded to float16, so they change numbers; their folder does not.
        "features": None if compute.features is None else "float16",
    }
    measured: dict[str, Any] = {}
    if prepared is not None:
        measured = {
            **prepared.preview.measured(),
            "micro_batches": options.micro_batches,
            "batches_per_epoch": prepared.preview.batches_per_epoch,
            "validated_on": list(prepared.validation),
            **({"rounds": list(job.rounds)} if job.rounds else {}),
            **runs.equivalent_command(job, plan.inputs.options()),
        }

    def write() -> Run:
        # Mining comes before the folder is made, so that a failure leaves no folder.
        save_files = prepared.collect() if prepared is not None and prepared.collect is not None else None
        started = runs.start_run(job.out, plan.recipe, job.kind, facts, resume=job.resume, measured=measured)
        if save_files is not None:
            save_files(started)
        return started

    return distributed.in_main(write)


def finish(
    started: Run, data: TrainingData, teachers: Teachers, model: Model, validation: Validation | None, say: Say
) -> None:
    """Choose the weights of a trained model, average them with its start if the recipe says so, and save it."""
    # First, because the best weights were saved with the adapters still apart.
    if validation is not None:
        validation.choose(model, say)
    # Before the average: the start has no adapters, and its weights have other names than adapted ones.
    if model.as_dual is not None:
        model.as_dual.merge_adapters()
    share = data.recipe.model.average_with_start
    if share:
        start_digest = started.facts()["inputs"]["start"]
        average = wise_ft.averages_with_start(model, data.recipe, data.captions, teachers.start, start_digest)
        if share == "auto":
            assert validation is not None
            say(f"model.average_with_start is auto: {validation.choose_share(model, average):g}")
        else:
            average(share)
    if validation is not None and share != "auto" and (share or len(data.validation) > 1):
        validation.log_saved(model, share)
    runs.finish(started, model)
    if note := cosine_note(started):
        say(note)
