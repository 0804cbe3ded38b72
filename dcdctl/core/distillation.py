"""From what a user names to a finished run: the wiring of corpus, cache, teacher and recipe."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dcdctl.core import devices, distributed, features, models, negatives, runs, teacher_cache, validation, wandb_log
from dcdctl.core import recipe as recipes
from dcdctl.core.batches import ListSteps, MatrixSteps
from dcdctl.core.corpus import Corpus
from dcdctl.core.errors import ConfigError, ModelError, StaleError
from dcdctl.core.features import CorpusSource, Source
from dcdctl.core.objectives import make_objective
from dcdctl.core.progress import Track, Watch, silent, watched_by
from dcdctl.core.recipe import ModelConfig, Recipe
from dcdctl.core.refresh import refreshed
from dcdctl.core.runs import Run
from dcdctl.core.slices import WHOLE, Slicing
from dcdctl.core.teacher_cache import TeacherCache
from dcdctl.core.teacher_ensemble import TeacherEnsemble, read_as_one
from dcdctl.core.training import TrainingOptions, train
from dcdctl.core.validation import Validation

PICTURE_MEMORY = 512 * 2**20
"""Bytes of decoded pictures that a training keeps."""


@dataclass(frozen=True)
class Inputs:
    """What a training reads: the corpus, the caches if there are any, and the model it starts from if one is named."""

    corpus: Corpus
    caches: Sequence[TeacherCache]
    teacher: Any | None


def options(
    device: str,
    precision: str,
    workers: int,
    features: Path | None = None,
    *,
    slices: int = 1,
    checkpoint_activations: bool = False,
    wandb: str | None = None,
) -> TrainingOptions:
    """Training options from the words of the command line; MissingError if Weights & Biases is wanted and not installed."""
    if wandb is not None:
        wandb_log.require()
    return TrainingOptions(
        device=devices.choose(device),
        precision=devices.precision(precision),
        workers=workers,
        features=features,
        slices=slices,
        checkpoint_activations=checkpoint_activations,
        wandb=wandb,
    )


def open_inputs(
    data: Path,
    split: str,
    max_images: int | None,
    caches: Sequence[Path],
    teacher: str | None,
    model_set: Sequence[str],
    track: Track = silent,
) -> Inputs:
    """Open what is named and check that it belongs together: the caches must be of this corpus, and one of them of this teacher."""
    corpus = Corpus.open(data, split, max_images)
    overrides = models.parse_overrides(model_set)
    if overrides and teacher is None:
        raise ConfigError("--model-set says something of the model named by --teacher, and there is none", hint="name it with --teacher")
    model = None if teacher is None else models.load_fusion(teacher, overrides, track)
    expected = None if model is None or len(caches) > 1 else models.fingerprint(model)
    scores = [teacher_cache.read(cache, corpus=corpus, teacher=expected) for cache in caches]
    if model is not None and len(scores) > 1 and models.fingerprint(model) not in {cache.plan["teacher"] for cache in scores}:
        raise StaleError(f"none of the caches was made with the teacher {teacher}", hint="name the one whose scores are cached")
    return Inputs(corpus, scores, model)


def distill(
    recipe_ref: str,
    sets: Sequence[str],
    inputs: Inputs,
    out: Path,
    *,
    resume: bool,
    options: TrainingOptions,
    track: Track = silent,
    watch: Watch | None = None,
) -> Run:
    """Train the student of a recipe; `watch` sees each step, `track` everything else, and the steps where there is no `watch`."""
    view = watch or watched_by(track)
    return _run(recipes.load(recipe_ref, sets), "distill", inputs, out, resume=resume, options=options, track=track, watch=view)


def finetune(
    recipe_ref: str,
    sets: Sequence[str],
    inputs: Inputs,
    out: Path,
    *,
    resume: bool,
    options: TrainingOptions,
    track: Track = silent,
    watch: Watch | None = None,
) -> Run:
    """Train the teacher of a recipe; ConfigError if the recipe is not one for a cross-encoder without a teacher."""
    recipe = recipes.load(recipe_ref, sets)
    if recipe.model.kind != "fusion" or recipe.loss.needs_teacher:
        hint = "finetune-teacher wants a fusion model and a loss without a teacher, such as ranking"
        raise ConfigError(f"recipe {recipe_ref} trains a student", hint=hint)
    view = watch or watched_by(track)
    return _run(recipe, "finetune-teacher", inputs, out, resume=resume, options=options, track=track, watch=view)


def _run(
    recipe: Recipe, what: str, inputs: Inputs, out: Path, *, resume: bool, options: TrainingOptions, track: Track, watch: Watch
) -> Run:
    model = make_model(recipe, inputs.corpus.captions, inputs.teacher)
    cache = read_as_one(inputs.caches, recipe.teachers.weights)
    negatives.check(recipe, has_cache=cache is not None)
    measured_on = validation.open_corpus(inputs.corpus, recipe.validation) if recipe.validation.every else None
    facts = {
        "corpus": inputs.corpus.fingerprint,
        "split": inputs.corpus.split,
        "cache": None if cache is None else cache.plan,
        "start": models.fingerprint(model),
        "precision": options.precision,
        "features": None if options.features is None else "float16",
        "validation": None if measured_on is None else measured_on.fingerprint,
    }
    with distributed.main_first():
        source = make_source(model, inputs.corpus, options, track)
    steps = make_steps(source, recipe, cache, options.slicing)
    num_steps = count_steps(recipe, steps.batches_per_epoch)
    stops = _refresh_steps(recipe, num_steps, inputs, cache)
    if recipe.batch.negatives == "mined":
        assert isinstance(steps, ListSteps)
        steps = steps.with_mined(negatives.mine(source, recipe, num_steps, device=options.device, track=track))
    run = _start(out, recipe, what, facts, resume=resume)
    if run.is_finished:
        return run
    if options.checkpoint_activations:
        models.checkpoint_activations(model)
    measure = None if measured_on is None else Validation(run, measured_on, recipe.validation, options.device, options.features)
    go_on = functools.partial(
        train, run, model, objective=make_objective(recipe.loss), config=recipe.optimizer, num_steps=num_steps, seed=recipe.seed
    )
    for stop in [*stops, None]:
        go_on(steps=steps, until=stop, options=options, validation=measure, watch=functools.partial(watch, **work(recipe, cache)))
        if stop is not None:
            assert isinstance(cache, TeacherCache)
            folder = run.folder / "caches" / f"step-{stop}"
            cache = refreshed(cache, folder, model, inputs.teacher, source, device=options.device, step=stop, track=track)
            steps = make_steps(source, recipe, cache, options.slicing)
    return _finish(run, model, measure)


def _refresh_steps(recipe: Recipe, num_steps: int, inputs: Inputs, cache: TeacherCache | TeacherEnsemble | None) -> list[int]:
    """The steps before which new candidates are looked for; ConfigError where they cannot be had."""
    steps = [step for step in recipe.batch.refresh_steps if step < num_steps]
    if steps and (inputs.teacher is None or not isinstance(cache, TeacherCache)):
        raise ConfigError("batch.refresh_steps needs one cache and its teacher", hint="name them with --cache and --teacher")
    if steps and distributed.world_size() > 1:
        found = f"batch.refresh_steps is for one process, and there are {distributed.world_size()}"
        raise ConfigError(found, hint="start it without torchrun; --accumulate needs less memory")
    return steps


def _start(out: Path, recipe: Recipe, what: str, facts: dict[str, Any], *, resume: bool) -> Run:
    """The run, made or taken up by the main one of several processes."""
    with distributed.main_first():
        return runs.start(out, recipe, what, facts, resume=resume) if distributed.is_main() else Run(out)


def _finish(run: Run, model: Any, measure: Validation | None) -> Run:
    """Leave the trained model in the run folder."""
    with distributed.main_first():
        if distributed.is_main():
            if measure is not None:
                measure.choose(model)
            runs.finish(run, model)
    return run


def work(recipe: Recipe, cache: TeacherCache | TeacherEnsemble | None) -> dict[str, Any]:
    """What a step does, for `progress.Watch`: so many images of a dual model, pairs of a fusion model."""
    size = recipe.batch.size
    if recipe.model.kind == "dual":
        return {"unit": "images", "per_step": size}
    num_negatives = recipe.batch.drawn_negatives if cache is None else recipe.batch.hard_negatives
    return {"unit": "pairs", "per_step": size * (1 + num_negatives if recipe.loss.on_lists else size)}


def make_source(model: Any, corpus: Corpus, options: TrainingOptions, track: Track) -> Source:
    """Where batches come from: the corpus, or what the model's encoders made of it; ConfigError where those are trained."""
    if options.features is None:
        return CorpusSource(corpus, model.preprocess, PICTURE_MEMORY)
    if isinstance(model, models.CoAttentionScorer) and not model.is_frozen:
        hint = "set model.frozen_encoders or model.layers, or leave --features out"
        raise ConfigError("--features keeps what the encoders give, and here they are trained", hint=hint)
    return features.open_or_build(options.features, corpus, model, device=options.device, track=track)


