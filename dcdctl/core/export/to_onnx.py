"""A dual encoder as a folder for ONNX Runtime and the preprocessing of transformers, which need no torch, or that of
open_clip.

OUT/image.onnx, OUT/text.onnx             float32, as `models.export_onnx` writes them
OUT/int8/image.onnx, OUT/int8/text.onnx   the same with int8 weights, if requested
OUT/tokenizer.json, ...                   the tokenizer, with the caption length as its limit
OUT/preprocessor_config.json              the image processor of transformers
OUT/open_clip_config.json                 for open_clip: its image transform and the settings of its tokenizer, in place
of that file
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoTokenizer

from dcdctl.core import models
from dcdctl.core.export import to_open_clip, to_transformers
from dcdctl.core.export.check import Samples, Vectors, embed_in_two_batches
from dcdctl.core.models import DualEncoder, ExportSpec, Towers, silence_transformers

INT8 = "int8"
Prepare = Callable[[Sequence[Any]], Mapping[str, Any]]


def write(model: DualEncoder, folder: Path, *, with_int8: bool) -> None:
    """Write into a new folder."""
    towers = models.export_onnx(model, folder)
    if with_int8:
        models.quantize_dynamic(towers, folder / INT8)
    model.preprocess.self_contained().save(folder)
    if (spec := model.export_spec()).timm_config is not None:
        to_transformers.write_timm_processor(spec, folder)


def embed(folder: Path, model: DualEncoder, samples: Samples, precision: str) -> Vectors:
    """The vectors of samples by ONNX Runtime and the preprocessing of transformers or open_clip alone, from a
    folder."""
    import onnxruntime

    towers = Towers.of(folder / INT8 if precision == INT8 else folder)
    image_tower, text_tower = (
        onnxruntime.InferenceSession(str(tower), providers=["CPUExecutionProvider"])
        for tower in (towers.image, towers.text)
    )
    spec = model.export_spec()
    prepare_images, prepare_texts = to_open_clip.preprocessing(folder) if spec.library else _preprocessing(folder, spec)
    return embed_in_two_batches(
        samples,
        lambda images: _run(image_tower, prepare_images(images)),
        lambda captions: _run(text_tower, prepare_texts(captions)),
    )


def _preprocessing(folder: Path, spec: ExportSpec) -> tuple[Prepare, Prepare]:
    """The inputs of the image and the text tower by transformers alone, from a folder."""
    with silence_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        processor = AutoImageProcessor.from_pretrained(
            folder, backend="pil", trust_remote_code=spec.timm_config is not None
        )
    return (
        lambda images: processor(images=images, return_tensors="pt"),
        lambda captions: tokenizer(captions, return_tensors="pt", **spec.text_options),
    )


def _run(session: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    (vectors,) = session.run(
        [models.ONNX_OUTPUT], {node.name: np.asarray(inputs[node.name]) for node in session.get_inputs()}
    )
    return torch.from_numpy(vectors)
