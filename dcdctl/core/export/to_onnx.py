"""A dual encoder as a folder that ONNX Runtime and the preprocessing of transformers read; torch need not be there.

OUT/image.onnx, OUT/text.onnx             float32, as `onnx_export` writes them
OUT/int8/image.onnx, OUT/int8/text.onnx   the same with int8 weights, where they were asked for
OUT/tokenizer.json, ...                   the tokenizer, cut to the captions' length
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
    """Fill a folder that is not there yet."""
    towers = models.export_onnx(model, folder)
    if with_int8:
        models.quantize_dynamic(towers, folder / INT8)
    model.preprocess.self_contained().save(folder)
    if (spec := model.export_spec()).timm_config is not None:
        to_transformers.write_timm_processor(spec, folder)


def embed(folder: Path, model: DualEncoder, samples: Samples, precision: str) -> Vectors:
    """The vectors of samples by ONNX Runtime, tokens and pixels by what transformers reads from a folder, and nothing else of ours."""
    with silence_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        has_code = model.export_spec().timm_config is not None
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=has_code)
    towers = Towers.of(folder / INT8 if precision == INT8 else folder)
    pixels = processor(images=samples.pictures, return_tensors="pt")
    tokens = tokenizer(samples.captions, padding=True, truncation=True, return_tensors="pt")
    return Vectors(*(_run(tower, inputs) for tower, inputs in ((towers.image, pixels), (towers.text, tokens))))


def _run(tower: Path, inputs: Mapping[str, Any]) -> torch.Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tower), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    (vectors,) = session.run([models.ONNX_OUTPUT], {name: np.asarray(inputs[name]) for name in names})
    return torch.from_numpy(vectors)
