"""Changes of every field of the JSON files of a saved model, and what a change does: refused, another fingerprint, or
equal scores."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dcdctl.core import artifacts, models
from dcdctl.core.errors import DcdError

SETTINGS = "dcdctl.json"
CAPTIONS = [
    "A LARGE Red Circle is left of a small Blue square!",
    "Café naïve, résumé: the crème brûlée",
    "emoji 🟦 over 😀, 你好",
    "the tiny green star sits above the big pink heart " * 5,
    "a",
    "  [MASK] tabs\tand\nlines  </s> [SEP] don't 3.5",
]
"""Upper case, accents, signs without a token, more tokens than any limit, one letter, special tokens as text."""
_WORDS = {
    "gelu": "relu",
    "relu": "gelu",
    "quick_gelu": "gelu",
    "right": "left",
    "Right": "Left",
    "bicubic": "bilinear",
    "center": "squash",
    "basic": "bottleneck",
    "LongestFirst": "OnlyFirst",
    "BertTokenizer": "PreTrainedTokenizerFast",
    "RobertaTokenizer": "PreTrainedTokenizerFast",
    "ViTImageProcessor": "CLIPImageProcessor",
    "ViltImageProcessor": "ViTImageProcessor",
    "CLIPImageProcessor": "ViTImageProcessor",
    "test_resnet": "test_resnet.r160_in1k",
    "float32": "float16",
    "[UNK]": "[MASK]",
    "[PAD]": "[UNK]",
    "[CLS]": "[SEP]",
    "[SEP]": "[CLS]",
    "<pad>": "<unk>",
    "meter": "",
}
"""Other values that the libraries know."""
MANY = 12
"""From this number of entries of one list or dictionary, only the first, the middle one and the last are changed."""


def images() -> list[Image.Image]:
    """Odd sizes and modes: RGBA, gray, palette, one pixel, a thin strip."""
    rng = np.random.default_rng(5)
    made = []
    for width, height, mode in [
        (37, 50, "RGB"),
        (64, 40, "RGBA"),
        (33, 32, "L"),
        (21, 90, "P"),
        (1, 1, "RGB"),
        (200, 3, "RGB"),
    ]:
        rows = rng.integers(0, 256, (7, 9, 4), dtype=np.uint8)
        made.append(Image.fromarray(rows).resize((width, height)).convert(mode))
    return made


@dataclass(frozen=True)
class Flip:
    """One change of one file."""

    file: str
    path: tuple[str | int, ...]
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.file}:{'.'.join(map(str, self.path))}: {self.before!r} -> {self.after!r}"


REMOVED = "(removed)"


def flips(folder: Path) -> Iterator[Flip]:
    """Every change of every field of every JSON file of a saved model."""
    for file in sorted(folder.glob("*.json")):
        document = (
            artifacts.read_document(file) if file.name == SETTINGS else json.loads(file.read_text(encoding="utf-8"))
        )
        for key in ("format", artifacts.FILES):  # what `load` compares, not settings
            document.pop(key, None) if file.name == SETTINGS else None
        for path, value in _leaves(document):
            for after in _others(value):
                yield Flip(file.name, path, value, after)


def _leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    entries = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    if not entries:
        yield path, value
        return
    if len(entries) >= MANY and ("vocab" in path or "merges" in path or isinstance(value, list)):
        entries = [entries[0], entries[len(entries) // 2], entries[-1]]
    for key, item in entries:
        yield from _leaves(item, (*path, key))


def _others(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value, REMOVED]
    if isinstance(value, int):
        return [value + 1, 2 * value if value > 1 else 3, REMOVED]
    if isinstance(value, float):
        return [value * 1.5 + 0.01, REMOVED]
    if isinstance(value, str):
        return [*([_WORDS[value]] if value in _WORDS else []), f"{value}x", REMOVED]
    return [True, 1, REMOVED]


def apply(flip: Flip, folder: Path) -> None:
    """Make the change in a saved model, and list its files again so that checksums match."""
    file = folder / flip.file
    is_settings = flip.file == SETTINGS
    document = artifacts.read_document(file) if is_settings else json.loads(file.read_text(encoding="utf-8"))
    parent = document
    for key in flip.path[:-1]:
        parent = parent[key]
    if flip.after is REMOVED:
        del parent[flip.path[-1]]
    else:
        parent[flip.path[-1]] = flip.after
    if is_settings:
        artifacts.write_document(file, document)
    else:
        file.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
        models.seal_again(folder)


@dataclass(frozen=True)
class Baseline:
    """A saved model as it is."""

    folder: Path

    @cached_property
    def model(self) -> models.Model:
        return models.load(self.folder)

    @cached_property
    def digest(self) -> str:
        return self.model.digest

    @cached_property
    def scores(self) -> Tensor:
        return scores(self.model)

    def effect(self, flip: Flip, scratch: Path) -> str:
        """refused, seen, equal, wrong, or the error that is no DcdError."""
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(self.folder, scratch)
        apply(flip, scratch)
        with warnings.catch_warnings(action="ignore"):
            try:
                model = models.load(scratch)
            except DcdError:
                return "refused"
            except Exception as error:
                return f"{type(error).__name__}: {str(error)[:60]}"
            if model.digest != self.digest:
                return "seen"
            try:
                return "equal" if torch.equal(scores(model), self.scores) else "wrong"
            except Exception as error:
                return f"wrong ({type(error).__name__}: {str(error)[:60]})"


@torch.no_grad()
def scores(model: Any) -> Tensor:
    """The logits of all pairs of odd images and captions."""
    model = copy.deepcopy(model)  # in aligned memory: the address of weights decides which kernel multiplies them
    batch = model.preprocess.images(images()), model.preprocess.texts(CAPTIONS)
    if model.kind == "dual":
        images_ID, texts_TD = model.embed_images(batch[0]), model.embed_texts(batch[1])
        return model.logit_scale * images_ID @ texts_TD.T
    image_ix, text_ix = torch.meshgrid(torch.arange(len(batch[0])), torch.arange(len(batch[1])), indexing="ij")
    return model(*batch, image_ix.flatten(), text_ix.flatten())
