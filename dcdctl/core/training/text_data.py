"""A training on texts alone: a query encoder learns the vectors that its teacher gave them, from a text cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dcdctl.core import distributed
from dcdctl.core.data import Corpus
from dcdctl.core.errors import ConfigError
from dcdctl.core.models import Model
from dcdctl.core.progress import Say, Track
from dcdctl.core.teacher import EmbeddedTeachers, TextCache, embed_corpus, embedding_plan, read_text_cache
from dcdctl.core.training import validation
from dcdctl.core.training.adapted import lowered
from dcdctl.core.training.batches.texts import TextBatches, TextRows
from dcdctl.core.training.coverage import Preview
from dcdctl.core.training.initial_model import Start, check_dims
from dcdctl.core.training.objective import PairObjective
from dcdctl.core.training.recipe import Recipe
from dcdctl.core.training.training_data import Prepared, Teachers, TrainingPlan

NAMES_DATA = "name captioned images with --data"


def check(plan: TrainingPlan) -> None:
    """ConfigError for whatever needs images; opens nothing."""
    recipe, refs = plan.recipe, plan.inputs
    if not recipe.model.learns_teacher_space or plan.job.kind != "distill":
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
            hint="make one with `dcdctl cache-texts`",
        )


@dataclass(frozen=True, kw_only=True)
class TextData:
    """The texts of a cache, with their vectors."""

    plan: TrainingPlan
    recipe: Recipe
    """The recipe of the plan, with a batch that the texts fill."""
    rows: TextRows
    judged: Mapping[str, Corpus]
    """Corpora to validate on, whose images the teacher embeds; without any, held-out texts are."""
    preview: Preview

    @property
    def cache(self) -> TextCache:
        """The texts and their vectors."""
        return self.rows.cache

    @property
    def captions(self) -> Sequence[str]:
        """The texts of the first window, for a new model that has no word pieces of its own."""
        return self.rows.first_texts() if self.recipe.model.trains_word_pieces else []

    @property
    def validation(self) -> Mapping[str, Corpus | TextRows]:
        """Corpora, or the texts that are held out."""
        return {"texts": self.rows} if self.rows.holds_out else self.judged

    def load_teachers(self, track: Track) -> Teachers:
        """Load the teacher if it is named; without it the cache knows its space."""
        duals = self.plan.inputs.load_dual_teachers(with_vectors=False)
        start: Start = self.cache.space
        for _, teacher in duals:
            self.cache.space.check(teacher, self.cache.folder)
            start = teacher
        return Teachers(start=start, duals=duals)

    def facts(self, teachers: Teachers) -> dict[str, Any]:
        """The fingerprint of the cache."""
        compute = self.plan.options.compute
        judged = {name: embedding_plan(teachers.duals, corpus, compute) for name, corpus in self.judged.items()}
        source = {"corpus": self.cache.fingerprint, "split": "texts", "cache": None}
        return {**source, **validation.facts_of(self.validation, judged)}

    def read(self, model: Model, teachers: Teachers, say: Say, track: Track) -> Prepared:
        """Tokenize as this model does, and embed the images of the validation corpora once, with the teacher."""
        compute = self.plan.options.compute
        judged = {}
        for name, corpus in self.judged.items():
            scores = distributed.in_main(partial(embed_corpus, teachers.duals, corpus, compute, track))
            assert not isinstance(scores, EmbeddedTeachers)
            model.known_images = {**model.known_images, corpus.fingerprint: scores.image_states}
            judged[name] = scores
        return Prepared(
            recipe=self.recipe,
            preview=self.preview,
            objective=PairObjective(self.recipe.loss),
            make_batches=lambda plan, run: TextBatches(self.rows, model.preprocess, plan),
            validation=self.validation,
            validation_teachers=judged,
        )


def open_data(plan: TrainingPlan, track: Track, *, is_preview: bool = False) -> TextData:
    """The text cache of a plan and its validation corpora; texts and images are read later."""
    cache = read_text_cache(plan.inputs.caches[0])
    if not cache.space.has_tokens:
        check_dims(plan.recipe.loss, cache.space.dim)
    judged = validation.open_corpora(plan.recipe.validation, plan.inputs.validation_data)
    rows = TextRows(cache, plan.recipe, holds_out=bool(plan.recipe.validation.every) and not judged)
    recipe = replace(plan.recipe, batch=rows.batch)
    preview = Preview(
        recipe=recipe,
        batches_per_epoch=rows.batches_per_epoch,
        adapted=lowered("batch", vars(plan.recipe.batch), rows.batch),
    )
    return TextData(plan=plan, recipe=recipe, rows=rows, judged=judged, preview=preview)
