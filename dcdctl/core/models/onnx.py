"""A dual encoder as two ONNX files, and ONNX Runtime as a model that reads them.

FOLDER/image.onnx    pixel_values float32, images x 3 x H x W                         ->  vectors float32, images x D
FOLDER/text.onnx     input_ids int64, attention_mask int64, texts x tokens each       ->  vectors float32, texts x D

Vectors have length 1; a logit is their cosine times `logit_scale`, plus `logit_bias` if there is one. Both numbers are in the metadata of
both files. Numbers of images, texts and tokens may vary; H and W are those of the model's image processor. A model that was trained on
captions of one padded length (SigLIP, open_clip) takes no mask, and only that number of tokens. SigLIP 2 with variable resolution takes
patches: pixel_values float32, images x patches x values, pixel_attention_mask int32, images x patches, and spatial_shapes int64,
images x 2, where the number of patches may vary.

Preprocessing is not in the files: it needs the tokenizer and the image processor of the saved model. Fusion models cannot be exported.
Their computation depends on the data (which pairs share an image, the length of the longest caption), and an ONNX file is one fixed graph.

Shape letters: I images, T texts, D length of the vectors.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from dcdctl.core import files
from dcdctl.core.errors import MissingError, ModelError, require_extra
from dcdctl.core.models.inputs import ImageBatch, TextBatch
from dcdctl.core.models.protocols import DualEncoder, Model, Preprocessor

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
LARGEST_DIFFERENCE = 1e-4
"""Largest accepted difference of a coordinate between torch and ONNX Runtime in float32, which sum in another order."""
ONNX_OUTPUT = "vectors"
NO_CHECKS = "TRANSFORMERS_DISABLE_TORCH_CHECK"
EXTERNAL_FROM_BYTES = 1_800_000_000
"""A single ONNX file may have at most 2 GiB; larger weights are written to a file beside it."""


@dataclass(frozen=True)
class Towers:
    """The two files of a dual encoder."""

    image: Path
    text: Path

    @staticmethod
    def of(folder: Path) -> Towers:
        """The two files in a folder."""
        return Towers(folder / "image.onnx", folder / "text.onnx")

    @property
    def num_bytes(self) -> int:
        """Size of both files, including weights beside them."""
        return sum(path.stat().st_size for tower in (self.image, self.text) for path in tower.parent.glob(f"{tower.name}*"))


class _ImageTower(nn.Module):
    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, pixel_attention_mask: Tensor | None = None, spatial_shapes: Tensor | None = None) -> Tensor:
        mask = None if pixel_attention_mask is None else pixel_attention_mask.bool()
        return self.model.embed_images(ImageBatch(pixel_values, mask, spatial_shapes))


class _TextTower(nn.Module):
    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.model.embed_texts(TextBatch(input_ids, mask))


class OnnxDual:
    """A dual encoder run by ONNX Runtime, on the CPU or a CUDA device, with `embed_images` and `embed_texts` as in `DualEncoder`."""

    def __init__(self, towers: Towers, preprocess: Preprocessor, *, device: torch.device, num_threads: int | None = None) -> None:
        require_onnx()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads or torch.get_num_threads()
        options.log_severity_level = 3  # errors
        self.preprocess, self._device = preprocess, device
        providers = _providers(device, onnxruntime.get_available_providers())
        self._image, self._text = (
            onnxruntime.InferenceSession(str(tower), options, providers=providers) for tower in (towers.image, towers.text)
        )

    def embed_images(self, images: ImageBatch) -> Tensor:
        """Unit vectors, I x D."""
        return self._run(self._image, _image_inputs(images))

    def embed_texts(self, texts: TextBatch) -> Tensor:
        """Unit vectors, T x D."""
        return self._run(self._text, {"input_ids": texts.input_ids, "attention_mask": texts.attention_mask})

    def _run(self, session: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        known = {node.name for node in session.get_inputs()}  # the graph of an encoder that ignores a mask lacks that input
        (vectors,) = session.run([ONNX_OUTPUT], {name: tensor.cpu().numpy() for name, tensor in inputs.items() if name in known})
        return torch.from_numpy(vectors).to(self._device)


def require_onnx() -> None:
    """MissingError if a package of the extra is not installed."""
    require_extra("onnx", *PACKAGES, needed_by="ONNX")


def onnxruntime_version() -> str:
    """The runtime and its version, for reports."""
    return f"onnxruntime {version('onnxruntime')}"


def export_onnx(model: Model, folder: Path) -> Towers:
    """Write both files of a dual encoder, in float32, into a new folder, atomically.

    ModelError for a fusion scorer, for a model that torch cannot export, and for a folder that is not empty.
    """
    require_onnx()
    if model.kind != "dual":
        raise ModelError("a fusion model does not export to ONNX: its shapes depend on the data", hint="export a dual student")
    spec = model.export_spec()
    if reason := spec.refusals.get("onnx"):
        raise ModelError(f"this model does not export to ONNX: {reason}", hint=f"export it with --to {spec.library}")
    if not files.is_vacant(folder):
        raise ModelError(f"{folder} is not empty, a new folder is expected", hint="name another folder")
    device = next(iter(model.parameters())).device
    was_training = model.training
    with files.atomic_folder(folder) as partial:
        towers = Towers.of(partial)
        # Two of each, since torch takes a size of 1 as fixed.
        images = model.preprocess.images([Image.new("RGB", (64, 64))] * 2).to(device)
        texts = model.preprocess.texts(["a b c", "a"]).to(device)
        patches = {} if images.grid is None else {1: "patches"}
        free = {"pixel_values": {0: "images", **patches}, "pixel_attention_mask": {0: "images", **patches}, "spatial_shapes": {0: "images"}}
        text_inputs = {"input_ids": texts.input_ids}
        if spec.padded_length is None:
            free |= {name: {0: "texts", 1: "tokens"} for name in ("input_ids", "attention_mask")}
            text_inputs["attention_mask"] = texts.attention_mask
        else:
            free["input_ids"] = {0: "texts"}
        try:
            model.eval()
            _write(_ImageTower(model), _image_inputs(images), free, towers.image)
            _write(_TextTower(model), text_inputs, free, towers.text)
        finally:
            model.train(was_training)
    return Towers.of(folder)


def _metadata(model: DualEncoder) -> dict[str, str]:
    """What makes a logit of a cosine."""
    bias = model.logit_bias
    return {"logit_scale": repr(float(model.logit_scale)), **({} if bias is None else {"logit_bias": repr(float(bias))})}


def largest_difference(vectors: Tensor, expected: Tensor) -> float:
    """The largest difference of a coordinate between two sets of vectors."""
    return float((vectors.float() - expected.float()).abs().max())


def check_onnx(onnx: OnnxDual, model: DualEncoder, images: ImageBatch, texts: TextBatch) -> float:
    """The largest difference of a coordinate from torch's vectors; ModelError if it exceeds `LARGEST_DIFFERENCE`."""
    with torch.no_grad():
        pairs = ((onnx.embed_images(images), model.embed_images(images)), (onnx.embed_texts(texts), model.embed_texts(texts)))
    difference = max(largest_difference(vectors, expected) for vectors, expected in pairs)
    # Written this way, NaN fails too.
    if not difference <= LARGEST_DIFFERENCE:
        problem = f"ONNX Runtime's vectors differ from torch's by {difference:.1e}"
        raise ModelError(f"{problem}, expected at most {LARGEST_DIFFERENCE:.0e}", hint="this model cannot be served by ONNX Runtime")
    return difference


