"""Rounds of a training: a student proposes pairs, the teacher scores them, the student learns from them, and again.

    OUT-rounds/run-0            with candidates.model start and captioned images: the student of these alone
    OUT-rounds/cache-captions   beside a pool: the scores of captioned images, which tell how often a pick is right
    OUT-rounds/cache-N          the cache of round N, which extends the one before
    OUT-rounds/run-N            its student; the last round's is the run itself, OUT

On captioned images there is a second round only for captions that the teacher doubts and has no other image for.
The first round has the candidates of the recipe, with candidates.model start those of run-0, or of the student's start
where there are no captions. Each further one has what the student of the round before finds, or with candidates.kind
blocks the blocks of images and texts that are near for it; a killed training resumes in the round where it was.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dcdctl.core import distributed, files, models
from dcdctl.core.config import to_table
from dcdctl.core.data import Corpus, counted_corpus
from dcdctl.core.errors import ConfigError, StaleError
from dcdctl.core.places import shown
from dcdctl.core.progress import Say, Track, Watch, silent, unsaid
from dcdctl.core.teacher import (
    CACHE,
    START,
    CacheJob,
    CandidateConfig,
    TeacherCache,
    cache_scores,
    check_candidates,
    fewest_pairs,
    most_pairs,
    read_cache,
)
from dcdctl.core.toml import toml_value
from dcdctl.core.training import runs, train
from dcdctl.core.training.coverage import Preview, check_candidates_suffice
from dcdctl.core.training.inputs import InputRefs
from dcdctl.core.training.loop import TrainingOptions
from dcdctl.core.training.losses.table import LossConfig
from dcdctl.core.training.picking import Picked, count_picks
from dcdctl.core.training.recipe import PoolConfig, Recipe, load_recipe
from dcdctl.core.training.rehearsal import rehearse, resolve_for_scores
from dcdctl.core.training.runs import Run, TrainingJob
from dcdctl.core.training.train import resolve, train_model

PARTS = re.compile(r"(run|cache)-\d+|cache-captions|\..*")
"""The names in the folder of the rounds, with the locks of its parts."""


@dataclass(frozen=True)
class Place:
    """What a teacher scores: the folder of a corpus, its split, and how many of its images."""

    folder: Path
    split: str
    max_images: int | None = None

    def open(self) -> Corpus:
        return Corpus.open(self.folder, self.split, self.max_images)


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """The rounds of a training."""

    count: int
    max_pairs: int | None
    """Pairs that the teacher scores in all of them."""
    place: Place
    """What it scores: the pool, or the captioned images."""
    starts_with_captions: bool
    """Whether a student of the captioned images proposes the pairs of the first round."""
    captions: Place | None = None
    """The captioned images beside the pool, whose scores tell how often a pick is right."""
    max_pairs_of_captions: int = 0
    """Those of `max_pairs` that are theirs."""
    learns_from_picks: bool = False
    """Whether texts whose pick is sure are not asked about again."""


def train_in_rounds(
    job: TrainingJob,
    inputs: InputRefs,
    *,
    options: TrainingOptions,
    track: Track = silent,
    watch: Watch | None = None,
    say: Say = unsaid,
) -> Run:
    """The run of a training by `train_model`, in rounds where --teacher has to score what the recipe needs and cannot
    score all pairs: on a pool with `pool.rounds`, on captioned images with `candidates.model` start.

    ConfigError if there is not one teacher, or no pool; besides, what `cache_scores` and `train_model` raise. What a
    training refuses without its scores is refused before the teacher scores.
    """
    train = functools.partial(train_model, options=options, track=track, watch=watch, say=say)
    recipe = load_recipe(job.recipe, job.sets)
    rounds = plan_rounds(inputs, recipe)
    if rounds is None:
        return train(job, inputs)
    learned = _without_scorer(inputs, recipe)
    for line in _rehearse(job, learned, rounds, recipe, options, track).notes:
        say(line)

    score = functools.partial(_score, job, inputs, options, track)
    candidates = recipe.candidates
    if rounds.starts_with_captions:
        say("a student of the captioned images proposes the first pairs")
        student = train(_job_of_captions(job, recipe), replace(learned, pool=None, caches=()))
        candidates = candidates.proposed_by(str(student.folder))
    elif candidates.model == START:
        candidates = candidates.proposed_by(recipe.model.start)
    max_pairs = rounds.max_pairs
    if rounds.captions is not None:
        # By these scores the picks of the pool are measured.
        of_captions = score("cache-captions", rounds.captions, candidates, rounds.max_pairs_of_captions or None)
        say(f"captioned images: {of_captions.num_pairs:,} pairs have a score")
        learned = replace(learned, caches=[of_captions.folder, *learned.caches])
        max_pairs = None if max_pairs is None else max_pairs - of_captions.num_pairs
    pool = rounds.place.open()
    picks = Picked(num_texts=pool.num_captions)
    more: dict[str, Any] = {}
    done: list[dict[str, Any]] = []
    num_pairs, number = 0, 1
    while True:
        candidates, asked = picks.spread(candidates, pool.num_images), picks.num_unsure
        share = _pairs_of_round(max_pairs, rounds.count, number)
        cache = score(f"cache-{number}", rounds.place, candidates, share, **more)
        say(f"round {number} of {rounds.count}: {cache.num_pairs:,} pairs have a score")
        of_round = job if number == rounds.count else _job_of_proposer(job, recipe, number)
        scored = replace(learned, caches=[cache.folder, *learned.caches])
        if rounds.learns_from_picks:
            picks = count_picks(load_recipe(of_round.recipe, of_round.sets), scored)
        proposals, new = most_pairs(pool, candidates, num_texts=asked), cache.num_pairs - num_pairs
        done.append({"texts": asked, "proposals": proposals, "scored": new, **picks.to_json()})
        # A further round has nothing to ask if every pick is sure.
        if number == rounds.count or not picks.num_unsure:
            return train(replace(job, rounds=tuple(done)), scored)
        student = train(replace(of_round, rounds=tuple(done)), scored)
        more = {"extend": cache.folder, "sure_above": picks.threshold}
        num_pairs, number = cache.num_pairs, number + 1
        candidates = _mined(recipe.candidates, student, number)


def _score(
    job: TrainingJob,
    inputs: InputRefs,
    options: TrainingOptions,
    track: Track,
    name: str,
    place: Place,
    candidates: CandidateConfig,
    max_pairs: int | None,
    **more: Any,
) -> TeacherCache:
    """The teacher's scores of what a student proposes, in the folder of the rounds; `more` are fields of its job."""
    cache_job = CacheJob(
        data=place.folder,
        split=place.split,
        max_images=place.max_images,
        out=_folder_of(job) / name,
        candidates=candidates,
        teacher=inputs.teachers[0],
        model_set=inputs.model_set,
        compute=replace(options.compute, precision="float32", features=None),
        max_pairs=max_pairs,
        **more,
    )
    return distributed.in_main(lambda: cache_scores(cache_job, track=track))


