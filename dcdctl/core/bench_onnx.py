"""The student by ONNX Runtime, as one more contestant of a benchmark."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from dcdctl.core import onnx_export
from dcdctl.core.errors import DcdError
from dcdctl.core.models.dual import DualModel
from dcdctl.core.models.protocols import DualEncoder, FusionScorer
from dcdctl.core.timed_models import Contestant, DualSide, Inputs, device_of


@dataclass(frozen=True, kw_only=True)
class OnnxStudent:
    """Whether and how ONNX Runtime takes part."""

    note: str = ""
    """Why it does not, in a few words."""
    contestant: Contestant | None = None
    largest_difference: float | None = None
    """Of a coordinate of its vectors from torch's."""
    file_bytes: int | None = None


@contextmanager
def onnx_student(model: FusionScorer | DualEncoder, inputs: Inputs, *, is_wanted: bool) -> Iterator[OnnxStudent]:
    """The student exported into a folder of its own, gone afterwards; its vectors are compared with torch's before it may take part."""
    if not is_wanted:
        yield OnnxStudent(note="not asked for")
    elif onnx_export.missing_packages():
        yield OnnxStudent(note="not installed: pip install 'dcdctl[onnx]'")
    elif not isinstance(model, DualModel):
        yield OnnxStudent(note="does not export: the shapes of a fusion model depend on the data")
    else:
        with tempfile.TemporaryDirectory(prefix="dcdctl-onnx-") as folder:
            yield _exported(model, inputs, Path(folder))


def _exported(model: DualModel, inputs: Inputs, folder: Path) -> OnnxStudent:
    try:
        with torch.inference_mode(False), torch.autocast(device_of(model).type, enabled=False):
            towers = onnx_export.export(model, folder / "towers")
            onnx = onnx_export.OnnxDual(towers, model.preprocess, device=device_of(model))
            size = inputs.batch_size
            difference = onnx_export.check(onnx, model, inputs.images[size], inputs.texts[size])
    except DcdError as error:
        return OnnxStudent(note=f"does not run: {error.args[0]}")
    # It embeds as a dual encoder does; it is not trained, saved or moved.
    contestant = Contestant(DualSide(cast(DualEncoder, onnx)), inputs)
    return OnnxStudent(contestant=contestant, largest_difference=difference, file_bytes=towers.num_bytes)
