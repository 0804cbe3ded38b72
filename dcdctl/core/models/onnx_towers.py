"""ONNX Runtime as a model that reads the two files of `onnx.export_onnx`.

Shape letters: I images, T texts, D length of the vectors.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dcdctl.core.errors import MissingError, require_extra
from dcdctl.core.models import text_tower
from dcdctl.core.models.inputs import ImageBatch, States, TextBatch

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
TOWERS = ("image.onnx", "text.onnx")
"""The two files of a model in a folder."""


class OnnxTowers:
    """The two files of a model in a folder, run by ONNX Runtime on the CPU or a CUDA device, with `embed_images` and
    `embed_texts` as in `DualEncoder`, `encode_images` and `encode_texts` as in `LateInteraction`."""

    def __init__(self, folder: Path, *, device: torch.device) -> None:
        require_onnx()
        import onnxruntime

        self._device = device
        providers = _providers(device, onnxruntime.get_available_providers())
        image_file, text_file = TOWERS
        self._image = text_tower.open_session(folder / image_file, torch.get_num_threads(), providers)
        self._text = text_tower.open_session(folder / text_file, torch.get_num_threads(), providers)

    def embed_images(self, images: ImageBatch) -> Tensor:
        """Unit vectors, I x D."""
        return self.outputs(images)[0].to(self._device)

    def embed_texts(self, texts: TextBatch) -> Tensor:
        """Unit vectors, T x D."""
        return self.outputs(texts)[0].to(self._device)

    def encode_images(self, images: ImageBatch) -> States:
        """Token vectors of I images."""
        return States(*self.outputs(images)).to(self._device)

    def encode_texts(self, texts: TextBatch) -> States:
        """Token vectors of T texts."""
        return States(*self.outputs(texts)).to(self._device)

    def outputs(self, batch: ImageBatch | TextBatch) -> tuple[Tensor, ...]:
        """All that a file gives, in the order of `onnx.ONNX_OUTPUTS`, on the CPU."""
        if isinstance(batch, ImageBatch):
            session, inputs = self._image, image_inputs(batch)
        else:
            session = self._text
            inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        # The graph of an encoder that ignores a mask lacks that input.
        arrays = {node.name: inputs[node.name].cpu().numpy() for node in session.get_inputs()}
        return tuple(map(torch.from_numpy, session.run(None, arrays)))


def require_onnx() -> None:
    """MissingError if a package of the extra is not installed."""
    require_extra("onnx", *PACKAGES, needed_by="ONNX")


def _providers(device: torch.device, available: list[str]) -> list[str]:
    if device.type == "cpu":
        return ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in available:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]
    raise MissingError(
        f"this ONNX Runtime has no provider for {device.type} (it has {', '.join(available)})",
        hint="pip install onnxruntime-gpu",
    )


def image_inputs(images: ImageBatch) -> dict[str, Tensor]:
    """The inputs of an image tower, by the names and types that the image processors of transformers give them."""
    if images.grid is None:
        return {"pixel_values": images.pixel_values}
    assert images.pixel_mask is not None
    return {
        "pixel_values": images.pixel_values,
        "pixel_attention_mask": images.pixel_mask.int(),
        "spatial_shapes": images.grid,
    }