def _pairs_of_round(max_pairs: int | None, count: int, number: int) -> int | None:
    """The share of the pairs that a round scores. The first rounds score those that are left over."""
    if max_pairs is None:
        return None
    each, left = divmod(max_pairs, count)
    return each + 1 if number <= left else each


def _rehearse(
    job: TrainingJob,
    inputs: InputRefs,
    rounds: Rounds,
    recipe: Recipe,
    options: TrainingOptions,
    track: Track,
    *,
    is_timed: bool = False,
) -> Preview:
    """What each training would do; raises what it, or the first cache, would refuse."""
    _check_folder(job, rounds, recipe)
    found = rehearse(job, inputs, options, track, is_timed=is_timed)
    of_pool = None if rounds.max_pairs is None else rounds.max_pairs - rounds.max_pairs_of_captions
    first = _pairs_of_round(of_pool, rounds.count, 1)
    check_candidates_suffice(recipe, rounds.place.open(), first, "pool.max_pairs")
    return found


def preview(job: TrainingJob, inputs: InputRefs, options: TrainingOptions, track: Track = silent) -> Preview:
    """What `train_in_rounds` would do; opens files and writes nothing. In rounds, the initial model is made, and no
    teacher is asked. Only the steps of a training are known of data that name a manifest."""
    if counted_corpus(Path(*inputs.places), inputs.split, inputs.max_images) is not None:
        return train.preview(job, inputs, options, track)
    recipe = load_recipe(job.recipe, job.sets)
    rounds = plan_rounds(inputs, recipe)
    if rounds is None:
        return train.preview(job, inputs, options, track)
    found = _rehearse(job, _without_scorer(inputs, recipe), rounds, recipe, options, track, is_timed=True)
    most = rounds.count * most_pairs(rounds.place.open(), recipe.candidates)
    if rounds.captions is not None:
        most += most_pairs(rounds.captions.open(), recipe.candidates)
    return replace(found, rounds=rounds.count, most_pairs=min(most, rounds.max_pairs or most))


def resolve_rounds(job: TrainingJob, inputs: InputRefs, options: TrainingOptions) -> None:
    """Raise what `train_in_rounds` raises before it opens weights."""
    recipe = load_recipe(job.recipe, job.sets)
    rounds = plan_rounds(inputs, recipe)
    if rounds is None:
        resolve(job, inputs, options)
    else:
        _check_folder(job, rounds, recipe)
        resolve_for_scores(job, _without_scorer(inputs, recipe), options)


def own_terms(recipe: Recipe) -> dict[str, float]:
    """The losses of a recipe's baseline: those that need no teacher, or InfoNCE if there are none."""
    return recipe.loss.own_terms or {"infonce-hard" if recipe.loss.on_lists else "infonce": 1.0}


def sets_of_own_loss(recipe: Recipe) -> tuple[str, ...]:
    """Overrides of a recipe that leave it the losses that need no teacher."""
    return (
        f"loss.terms={toml_value(own_terms(recipe))}",
        # Back to their defaults, because a recipe with a setting that no loss reads is refused. Only label_smoothing is
        # one of a loss without a teacher.
        "loss.temperature=1.0",
        f"loss.alpha={LossConfig.alpha}",
        "loss.weight_group=none",
        # A teacher that tells which captions count teaches, too.
        "captions.checked=none",
    )


def sets_of_captions(recipe: Recipe) -> tuple[str, ...]:
    """Overrides that make a recipe that of a student of captions alone, which has no teacher: the student that proposes
    the first pairs, and the baseline of a study with random batches."""
    sets = (
        *sets_of_own_loss(recipe),
        "pool.pseudo_positive_above=none",
        f"pool.precision={PoolConfig.precision}",
        "pool.rounds=none",
        "pool.max_pairs=none",
    )
    if not recipe.loss.on_lists:
        return sets
    # Distillation keeps the negatives that the teacher scores highest; without a teacher, as many are drawn at random.
    return (*sets, f"batch.random_negatives={recipe.batch.hard_negatives}")


def plan_rounds(inputs: InputRefs, recipe: Recipe) -> Rounds | None:
    """The rounds that a recipe asks for; None if its scores are there, or come from a dual teacher. ConfigError if
    there is no teacher to score, no pool to score, or no scores to validate with."""
    count = recipe.pool.rounds
    rounds = _round_of_captions(inputs, recipe) if count is None else _rounds_of_pool(inputs, recipe, count)
    if rounds is not None:
        _check_rounds(rounds, recipe)
    return rounds


def _check_rounds(rounds: Rounds, recipe: Recipe) -> None:
    """An error for what the teacher would not score in the rounds, or what a training could not learn from its scores,
    as far as it is known before."""
    candidates = recipe.candidates
    if candidates.model != START:
        candidates.check_model()
    candidates.require_packages()
    if rounds.count > 1 or candidates.model == START:
        if recipe.model.kind == "fusion":
            raise ConfigError(
                "a fusion student scores pairs, and proposes none in rounds of a training",
                hint="make a cache with `dcdctl cache-teacher`, and name it with --cache, or set model.kind to dual",
            )
        if recipe.model.kind == "late" and candidates.kind == "blocks":
            raise ConfigError(
                "candidates.kind is blocks, whose images are grouped by vectors, and a late model has none",
                hint="set candidates.kind to embedding",
            )
    if rounds.captions is not None:
        check_candidates(rounds.captions.open(), candidates)
    check_candidates(rounds.place.open(), candidates)


def _round_of_captions(inputs: InputRefs, recipe: Recipe) -> Rounds | None:
    is_asked = recipe.candidates.model == START and recipe.loss.needs_teacher and inputs.form == "corpus"
    if not is_asked or inputs.caches or len(inputs.teachers) != 1:
        return None
    ((teacher, kind),) = inputs.teacher_kinds
    # A dual teacher scores every pair of a batch.
    if (kind or models.kind_of(teacher)) in ("dual", "late"):
        return None
    place = Place(Path(*inputs.places), inputs.split, inputs.max_images)
    if inputs.pool is not None or place.open().is_pool:
        name = "--data" if inputs.pool is None else "--pool"
        raise ConfigError(
            f"candidates.model is start and pool.rounds is not set, and {name} is a pool, which the teacher must score",
            hint="set pool.rounds, such as 2",
        )
    # The second round is for captions that the teacher doubts.
    can_doubt = recipe.captions.checked is not None and bool(recipe.loss.with_positive)
    return Rounds(
        count=1 + can_doubt, max_pairs=None, place=place, starts_with_captions=True, learns_from_picks=can_doubt
    )


def _rounds_of_pool(inputs: InputRefs, recipe: Recipe, count: int) -> Rounds | None:
    for cache in inputs.caches:
        if read_cache(cache).plan["corpus"] == Corpus.open(*inputs.pool_place).fingerprint:
            return None
    if recipe.validation.metric == "agreement" and not inputs.caches:
        raise ConfigError(
            f"pool.rounds is {count}, and validation.metric agreement needs a cache of the validation split",
            hint="make it with `dcdctl cache-teacher --split val`, and name it with --cache",
        )
    if inputs.form == "corpus" and not inputs.teachers:
        raise ConfigError(
            "the recipe asks a teacher which images fit the texts of the pool (pool.rounds), and none is named",
            hint="name it with --teacher REF: a reranker, a vision-language model or a run; or name a finished cache "
            "of the pool with --cache",
        )
    if inputs.form == "stream" or len(inputs.teachers) != 1:
        found = f"--teacher names {len(inputs.teachers)} models"
        if inputs.form == "stream":
            found = "--data names shards to stream"
        raise ConfigError(
            f"pool.rounds is {count}, and {found}",
            hint="name a pool and the one model that scores it, or set pool.rounds to none and name a cache",
        )
    has_captions = inputs.pool is not None
    folder, split = inputs.pool_place
    if not Corpus.open(folder, split).is_pool:
        raise ConfigError(
            f"pool.rounds is {count}, and {shown(folder)} ({split}) has captions",
            hint="name a pool, or set pool.rounds to none",
        )
    if recipe.candidates.model == START and recipe.model.start == "new" and not has_captions:
        raise ConfigError(
            "candidates.model is start, and model.start is new: a model with random weights proposes at random",
            hint="set model.start to a dual encoder, or name captioned images too (--data PAIRS --pool POOL)",
        )
    place = Place(folder, split, None if has_captions else inputs.max_images)
    rounds = Rounds(
        count=count,
        max_pairs=recipe.pool.max_pairs,
        place=place,
        starts_with_captions=has_captions and recipe.candidates.model == START,
        learns_from_picks=recipe.pool.pseudo_positive_above is not None,
    )
    if not has_captions:
        return rounds
    captions = Place(Path(*inputs.places), inputs.split, inputs.max_images)
    if rounds.max_pairs is None:
        return replace(rounds, captions=captions)
    # As many for a caption as for a text of the pool; with a small budget none, because a caption has its own image.
    captioned, num_texts = captions.open(), place.open().num_captions
    share = rounds.max_pairs * captioned.num_captions // (captioned.num_captions + num_texts)
    if share < fewest_pairs(captioned, recipe.candidates) or rounds.max_pairs - share < count:
        return rounds
    return replace(rounds, captions=captions, max_pairs_of_captions=share)


def _folder_of(job: TrainingJob) -> Path:
    return Path(f"{job.out}-rounds")


def _job_of_captions(job: TrainingJob, recipe: Recipe) -> TrainingJob:
    return replace(job, sets=(*job.sets, *sets_of_captions(recipe)), out=_folder_of(job) / "run-0")


def _job_of_proposer(job: TrainingJob, recipe: Recipe, number: int) -> TrainingJob:
    """The training of a student that only proposes: picks that are more often right than wrong are sure enough for it,
    since the teacher scores what it proposes, and wrong picks cost proposals alone."""
    sets = ("pool.precision=0.5",) if recipe.pool.pseudo_positive_above == "auto" else ()
    return replace(job, sets=(*job.sets, *sets), out=_folder_of(job) / f"run-{number}")


def _check_folder(job: TrainingJob, rounds: Rounds, recipe: Recipe) -> None:
    """StaleError if the folder of the rounds holds something else, or rounds of another recipe; InputError if it cannot
    be written to."""
    folder = _folder_of(job)
    files.check_output_folder(folder)
    names = files.names_in(folder) if folder.exists() else []
    if others := [name for name in names if not PARTS.fullmatch(name)]:
        raise StaleError(
            f"{folder}, where the rounds are kept, holds something else: {', '.join(others[:3])}",
            hint="name another folder with --out",
        )

    def check_run(of_round: TrainingJob) -> None:
        table = to_table(load_recipe(of_round.recipe, of_round.sets))
        runs.check_folder(of_round.out, {"what": job.kind, "recipe": table}, resume=job.resume)

    if rounds.starts_with_captions:
        alone = _job_of_captions(job, recipe)
        check_run(alone)
    for number in range(1, rounds.count):
        check_run(_job_of_proposer(job, recipe, number))
    for name in ("captions", *range(1, rounds.count + 1)):
        CACHE.check_folder(folder / f"cache-{name}")


def _without_scorer(inputs: InputRefs, recipe: Recipe) -> InputRefs:
    """The inputs of the training of a round, which learns from the cached scores; a fusion student also starts from
    the teacher."""
    teachers = inputs.teachers if recipe.model.starts_from_teacher else ()
    return replace(inputs, teachers=teachers, model_set=inputs.model_set if teachers else ())


def _mined(candidates: CandidateConfig, run: Run, number: int) -> CandidateConfig:
    """The candidates of a further round, by the student of the one before; a sixth of those of a query are random if
    the recipe does not say how many."""
    # Another seed, so that random candidates are new ones.
    mined = replace(candidates, model=str(run.folder), seed=candidates.seed + number - 1)
    if candidates.kind == "blocks":
        return mined
    return replace(mined, kind="embedding", random_per_query=candidates.random_per_query or candidates.per_query // 6)
