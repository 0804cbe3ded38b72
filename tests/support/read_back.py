"""What a fresh process computes from exported folders, and the ranks and recalls of its vectors by a plain
computation."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from dcdctl.core.data import Corpus

READ = """
import json, sys
from pathlib import Path

import numpy as np
from PIL import Image

blocks = json.loads(Path("blocks.json").read_text())
captions = json.loads(Path("captions.json").read_text())
pictures = [Image.open(path) for path in sorted(Path("pictures").glob("*.png"))]


def keep(name, **arrays):
    np.savez(f"{name}.npz", **{key: np.asarray(value) for key, value in arrays.items()})
"""
"""The first lines of the process: `blocks` are pieces of code by name, `keep` saves arrays."""


def odd_pictures() -> list[Image.Image]:
    """Neither square nor RGB: one half transparent, one gray."""
    across = np.linspace(0, 255, 90 * 50 * 4).reshape(50, 90, 4).astype(np.uint8)
    return [Image.fromarray(across), Image.fromarray(across[:, :, 0])]


def rankings(found: dict[str, Any], gallery: Corpus) -> dict[str, Any]:
    """The rank of the first correct answer of each query; ties count against it."""
    scores_IT = found["images"][: gallery.num_images] @ found["texts"].T
    own_IT = gallery.caption_image[None, :] == np.arange(gallery.num_images)[:, None]
    best_I, best_T = np.where(own_IT, scores_IT, -np.inf).max(axis=1), np.where(own_IT, scores_IT, -np.inf).max(axis=0)
    text = 1 + ((scores_IT >= best_I[:, None]) & ~own_IT).sum(axis=1)
    return {"text": text, "image": 1 + ((scores_IT >= best_T) & ~own_IT).sum(axis=0)}


def recalls(ranks: dict[str, Any]) -> dict[str, dict[str, float]]:
    """In percent."""
    return {
        f"{way}_retrieval": {f"R@{k}": 100 * int((rank_Q <= k).sum()) / len(rank_Q) for k in (1, 5, 10)}
        for way, rank_Q in ranks.items()
    }
