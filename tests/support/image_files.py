"""Image files in a folder."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def png(seed=0, size=(40, 30), kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(
        stream, kind
    )
    return stream.getvalue()


def put(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder
