"""Rounds of a training: a student proposes pairs, the teacher scores them, the student learns from them, and again.

    OUT-rounds/run-0            with candidates.model start and captioned images: the student of these alone
    OUT-rounds/cache-captions   beside a pool: the scores of captioned images, which tell how often a pick is right
    OUT-rounds/cache-N          the cache of round N, which extends the one before
    OUT-rounds/run-N            its student; the last round's is the run itself, OUT

The first round has the candidates of the recipe, with candidates.model start those of run-0, or of the student's start
where there are no captions. Each further one has what the student of the round before finds, or with candidates.kind
blocks the blocks of images and texts that are near for it; a killed training resumes in the round where it was.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dcdctl.core.data import Corpus, counted_corpus
from dcdctl.core.errors import ConfigError
from dcdctl.core.progress import Say, Track, Watch, silent, unsaid
from dcdctl.core.teacher import START, CacheJob, CandidateConfig, TeacherCache, cache_scores, most_pairs, read_cache
from dcdctl.core.training import train
from dcdctl.core.training.coverage import Preview
from dcdctl.core.training.inputs import InputRefs
from dcdctl.core.training.loop import TrainingOptions
from dcdctl.core.training.picking import Picked, count_picks
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

    def max_pairs_of(self, number: int) -> int | None:
        """The pairs of a round. The first rounds score those that are left over."""
        if self.max_pairs is None:
            return None
        each, left = divmod(self.max_pairs, self.count)
        return each + 1 if number <= left else each


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
    recipe = load_recipe(job.recipe, job.sets)
    rounds = plan_rounds(inputs, recipe)
    if rounds is None:
        return train_model(job, inputs, options=options, track=track, watch=watch, say=say)
    learned = _without_scorer(inputs, recipe)
    rehearse(job, learned, options, track)
    train = functools.partial(train_model, options=options, track=track, watch=watch, say=say)
    return _InRounds(
        job=job,
        scored=inputs,
        learned=learned,
        recipe=recipe,
        rounds=rounds,
        options=options,
        train=train,
        track=track,
        say=say,
    ).run()


@dataclass(frozen=True, kw_only=True)
class _InRounds:
    """A training in rounds that nothing refuses."""

    job: TrainingJob
    scored: InputRefs
    """With the teacher."""
    learned: InputRefs
    """What a student learns from beside the scores of the rounds."""
    recipe: Recipe
    rounds: Rounds
    options: TrainingOptions
    train: Callable[[TrainingJob, InputRefs], Run]
    track: Track
    say: Say

    @property
    def folder(self) -> Path:
        """Everything but the last run."""
        return Path(f"{self.job.out}-rounds")

    def run(self) -> Run:
        first = self._first_candidates()
        of_captions, max_pairs = self._score_captions(first)
        rounds = replace(self.rounds, max_pairs=max_pairs)
        pool = rounds.place.open()
        run, cache, done = Run(self.job.out), None, []
        picks = Picked(num_texts=pool.num_captions)
        for number in range(1, rounds.count + 1):
            candidates = first if number == 1 else _mined(self.recipe.candidates, run, number)
            candidates = picks.spread(candidates, pool.num_images)
            before = 0 if cache is None else cache.num_pairs
            asked = picks.num_unsure
            cache = self._score(
                rounds.place,
                f"cache-{number}",
                candidates,
                extend=None if cache is None else cache.folder,
                max_pairs=rounds.max_pairs_of(number),
                sure_above=picks.threshold,
            )
            self.say(f"round {number} of {rounds.count}: {cache.num_pairs:,} pairs have a score")
            inputs = replace(self.learned, caches=[cache.folder, *of_captions, *self.learned.caches])
            if self.recipe.pool.pseudo_positive_above is not None:
                picks = count_picks(self.recipe, inputs)
            done.append({"texts": asked, "scored": cache.num_pairs - before, **picks.to_json()})
            # A further round has nothing to ask if every pick is sure.
            is_last = number == rounds.count or not picks.num_unsure
            out = self.job.out if is_last else self.folder / f"run-{number}"
            run = self.train(replace(self.job, out=out, rounds=tuple(done)), inputs)
            if is_last:
                break
        return run

    def _first_candidates(self) -> CandidateConfig:
        """The candidates of the first round: those of the recipe, or what the start proposes, or a student of the
        captioned images."""
        candidates = self.recipe.candidates
        if candidates.model != START:
            return candidates
        if not self.rounds.starts_with_captions:
            return replace(candidates, model=self.recipe.model.start)
        self.say("a student of the captioned images proposes the first pairs")
        job = replace(self.job, sets=(*self.job.sets, *OF_CAPTIONS), out=self.folder / "run-0")
        student = self.train(job, replace(self.learned, pool=None, caches=()))
        return replace(candidates, model=str(student.folder))

    def _score_captions(self, candidates: CandidateConfig) -> tuple[list[Path], int | None]:
        """The cache of the captioned images beside a pool, by which the picks are measured, and the pairs that are left
        for the pool. None where the budget is too small for the own images of all captions."""
        max_pairs, place = self.rounds.max_pairs, self.rounds.captions
        if place is None:
            return [], max_pairs
        num_captions = place.open().num_captions
        share = None
        if max_pairs is not None:
            # As many for a caption as for a text of the pool.
            num_texts = self.rounds.place.open().num_captions
            share = max_pairs * num_captions // (num_captions + num_texts)
            if share <= num_captions:
                return [], max_pairs
        cache = self._score(place, "cache-captions", candidates, max_pairs=share)
        self.say(f"captioned images: {cache.num_pairs:,} pairs have a score")
        return [cache.folder], None if max_pairs is None else max_pairs - cache.num_pairs

    def _score(self, place: Place, name: str, candidates: CandidateConfig, **more: Any) -> TeacherCache:
        """The teacher's scores of what a student proposes."""
        job = CacheJob(
            data=place.folder,
            split=place.split,
            max_images=place.max_images,
            out=self.folder / name,
            candidates=candidates,
            teacher=self.scored.teachers[0],
            model_set=self.scored.model_set,
            compute=replace(self.options.compute, precision="float32", features=None),
            **more,
        )
        return cache_scores(job, track=self.track)