def make_steps(
    source: Source, recipe: Recipe, cache: TeacherCache | TeacherEnsemble | None, slicing: Slicing = WHOLE
) -> ListSteps | MatrixSteps:
    """The batches a recipe asks for; ConfigError if its loss needs a teacher and there is none."""
    if recipe.loss.needs_teacher and cache is None:
        raise ConfigError(f"loss {', '.join(recipe.loss.terms)} needs the teacher's scores", hint="name a cache with --cache")
    kind = ListSteps if recipe.loss.on_lists else MatrixSteps
    return kind(source, recipe.batch, recipe.seed, cache, replace(slicing, of_sides=recipe.model.kind == "dual"))


def count_steps(recipe: Recipe, batches_per_epoch: float) -> int:
    """Optimisation steps of a run."""
    if recipe.optimizer.steps is not None:
        return recipe.optimizer.steps
    return max(1, int(recipe.optimizer.epochs * batches_per_epoch))


def make_model(recipe: Recipe, captions: Sequence[str], teacher: Any | None) -> Any:
    """The model a recipe trains, with the weights it starts from; the teacher stays as it is."""
    config = recipe.model
    if config.kind == "dual":
        return _make_dual(config, captions, recipe.seed)
    if config.start == "teacher" and teacher is None:
        raise ModelError("this model starts from its teacher, and none is named", hint="name it with --teacher")
    if teacher is None:
        teacher = _new_fusion(config, captions, recipe.seed) if config.start == "new" else models.load_fusion(config.start)
    model = models.fusion_student(teacher, config.layers) if config.layers else copy.deepcopy(teacher).requires_grad_(True)
    if config.frozen_encoders:
        if not isinstance(model, models.CoAttentionScorer):
            raise ConfigError("model.frozen_encoders is set, and the model has no encoders of its own: a ViLT fuses pixels and words")
        model.freeze_encoders()
    return model


