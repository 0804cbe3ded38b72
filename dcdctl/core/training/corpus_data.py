"""A training on a prepared corpus, captioned images or a pool, or on one of each: with caches of its teachers' scores,
with dual teachers that embed it, or with no teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dcdctl.core import distributed, scoring
from dcdctl.core.data import Corpus
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ConfigError
from dcdctl.core.models import Model
from dcdctl.core.places import shown
from dcdctl.core.progress import Say, Track
from dcdctl.core.scoring import Source
from dcdctl.core.teacher import (
    EmbeddedScores,
    EmbeddedTeachers,
    TeacherScores,
    check_embedding,
    embed_corpus,
    embedding_plan,
    false_negative_filter,
    read_caches,
)
from dcdctl.core.training import negatives, validation
from dcdctl.core.training.adapted import fit_validation
from dcdctl.core.training.batches.batch import MicroBatchPlan
from dcdctl.core.training.batches.step_pairs import CorpusBatches, MixedBatches
from dcdctl.core.training.coverage import Preview, different_candidates
from dcdctl.core.training.inputs import caches_of
from dcdctl.core.training.picking import picks_line
from dcdctl.core.training.recipe import FusionConfig, Recipe
from dcdctl.core.training.runs import Run
from dcdctl.core.training.settled import ScoredCorpus, Settled, choose_pairs, learns_images_alone, settle
from dcdctl.core.training.training_data import Prepared, SaveFiles, Teachers, TrainingPlan

IMAGE_CACHE_BYTES = 512 * 2**20
"""Bytes of decoded images that a training keeps: enough for a corpus of small images, and little beside a model in
training."""


@dataclass(frozen=True, kw_only=True)
class CorpusData:
    """Captioned images, a pool, or both, with the cached scores of their pairs."""

    plan: TrainingPlan
    fitted: Recipe
    """The recipe of the plan, without a validation that the corpus has no split for."""
    parts: Sequence[ScoredCorpus]
    """The captioned images or the pool of --data, then the pool of --pool if there is one."""
    validation: Mapping[str, Corpus]
    judged: Mapping[str, Corpus]
    """Those of `validation` that need the teacher."""
    judged_caches: Mapping[str, TeacherScores]
    """Their cached scores; the others are embedded."""
    settled: Settled
    """By the cached scores; the scores of dual teachers settle it again."""

    @property
    def recipe(self) -> Recipe:
        """The recipe as the data settle it."""
        return self.settled.recipe

    @property
    def preview(self) -> Preview:
        """What the training would do."""
        return self.settled.preview

    @property
    def captions(self) -> Sequence[str]:
        """All captions and texts."""
        return [text for part in self.parts for text in part.corpus.captions]

    def load_teachers(self, track: Track) -> Teachers:
        """Load the dual teachers, or the model that the student starts from. ConfigError before that, if the caches
        cover too little of what the recipe needs."""
        if self.preview.coverage is not None and not self._is_asked_for(self.parts[0]):
            self.preview.coverage.check()
        recipe, inputs = self.recipe, self.plan.inputs
        if not self.plan.use.embeds:
            caches = [cache for part in self.parts for cache in part.caches]
            return Teachers(start=inputs.load_teacher(caches, track))
        is_query, has_texts = recipe.model.learns_teacher_space, recipe.model.has_teacher_texts
        needs_vectors = bool(recipe.loss.vector_terms) and not is_query
        duals = inputs.load_dual_teachers(with_vectors=needs_vectors or has_texts)
        check_embedding(duals)
        first: Any = duals[0][1]
        return Teachers(
            start=first if is_query or has_texts else None,
            duals=duals,
            vector_width=first.embedding_dim if needs_vectors and not has_texts else None,
        )

    def _is_asked_for(self, part: ScoredCorpus) -> bool:
        """Whether the scores are what the recipe asked for, if with a small budget: they may have taken hours."""
        return bool(self.plan.job.rounds) or not different_candidates(self.recipe, part.caches)

    def facts(self, teachers: Teachers) -> dict[str, Any]:
        """The fingerprints of corpora, caches and teachers, and what the caches cover."""
        compute, duals = self.plan.options.compute, teachers.duals
        main, *pools = self.parts
        more = {
            "pool": pools[0].facts() if pools else None,
            "teachers": embedding_plan(duals, main.corpus, compute) if duals else None,
            "temperature": self.settled.temperature,
            "pseudo_positive_above": None if self.settled.threshold is None else self.settled.threshold.value,
        }
        judged = {name: scores.plan for name, scores in self.judged_caches.items()}
        if duals:
            embedded = self.judged.keys() - judged.keys()
            judged |= {name: embedding_plan(duals, self.judged[name], compute) for name in embedded}
        return {
            **main.facts(),
            **validation.facts_of(self.validation, {name: judged[name] for name in self.judged}),
            **{name: value for name, value in more.items() if value is not None},
            **self.preview.inputs(),
        }

    def read(self, model: Model, teachers: Teachers, say: Say, track: Track) -> Prepared:
        """Embed the corpora with the dual teachers, and open the images, or the stored features of the model's
        encoders."""
        compute = self.plan.options.compute

        def embed(corpus: Corpus) -> EmbeddedScores:
            # By one process, because others could round differently, and would then keep other negatives of a list.
            scores = distributed.in_main(partial(embed_corpus, teachers.duals, corpus, compute, track))
            if self.recipe.model.learns_teacher_space:
                assert not isinstance(scores, EmbeddedTeachers)
                model.known_images = {**model.known_images, corpus.fingerprint: scores.image_states}
            return scores

        embedded = [embed(part.corpus) if teachers.duals else None for part in self.parts]
        judged_scores: dict[str, TeacherScores] = {}
        for name, corpus in self.judged.items():
            judged_scores[name] = self.judged_caches.get(name) or embed(corpus)
        settled = self.settled
        if self.plan.use.scores_batches:
            settled = settle(self.plan.recipe, self.fitted, self.parts, embedded, "embedded")
        recipe = settled.recipe
        batches: list[CorpusBatches] = []
        for pairs, scores in zip(settled.pairs, embedded, strict=True):
            # The main process stores the features; the others then find them complete.
            with distributed.main_first():
                source = make_source(model, pairs.corpus, compute, track)
            # A loss of vectors has one teacher.
            vectors = scores if recipe.loss.vector_terms and not isinstance(scores, EmbeddedTeachers) else None
            batches.append(CorpusBatches(source, pairs, vectors=vectors))
        for line in self._lines(settled):
            say(line)
        source = batches[0].source

        def mine() -> SaveFiles:
            """Mine the negatives of the recipe, or read the mined ones of a run that resumes."""
            mined = negatives.read_or_mine(self.plan.job.out, source, recipe, compute.device, track)
            return lambda run: negatives.save_mined(run.folder, mined, source.corpus, recipe)

        return Prepared(
            recipe=recipe,
            preview=settled.preview,
            objective=settled.objective,
            make_batches=partial(make_batches, batches, recipe),
            validation=self.validation,
            validation_teachers=judged_scores,
            collect=mine if recipe.batch.negatives == "mined" else None,
        )

    def _lines(self, settled: Settled) -> Iterator[str]:
        """What the user should know of what was measured; ConfigError if the caches cover too little of the pool."""
        preview = settled.preview
        if self.plan.job.rounds:
            # The candidates are those that the rounds made.
            preview = replace(preview, differences=())
        yield from preview.lines()
        yield from preview.warnings()
        if preview.coverage is not None:
            yield from preview.coverage.warnings()
        for part, pairs in zip(self.parts[1:], settled.pairs[1:], strict=True):
            if part.cached is not None:
                coverage = pairs.coverage(preview.num_steps)
                if not self._is_asked_for(part):
                    coverage.check()
                yield f"the scores of the pool cover {coverage}"
                yield from coverage.warnings()
        if settled.threshold is not None:
            yield str(settled.threshold)
        above = settled.recipe.pool.pseudo_positive_above
        if isinstance(above, int | float):
            for pairs in settled.pairs:
                if pairs.scores is not None:
                    yield picks_line(pairs.corpus, pairs.scores, above, settled.checked)
        if settled.temperature is not None:
            yield f"loss.temperature is auto: {settled.temperature:g} for these scores"


def check(plan: TrainingPlan) -> None:
    """ConfigError for a recipe of another kind of training."""
    if plan.job.kind == "distill":
        return
    if not isinstance(plan.recipe.model, FusionConfig) or plan.recipe.loss.needs_teacher:
        raise ConfigError(
            f"recipe {plan.job.recipe} trains a student",
            hint="finetune-teacher expects a fusion model and a loss without a teacher, such as ranking",
        )


def open_data(plan: TrainingPlan, track: Track, *, is_preview: bool = False) -> CorpusData:
    """The corpus of a plan, its pool, its caches and its validation corpora, checked and measured. Their images and
    scores are read later.

    ConfigError for data that the loss cannot learn from, StaleError for a cache of another corpus, CorpusError for a
    split that is not there.
    """
    recipe, inputs = plan.recipe, plan.inputs
    corpora, caches = inputs.open()
    if not inputs.validation_data:
        recipe = fit_validation(recipe, corpora[0])
        validation.check_corpora(recipe, ())
    validated = validation.open_corpora(recipe.validation, inputs.validation_data, corpora[0])
    judged = validation.judged_corpora(recipe, validated)
    groups = caches_of([*corpora, *judged.values()], caches)
    embeds = plan.use.embeds
    cached = [read_caches(group) for group in groups]
    _check_parts(plan, corpora, cached)
    by_name = zip(judged, cached[len(corpora) :], strict=True)
    judged_caches = {name: scores for name, scores in by_name if scores is not None}
    validation.check_judged(judged, judged if embeds else judged_caches)
    parts = []
    for corpus, group, scores in zip(corpora, groups, cached, strict=False):
        # The recipe decides, not the plan of a cache: a loss without a teacher needs the filter too.
        false_negatives = false_negative_filter(corpus, recipe.candidates.duplicate_bits, track)
        parts.append(ScoredCorpus(corpus=corpus, caches=group, cached=scores, false_negatives=false_negatives))
    if plan.use.scores_batches:
        # Dual teachers are loaded later.
        settled = settle(plan.recipe, recipe, parts, [None] * len(parts), "unread")
    else:
        settled = settle(plan.recipe, recipe, parts, [part.cached for part in parts], "none")
    return CorpusData(
        plan=plan,
        fitted=recipe,
        parts=parts,
        validation=validated,
        judged=judged,
        judged_caches=judged_caches,
        settled=settled,
    )


def _check_parts(plan: TrainingPlan, corpora: Sequence[Corpus], cached: Sequence[TeacherScores | None]) -> None:
    """ConfigError if captioned images and pool are not what their options are for, or if the loss needs of the last one
    what it has not."""
    if len(corpora) == 2:
        for corpus, is_pool in zip(corpora, (False, True), strict=True):
            if corpus.is_pool != is_pool:
                what = "has captions" if is_pool else "is a pool"
                raise ConfigError(
                    f"{shown(corpus.folder)} ({corpus.split}) {what}",
                    hint="--data names captioned images and --pool a pool; a pool alone is named by --data",
                )
    is_limit = isinstance(plan.recipe.captions.checked, int | float)
    if is_limit and (corpora[0].is_pool or (cached[0] is None and not plan.use.scores_batches)):
        raise ConfigError(
            f"captions.checked is {plan.recipe.captions.checked:g}, and no captions have scores of a teacher",
            hint="leave it out, or name a cache of captioned images with --cache",
        )
    last, scores = corpora[-1], cached[len(corpora) - 1]
    if last.is_pool:
        _check_pool(plan, last, is_alone=len(corpora) == 1, has_cache=scores is not None)
    elif plan.recipe.loss.needs_teacher and scores is None and not plan.use.scores_batches:
        raise ConfigError(
            f"loss {', '.join(plan.recipe.loss.terms)} needs the teacher's scores, and no cache is of the training's "
            "split",
            hint="name one with --cache, which `dcdctl cache-teacher` makes",
        )


def _check_pool(plan: TrainingPlan, pool: Corpus, *, is_alone: bool, has_cache: bool) -> None:
    """ConfigError if the loss needs of a pool what it has not."""
    loss, name = plan.recipe.loss, f"{shown(pool.folder)} is a pool: no text of it belongs to an image"
    needs_texts = not learns_images_alone(plan.recipe)
    if not pool.num_images or (needs_texts and not pool.num_captions):
        lacks = "images" if pool.num_captions else "texts"
        raise ConfigError(f"{shown(pool.folder)} has no {lacks}", hint=f"prepare it with {lacks}")
    is_pseudo = plan.recipe.pool.pseudo_positive_above is not None
    if is_pseudo and loss.on_lists:
        raise ConfigError(
            f"pool.pseudo_positive_above is for losses on all pairs, and loss {', '.join(loss.terms)} is on lists",
            hint="leave it out, or take a loss such as infonce",
        )
    if loss.with_positive and is_alone and not is_pseudo:
        raise ConfigError(
            f"loss {', '.join(loss.with_positive)} needs a positive, and {name}",
            hint="leave it out, add captioned images (--data PAIRS --pool POOL), or set pool.pseudo_positive_above",
        )
    has_teacher = has_cache or plan.use.scores_batches or plan.use.embeds
    if not has_teacher or not (plan.recipe.needs_scores or loss.vector_terms):
        raise ConfigError(
            f"{name}, and no loss of the recipe has scores for it",
            hint="take a loss that has a teacher, such as kl, and name a cache of the pool or a dual --teacher",
        )


def make_source(model: Model, corpus: Corpus, compute: Compute, track: Track) -> Source:
    """What batches are read from: the corpus, or the features of the model's encoders; ConfigError if those are
    trained."""
    check_features(model, compute)
    return scoring.open_source(corpus, model, compute, track, IMAGE_CACHE_BYTES)


def check_features(model: Model, compute: Compute) -> None:
    """ConfigError for features of encoders that are trained, ModelError if there are no encoders."""
    if compute.features is None:
        return
    if not scoring.encoders_of(model).is_frozen:
        raise ConfigError(
            "--features stores the outputs of frozen encoders, and these encoders are trained",
            hint="set model.frozen_encoders, model.layers, or model.trained to projections, or to last-layers with "
            "fewer model.trained_layers than each encoder has, or leave --features out",
        )


def make_batches(
    parts: Sequence[CorpusBatches], recipe: Recipe, plan: MicroBatchPlan, run: Run | None
) -> CorpusBatches | MixedBatches:
    """The batches of a run, as this process reads them. A trial, without a run, has random negatives in the place of
    mined ones, which take the same time and memory."""
    plan = replace(plan, by_side=recipe.model.embeds_sides)
    main, *pools = [replace(batches, plan=plan) for batches in parts]
    if run is not None and recipe.batch.negatives == "mined":
        corpus, false_negatives = main.pairs.corpus, main.pairs.false_negatives
        mined = negatives.read(run.folder, corpus, recipe)
        main = replace(main, pairs=choose_pairs(corpus, recipe, None, false_negatives, mined))
    return MixedBatches(main, pools[0]) if pools else main
