"""`dcdctl finetune-teacher`: train a cross-encoder to rank."""

from __future__ import annotations

from typing import Annotated

import typer

from dcdctl.cli.distill import RecipeName
from dcdctl.cli.options import (
    Accumulate,
    CheckpointActivations,
    Data,
    Device,
    Features,
    MaxImages,
    ModelSet,
    Out,
    Precision,
    Resume,
    Sets,
    Split,
    Wandb,
    Workers,
)

TeacherRef = Annotated[
    str | None, typer.Option("--teacher", help="Model to go on from, in place of the recipe's model.start.", metavar="REF")
]


def finetune_teacher(
    recipe: RecipeName,
    data: Data,
    out: Out,
    teacher: TeacherRef = None,
    sets: Sets = None,
    split: Split = "train",
    max_images: MaxImages = None,
    model_set: ModelSet = None,
    features: Features = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    workers: Workers = 0,
    accumulate: Accumulate = 1,
    checkpoint_activations: CheckpointActivations = False,
    wandb: Wandb = None,
    resume: Resume = False,
) -> None:
    """Train a cross-encoder to rank the true caption first among drawn ones, and the true image."""
    from dcdctl.cli.terminal import bar, show
    from dcdctl.cli.training_view import view
    from dcdctl.core import distillation

    inputs = distillation.open_inputs(data, split, max_images, [], teacher, model_set or [], bar)
    options = distillation.options(
        device, precision, workers, features, slices=accumulate, checkpoint_activations=checkpoint_activations, wandb=wandb
    )
    run = distillation.finetune(recipe, sets or [], inputs, out, resume=resume, options=options, track=bar, watch=view)
    show(f"teacher -> {run.model_folder}; next: dcdctl cache-teacher --teacher {out} --data {data} --out CACHE")
