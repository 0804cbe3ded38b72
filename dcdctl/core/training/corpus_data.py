"""A training on a prepared corpus, captioned images or a pool, or on one of each: with caches of its teachers' scores,
with dual teachers that embed it, or with no teacher."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
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
    Candidates,
    EmbeddedScores,
    EmbeddedTeachers,
    FalseNegativeFilter,
    NoPicks,
    TeacherCache,
    TeacherEnsemble,
    TeacherScores,
    Threshold,
    check_embedding,
    embed_corpus,
    embedding_plan,
    false_negative_filter,
    measure_spread,
    read_caches,
)
from dcdctl.core.training import negatives, validation
from dcdctl.core.training.adapted import fit_validation
from dcdctl.core.training.batches.all_pairs import AllPairs
from dcdctl.core.training.batches.batch import MicroBatchPlan
from dcdctl.core.training.batches.lists import CandidateLists
from dcdctl.core.training.batches.pool import PickedPairs, PoolLists, PoolPairs
from dcdctl.core.training.batches.step_pairs import CorpusBatches, MixedBatches, StepPairs
from dcdctl.core.training.coverage import DualTeachers, Preview, different_candidates, measure_preview
from dcdctl.core.training.inputs import caches_of
from dcdctl.core.training.objective import PairObjective
from dcdctl.core.training.picking import check_teaches, choose_threshold, picked_images, picks_line, with_number
from dcdctl.core.training.recipe import FusionConfig, Recipe
from dcdctl.core.training.runs import Run
from dcdctl.core.training.training_data import Prepared, SaveFiles, Teachers, TrainingPlan

IMAGE_CACHE_BYTES = 512 * 2**20
"""Bytes of decoded images that a training keeps: enough for a corpus of small images, and little beside a model in
training."""


@dataclass(frozen=True, kw_only=True)
class ScoredCorpus:
    """The captioned images of a training, or its pool, and what is known of its pairs before a model is loaded."""

    corpus: Corpus
    caches: Sequence[TeacherCache]
    cached: TeacherCache | TeacherEnsemble | None
    """The scores of all caches together."""
    false_negatives: FalseNegativeFilter
    pairs: StepPairs
    """The pairs of each step, chosen by the cached scores."""

    def facts(self) -> dict[str, Any]:
        """What a run depends on."""
        return {
            "corpus": self.corpus.fingerprint,
            "split": self.corpus.split,
            "images": self.corpus.num_images,
            "cache": None if self.cached is None else self.cached.plan,
        }


@dataclass(frozen=True, kw_only=True)
class CorpusData:
    """Captioned images, a pool, or both, with the cached scores of their pairs."""

    plan: TrainingPlan
    recipe: Recipe
    """The recipe of the plan, adapted to the corpus."""
    parts: Sequence[ScoredCorpus]
    """The captioned images or the pool of --data, then the pool of --pool if there is one."""
    validation: Mapping[str, Corpus]
    judged: Mapping[str, Corpus]
    """Those of `validation` that need the teacher."""
    judged_caches: Mapping[str, TeacherScores]
    """Their cached scores; the others are embedded."""
    temperature: float | None
    """What `loss.temperature` auto stands for; None if the recipe has a number."""
    threshold: Threshold | NoPicks | None
    """What `pool.pseudo_positive_above` auto stands for; None if the recipe has a number, and before dual teachers are
    loaded."""
    preview: Preview

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
        needs_width = bool(recipe.loss.vector_terms) and not recipe.model.learns_teacher_space
        duals = inputs.load_dual_teachers(with_vectors=needs_width)
        check_embedding(duals)
        first: Any = duals[0][1]
        return Teachers(
            start=first if recipe.model.learns_teacher_space else None,
            duals=duals,
            vector_width=first.embedding_dim if needs_width else None,
        )

    def _is_asked_for(self, part: ScoredCorpus) -> bool:
        """Whether the scores are what the recipe asked for, if with a small budget: they may have taken hours."""
        return bool(self.plan.job.rounds) or not different_candidates(self.plan.recipe, part.caches)

    def facts(self, teachers: Teachers) -> dict[str, Any]:
        """The fingerprints of corpora, caches and teachers, and what the caches cover."""
        compute, duals = self.plan.options.compute, teachers.duals
        main, *pools = self.parts
        more = {
            "pool": pools[0].facts() if pools else None,
            "teachers": embedding_plan(duals, main.corpus, compute) if duals else None,
            "temperature": self.temperature,
            "pseudo_positive_above": None if self.threshold is None else self.threshold.value,
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
        plan, recipe, compute = self.plan, self.recipe, self.plan.options.compute

        def embed(corpus: Corpus) -> EmbeddedScores:
            # By one process, because others could round differently, and would then keep other negatives of a list.
            scores = distributed.in_main(partial(embed_corpus, teachers.duals, corpus, compute, track))
            if recipe.model.learns_teacher_space:
                assert not isinstance(scores, EmbeddedTeachers)
                model.known_images = {**model.known_images, corpus.fingerprint: scores.image_states}
            return scores

        embedded = [embed(part.corpus) if teachers.duals else None for part in self.parts]
        judged_scores: dict[str, TeacherScores] = {}
        for name, corpus in self.judged.items():
            judged_scores[name] = self.judged_caches.get(name) or embed(corpus)
        threshold = self.threshold
        if plan.use.scores_batches:
            threshold = choose_threshold(plan.recipe, [part.corpus for part in self.parts], embedded)
            check_teaches(plan.recipe, threshold)
        batches: list[CorpusBatches] = []
        for part, scores in zip(self.parts, embedded, strict=True):
            # The main process stores the features; the others then find them complete.
            with distributed.main_first():
                source = make_source(model, part.corpus, compute, track)
            pairs = part.pairs
            if plan.use.scores_batches:
                pairs = choose_pairs(part.corpus, with_number(plan.recipe, threshold), scores, part.false_negatives)
            # A loss of vectors has one teacher.
            vectors = scores if recipe.loss.vector_terms and not isinstance(scores, EmbeddedTeachers) else None
            batches.append(CorpusBatches(source, pairs, vectors=vectors))
        preview = self.preview
        if plan.use.scores_batches:
            pairs_of_parts = [part.pairs for part in batches]
            preview = measure(plan, recipe, pairs_of_parts, self.parts[0].caches, "embedded", self.temperature)
        for line in self._lines(preview, batches, threshold):
            say(line)
        recipe = preview.recipe
        if self.temperature is not None:
            recipe = replace(recipe, loss=replace(recipe.loss, temperature=self.temperature))
        source = batches[0].source

        def mine() -> SaveFiles:
            """Mine the negatives of the recipe, or read the mined ones of a run that resumes."""
            mined = negatives.read_or_mine(plan.job.out, source, recipe, compute.device, track)
            return lambda run: negatives.save_mined(run.folder, mined, source.corpus, recipe)

        has_scores = self.parts[0].cached is not None or plan.use.scores_batches
        return Prepared(
            recipe=recipe,
            preview=preview,
            objective=make_objective(
                with_number(recipe, threshold), [part.corpus for part in self.parts], has_scores=has_scores
            ),
            make_batches=partial(make_batches, batches, recipe),
            validation=self.validation,
            validation_teachers=judged_scores,
            collect=mine if recipe.batch.negatives == "mined" else None,
        )

    def _lines(
        self, preview: Preview, parts: Sequence[CorpusBatches], threshold: Threshold | NoPicks | None
    ) -> Iterator[str]:
        """What the user should know of what was measured; ConfigError if the caches cover too little of the pool."""
        yield from preview.lines()
        yield from preview.warnings()
        if preview.coverage is not None:
            yield from preview.coverage.warnings()
        for opened, part in zip(self.parts[1:], parts[1:], strict=True):
            if opened.cached is not None:
                coverage = part.pairs.coverage(preview.num_steps)
                if not self._is_asked_for(opened):
                    coverage.check()
                yield f"the scores of the pool cover {coverage}"
                yield from coverage.warnings()
        if threshold is not None:
            yield str(threshold)
        above = with_number(preview.recipe, threshold).pool.pseudo_positive_above
        if isinstance(above, int | float):
            for part in parts:
                if part.pairs.scores is not None:
                    yield picks_line(part.pairs.corpus, part.pairs.scores, above)
        if self.temperature is not None:
            yield f"loss.temperature is auto: {self.temperature:g} for these scores"


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
    of_parts = cached[: len(corpora)]
    temperature = _auto_temperature(of_parts) if recipe.loss.temperature == "auto" else None
    scores_all = plan.use.scores_batches
    # Dual teachers are loaded later.
    threshold = None if scores_all else choose_threshold(plan.recipe, corpora, of_parts)
    check_teaches(plan.recipe, threshold, groups[len(of_parts) - 1])
    parts = []
    for corpus, group, scores in zip(corpora, groups[: len(corpora)], of_parts, strict=True):
        # The recipe decides, not the plan of a cache: a loss without a teacher needs the filter too.
        false_negatives = false_negative_filter(corpus, recipe.candidates.duplicate_bits, track)
        # Dual teachers that are not loaded choose no batch: they choose among the drawn negatives.
        picking = with_number(plan.recipe, threshold)
        pairs = choose_pairs(corpus, picking, None if scores_all else scores, false_negatives)
        parts.append(
            ScoredCorpus(corpus=corpus, caches=group, cached=scores, false_negatives=false_negatives, pairs=pairs)
        )
    dual_teachers: DualTeachers = "unread" if scores_all else "none"
    preview = measure(plan, recipe, [part.pairs for part in parts], parts[0].caches, dual_teachers, temperature)
    return CorpusData(
        plan=plan,
        recipe=preview.recipe,
        parts=parts,
        validation=validated,
        judged=judged,
        judged_caches=judged_caches,
        temperature=temperature,
        threshold=threshold,
        preview=preview,
    )


def measure(
    plan: TrainingPlan,
    recipe: Recipe,
    pairs: Sequence[StepPairs],
    caches: Sequence[TeacherCache],
    dual_teachers: DualTeachers,
    temperature: float | None,
) -> Preview:
    """The steps of a training on these pairs, of the captioned images and of the pool, and for lists the different
    negatives. Its recipe is adapted to the data."""
    every = recipe.validation.every
    adapted = {} if every == plan.recipe.validation.every else {"validation.every": every}
    for each in pairs:
        adapted |= each.adapted
    main, *pools = pairs
    if not main.corpus.is_pool:
        recipe = replace(recipe, batch=main.config)
    elif not recipe.loss.on_lists:
        # A step has what the pool has, whatever the size of a batch of captioned images would be.
        recipe = replace(recipe, batch=replace(recipe.batch, size=main.size_of_step[0]))
    preview = measure_preview(recipe, caches, main, dual_teachers=dual_teachers, temperature=temperature)
    return replace(preview, adapted=adapted, pool_images=sum(pool.size_of_step[0] for pool in pools))


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
    if not pool.num_images or not pool.num_captions:
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
    has_teacher = has_cache or plan.use.embeds
    if not has_teacher or not (plan.recipe.needs_scores or loss.vector_terms):
        raise ConfigError(
            f"{name}, and no loss of the recipe has scores for it",
            hint="take a loss that has a teacher, such as kl, and name a cache of the pool or a dual --teacher",
        )


def _auto_temperature(cached: Sequence[TeacherCache | TeacherEnsemble | None]) -> float:
    """The temperature for the first cached scores. From them alone, so that a preview shows it without a model."""
    spread = measure_spread(next(scores for scores in cached if scores is not None))
    if spread is None or spread.temperature is None:
        raise ConfigError(
            "loss.temperature is auto, and the best scores of too many lists of the cache are equal",
            hint="set a number",
        )
    return spread.temperature


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


def make_objective(recipe: Recipe, corpora: Sequence[Corpus], *, has_scores: bool) -> PairObjective:
    """The loss of captioned images, of a pool, or of both; each has the terms that it has what they need for."""
    loss, pool = recipe.loss, recipe.pool
    without = [] if pool.pseudo_positive_above is not None else loss.with_positive
    of_pool = [name for name in loss.terms if name not in without]
    if len(corpora) == 1:
        return PairObjective(loss.with_terms(of_pool, 1.0) if corpora[0].is_pool else loss)
    of_pairs: Collection[str] = loss.terms if has_scores else loss.own_terms
    return PairObjective(loss.with_terms(of_pairs, 1 - pool.weight), loss.with_terms(of_pool, pool.weight))


def choose_pairs(
    corpus: Corpus,
    recipe: Recipe,
    scores: TeacherScores | None,
    false_negatives: FalseNegativeFilter,
    mined: Candidates | None = None,
) -> StepPairs:
    """Which pairs each step of a recipe sees. Negatives of lists without scores are `mined`, or random.

    ConfigError for a step that does not fit into memory.
    """
    pairs = _pairs_of(corpus, recipe, scores, false_negatives, mined)
    pairs.check_memory()
    return pairs


def _pairs_of(
    corpus: Corpus,
    recipe: Recipe,
    scores: TeacherScores | None,
    false_negatives: FalseNegativeFilter,
    mined: Candidates | None,
) -> StepPairs:
    if corpus.is_pool:
        threshold = recipe.pool.pseudo_positive_above
        if isinstance(threshold, int | float) and scores is not None:
            image_T = picked_images(corpus, scores, threshold)
            batch = replace(recipe.batch, size=recipe.pool.images or recipe.batch.size)
            matches = false_negatives.with_owners(image_T)
            return PickedPairs(corpus, replace(recipe, batch=batch), scores, matches, image_T=image_T)
        # A pool has no positives, so no image is looked for that is a duplicate of one.
        kind = PoolLists if recipe.loss.on_lists else PoolPairs
        return kind(corpus, recipe, scores, false_negative_filter(corpus, None))
    if recipe.loss.on_lists:
        return CandidateLists(corpus, recipe, scores, false_negatives, mined=mined)
    return AllPairs(corpus, recipe, scores, false_negatives)


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
