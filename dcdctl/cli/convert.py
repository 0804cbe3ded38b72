"""`dcdctl convert`: an official checkpoint as a folder that loads without further settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dcdctl.cli.options import ModelSet

Checkpoint = Annotated[str, typer.Argument(help="Official ViLT, METER or DCD .ckpt, or another model reference.", metavar="CKPT")]
OutFolder = Annotated[Path, typer.Argument(help="Folder to write.", metavar="OUT")]


def convert(checkpoint: Checkpoint, out: OutFolder, model_set: ModelSet = None) -> None:
    """Save a model as a folder that loads without --model-set. It holds safetensors, the tokenizer and all settings."""
    from dcdctl.cli.views.terminal import bar, note, show
    from dcdctl.core import models

    model = models.convert(checkpoint, out, model_set or (), bar)
    unused = model.unused_keys
    if unused:
        note(f"{len(unused)} entries of {checkpoint} are not used in scoring: {', '.join(unused[:4])}{', ...' if len(unused) > 4 else ''}")
    show(f"{checkpoint} -> {out}")
