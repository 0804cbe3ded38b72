"""From what a user names to a finished run: the wiring of corpus, cache, teacher and recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcdctl.core import devices, models, runs, teacher_cache
from dcdctl.core import recipe as recipes
from dcdctl.core.corpus import Corpus
from dcdctl.core.errors import ConfigError
from dcdctl.core.progress import Track, silent
from dcdctl.core.recipe import Recipe
from dcdctl.core.runs import Run
from dcdctl.core.teacher_cache import TeacherCache
from dcdctl.core.training import TrainingOptions, count_steps, make_model, make_objective, make_steps, train


@dataclass(frozen=True)
class Inputs:
    """What a training reads: the corpus, the cache if there is one, and the model it starts from if one is named."""

    corpus: Corpus
    cache: TeacherCache | None
    teacher: Any | None


def options(device: str, precision: str, workers: int) -> TrainingOptions:
    """Training options from the words of the command line."""
    return TrainingOptions(device=devices.choose(device), precision=devices.precision(precision), workers=workers)


def open_inputs(
    data: Path, split: str, max_images: int | None, cache: Path | None, teacher: str | None, model_set: Sequence[str]
) -> Inputs:
    """Open what is named and check that it belongs together: the cache must be of this corpus and this teacher."""
    corpus = Corpus.open(data, split).subset(max_images)
    model = None if teacher is None else models.load_fusion(teacher, models.parse_overrides(model_set))
    expected = None if model is None else models.fingerprint(model)
    scores = None if cache is None else teacher_cache.read(cache, corpus=corpus, teacher=expected)
    return Inputs(corpus, scores, model)


def distill(
    recipe_ref: str, sets: Sequence[str], inputs: Inputs, out: Path, *, resume: bool, options: TrainingOptions, track: Track = silent
) -> Run:
    """Train the student of a recipe."""
    return _run(recipes.load(recipe_ref, sets), "distill", inputs, out, resume=resume, options=options, track=track)


def finetune(
    recipe_ref: str, sets: Sequence[str], inputs: Inputs, out: Path, *, resume: bool, options: TrainingOptions, track: Track = silent
) -> Run:
    """Train the teacher of a recipe; ConfigError if the recipe is not one for a cross-encoder without a teacher."""
    recipe = recipes.load(recipe_ref, sets)
    if recipe.model.kind != "fusion" or recipe.loss.needs_teacher:
        raise ConfigError(f"recipe {recipe_ref} trains a student", hint="finetune-teacher wants a fusion model and a loss without a teacher, such as ranking")
    return _run(recipe, "finetune-teacher", inputs, out, resume=resume, options=options, track=track)


def _run(recipe: Recipe, what: str, inputs: Inputs, out: Path, *, resume: bool, options: TrainingOptions, track: Track) -> Run:
    facts = {
        "corpus": inputs.corpus.fingerprint,
        "split": inputs.corpus.split,
        "cache": None if inputs.cache is None else inputs.cache.plan,
        "start": None if inputs.teacher is None else models.fingerprint(inputs.teacher),
    }
    run = runs.start(out, recipe, what, facts, resume=resume)
    if run.is_finished:
        return run
    model = make_model(recipe, inputs.corpus.captions, inputs.teacher)
    steps = make_steps(inputs.corpus, model, recipe, inputs.cache)
    num_steps = count_steps(recipe, steps.samples_per_epoch)
    objective = make_objective(recipe.loss)
    train(run, model, steps, objective, recipe.optimizer, num_steps=num_steps, seed=recipe.seed, options=options, track=track)
    runs.finish(run, model)
    return run