def quantize_dynamic(towers: Towers, folder: Path) -> Towers:
    """The same two files with int8 weights and dynamically quantized activations, written to `folder`.

    Vectors change by more than rounding; `dcdctl export` compares them (docs/export.md).
    """
    require_onnx()
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as quantize

    folder.mkdir(parents=True, exist_ok=True)
    small = Towers.of(folder)
    for source, target in ((towers.image, small.image), (towers.text, small.text)):
        with files.atomic_path(target) as partial, _quietly():
            # Unsigned weights: on x86 without VNNI, sums of two products of unsigned and signed bytes overflow 16 bits, and cosines fall
            # from 0.99 to 0.91. One scale per column, since columns of a matrix differ. The convolution that makes patches stays float32:
            # ONNX Runtime lacks its int8 form on some processors.
            quantize(source, partial, weight_type=QuantType.QUInt8, per_channel=True, op_types_to_quantize=["MatMul", "Gemm"])
    return small


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the log messages and warnings of exporters and quantizers, which are for their developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _without_value_checks() -> Iterator[None]:
    """Without the checks of transformers that compare values of tensors, by its own switch: ONNX has no operator that fails."""
    before = os.environ.get(NO_CHECKS)
    os.environ[NO_CHECKS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[NO_CHECKS]
        else:
            os.environ[NO_CHECKS] = before


def _providers(device: torch.device, available: list[str]) -> list[str]:
    if device.type == "cpu":
        return ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in available:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]
    raise MissingError(
        f"this ONNX Runtime has no provider for {device.type} (it has {', '.join(available)})", hint="pip install onnxruntime-gpu"
    )


def _image_inputs(images: ImageBatch) -> dict[str, Tensor]:
    """The inputs of an image tower, by the names and types that the image processors of transformers give them."""
    if images.grid is None:
        return {"pixel_values": images.pixel_values}
    assert images.pixel_mask is not None
    return {"pixel_values": images.pixel_values, "pixel_attention_mask": images.pixel_mask.int(), "spatial_shapes": images.grid}


def _write(tower: _ImageTower | _TextTower, example: Mapping[str, Tensor], free: Mapping[str, dict[int, str]], path: Path) -> None:
    """Write one file; `free` names the dimensions of each input that may vary."""
    weights = sum(tensor.numel() * tensor.element_size() for tensor in tower.state_dict().values())
    shapes = tuple(free[name] for name in example)
    names: dict[str, Any] = {"input_names": list(example), "output_names": [ONNX_OUTPUT]}
    try:
        with _quietly(), _without_value_checks():
            program = torch.onnx.export(tower, tuple(example.values()), dynamo=True, dynamic_shapes=shapes, verbose=False, **names)
            assert program is not None
            program.model.metadata_props.update(_metadata(tower.model))
            program.save(path, external_data=weights > EXTERNAL_FROM_BYTES)
    # The errors of torch's exporter have no common class, and the reason is the cause of the outer one.
    except Exception as error:
        reason = f"{type(error.__cause__ or error).__name__}: {str(error.__cause__ or error).splitlines()[0][:200]}"
        raise ModelError(f"torch cannot export this model's {path.stem} side to ONNX: {reason}") from error
