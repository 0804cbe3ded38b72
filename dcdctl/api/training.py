"""From captioned images to a trained student: `prepare`, `load`, `cache_teacher`, `finetune_teacher`, `distill` and
`study`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from dcdctl.api import arguments
from dcdctl.api.arguments import Overrides, Ref, assignments, many, optional_path, path, say
from dcdctl.core import data as data_room
from dcdctl.core import devices, models, training
from dcdctl.core.data import CorpusSummary, DataChoice, PrepareOptions, SourceOptions
from dcdctl.core.models import Model
from dcdctl.core.report import Study
from dcdctl.core.study import StudyJob, StudyOptions, StudyView, run_study
from dcdctl.core.teacher import CacheJob, TeacherCache, cache_scores
from dcdctl.core.training import InputRefs, Recipe, Run, TrainingJob, TrainingOptions


def prepare(
    manifest: Ref | None = None,
    out: Ref | None = None,
    *,
    csv: Ref | None = None,
    jsonl: Ref | None = None,
    karpathy: Ref | None = None,
    images: Ref | Sequence[Ref] | None = None,
    data_name: str | None = None,
    hold_out: float | None = None,
    encoding: str | None = None,
    overrides: Overrides | None = None,
    splits: Sequence[str] = (),
    max_images: int | None = None,
    image_size: int | None = None,
    on_error: Literal["stop", "skip"] = "stop",
    workers: int = 1,
    placed: Ref | None = None,
    source: str = "",
    offline: bool = False,
    progress: bool = False,
) -> CorpusSummary:
    """Turn captioned images into a corpus in `out`, by default data/NAME: downloaded, checked, sharded and
    fingerprinted.

    `manifest` is a name such as "flickr30k" or "scenes", or a .toml file. Without one, `csv`, `jsonl` or `karpathy`
    names the captions and `images` the folders or archives. Does nothing if the corpus is finished, and resumes an
    interrupted one.

    More than one of the `workers` start processes, so a script then needs `if __name__ == "__main__":`.
    """
    choice = DataChoice(
        manifest=None if manifest is None else os.fspath(manifest),
        csv=optional_path(csv),
        jsonl=optional_path(jsonl),
        karpathy=optional_path(karpathy),
        images=[path(folder) for folder in many(images)],
        folder=optional_path(out),
        sets=assignments(overrides),
        name=data_name,
        hold_out=hold_out,
        encoding=encoding,
    )
    chosen = data_room.choose_manifest(choice)
    options = PrepareOptions(
        splits=tuple(splits),
        max_images=max_images,
        image_size_px=image_size,
        workers=workers,
        on_error=on_error,
    )
    sources = SourceOptions(source=source, placed=optional_path(placed), offline=offline)
    folder = Path("data") / chosen.name if out is None else path(out)
    return data_room.prepare_corpus(
        chosen, folder, options=options, source_options=sources, track=arguments.track(progress)
    )


def load(ref: Ref, overrides: Overrides | None = None, *, device: str = "cpu", progress: bool = False) -> Model:
    """A model in eval mode: a dual encoder or a fusion scorer (`models.model`).

    `ref` is a run, a folder or Hub id of a family that loads, an official .ckpt, a built-in or published name, or
    module:function.
    """
    return models.load(os.fspath(ref), overrides, arguments.track(progress)).to(devices.choose(device))


def cache_teacher(
    teacher: Ref,
    data: Ref,
    out: Ref,
    *,
    recipe: Ref | Recipe,
    split: str = "train",
    max_images: int | None = None,
    model_overrides: Overrides | None = None,
    features: Ref | None = None,
    workers: int | None = None,
    extend: Ref | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    precision: str = "fp32",
    progress: bool = False,
) -> TeacherCache:
    """Score each query's candidates with the teacher, once. `recipe` is the student's, whose `candidates` say what is
    scored."""
    job = CacheJob(
        teacher=os.fspath(teacher),
        data=path(data),
        out=path(out),
        candidates=training.load_recipe(_recipe(recipe)).candidates,
        split=split,
        max_images=max_images,
        model_set=assignments(model_overrides),
        extend=optional_path(extend),
        compute=arguments.compute(
            device, precision=precision, batch_size=batch_size, workers=workers, features=features
        ),
    )
    with arguments.threads(threads):
        cache = cache_scores(job, track=arguments.track(progress))
    assert cache is not None  # only a dry run has none
    return cache


def distill(
    recipe: Ref | Recipe,
    data: Ref | Sequence[Ref],
    out: Ref,
    *,
    cache: Ref | Sequence[Ref] | None = None,
    teacher: Ref | Sequence[Ref] | None = None,
    split: str = "train",
    max_images: int | None = None,
    validation_data: Ref | None = None,
    model_overrides: Overrides | None = None,
    features: Ref | None = None,
    device: str = "auto",
    threads: int | None = None,
    precision: str = "auto",
    workers: int | None = None,
    accumulate: int | None = None,
    checkpoint_activations: bool = False,
    wandb: str | None = None,
    resume: bool = False,
    progress: bool = False,
) -> Run:
    """Train a student on a teacher's scores: those of a cache, or of a dual encoder named by `teacher`, which needs
    none.

    `data` is a corpus, or tars and Parquet files to stream. `out` is the run folder; `resume` resumes the run in it.
    """
    refs = InputRefs(
        data=many(data),
        split=split,
        max_images=max_images,
        caches=[path(folder) for folder in many(cache)],
        teachers=many(teacher),
        model_set=assignments(model_overrides),
        validation_data=optional_path(validation_data),
    )
    compute = arguments.compute(device, workers=workers, features=features)
    options = TrainingOptions.choose(
        compute, precision, accumulate, checkpoint_activations=checkpoint_activations, wandb=wandb
    )
    with arguments.threads(threads):
        return _train(TrainingJob("distill", _recipe(recipe), (), path(out), resume), refs, options, progress)


def finetune_teacher(
    recipe: Ref | Recipe,
    data: Ref,
    out: Ref,
    *,
    teacher: Ref | None = None,
    split: str = "train",
    max_images: int | None = None,
    model_overrides: Overrides | None = None,
    features: Ref | None = None,
    device: str = "auto",
    threads: int | None = None,
    precision: str = "auto",
    workers: int | None = None,
    accumulate: int | None = None,
    checkpoint_activations: bool = False,
    wandb: str | None = None,
    resume: bool = False,
    progress: bool = False,
) -> Run:
    """Train a cross-encoder to rank captions and images; it starts from `teacher`, or from the recipe's
    `model.start`."""
    refs = InputRefs(
        data=path(data),
        split=split,
        max_images=max_images,
        teachers=many(teacher),
        model_set=assignments(model_overrides),
    )
    compute = arguments.compute(device, workers=workers, features=features)
    options = TrainingOptions.choose(
        compute, precision, accumulate, checkpoint_activations=checkpoint_activations, wandb=wandb
    )
    with arguments.threads(threads):
        return _train(TrainingJob("finetune-teacher", _recipe(recipe), (), path(out), resume), refs, options, progress)


def study(
    recipe: Ref | Recipe,
    teachers: Ref | Sequence[Ref],
    data: Ref,
    out: Ref,
    *,
    start: Ref | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    train_split: str = "train",
    split: str = "test",
    depth: int = 20,
    with_teacher: bool = False,
    model_overrides: Overrides | None = None,
    features: Ref | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    precision: str = "auto",
    workers: int | None = None,
    accumulate: int | None = None,
    checkpoint_activations: bool = False,
    progress: bool = False,
) -> Study:
    """Find out whether a teacher pays on this data: zero-shot, fine-tuned, distilled and a cascade, with one report in
    `out`."""
    job = StudyJob(
        recipe=_recipe(recipe),
        teachers=many(teachers),
        data=path(data),
        out=path(out),
        start=None if start is None else os.fspath(start),
        model_set=assignments(model_overrides),
        seeds=tuple(seeds),
        train_split=train_split,
        split=split,
        depth=depth,
        with_teacher=with_teacher,
    )
    compute = arguments.compute(device, batch_size=batch_size, workers=workers, features=features)
    chosen = TrainingOptions.choose(compute, precision, accumulate, checkpoint_activations=checkpoint_activations)
    # As in the command: a precision that is not auto holds for the cache too, and only trainings read stored features.
    scoring = replace(chosen.compute, features=None)
    view = StudyView(say=say, track=arguments.track(progress), watch=arguments.watch(progress))
    with arguments.threads(threads):
        return run_study(job, StudyOptions(training=chosen, scoring=scoring), view)


def _recipe(recipe: Ref | Recipe) -> str | Recipe:
    return recipe if isinstance(recipe, Recipe) else os.fspath(recipe)


def _train(job: TrainingJob, refs: InputRefs, options: TrainingOptions, progress: bool) -> Run:
    return training.train(
        job, refs, options=options, track=arguments.track(progress), watch=arguments.watch(progress), say=say
    )
