"""Tiny models, and models with outputs of the official code."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from paths import FIXTURES
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from dcdctl.core import models
from dcdctl.core.models import DualSize, ViltSize

CAPTIONS = [
    "a large red circle is left of a small blue square",
    "the tiny green star sits above the big pink heart",
    "there is a teal moon below a brown arrow",
    "a cross",
]
VILT_SIZE = ViltSize(
    hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8
)
DUAL_SIZE = DualSize(
    hidden_size=32,
    num_vision_layers=2,
    num_text_layers=1,
    num_attention_heads=4,
    intermediate_size=64,
    projection_dim=24,
    image_size=32,
    patch_size=8,
)


@dataclass(frozen=True)
class OfficialModel:
    """A checkpoint of the official code, with inputs and the outputs that the official code gave for them."""

    checkpoint: Path
    facts: dict[str, Any]
    tensors: dict[str, Tensor]
    tokenizer: str

    def scorer(self, **overrides: Any) -> models.ViltScorer:
        return models.load_fusion(self.checkpoint, {"tokenizer": self.tokenizer, **overrides})

    def inputs(self) -> tuple[models.ImageBatch, models.TextBatch]:
        images = models.ImageBatch(self.tensors["in.pixel_values"], self.tensors["in.pixel_mask"])
        return images, models.TextBatch(self.tensors["in.input_ids"], self.tensors["in.attention_mask"])


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return models.word_piece(CAPTIONS, vocab_size=80)


@pytest.fixture(scope="session")
def tokenizer_dir(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(params=["vilt_tiny_a", "vilt_eps_a"])
def official_model(request: pytest.FixtureRequest, tokenizer_dir: Path) -> OfficialModel:
    path = FIXTURES / request.param
    facts = json.loads(path.with_suffix(".json").read_text())
    return OfficialModel(
        path.with_suffix(".ckpt"), facts, load_file(path.with_suffix(".safetensors")), str(tokenizer_dir)
    )


@pytest.fixture
def vilt(tokenizer: Any) -> models.ViltScorer:
    """An untrained ViLT whose weights are large enough that scores differ."""
    return _widen(models.new_vilt(VILT_SIZE, tokenizer))


@pytest.fixture
def dual(tokenizer: Any) -> models.DualEncoder:
    return _widen(models.new_dual(DUAL_SIZE, tokenizer))


@pytest.fixture
def pil_images() -> list[Image.Image]:
    return [noise_image(32, 32, 0), noise_image(64, 40, 1), noise_image(30, 50, 2)]


@pytest.fixture(scope="session")
def photos() -> list[Image.Image]:
    rng = np.random.default_rng(4)
    sizes = [(50, 70), (64, 31), (32, 32), (97, 40)]
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


@pytest.fixture(scope="session")
def captions() -> list[str]:
    return CAPTIONS


def noise_image(width: int, height: int, seed: int, mode: str = "RGB") -> Image.Image:
    """Noise in coarse blocks, so that resizing changes pixels but keeps the blocks visible."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize((width, height)).convert(mode)


@pytest.fixture(scope="session")
def make_image() -> Callable[..., Image.Image]:
    return noise_image


def _widen(model: Any) -> Any:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model
