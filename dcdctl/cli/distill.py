"""`dcdctl distill`: train a student on cached scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dcdctl.cli import options
from dcdctl.cli.completion import complete_teacher

CacheFolders = Annotated[
    list[Path] | None,
    typer.Option(
        "--cache", help="Folder written by `dcdctl cache-teacher`; repeat for several teachers.", metavar="DIR"
    ),
]
TeacherRefs = Annotated[
    list[str] | None,
    typer.Option(
        "--teacher",
        help="With --cache: the model that made it, from which a fusion student starts. Without: a dual encoder to "
        "learn from; repeatable.",
        autocompletion=complete_teacher,
        metavar="REF",
    ),
]


def distill(
    recipe: options.RecipeArgument,
    data: options.TrainingData,
    out: options.Out,
    cache: CacheFolders = None,
    teacher: TeacherRefs = None,
    sets: options.Sets = None,
    split: options.Split = "train",
    max_images: options.MaxImages = None,
    validation_data: options.ValidationData = None,
    model_set: options.ModelSet = None,
    features: options.Features = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    precision: options.TrainingPrecision = "auto",
    workers: options.Workers = None,
    accumulate: options.Accumulate = "auto",
    checkpoint_activations: options.CheckpointActivations = False,
    wandb: options.Wandb = None,
    resume: options.Resume = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Train a student on a teacher's scores. They come from a cache, or from a dual encoder, which needs none."""
    options.check_overrides(recipe, sets)
    from dcdctl.cli.views.training import run_training
    from dcdctl.core import devices
    from dcdctl.core.devices import Compute
    from dcdctl.core.training import InputRefs, TrainingJob

    devices.use_threads(threads)
    job = TrainingJob("distill", recipe, sets or [], out, resume)
    refs = InputRefs(
        data=data,
        split=split,
        max_images=max_images,
        caches=cache or [],
        teachers=teacher or [],
        model_set=model_set or [],
        validation_data=validation_data,
    )
    place = devices.choose(device)
    compute = Compute(device=place, workers=workers, features=features)
    settings = options.training_options(compute, precision, accumulate, checkpoint_activations, wandb)
    run_training(job, refs, settings, dry_run=dry_run, json=json)
