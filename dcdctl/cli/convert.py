"""`dcdctl convert`: an official checkpoint as a folder that loads without further settings."""

from __future__ import annotations

from typing import Annotated

from dcdctl.cli.options import Json
from dcdctl.core.arguments import argument, path
from dcdctl.core.options import ModelSet, NewOut

Checkpoint = Annotated[str, argument("Official ViLT, METER or DCD .ckpt, or another model reference.", "CKPT")]


def convert(checkpoint: Checkpoint, out: NewOut, model_set: ModelSet = None, json: Json = False) -> None:
    """Save a model as a self-contained folder. It holds the weights, the tokenizer and all settings; it loads without
    --model-set."""
    from dcdctl.cli.views.terminal import bar, note, show, show_json
    from dcdctl.core import models

    model = models.convert(checkpoint, path(out), model_set, bar)
    unused = model.unused_keys
    if unused:
        more = [] if len(unused) <= 4 else ["..."]
        named = ", ".join([*unused[:4], *more])
        note(f"{len(unused)} entries of {checkpoint} are not used in scoring: {named}")
    if json:
        show_json({"model": str(out), "unused_entries": len(unused)})
    else:
        show(f"{checkpoint} -> {out}")
