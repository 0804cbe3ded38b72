"""A training from its request to its finished run.

Each step needs only the ones before it, and the cheap ones come first:
resolve (recipe and settings) -> open files -> load the teacher -> initial model -> batches -> run folder -> steps ->
save the model.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import nn

from dcdctl.core import distributed, files, models, scoring
from dcdctl.core.data import Corpus
from dcdctl.core.devices import Compute
from dcdctl.core.errors import ConfigError
from dcdctl.core.models import FusionScorer, Model
from dcdctl.core.progress import Say, Track, Watch, silent, step_bar, unsaid
from dcdctl.core.scoring import CorpusSource, Source
from dcdctl.core.teacher import (
    EmbeddedScores,
    TeacherCache,
    TeacherEnsemble,
    TeacherScores,
    embedded_teachers,
    measure_spread,
    read_caches,
)
from dcdctl.core.training import final_model, initial_model, loggers, loop, negatives, runs, stream, trial, validation
from dcdctl.core.training.batches.lists import CandidateListBatches
from dcdctl.core.training.batches.make import TrainingBatches, count_steps, make_batches, preview_batches, work_per_step
from dcdctl.core.training.batches.sampler import check_size
from dcdctl.core.training.fit import DualTeachers, Fit, Preview, measure_fit
from dcdctl.core.training.grad_cache import StepInfo
from dcdctl.core.training.inputs import InputRefs, TrainingInputs, check_teachers, embeds_corpus, scores_batches
from dcdctl.core.training.loop import TrainingOptions
from dcdctl.core.training.losses.config import LossConfig
from dcdctl.core.training.objective import PairObjective, SelfTaughtObjective
from dcdctl.core.training.recipe import Recipe, load_recipe
from dcdctl.core.training.refresh import refresh_cache, teacher_compute
from dcdctl.core.training.runs import Run, TrainingJob
from dcdctl.core.training.trial import Trial
from dcdctl.core.training.validation import Validation

IMAGE_CACHE_BYTES = 512 * 2**20
"""Bytes of decoded images that a training keeps: enough for a corpus of small images, and little beside a model in
training."""


@dataclass(frozen=True)
class TrainingPlan:
    """A training whose recipe and settings are checked, with nothing opened yet."""

    job: TrainingJob
    recipe: Recipe
    options: TrainingOptions
    scores_batches: bool
    """Whether dual teachers score the batches, without a cache."""
    embeds_corpus: bool
    """Whether dual teachers embed the corpus, for that or for a loss of their vectors."""


@dataclass(frozen=True)
class _Files:
    """The open files of a training."""

    corpus: Corpus
    caches: Sequence[TeacherCache]
    scores: TeacherCache | TeacherEnsemble | None
    """The scores of all caches together; None without a cache."""
    validation: Corpus | None
    """The split that the model is validated on, if it is."""
    temperature: float | None
    """What `loss.temperature` auto stands for; None if the recipe has a number."""


@dataclass(frozen=True)
class _Training:
    """A training with everything opened and loaded."""

    plan: TrainingPlan
    opened: _Files
    teacher: FusionScorer | None
    """The model that the student starts from."""
    embedded: EmbeddedScores | None
    """The dual teachers, if they score the batches or the loss compares vectors."""
    model: Model
    """The initial model, trained in place."""
    source: Source

    @property
    def scores(self) -> TeacherScores | None:
        """The scores that the student learns from; None if its loss needs none."""
        return self.embedded if self.plan.scores_batches else self.opened.scores

    @property
    def vectors(self) -> EmbeddedScores | None:
        """The dual teachers whose vectors the loss compares; None if it compares none."""
        return self.embedded if self.plan.recipe.loss.vector_terms else None

    @property
    def dual_teachers(self) -> DualTeachers:
        """Whether dual teachers score the batches, and have embedded the corpus: they have not where the run is
        finished."""
        if not self.plan.scores_batches:
            return "none"
        return "unread" if Run(self.plan.job.out).is_finished else "embedded"


@dataclass(frozen=True)
class _Schedule:
    """How many steps, and before which of them the cache is refreshed."""

    num_steps: int
    refresh_steps: Sequence[int]


def train(
    job: TrainingJob,
    inputs: TrainingInputs,
    *,
    options: TrainingOptions,
    track: Track = silent,
    watch: Watch | None = None,
    say: Say = unsaid,
) -> Run:
    """Train a model and return its finished run; `watch` sees the steps, `track` the other work, and also the steps if
    `watch` is None.

    `say` gets a line for each field in which the candidates of a cache differ from the recipe's, and the lines of
    `Fit`; ConfigError if the caches cover too little of what the recipe needs.

    Raises what `resolve` raises before it opens anything, StaleError if another run is writing to the folder, and then
    what the files and the models raise.
    """
    if isinstance(inputs, InputRefs) and inputs.is_stream:
        return stream.train(job, inputs, options=options, track=track, watch=watch, say=say)
    plan = resolve(job, inputs, options)
    with distributed.lock(job.out):
        opened = _open_files(plan, inputs)
        training = _load_models(plan, opened, inputs, track)
        batches = make_batches(training.source, plan.recipe, training.scores, plan.options.micro_batch_plan, track)
        batches = batches.with_vectors(training.vectors)
        num_steps = count_steps(plan.recipe, batches.batches_per_epoch)
        schedule = _schedule(plan.recipe, num_steps, opened.scores, has_teacher=training.teacher is not None)
        _embed_for_teachers(training, track)
        fit = measure_fit(plan.recipe, opened.caches, batches, num_steps, dual_teachers=training.dual_teachers)
        for line in (*fit.differences, *fit.mined_otherwise):
            say(line)
        fit.check()
        for line in fit.lines():
            say(line)
        if opened.temperature is not None:
            say(f"loss.temperature is auto: {opened.temperature:g} for these scores")
        training, batches = _settle(training, batches, num_steps, say)
        run, batches = _start_run(training, batches, num_steps, fit, inputs, track)
        if not run.is_finished:
            with trial.memory_errors(training.plan.options, plan.recipe.batch.size):
                _run_steps(training, run, batches, schedule, track, watch or step_bar(track))
    return run


def preview(job: TrainingJob, inputs: TrainingInputs, options: TrainingOptions, track: Track = silent) -> Preview:
    """What `train` would do: its steps, and how its batches and caches fit the recipe. Opens files, loads no model and
    writes nothing.

    Raises what `train` raises before it loads a model; too little coverage is part of the answer.
    """
    if isinstance(inputs, InputRefs) and inputs.is_stream:
        return stream.preview(job, inputs, options)
    plan = resolve(job, inputs, options)
    opened, recipe = _open_files(plan, inputs), plan.recipe
    # Dual teachers are not loaded: their scores choose among the drawn negatives, and change no number of batches.
    batches = preview_batches(opened.corpus, recipe, opened.scores, options.micro_batch_plan, track)
    num_steps = count_steps(recipe, batches.batches_per_epoch)
    _schedule(recipe, num_steps, opened.scores, has_teacher=bool(inputs.teacher_kinds) and not plan.embeds_corpus)
    fit = measure_fit(
        recipe, opened.caches, batches, num_steps, dual_teachers="unread" if plan.scores_batches else "none"
    )
    return Preview(
        num_steps=num_steps, batches_per_epoch=batches.batches_per_epoch, fit=fit, temperature=opened.temperature
    )


def resolve(job: TrainingJob, inputs: TrainingInputs, options: TrainingOptions) -> TrainingPlan:
    """The plan of a training. Reads the recipe and looks at the output folder; opens no corpus, no cache and no
    weights.

    ConfigError for a wrong recipe or override, for a recipe of another kind of training, or for one that needs scores
    where none are given; ModelError if it needs a teacher where none is given, or one of the other kind; MissingError
    if a package is not installed; StaleError or InputError if the output folder is taken or cannot be written.
    """
    recipe = load_recipe(job.recipe, job.sets)
    if job.kind == "finetune-teacher" and (recipe.model.kind != "fusion" or recipe.loss.needs_teacher):
        hint = "finetune-teacher expects a fusion model and a loss without a teacher, such as ranking"
        raise ConfigError(f"recipe {job.recipe} trains a student", hint=hint)
    if options.wandb is not None:
        loggers.require()
    is_embedded = embeds_corpus(recipe, inputs)
    initial_model.check(recipe, has_teacher=bool(inputs.teacher_kinds) and not is_embedded)
    check_teachers(recipe, inputs)
    if recipe.loss.temperature == "auto" and not inputs.caches:
        found = "loss.temperature is auto, which is taken from the scores of a cache, and there is none"
        raise ConfigError(found, hint="name one with --cache, or set a number")
    negatives.check(recipe, has_cache=bool(inputs.caches))
    if recipe.batch.negatives == "mined":
        recipe.candidates.require_packages()
    check_size(recipe.batch, options.micro_batch_plan)
    runs.check_folder(job.out, recipe, job.kind, resume=job.resume)
    if options.compute.features is not None:
        files.check_output_folder(options.compute.features)
    return TrainingPlan(job, recipe, trial.recorded(Run(job.out), options), scores_batches(recipe, inputs), is_embedded)


def _open_files(plan: TrainingPlan, inputs: TrainingInputs) -> _Files:
    corpus, caches = inputs.open()
    scores = read_caches(caches, plan.recipe.teachers.weights) if caches or not plan.embeds_corpus else None
    config = plan.recipe.validation
    measured = validation.open_corpus(corpus, config, inputs.validation_data) if config.every else None
    return _Files(
        corpus, caches, scores, measured, _recommended(scores) if plan.recipe.loss.temperature == "auto" else None
    )


def _recommended(scores: TeacherCache | TeacherEnsemble | None) -> float:
    """The temperature that the spread of the scores recommends; ConfigError if it recommends none."""
    assert scores is not None
    found = measure_spread(scores).temperature
    if found is None:
        raise ConfigError(
            "loss.temperature is auto, and the best scores of too many lists of the cache are equal",
            hint="set a number",
        )
    return found


def _load_models(plan: TrainingPlan, opened: _Files, inputs: TrainingInputs, track: Track) -> _Training:
    """Load the teachers, make the initial model, and encode the corpus once if its frozen encoders' features are
    stored."""
    teacher, embedded, duals = None, None, list[tuple[str, models.DualEncoder]]()
    if plan.embeds_corpus:
        # With caches the weights are those of the caches, and the dual teachers have equal ones.
        duals, weights = list(inputs.load_dual_teachers(track)), () if opened.caches else plan.recipe.teachers.weights
        embedded = embedded_teachers(duals, opened.corpus, plan.options.compute, weights)
    else:
        teacher = inputs.load_teacher(opened.caches, track)
    model = initial_model.make_model(plan.recipe, opened.corpus.captions, teacher, track)
    initial_model.check_dims(plan.recipe.loss.dims, model)
    if plan.recipe.loss.vector_terms:
        assert embedded is not None
        assert model.kind == "dual"
        model.add_projection(embedded.width)
    if plan.recipe.teachers.ema is not None:
        assert model.kind == "dual"
        model.add_average()
    # The main process stores the features; the others then find them complete.
    with distributed.main_first():
        source = make_source(model, opened.corpus, plan.options.compute, track)
    return _Training(plan, opened, teacher, embedded, model, source)


def _embed_for_teachers(training: _Training, track: Track) -> None:
    """Embed the corpus with the dual teachers, if these score the batches and the run has steps left.

    Before the run folder is made, so that a failure leaves no folder, and after a folder of other teachers is refused.
    """
    job = training.plan.job
    if training.embedded is None or Run(job.out).is_finished:
        return
    runs.check_folder(job.out, training.plan.recipe, job.kind, resume=job.resume, inputs=_facts(training))
    training.embedded.embed(track)


def make_source(model: Model, corpus: Corpus, compute: Compute, track: Track) -> Source:
    """What batches are read from: the corpus, or the features of the model's encoders; ConfigError if those are
    trained."""
    if compute.features is None:
        return CorpusSource(corpus, model.preprocess, IMAGE_CACHE_BYTES)
    if model.encoders is not None and not model.encoders.is_frozen:
        hint = "set model.frozen_encoders, model.layers or model.trained=projections, or leave --features out"
        raise ConfigError("--features stores the outputs of frozen encoders, and these encoders are trained", hint=hint)
    return scoring.open_source(corpus, model, compute, track)


def _schedule(recipe: Recipe, num_steps: int, scores: TeacherScores | None, *, has_teacher: bool) -> _Schedule:
    """The steps of a training; ConfigError if its cache cannot be refreshed as the recipe asks."""
    steps = [step for step in recipe.batch.refresh_steps if step < num_steps]
    if steps and not (has_teacher and isinstance(scores, TeacherCache)):
        raise ConfigError(
            "batch.refresh_steps needs one cache and its teacher", hint="name them with --cache and --teacher"
        )
    if steps and isinstance(scores, TeacherCache) and scores.teacher_name is not None:
        found = f"the scores of {scores.folder} are those of {scores.teacher_name}, which dcdctl cannot compute"
        raise ConfigError(
            f"batch.refresh_steps adds candidates, and {found}",
            hint="set it to [], and extend the cache by hand with --extend",
        )
    if steps and distributed.world_size() > 1:
        message = f"batch.refresh_steps is for one process, and there are {distributed.world_size()}"
        raise ConfigError(message, hint="start it without torchrun; --accumulate needs less memory")
    return _Schedule(num_steps, steps)


def _settle(
    training: _Training, batches: TrainingBatches, num_steps: int, say: Say
) -> tuple[_Training, TrainingBatches]:
    """The training and its batches with the settings that a trial of the first step chooses."""
    plan, model = (
        training.plan,
        cast(nn.Module, training.model),
    )  # the protocol lists only the part of nn.Module that other rooms use
    if plan.options.checkpoint_activations:
        training.model.checkpoint_activations()
    info = StepInfo(step=0, num_steps=num_steps, seed=plan.recipe.seed)
    # Negatives are mined after the trial, and random ones take the same time and memory.
    tried = (
        batches.with_random()
        if isinstance(batches, CandidateListBatches) and batches.config.negatives == "mined"
        else batches
    )
    options = trial.settle(
        plan.options, Trial(model, tried, _objective(training), info, trial.precisions(plan.options)), say
    )
    return replace(training, plan=replace(plan, options=options)), batches.with_plan(options.micro_batch_plan)


def _objective(training: _Training) -> PairObjective:
    recipe = training.plan.recipe
    if recipe.teachers.ema is not None:
        return SelfTaughtObjective(recipe.loss, recipe.teachers.ema)
    return PairObjective(_resolved(recipe.loss, training.opened.temperature))


def _start_run(
    training: _Training, batches: TrainingBatches, num_steps: int, fit: Fit, inputs: TrainingInputs, track: Track
) -> tuple[Run, TrainingBatches]:
    """The run, started or resumed by the main process, and the batches, with mined negatives if the recipe mines.

    Mining comes before the folder is made, so that a failure leaves no folder. The other processes read what the main
    one saved.
    """
    job, recipe, options = training.plan.job, training.plan.recipe, training.plan.options
    facts, mined = {**_facts(training), **fit.inputs()}, None
    measured = {
        **fit.measured(),
        "micro_batches": options.micro_batches,
        "batches_per_epoch": batches.batches_per_epoch,
    }
    measured |= runs.equivalent_command(job, inputs.options())
    with distributed.main_first():
        if recipe.batch.negatives == "mined":
            mined = negatives.read_or_mine(job.out, training.source, recipe, options.compute.device, track)
        run = Run(job.out)
        if distributed.is_main():
            run = runs.start_run(job.out, recipe, job.kind, facts, resume=job.resume, measured=measured)
            if mined is not None:
                negatives.save_mined(run.folder, mined, training.source.corpus, recipe)
    if mined is None:
        return run, batches
    assert isinstance(batches, CandidateListBatches)
    return run, batches.with_mined(negatives.for_lists(mined, recipe, num_steps))


def _facts(training: _Training) -> dict[str, Any]:
    """What the run depends on besides its recipe, for run.json; a run resumes only with equal facts."""
    opened, options = training.opened, training.plan.options
    return {
        "corpus": opened.corpus.fingerprint,
        "split": opened.corpus.split,
        "images": opened.corpus.num_images,
        "cache": None if opened.scores is None else opened.scores.plan,
        "start": training.model.digest,
        "precision": options.compute.precision,
        # Stored features are rounded to float16, so they change numbers; their folder does not.
        "features": None if options.compute.features is None else "float16",
        "validation": None if opened.validation is None else opened.validation.fingerprint,
        **({} if training.embedded is None else {"teachers": training.embedded.plan}),
        **({} if opened.temperature is None else {"temperature": opened.temperature}),
    }


def _run_steps(
    training: _Training, run: Run, batches: TrainingBatches, schedule: _Schedule, track: Track, watch: Watch
) -> None:
    """Train the model, refresh the cache between the steps where the recipe asks for it, and save the model."""
    recipe, options, scores = training.plan.recipe, training.plan.options, training.scores
    measured = training.opened.validation
    validate = None if measured is None else Validation(run, measured, recipe.validation, options.compute)
    train_until = functools.partial(
        loop.train,
        run,
        cast(nn.Module, training.model),
        objective=_objective(training),
        config=recipe.optimizer,
        num_steps=schedule.num_steps,
        seed=recipe.seed,
        options=options,
        validation=validate,
    )
    # Each stop leaves a checkpoint, so a run that is killed during a refresh mines again with the same weights. A
    # resumed run passes the earlier stops without a step and reads their finished caches.
    for stop in [*schedule.refresh_steps, None]:
        unit, per_step = work_per_step(recipe, scores)
        train_until(batches=batches, until=stop, watch=functools.partial(watch, unit=unit, per_step=per_step))
        if stop is not None:
            scores = _refresh(training, run, scores, stop, track)
            batches = make_batches(training.source, recipe, scores, options.micro_batch_plan).with_vectors(
                training.vectors
            )
    final_model.save_model(run, training.model, recipe, validate, training.opened.corpus.captions, training.teacher)


def _resolved(loss: LossConfig, temperature: float | None) -> LossConfig:
    """The loss with a number in the place of auto."""
    return loss if temperature is None else replace(loss, temperature=temperature)


def _refresh(training: _Training, run: Run, cache: TeacherScores | None, step: int, track: Track) -> TeacherCache:
    """The cache with the hard candidates that the student finds before a step."""
    assert isinstance(cache, TeacherCache)
    assert training.teacher is not None
    compute = teacher_compute(cache, training.plan.options.compute)
    folder = run.folder / "caches" / f"step-{step}"
    return refresh_cache(
        cache, folder, training.model, training.teacher, training.source, compute=compute, step=step, track=track
    )
