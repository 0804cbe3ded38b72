"""From what a user names to a finished run: the wiring of corpus, cache, teacher and recipe."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dcdctl.core import distributed, models, scoring, teacher
from dcdctl.core.data import Corpus
from dcdctl.core.errors import ConfigError, StaleError
from dcdctl.core.progress import Track, Watch, silent, watched_by
from dcdctl.core.scoring import CorpusSource, Source
from dcdctl.core.teacher import Candidates, TeacherCache, TeacherEnsemble, read_caches
from dcdctl.core.training import initial_model, loggers, loop, negatives, runs, validation
from dcdctl.core.training.batch import WHOLE, Slicing
from dcdctl.core.training.batch_sampler import ListSteps, MatrixSteps
from dcdctl.core.training.loop import TrainingOptions
from dcdctl.core.training.objective import make_objective
from dcdctl.core.training.recipe import Recipe, load_recipe
from dcdctl.core.training.refresh import refreshed, scoring_options
from dcdctl.core.training.runs import Run
from dcdctl.core.training.validation import Validation

PICTURE_MEMORY = 512 * 2**20
"""Bytes of decoded pictures that a training keeps."""


@dataclass(frozen=True)
class TrainingJob:
    """A training as it is asked for: of which kind, by what recipe, into which folder."""

    what: Literal["distill", "finetune-teacher"]
    recipe: str
    """A name or a .toml file."""
    sets: Sequence[str]
    """Fields of the recipe that are to be others: loss.alpha=0.5."""
    out: Path
    resume: bool = False
    """Go on with the run in `out`, if there is one."""


@dataclass(frozen=True, kw_only=True)
class InputRefs:
    """What a training reads, by name."""

    data: Path
    split: str = "train"
    max_images: int | None = None
    caches: Sequence[Path] = ()
    teacher: str | None = None
    model_set: Sequence[str] = ()
    """What the teacher's files do not say: image_size=384."""


@dataclass(frozen=True)
class Inputs:
    """What a training reads: the corpus, the caches if there are any, and the model it starts from if one is named."""

    corpus: Corpus
    caches: Sequence[TeacherCache]
    teacher: Any | None


def open_inputs(refs: InputRefs, track: Track = silent) -> Inputs:
    """Open what is named and check that it belongs together: the caches must be of this corpus, and one of them of this teacher."""
    corpus = Corpus.open(refs.data, refs.split, refs.max_images)
    overrides = models.parse_overrides(refs.model_set)
    if overrides and refs.teacher is None:
        raise ConfigError("--model-set says something of the model named by --teacher, and there is none", hint="name it with --teacher")
    model = None if refs.teacher is None else models.load_fusion(refs.teacher, overrides, track)
    expected = None if model is None or len(refs.caches) > 1 else models.fingerprint(model)
    scores = [teacher.read_cache(cache, corpus=corpus, teacher=expected) for cache in refs.caches]
    if model is not None and len(scores) > 1 and models.fingerprint(model) not in {cache.plan["teacher"] for cache in scores}:
        raise StaleError(f"none of the caches was made with the teacher {refs.teacher}", hint="name the one whose scores are cached")
    return Inputs(corpus, scores, model)


def train(job: TrainingJob, inputs: Inputs, *, options: TrainingOptions, track: Track = silent, watch: Watch | None = None) -> Run:
    """Do a training; `watch` sees each step, `track` everything else, and the steps where there is no `watch`.

    MissingError if Weights & Biases is wanted and not installed; ConfigError if the recipe is not one of the kind that is asked for.
    """
    if options.wandb is not None:
        loggers.require()
    recipe = _recipe_of(job)
    model = initial_model.make_model(recipe, inputs.corpus.captions, inputs.teacher, track)
    cache = read_caches(inputs.caches, recipe.teachers.weights)
    negatives.check(recipe, has_cache=cache is not None)
    measured_on = validation.open_corpus(inputs.corpus, recipe.validation) if recipe.validation.every else None
    facts = {
        "corpus": inputs.corpus.fingerprint,
        "split": inputs.corpus.split,
        "cache": None if cache is None else cache.plan,
        "start": models.fingerprint(model),
        "precision": options.precision,
        "features": None if options.features is None else "float16",
        "validation": None if measured_on is None else measured_on.fingerprint,
    }
    with distributed.main_first():
        source = make_source(model, inputs.corpus, options, track)
    steps = make_steps(source, recipe, cache, options.slicing)
    num_steps = count_steps(recipe, steps.batches_per_epoch)
    stops = _refresh_steps(recipe, num_steps, inputs, cache)
    run, mined = _start(job, recipe, facts, source, options, track)
    if mined is not None:
        assert isinstance(steps, ListSteps)
        steps = steps.with_mined(negatives.for_lists(mined, recipe, num_steps))
    if run.is_finished:
        return run
    if options.checkpoint_activations:
        models.checkpoint_activations(model)
    measure = None if measured_on is None else Validation(run, measured_on, recipe.validation, options.device, options.features)
    objective, view = make_objective(recipe.loss), watch or watched_by(track)
    go_on = functools.partial(
        loop.train, run, model, objective=objective, config=recipe.optimizer, num_steps=num_steps, seed=recipe.seed, options=options
    )
    for stop in [*stops, None]:
        go_on(steps=steps, until=stop, validation=measure, watch=functools.partial(view, **work(recipe, cache)))
        if stop is not None:
            assert isinstance(cache, TeacherCache)
            folder = run.folder / "caches" / f"step-{stop}"
            how = scoring_options(cache, inputs.teacher, inputs.corpus, options.features, options.device, track)
            cache = refreshed(cache, folder, model, inputs.teacher, source, options=how, step=stop, track=track)
            steps = make_steps(source, recipe, cache, options.slicing)
    return _finish(run, model, measure)


