"""Three photos with captions, for data sets of every format."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from dcdctl.core.data import Corpus

NAMES = ["a.jpg", "b c.jpg", "ü.jpg"]
SPLITS = ["train", "train", "test"]
CAPTIONS = [["a dog", "a brown dog"], ["grass"], ["two birds", "birds, flying"]]


def jpeg(number: int) -> bytes:
    noise = np.random.default_rng(number).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


DATA = [jpeg(number) for number in range(3)]


def contents(out: Path) -> dict[str, list[tuple[str, bytes, list[str]]]]:
    """Id, bytes and captions of each image, by split."""
    rows = {}
    for split in json.loads((out / "corpus.json").read_text())["splits"]:
        corpus = Corpus.open(out, split)
        texts = [[corpus.captions[text] for text in corpus.captions_of(image)] for image in range(corpus.num_images)]
        rows[split] = [(name, corpus.image_bytes(image), texts[image]) for image, name in enumerate(corpus.image_ids)]
    return rows
