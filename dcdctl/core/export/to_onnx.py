"""A dual encoder as a folder for ONNX Runtime and the preprocessing of transformers; torch is not needed.

OUT/image.onnx, OUT/text.onnx             float32, as `models.export_onnx` writes them
OUT/int8/image.onnx, OUT/int8/text.onnx   the same with int8 weights, if requested
OUT/tokenizer.json, ...                   the tokenizer, with the caption length as its limit
OUT/preprocessor_config.json              the image processor
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoTokenizer

from dcdctl.core import models
from dcdctl.core.export import to_transformers
from dcdctl.core.export.check import Samples, Vectors
from dcdctl.core.models import DualEncoder, Towers, silence_transformers

INT8 = "int8"


def write(model: DualEncoder, folder: Path, *, with_int8: bool) -> None:
    """Write into a new folder."""
    towers = models.export_onnx(model, folder)
    if with_int8:
        models.quantize_dynamic(towers, folder / INT8)
    model.preprocess.self_contained().save(folder)
    if (spec := model.export_spec()).timm_config is not None:
        to_transformers.write_timm_processor(spec, folder)


def embed(folder: Path, model: DualEncoder, samples: Samples, precision: str) -> Vectors:
    """The vectors of samples by ONNX Runtime and the preprocessing of transformers alone, from a folder."""
    with silence_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        has_code = model.export_spec().timm_config is not None
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=has_code)
    towers = Towers.of(folder / INT8 if precision == INT8 else folder)
    pixels = processor(images=samples.images, return_tensors="pt")
    tokens = tokenizer(samples.captions, padding=True, truncation=True, return_tensors="pt")
    return Vectors(*(_run(tower, inputs) for tower, inputs in ((towers.image, pixels), (towers.text, tokens))))


def _run(tower: Path, inputs: Mapping[str, Any]) -> torch.Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tower), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    (vectors,) = session.run([models.ONNX_OUTPUT], {name: np.asarray(inputs[name]) for name in names})
    return torch.from_numpy(vectors)
