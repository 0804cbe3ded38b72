"""`dcdctl finetune-teacher`: train a cross-encoder to rank."""

from __future__ import annotations

from typing import Annotated

import typer

from dcdctl.cli import options

TeacherRef = Annotated[
    str | None,
    typer.Option("--teacher", help="Model to start from, instead of the recipe's model.start.", metavar="REF"),
]


def finetune_teacher(
    recipe: options.RecipeArgument,
    data: options.Data,
    out: options.Out,
    teacher: TeacherRef = None,
    sets: options.Sets = None,
    split: options.Split = "train",
    max_images: options.MaxImages = None,
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
    """Train a cross-encoder to rank. The true caption or image competes with sampled or mined ones."""
    options.check_overrides(recipe, sets)
    from dcdctl.cli.views.training import run_training
    from dcdctl.core import devices
    from dcdctl.core.devices import Compute
    from dcdctl.core.training import InputRefs, TrainingJob

    devices.use_threads(threads)
    job = TrainingJob("finetune-teacher", recipe, sets or [], out, resume)
    refs = InputRefs(
        data=data, split=split, max_images=max_images, teachers=[teacher] if teacher else [], model_set=model_set or []
    )
    place = devices.choose(device)
    compute = Compute(device=place, workers=workers, features=features)
    settings = options.training_options(compute, precision, accumulate, checkpoint_activations, wandb)
    run_training(job, refs, settings, dry_run=dry_run, json=json)
