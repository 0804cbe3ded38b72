"""A training on a prepared corpus: with caches of its teachers' scores, with dual teachers that embed it, or with no
teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from dcdctl.core import distributed, scoring
from dcdctl.core.data import Corpus
from dcdctl.core.devices import Compute
from dcdctl.core.errors import ConfigError
from dcdctl.core.models import Model
from dcdctl.core.progress import Track
from dcdctl.core.scoring import CorpusSource, Source
from dcdctl.core.teacher import (
    EmbeddedScores,
    TeacherScores,
    embedded_teachers,
    false_negative_filter,
    measure_spread,
    read_caches,
)
from dcdctl.core.training import negatives, runs, validation
from dcdctl.core.training.batches.batch import MicroBatchPlan
from dcdctl.core.training.batches.make import choose_pairs
from dcdctl.core.training.batches.step_pairs import CorpusBatches, StepPairs
from dcdctl.core.training.coverage import Preview, measure_preview
from dcdctl.core.training.inputs import embeds_corpus, scores_batches
from dcdctl.core.training.runs import Run
from dcdctl.core.training.training_data import TrainingData, TrainingPlan

IMAGE_CACHE_BYTES = 512 * 2**20
"""Bytes of decoded images that a training keeps: enough for a corpus of small images, and little beside a model in
training."""


class CorpusData(TrainingData):
    """A corpus and the scores of its pairs: of all caches together, or of dual teachers that score every batch."""

    source: Source | None = None
    pairs: StepPairs
    embedded: EmbeddedScores | None = None
    """The dual teachers, if they score the batches or the loss compares vectors."""

    def __init__(self, plan: TrainingPlan) -> None:
        super().__init__(plan)
        recipe, inputs = plan.recipe, plan.inputs
        self.corpus, self.caches = inputs.open()
        self._embeds = embeds_corpus(recipe, inputs)
        self._scores_batches = scores_batches(recipe, inputs)
        # With dual teachers alone, teachers.weights are their shares.
        weights = () if self._embeds and not self.caches else recipe.teachers.weights
        self.cached = read_caches(self.caches, weights)
        if recipe.validation.every:
            self.validation = validation.open_corpus(self.corpus, recipe.validation, inputs.validation_data)
        # From the scores alone, so that a preview shows it without a model.
        if recipe.loss.temperature == "auto":
            assert self.cached is not None
            self.temperature = measure_spread(self.cached).temperature
            if self.temperature is None:
                raise ConfigError(
                    "loss.temperature is auto, and the best scores of too many lists of the cache are equal",
                    hint="set a number",
                )

    @property
    def captions(self) -> Sequence[str]:
        """All captions of the corpus."""
        return self.corpus.captions

    @property
    def has_scores(self) -> bool:
        """Whether caches or dual teachers score the pairs."""
        return self.cached is not None or self._scores_batches

    def load_teachers(self, track: Track) -> None:
        """Load the dual teachers, or the model that the student starts from."""
        recipe, inputs = self.recipe, self.plan.inputs
        if not self._embeds:
            self.teacher = inputs.load_teacher(self.caches, track)
            return
        # With caches the weights are the caches' shares, and the dual teachers have equal ones.
        weights = () if self.caches else recipe.teachers.weights
        duals = inputs.load_dual_teachers()
        self.embedded = embedded_teachers(duals, self.corpus, self.plan.options.compute, weights)
        self.vector_width = self.embedded.width if recipe.loss.vector_terms else None

    def read_for(self, model: Model, track: Track) -> None:
        """Open the images, or the stored features of the model's encoders, and embed the corpus with dual teachers that
        score the batches."""
        # The main process stores the features; the others then find them complete.
        with distributed.main_first():
            self.source = make_source(model, self.corpus, self.plan.options.compute, track)
        self._choose_pairs(track)
        out = self.plan.job.out
        if self.embedded is not None and not Run(out).is_finished:
            # Before the run folder is made, so that a failure leaves no folder, and after a folder of other teachers is
            # refused.
            runs.check_inputs(out, self._facts_of_files(model.digest, self.plan.options.compute))
            self.embedded.embed(track)

    def measure(self, track: Track) -> Preview:
        """Count the steps and, for lists, the different negatives."""
        if self.source is None:
            self._choose_pairs(track)
        is_read = self.embedded is not None and not Run(self.plan.job.out).is_finished
        self.preview = measure_preview(
            self.recipe,
            self.caches,
            self.pairs,
            dual_teachers="none" if not self._scores_batches else "embedded" if is_read else "unread",
            temperature=self.temperature,
        )
        return self.preview

    def _choose_pairs(self, track: Track) -> None:
        # The recipe decides, not the plan of a cache: a loss without a teacher needs the filter too.
        false_negatives = false_negative_filter(self.corpus, self.recipe.candidates.duplicate_bits, track)
        # Dual teachers that are not loaded choose no batch: they choose among the drawn negatives.
        scores: TeacherScores | None = self.embedded if self._scores_batches else self.cached
        self.pairs = choose_pairs(self.corpus, self.recipe, scores, false_negatives)

    def check(self) -> Iterator[str]:
        """The lines of the preview; ConfigError if the caches cover too little of what the recipe needs."""
        yield from self.preview.differences
        if self.preview.coverage is not None:
            self.preview.coverage.check()
        yield from (*self.preview.lines(), *self.preview.warnings())
        if self.temperature is not None:
            yield f"loss.temperature is auto: {self.temperature:g} for these scores"

    def facts(self, start: str, compute: Compute) -> dict[str, Any]:
        """The fingerprints of corpus, caches and teachers, and what the caches cover."""
        return {**self._facts_of_files(start, compute), **self.preview.inputs()}

    def _facts_of_files(self, start: str, compute: Compute) -> dict[str, Any]:
        return {
            "corpus": self.corpus.fingerprint,
            "split": self.corpus.split,
            "images": self.corpus.num_images,
            "cache": None if self.cached is None else self.cached.plan,
            "start": start,
            "precision": compute.precision,
            # Stored features are rounded to float16, so they change numbers; their folder does not.
            "features": None if compute.features is None else "float16",
            "validation": None if self.validation is None else self.validation.fingerprint,
            **({} if self.embedded is None else {"teachers": self.embedded.plan}),
            **({} if self.temperature is None else {"temperature": self.temperature}),
        }

    def collect(self, compute: Compute, track: Track) -> Callable[[Run], None]:
        """Mine the negatives of the recipe, or read the mined ones of a run that resumes; what writes them."""
        if self.recipe.batch.negatives != "mined":
            return lambda run: None
        assert self.source is not None
        mined = negatives.read_or_mine(self.plan.job.out, self.source, self.recipe, compute.device, track)
        return lambda run: negatives.save_mined(run.folder, mined, self.corpus, self.recipe)

    def batches(self, plan: MicroBatchPlan, run: Run | None = None) -> CorpusBatches:
        """A trial has random negatives in the place of mined ones, which take the same time and memory."""
        assert self.source is not None
        pairs = self.pairs
        if run is not None and self.recipe.batch.negatives == "mined":
            mined = negatives.read_shared(run.folder, self.source, self.recipe)
            pairs = choose_pairs(self.corpus, self.recipe, None, pairs.false_negatives, mined)
        vectors = self.embedded if self.recipe.loss.vector_terms else None
        plan = replace(plan, by_side=self.recipe.model.kind == "dual")
        return CorpusBatches(self.source, pairs, plan, vectors)


def make_source(model: Model, corpus: Corpus, compute: Compute, track: Track) -> Source:
    """What batches are read from: the corpus, or the features of the model's encoders; ConfigError if those are
    trained."""
    if compute.features is None:
        return CorpusSource(corpus, model.preprocess, IMAGE_CACHE_BYTES)
    if model.encoders is not None and not model.encoders.is_frozen:
        hint = "set model.frozen_encoders, model.layers or model.trained=projections, or leave --features out"
        raise ConfigError("--features stores the outputs of frozen encoders, and these encoders are trained", hint=hint)
    return scoring.open_source(corpus, model, compute, track)
