"""A training on texts alone: a query encoder learns the vectors that its teacher gave them, from a text cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dcdctl.core.devices import Compute
from dcdctl.core.errors import ConfigError
from dcdctl.core.models import Model
from dcdctl.core.progress import Track
from dcdctl.core.teacher import embedded_teachers, read_text_cache
from dcdctl.core.training import validation
from dcdctl.core.training.batches.batch import MicroBatchPlan
from dcdctl.core.training.batches.texts import TextBatches
from dcdctl.core.training.coverage import Preview
from dcdctl.core.training.runs import Run
from dcdctl.core.training.training_data import TrainingData, TrainingPlan

NAMES_DATA = "name captioned images with --data"


def check(plan: TrainingPlan) -> None:
    """ConfigError for whatever needs images; opens nothing."""
    recipe, refs = plan.recipe, plan.inputs
    if recipe.model.kind != "query" or plan.job.kind != "distill":
        raise ConfigError("no --data is named, and only a query encoder learns from texts alone", hint=NAMES_DATA)
    needs_images = (
        (recipe.loss.of_scores, f"loss {', '.join(recipe.loss.terms)}"),
        (refs.pool is not None, "--pool"),
        (refs.max_images is not None, "--max-images"),
        (refs.split != "train", f"--split {refs.split}"),
        (plan.options.compute.features is not None, "--features"),
        (recipe.validation.metric == "agreement" and not refs.validation_data, "validation.metric agreement"),
    )
    for is_asked, name in needs_images:
        if is_asked:
            raise ConfigError(f"{name} needs images, and no --data is named", hint=f"leave it out, or {NAMES_DATA}")
    if refs.validation_data and len(refs.teachers) != 1:
        raise ConfigError("--validation-data has images, which the teacher embeds", hint="name it with --teacher")
    if len(refs.caches) != 1:
        raise ConfigError(
            f"--cache names {len(refs.caches)} folders, expected one with texts and their vectors",
            hint="make one with `dcdctl cache-teacher --texts`",
        )


class TextData(TrainingData):
    """The texts of a cache, with their vectors."""

    def __init__(self, plan: TrainingPlan) -> None:
        super().__init__(plan)
        self.cache = read_text_cache(plan.inputs.caches[0])
        self.validation = validation.open_corpora(plan.recipe.validation, plan.inputs.validation_data)
        holds_out = bool(plan.recipe.validation.every) and not self.validation
        self.texts = TextBatches(self.cache, plan.recipe, holds_out=holds_out)

    def first_texts(self) -> Sequence[str]:
        """The texts of the first window."""
        return self.texts.first_texts()

    def measure(self, track: Track) -> Preview:
        """Count the steps."""
        self.recipe = self.texts.recipe
        size = self.recipe.batch.size
        self.preview = Preview(
            recipe=self.recipe,
            batches_per_epoch=self.texts.batches_per_epoch,
            adapted={"batch.size": size} if size < self.plan.recipe.batch.size else {},
        )
        return self.preview

    def load_teachers(self, track: Track) -> None:
        """Load the teacher if it is named; without it the cache knows its space."""
        self.measure(track)
        self.teacher = self.cache.space
        teachers = self.plan.inputs.load_dual_teachers(with_vectors=False)
        teacher: Any
        for _, teacher in teachers:
            self.cache.space.check(teacher, self.cache.folder)
            self.teacher = teacher
        self.validation_teachers = {
            name: embedded_teachers(teachers, corpus, self.plan.options.compute) for name, corpus in self.judged.items()
        }

    def read_for(self, model: Model, track: Track) -> None:
        """Tokenize as this model does, and embed the images of the validation corpora once, with the teacher."""
        self.texts.preprocess = model.preprocess
        if not Run(self.plan.job.out).is_finished:
            self.embed(model, self.validation_teachers.values(), track)
        if self.texts.holds_out:
            self.validation = {"texts": self.texts}

    def facts(self, start: str, compute: Compute) -> dict[str, Any]:
        """The fingerprint of the cache."""
        source = {"corpus": self.cache.fingerprint, "split": "texts", "cache": None}
        return {**source, **self.more_facts(start, compute)}

    def batches(self, plan: MicroBatchPlan, run: Run | None = None) -> TextBatches:
        """The same batches in a trial."""
        self.texts.plan = plan
        return self.texts
