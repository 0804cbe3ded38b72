"""`dcdctl distill`: train a student on cached scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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

RecipeName = Annotated[str, typer.Argument(help="Recipe name or .toml file.", metavar="RECIPE")]
CacheFolders = Annotated[
    list[Path] | None, typer.Option("--cache", help="Folder written by `dcdctl cache-teacher`; repeat for several teachers.", metavar="DIR")
]
TeacherRef = Annotated[
    str | None, typer.Option("--teacher", help="Model a fusion student starts from; the one whose scores are cached.", metavar="REF")
]


def distill(
    recipe: RecipeName,
    data: Data,
    out: Out,
    cache: CacheFolders = None,
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
    """Train a student on the teacher's cached scores."""
    from dcdctl.cli.terminal import bar, show
    from dcdctl.cli.training_view import view
    from dcdctl.core import distillation

    inputs = distillation.open_inputs(data, split, max_images, cache or [], teacher, model_set or [], bar)
    options = distillation.options(
        device, precision, workers, features, slices=accumulate, checkpoint_activations=checkpoint_activations, wandb=wandb
    )
    run = distillation.distill(recipe, sets or [], inputs, out, resume=resume, options=options, track=bar, watch=view)
    show(f"student -> {run.model_folder}; next: dcdctl eval {out} --data {data}")