def _new_fusion(config: ModelConfig, captions: Sequence[str], seed: int) -> Any:
    if config.vision:
        fusion = models.FusionSize(
            hidden_size=config.hidden_size, num_layers=config.num_layers, num_heads=config.num_heads, dropout=config.dropout
        )
        sides = config.vision, config.text
        return models.scorer_over(*sides, fusion, max_text_len=config.max_text_len, seed=seed, cosine=config.cosine or None)
    size = models.ViltSize(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=4 * config.hidden_size,
        image_size=config.image_size,
        patch_size=config.patch_size,
        image_mean=config.image_mean,
        image_std=config.image_std,
        max_text_len=config.max_text_len,
        hidden_dropout_prob=config.dropout,
    )
    return models.new_vilt(size, models.word_piece(captions, config.vocab_size), seed)


def _make_dual(config: ModelConfig, captions: Sequence[str], seed: int) -> Any:
    if config.start != "new":
        return models.load_dual(config.start)
    if config.vision and config.frozen_encoders:
        after = models.ProjectionSize(projection_dim=config.projection_dim, dropout=config.dropout)
        return models.dual_over(config.vision, config.text, after, max_text_len=config.max_text_len, seed=seed)
    if config.vision and config.text:
        return models.dual_from_backbones(config.vision, config.text, config.projection_dim, seed=seed)
    size = models.DualSize(
        hidden_size=config.hidden_size,
        num_vision_layers=config.num_layers,
        num_text_layers=config.num_text_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=4 * config.hidden_size,
        projection_dim=config.projection_dim,
        image_size=config.image_size,
        patch_size=config.patch_size,
        image_mean=config.image_mean,
        image_std=config.image_std,
        max_text_len=config.max_text_len,
        hidden_dropout_prob=config.dropout,
    )
    return models.dual_student(size, captions, vocab_size=config.vocab_size, seed=seed)
