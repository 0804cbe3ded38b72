"""A training on a prepared corpus, captioned images or a pool, or on one of each: with caches of its teachers' scores,
with dual teachers that embed it, or with no teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dcdctl.core import distributed, scoring
from dcdctl.core.data import Corpus, read_corpus_json
from dcdctl.core.devices import Compute
from dcdctl.core.errors import ConfigError
from dcdctl.core.models import Model
from dcdctl.core.places import shown
from dcdctl.core.progress import Track
from dcdctl.core.scoring import Source
from dcdctl.core.teacher import (
    EmbeddedScores,
    TeacherCache,
    TeacherEnsemble,
    TeacherScores,
    embedded_teachers,
    false_negative_filter,
    measure_spread,
    read_caches,
)
from dcdctl.core.training import negatives, validation
from dcdctl.core.training.batches.batch import MicroBatchPlan
from dcdctl.core.training.batches.make import choose_pairs
from dcdctl.core.training.batches.pool import pseudo_positives
from dcdctl.core.training.batches.step_pairs import CorpusBatches, MixedBatches, StepPairs
from dcdctl.core.training.coverage import Preview, measure_preview
from dcdctl.core.training.inputs import caches_of, embeds_corpus, scores_batches
from dcdctl.core.training.losses.table import LossConfig
from dcdctl.core.training.objective import PairObjective
from dcdctl.core.training.runs import Run
from dcdctl.core.training.training_data import TrainingData, TrainingPlan

IMAGE_CACHE_BYTES = 512 * 2**20
"""Bytes of decoded images that a training keeps: enough for a corpus of small images, and little beside a model in
training."""


@dataclass
class ScoredCorpus:
    """The captioned images of a training, or its pool, and the scores of their pairs: of all caches together, or of
    dual teachers that score every batch."""

    corpus: Corpus
    caches: Sequence[TeacherCache]
    cached: TeacherCache | TeacherEnsemble | None
    source: Source | None = None
    pairs: StepPairs = field(init=False)
    """Chosen by `measure`."""
    embedded: EmbeddedScores | None = None
    """The dual teachers, if they score the batches or the loss compares vectors."""

    def facts(self) -> dict[str, Any]:
        """What a run depends on."""
        return {
            "corpus": self.corpus.fingerprint,
            "split": self.corpus.split,
            "images": self.corpus.num_images,
            "cache": None if self.cached is None else self.cached.plan,
        }


class CorpusData(TrainingData):
    """Captioned images, a pool, or both, with the scores of their pairs."""

    def __init__(self, plan: TrainingPlan) -> None:
        super().__init__(plan)
        recipe, inputs = plan.recipe, plan.inputs
        self._embeds = embeds_corpus(recipe, inputs)
        self._scores_batches = scores_batches(recipe, inputs)
        # With dual teachers alone, teachers.weights are their shares.
        weights = () if self._embeds and not inputs.caches else recipe.teachers.weights
        corpora, caches = inputs.open()
        if not inputs.validation_data:
            self._leave_validation_out(corpora[0])
        self.validation = validation.open_corpora(self.recipe.validation, inputs.validation_data, corpora[0])
        groups = [
            (group, read_caches(group, weights if group or not caches else ()))
            for group in caches_of([*corpora, *self.judged.values()], caches)
        ]
        self.parts = [ScoredCorpus(corpus, *group) for corpus, group in zip(corpora, groups, strict=False)]
        self.main = self.parts[0]
        self._check_pool()
        by_name = zip(self.judged, groups[len(corpora) :], strict=True)
        self.validation_teachers = {name: scores for name, (_, scores) in by_name if scores is not None}
        validation.check_judged(self.judged, self.judged if self._embeds else self.validation_teachers)
        # From the scores alone, so that a preview shows it without a model.
        if recipe.loss.temperature == "auto":
            spread = measure_spread(next(part.cached for part in self.parts if part.cached))
            self.temperature = None if spread is None else spread.temperature
            if self.temperature is None:
                raise ConfigError(
                    "loss.temperature is auto, and the best scores of too many lists of the cache are equal",
                    hint="set a number",
                )

    def _leave_validation_out(self, corpus: Corpus) -> None:
        """Train without validation on a corpus without a val split; ConfigError if the recipe needs one."""
        config = self.recipe.validation
        # Another split was named on purpose.
        if config.every and config.split == "val" and "val" not in read_corpus_json(corpus.folder).splits:
            self.recipe = replace(self.recipe, validation=replace(config, every=0, at_start=False))
            validation.check_corpora(self.recipe, ())

    def _check_pool(self) -> None:
        """ConfigError if the loss needs of a pool what it has not."""
        loss, pool = self.recipe.loss, self.parts[-1]
        for part, is_pool in zip(self.parts if self.parts[1:] else (), (False, True), strict=False):
            if part.corpus.is_pool != is_pool:
                raise ConfigError(
                    f"{shown(part.corpus.folder)} ({part.corpus.split}) {'has captions' if is_pool else 'is a pool'}",
                    hint="--data names captioned images and --pool a pool; a pool alone is named by --data",
                )
        if not pool.corpus.is_pool:
            if loss.needs_teacher and not (pool.cached or self._scores_batches):
                raise ConfigError(
                    f"loss {', '.join(loss.terms)} needs the teacher's scores, and no cache is of the training's split",
                    hint="name one with --cache, which `dcdctl cache-teacher` makes",
                )
            return
        name = f"{shown(pool.corpus.folder)} is a pool: no text of it belongs to an image"
        is_alone = pool is self.main
        if not pool.corpus.num_images or not pool.corpus.num_captions:
            lacks = "images" if pool.corpus.num_captions else "texts"
            raise ConfigError(f"{shown(pool.corpus.folder)} has no {lacks}", hint=f"prepare it with {lacks}")
        is_pseudo = self.recipe.pool.pseudo_positive_above is not None
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
        has_teacher = self._embeds or pool.cached is not None
        if not has_teacher or not (loss.needs_teacher or loss.vector_terms):
            raise ConfigError(
                f"{name}, and no loss of the recipe has scores for it",
                hint="take a loss that has a teacher, such as kl, and name a cache of the pool or a dual --teacher",
            )

    @property
    def captions(self) -> Sequence[str]:
        """All captions and texts."""
        return [text for part in self.parts for text in part.corpus.captions]

    def load_teachers(self, track: Track) -> None:
        """Load the dual teachers, or the model that the student starts from. ConfigError before that, if the caches
        cover too little of what the recipe needs."""
        if (coverage := self.measure(track).coverage) is not None:
            coverage.check()
        recipe, inputs = self.recipe, self.plan.inputs
        if not self._embeds:
            self.teacher = inputs.load_teacher([cache for part in self.parts for cache in part.caches], track)
            return
        # With caches the weights are the caches' shares.
        weights = () if inputs.caches else recipe.teachers.weights
        is_query = recipe.model.kind == "query"
        needs_width = bool(recipe.loss.vector_terms) and not is_query
        duals = inputs.load_dual_teachers(with_vectors=needs_width)
        first: Any = duals[0][1]
        self.teacher = first if is_query else None
        self.vector_width = first.embedding_dim if needs_width else None
        for part in self.parts:
            part.embedded = embedded_teachers(duals, part.corpus, self.plan.options.compute, weights)
        self.validation_teachers = {
            name: self.validation_teachers.get(name)
            or embedded_teachers(duals, corpus, self.plan.options.compute, weights)
            for name, corpus in self.judged.items()
        }

    def read_for(self, model: Model, track: Track) -> None:
        """Embed the corpora with dual teachers that score the batches, and open the images, or the stored features of
        the model's encoders."""
        if self._embeds and not Run(self.plan.job.out).is_finished:
            # Before the run folder is made, so that a failure leaves no folder.
            scores = *(part.embedded for part in self.parts), *self.validation_teachers.values()
            self.embed(model, scores, track)
        for part in self.parts:
            # The main process stores the features; the others then find them complete.
            with distributed.main_first():
                part.source = make_source(model, part.corpus, self.plan.options.compute, track)
        if self._scores_batches:
            self.measure(track)

    def measure(self, track: Track) -> Preview:
        """Count the steps and, for lists, the different negatives."""
        # The recipe asks for a validation, and the corpus has none.
        every = self.recipe.validation.every
        adapted = {} if every == self.plan.recipe.validation.every else {"validation.every": every}
        is_read = self._embeds and self.main.source is not None and not Run(self.plan.job.out).is_finished
        for part in self.parts:
            # The recipe decides, not the plan of a cache: a loss without a teacher needs the filter too.
            false_negatives = false_negative_filter(part.corpus, self.recipe.candidates.duplicate_bits, track)
            scores: TeacherScores | None = part.cached
            if self._scores_batches:
                # Dual teachers that are not loaded choose no batch: they choose among the drawn negatives.
                scores = part.embedded if is_read else None
            part.pairs = choose_pairs(part.corpus, self.plan.recipe, scores, false_negatives)
            adapted |= part.pairs.adapted
        if not self.main.corpus.is_pool:
            self.recipe = replace(self.recipe, batch=self.main.pairs.config)
        preview = measure_preview(
            self.recipe,
            self.main.caches,
            self.main.pairs,
            dual_teachers="none" if not self._scores_batches else "embedded" if is_read else "unread",
            temperature=self.temperature,
        )
        self.preview = replace(preview, adapted=adapted)
        return self.preview

    def check(self) -> Iterator[str]:
        """The lines of the preview; ConfigError if the caches cover too little of the pool."""
        yield from (*self.preview.lines(), *self.preview.warnings())
        for part in self.parts[1:]:
            if part.cached is not None:
                coverage = part.pairs.coverage(self.preview.num_steps)
                coverage.check()
                yield f"the scores of the pool cover {coverage}"
        if (threshold := self.recipe.pool.pseudo_positive_above) is not None:
            yield from self._pseudo_lines(threshold)
        if self.temperature is not None:
            yield f"loss.temperature is auto: {self.temperature:g} for these scores"

    def _pseudo_lines(self, threshold: float) -> Iterator[str]:
        """How many texts have a pseudo positive, and how many of those of captioned images are right."""
        for part in self.parts:
            if part.pairs.scores is None:
                continue
            image_T = pseudo_positives(part.pairs.scores, part.corpus, threshold)
            texts = np.flatnonzero(image_T >= 0)
            name = "texts of the pool" if part.corpus.is_pool else "captions"
            line = f"{len(texts):,} of {len(image_T):,} {name} have a pseudo positive above {threshold:g}"
            if not part.corpus.is_pool and len(texts):
                right = (image_T[texts] == part.corpus.caption_image[texts]).mean()
                line += f", which is the own image of {right:.1%} of them"
            yield line

    def facts(self, start: str, compute: Compute) -> dict[str, Any]:
        """The fingerprints of corpora, caches and teachers, and what the caches cover."""
        more = {
            "pool": self.parts[1].facts() if self.parts[1:] else None,
            "teachers": self.main.embedded and self.main.embedded.plan,
            "temperature": self.temperature,
        }
        return {
            **self.main.facts(),
            **self.more_facts(start, compute),
            **{name: value for name, value in more.items() if value is not None},
            **self.preview.inputs(),
        }

    def collect(self, compute: Compute, track: Track) -> Callable[[Run], None]:
        """Mine the negatives of the recipe, or read the mined ones of a run that resumes; what writes them."""
        if self.recipe.batch.negatives != "mined":
            return lambda run: None
        assert self.main.source is not None
        mined = negatives.read_or_mine(self.plan.job.out, self.main.source, self.recipe, compute.device, track)
        return lambda run: negatives.save_mined(run.folder, mined, self.main.corpus, self.recipe)

    def objective(self, config: LossConfig) -> PairObjective:
        """The loss of captioned images and of the pool; each has the terms that it has what they need for."""
        if not self.parts[1:]:
            return PairObjective(config)
        pool = self.recipe.pool
        of_pairs = config.terms if self.main.cached is not None or self._scores_batches else config.own_terms
        of_pool = config.terms.keys() - ([] if pool.pseudo_positive_above is not None else config.with_positive)
        return PairObjective(config.with_terms(of_pairs, 1 - pool.weight), config.with_terms(of_pool, pool.weight))

    def batches(self, plan: MicroBatchPlan, run: Run | None = None) -> CorpusBatches | MixedBatches:
        """A trial has random negatives in the place of mined ones, which take the same time and memory."""
        plan = replace(plan, by_side=self.recipe.model.kind != "fusion")
        batches = []
        for part in self.parts:
            assert part.source is not None
            pairs = part.pairs
            if run is not None and part is self.main and self.recipe.batch.negatives == "mined":
                mined = negatives.read(run.folder, part.corpus, self.recipe)
                pairs = choose_pairs(part.corpus, self.recipe, None, pairs.false_negatives, mined)
            # A loss of vectors has one teacher.
            vectors: Any = part.embedded if self.recipe.loss.vector_terms else None
            batches.append(CorpusBatches(part.source, pairs, plan, vectors))
        return MixedBatches(*batches) if self.parts[1:] else batches[0]


def make_source(model: Model, corpus: Corpus, compute: Compute, track: Track) -> Source:
    """What batches are read from: the corpus, or the features of the model's encoders; ConfigError if those are
    trained."""
    if compute.features is not None and model.encoders is not None and not model.encoders.is_frozen:
        raise ConfigError(
            "--features stores the outputs of frozen encoders, and these encoders are trained",
            hint="set model.frozen_encoders, model.layers or model.trained=projections, or leave --features out",
        )
    return scoring.open_source(corpus, model, compute, track, IMAGE_CACHE_BYTES)
