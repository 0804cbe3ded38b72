"""`dcdctl index`: embed images once, and make them searchable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dcdctl.cli.options import Device, Out, Precision, Split, Workers

Model = Annotated[str, typer.Argument(help="Run folder of a dual encoder, or another reference of one.", metavar="RUN")]
Images = Annotated[Path, typer.Option("--images", help="Folder of pictures, or one written by `dcdctl prepare`.", metavar="DIR")]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Images embedded at a time.", min=1)]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting of the search: kind=flat; repeatable.", metavar="KEY=VALUE")
]


def index(
    model: Model,
    images: Images,
    out: Out,
    split: Split = "test",
    sets: Settings = None,
    workers: Workers = 2,
    batch_size: BatchSize = 32,
    device: Device = "auto",
    precision: Precision = "fp32",
) -> None:
    """Embed the images of a folder or a corpus with a dual encoder, once, so that they can be searched."""
    from dcdctl.cli.terminal import bar, show
    from dcdctl.core import config, devices, index_building
    from dcdctl.core.index_config import IndexConfig

    settings = config.build(IndexConfig, config.apply_sets({}, sets or []))
    options = index_building.EmbeddingOptions(
        device=devices.choose(device), batch_size=batch_size, workers=workers, precision=devices.precision(precision)
    )
    found = index_building.build(model, images, out, settings, split=split, options=options, track=bar)
    show(f"{found.num_images:,} images, {found.dim} numbers each, {found.kind} -> {out}")