def preview(job: TrainingJob, inputs: InputRefs, options: TrainingOptions, track: Track = silent) -> Preview:
    """What `train_in_rounds` would do; opens files and writes nothing. In rounds, the initial model is made, and no
    teacher is asked. Only the steps of a training are known of data that name a manifest."""
    if counted_corpus(Path(*inputs.places), inputs.split, inputs.max_images) is not None:
        return train.preview(job, inputs, options, track)
    recipe = load_recipe(job.recipe, job.sets)
    rounds = plan_rounds(inputs, recipe)
    if rounds is None:
        return train.preview(job, inputs, options, track)
    found = rehearse(job, _without_scorer(inputs, recipe), options, track)
    most = rounds.count * most_pairs(rounds.place.open(), recipe.candidates)
    if rounds.captions is not None:
        most += most_pairs(rounds.captions.open(), recipe.candidates)
    return replace(found, rounds=rounds.count, most_pairs=min(most, rounds.max_pairs or most))


def plan_rounds(inputs: InputRefs, recipe: Recipe) -> Rounds | None:
    """The rounds that a recipe asks for; None if its scores are there, or come from a dual teacher. ConfigError if
    there is no teacher to score, no pool to score, or no scores to validate with."""
    if recipe.pool.rounds is not None:
        return _rounds_of_pool(inputs, recipe, recipe.pool.rounds)
    kinds = [kind for _, kind in inputs.teacher_kinds]
    is_asked = recipe.candidates.model == START and recipe.loss.needs_teacher and inputs.form == "corpus"
    # A dual teacher scores every pair of a batch.
    if not is_asked or inputs.caches or len(kinds) != 1 or kinds[0] in ("dual", "late"):
        return None
    place = Place(Path(*inputs.places), inputs.split, inputs.max_images)
    if place.open().is_pool:
        raise ConfigError(
            "candidates.model is start and pool.rounds is not set, and --data is a pool, which the teacher must score",
            hint="set pool.rounds, such as 2",
        )
    return Rounds(count=1, max_pairs=None, place=place, starts_with_captions=True)


def _rounds_of_pool(inputs: InputRefs, recipe: Recipe, count: int) -> Rounds | None:
    for cache in inputs.caches:
        if read_cache(cache).plan["corpus"] == Corpus.open(*inputs.pool_place).fingerprint:
            return None
    if recipe.validation.metric == "agreement" and not inputs.caches:
        raise ConfigError(
            f"pool.rounds is {count}, and validation.metric agreement needs a cache of the validation split",
            hint="make it with `dcdctl cache-teacher --split val`, and name it with --cache",
        )
    if inputs.form == "stream" or len(inputs.teachers) != 1:
        models = f"--teacher names {len(inputs.teachers)} models"
        found = "--data names shards to stream" if inputs.form == "stream" else models
        raise ConfigError(
            f"pool.rounds is {count}, and {found}",
            hint="name a pool and the one model that scores it, or set pool.rounds to none and name a cache",
        )
    has_captions = inputs.pool is not None
    if recipe.candidates.model == START and recipe.model.start == "new" and not has_captions:
        raise ConfigError(
            "candidates.model is start, and model.start is new: a model with random weights proposes at random",
            hint="set model.start to a dual encoder, or name captioned images too (--data PAIRS --pool POOL)",
        )
    return Rounds(
        count=count,
        max_pairs=recipe.pool.max_pairs,
        place=Place(*inputs.pool_place, None if has_captions else inputs.max_images),
        starts_with_captions=has_captions and recipe.candidates.model == START,
        captions=Place(Path(*inputs.places), inputs.split, inputs.max_images) if has_captions else None,
    )


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