def _recipe_of(job: TrainingJob) -> Recipe:
    """The recipe of a job; ConfigError if it is not one for the kind of training."""
    recipe = load_recipe(job.recipe, job.sets)
    if job.what == "finetune-teacher" and (recipe.model.kind != "fusion" or recipe.loss.needs_teacher):
        hint = "finetune-teacher wants a fusion model and a loss without a teacher, such as ranking"
        raise ConfigError(f"recipe {job.recipe} trains a student", hint=hint)
    return recipe


def _refresh_steps(recipe: Recipe, num_steps: int, inputs: Inputs, cache: TeacherCache | TeacherEnsemble | None) -> list[int]:
    """The steps before which new candidates are looked for; ConfigError where they cannot be had."""
    steps = [step for step in recipe.batch.refresh_steps if step < num_steps]
    if steps and (inputs.teacher is None or not isinstance(cache, TeacherCache)):
        raise ConfigError("batch.refresh_steps needs one cache and its teacher", hint="name them with --cache and --teacher")
    if steps and distributed.world_size() > 1:
        found = f"batch.refresh_steps is for one process, and there are {distributed.world_size()}"
        raise ConfigError(found, hint="start it without torchrun; --accumulate needs less memory")
    return steps


def _start(
    job: TrainingJob, recipe: Recipe, facts: dict[str, Any], source: Source, options: TrainingOptions, track: Track
) -> tuple[Run, Candidates | None]:
    """The run, made or taken up by the main one of several processes, and what is mined for it, if anything is.

    Mining comes before there is a folder: candidates that cannot be had leave none. The other processes read what the main one kept.
    """
    with distributed.main_first():
        mined = negatives.read_or_mine(job.out, source, recipe, options.device, track) if recipe.batch.negatives == "mined" else None
        if not distributed.is_main():
            return Run(job.out), mined
        run = runs.start_run(job.out, recipe, job.what, facts, resume=job.resume)
        if mined is not None:
            negatives.keep(run.folder, mined, source.corpus, recipe)
        return run, mined


def _finish(run: Run, model: Any, measure: Validation | None) -> Run:
    """Leave the trained model in the run folder."""
    with distributed.main_first():
        if distributed.is_main():
            if measure is not None:
                measure.choose(model)
            runs.finish(run, model)
    return run


def work(recipe: Recipe, cache: TeacherCache | TeacherEnsemble | None) -> dict[str, Any]:
    """What a step does, for `progress.Watch`: so many images of a dual model, pairs of a fusion model."""
    size = recipe.batch.size
    if recipe.model.kind == "dual":
        return {"unit": "images", "per_step": size}
    num_negatives = recipe.batch.drawn_negatives if cache is None else recipe.batch.hard_negatives
    return {"unit": "pairs", "per_step": size * (1 + num_negatives if recipe.loss.on_lists else size)}


def make_source(model: Any, corpus: Corpus, options: TrainingOptions, track: Track) -> Source:
    """Where batches come from: the corpus, or what the model's encoders made of it; ConfigError where those are trained."""
    if options.features is None:
        return CorpusSource(corpus, model.preprocess, PICTURE_MEMORY)
    if isinstance(model, models.CoAttentionScorer) and not model.is_frozen:
        hint = "set model.frozen_encoders or model.layers, or leave --features out"
        raise ConfigError("--features keeps what the encoders give, and here they are trained", hint=hint)
    return scoring.open_or_build(options.features, corpus, model, device=options.device, track=track)


def make_steps(
    source: Source, recipe: Recipe, cache: TeacherCache | TeacherEnsemble | None, slicing: Slicing = WHOLE
) -> ListSteps | MatrixSteps:
    """The batches a recipe asks for; ConfigError if its loss needs a teacher and there is none."""
    if recipe.loss.needs_teacher and cache is None:
        raise ConfigError(f"loss {', '.join(recipe.loss.terms)} needs the teacher's scores", hint="name a cache with --cache")
    kind = ListSteps if recipe.loss.on_lists else MatrixSteps
    return kind(source, recipe.batch, recipe.seed, cache, replace(slicing, of_sides=recipe.model.kind == "dual"))


def count_steps(recipe: Recipe, batches_per_epoch: float) -> int:
    """Optimisation steps of a run."""
    if recipe.optimizer.steps is not None:
        return recipe.optimizer.steps
    return max(1, int(recipe.optimizer.epochs * batches_per_epoch))
