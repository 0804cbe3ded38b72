"""A small index of noise images whose names are hard to print."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from made_index import build
from PIL import Image
from tiny import make_models

from dcdctl.core import models

CAPTIONS = ["a red circle left of a blue square", "a small green triangle"]
NAMES = [
    "plain.png",
    "[red]brackets[.png",
    "esc\x1b[31m.png",
    "\u202egnp.png",
    "<img src=x>.png",
    "sub/d\u00e9j\u00e0.png",
    *"ghijkl",
]


def make_index(folder: Path) -> Path:
    """An index of the twelve images in `folder/images`. Beside it are a dual encoder, `dual`, and a fusion scorer,
    `fusion`."""
    rng = np.random.default_rng(0)
    for name in NAMES:
        path = folder / "images" / (name if name.endswith(".png") else f"{name}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        # A colour each and some noise: noise alone looks the same to a network.
        pixels = rng.integers(0, 255, 3) + rng.integers(-40, 40, (32, 32, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    fusion, dual = make_models(CAPTIONS)
    for name, model in (("fusion", fusion), ("dual", dual)):
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.mul_(4)
        models.save(model, folder / name)
    build(folder / "dual", folder / "images", folder / "index")
    return folder / "index"
