"""Rounds of a training on a pool: mine candidates with the student, score them, train again.

    OUT-rounds/run-0     with candidates.model start and captioned images beside the pool: the student of these alone
    OUT-rounds/cache-N   the cache of round N, which extends the one before
    OUT-rounds/run-N     its student; the last round's is the run itself, OUT

The first round has the candidates of the recipe, with candidates.model start those of the student's start, or of run-0.
Each further one has what the student of the round before finds, or with candidates.kind blocks the blocks of images and
texts that are near for it; a killed training resumes in the round where it was.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dcdctl.core.data import Corpus
from dcdctl.core.errors import ConfigError
from dcdctl.core.progress import Say, Track, Watch, silent, unsaid
from dcdctl.core.teacher import START, CacheJob, CandidateConfig, cache_scores, most_pairs, read_cache
from dcdctl.core.training import train
from dcdctl.core.training.coverage import Preview
from dcdctl.core.training.inputs import InputRefs
from dcdctl.core.training.loop import TrainingOptions
from dcdctl.core.training.recipe import PoolConfig, Recipe, load_recipe
from dcdctl.core.training.rehearsal import rehearse
from dcdctl.core.training.runs import Run, TrainingJob
from dcdctl.core.training.train import train_model

OF_CAPTIONS = (
    "loss.terms={ infonce = 1.0 }",
    "loss.temperature=1.0",
    "pool.pseudo_positive_above=none",
    f"pool.precision={PoolConfig.precision}",
    "pool.rounds=none",
    "pool.max_pairs=none",
)
"""What makes a recipe of rounds that of a student of captions alone, which has no teacher."""


def train_in_rounds(
    job: TrainingJob,
    inputs: InputRefs,
    *,
    options: TrainingOptions,
    track: Track = silent,
    watch: Watch | None = None,
    say: Say = unsaid,
) -> Run:
    """The run of a training by `train_model`, in rounds with `pool.rounds` if no cache is of the pool.

    Use it where the teacher is too slow to score all pairs of a pool. ConfigError if there is not one teacher, or no
    pool; besides, what `cache_scores` and `train_model` raise.
    """
    recipe = load_recipe(job.recipe, job.sets)
    rounds = _num_rounds(inputs, recipe)
    if not rounds:
        return train_model(job, inputs, options=options, track=track, watch=watch, say=say)
    learned = _without_scorer(inputs, recipe)
    # Before the teacher scores, which may take hours.
    rehearse(job, learned, options, track)
    folder, cache, run = Path(f"{job.out}-rounds"), None, Run(job.out)
    first = recipe.candidates
    if first.model == START:
        proposer = recipe.model.start
        if inputs.pool is not None:
            say("round 0: a student of the captioned images, which proposes the first pairs")
            alone = replace(job, sets=(*job.sets, *OF_CAPTIONS), out=folder / "run-0")
            captioned = replace(learned, pool=None, caches=())
            proposer = str(train_model(alone, captioned, options=options, track=track, watch=watch, say=say).folder)
        first = replace(first, model=proposer)
    for number in range(1, rounds + 1):
        # The first rounds score the pairs that are left over.
        max_pairs = None
        if recipe.pool.max_pairs is not None:
            each, left = divmod(recipe.pool.max_pairs, rounds)
            max_pairs = each + 1 if number <= left else each
        this = CacheJob(
            data=inputs.pool_place[0],
            split=inputs.pool_place[1],
            out=folder / f"cache-{number}",
            candidates=first if number == 1 else _mined(recipe.candidates, run, number),
            teacher=inputs.teachers[0],
            model_set=inputs.model_set,
            extend=cache,
            max_pairs=max_pairs,
            compute=replace(options.compute, precision="float32", features=None),
        )
        scored = cache_scores(this, track=track)
        say(f"round {number} of {rounds}: {scored.num_pairs:,} pairs have a score")
        cache = this.out
        out = job.out if number == rounds else folder / f"run-{number}"
        run = train_model(
            replace(job, out=out),
            replace(learned, caches=[cache, *inputs.caches]),
            options=options,
            track=track,
            watch=watch,
            say=say,
        )
    return run


def preview(job: TrainingJob, inputs: InputRefs, options: TrainingOptions, track: Track = silent) -> Preview:
    """What `train_in_rounds` would do; opens files and writes nothing. In rounds, the initial model is made, and no
    teacher is asked."""
    recipe = load_recipe(job.recipe, job.sets)
    rounds = _num_rounds(inputs, recipe)
    if not rounds:
        return train.preview(job, inputs, options, track)
    found = rehearse(job, _without_scorer(inputs, recipe), options, track)
    most = rounds * most_pairs(Corpus.open(*inputs.pool_place), recipe.candidates)
    return replace(found, rounds=rounds, most_pairs=min(most, recipe.pool.max_pairs or most))


def _without_scorer(inputs: InputRefs, recipe: Recipe) -> InputRefs:
    """The inputs of the training of a round, which learns from the cached scores; a fusion student also starts from
    the teacher."""
    teachers = inputs.teachers if recipe.model.starts_from_teacher else ()
    return replace(inputs, teachers=teachers, model_set=inputs.model_set if teachers else ())


def _num_rounds(inputs: InputRefs, recipe: Recipe) -> int:
    """`pool.rounds`; 0 if it is not set, or if a cache is of the pool. ConfigError if there is no teacher to score, no
    pool to score, or no scores to validate with."""
    rounds = recipe.pool.rounds
    if rounds is None:
        return 0
    for cache in inputs.caches:
        if read_cache(cache).plan["corpus"] == Corpus.open(*inputs.pool_place).fingerprint:
            return 0
    if recipe.validation.metric == "agreement" and not inputs.caches:
        raise ConfigError(
            f"pool.rounds is {rounds}, and validation.metric agreement needs a cache of the validation split",
            hint="make it with `dcdctl cache-teacher --split val`, and name it with --cache",
        )
    if inputs.form == "stream" or len(inputs.teachers) != 1:
        models = f"--teacher names {len(inputs.teachers)} models"
        found = "--data names shards to stream" if inputs.form == "stream" else models
        raise ConfigError(
            f"pool.rounds is {rounds}, and {found}",
            hint="name a pool and the one model that scores it, or set pool.rounds to none and name a cache",
        )
    if recipe.candidates.model == START and recipe.model.start == "new" and inputs.pool is None:
        raise ConfigError(
            "candidates.model is start, and model.start is new: a model with random weights proposes at random",
            hint="set model.start to a dual encoder, or name captioned images too (--data PAIRS --pool POOL)",
        )
    return rounds


def _mined(candidates: CandidateConfig, run: Run, number: int) -> CandidateConfig:
    """The candidates of a further round, by the student of the one before; a sixth of those of a query are random if
    the recipe does not say how many."""
    # Another seed, so that random candidates are new ones.
    mined = replace(candidates, model=str(run.folder), seed=candidates.seed + number - 1)
    if candidates.kind == "blocks":
        return mined
    return replace(mined, kind="embedding", random_per_query=candidates.random_per_query or candidates.per_query // 6)
