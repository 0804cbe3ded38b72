"""Tiny models and corpora for tests, and scripts in processes of their own."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import processes
import torch
from paths import ROOT, SUPPORT
from PIL import Image

from dcdctl.core import models
from dcdctl.core.artifacts import seal_of, write_document
from dcdctl.core.data import Corpus
from dcdctl.core.data.shards import CorpusRow, fingerprint_of, shard_name, text_digest, write_shard, write_texts

SIZE = models.ViltSize(
    hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, image_size=64, patch_size=16
)


def make_teacher(captions: Sequence[str], seed: int = 0, size: models.ViltSize = SIZE) -> models.ViltScorer:
    """A random ViLT whose scores spread over several units, so that rounding does not change their order."""
    teacher = models.new_vilt(size, models.word_piece(captions, 200), seed)
    with torch.no_grad():
        for parameter in teacher.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
        teacher.network.rank_output.weight.mul_(30)
    return teacher


def make_models(captions: Sequence[str]) -> tuple[models.ViltScorer, models.DualEncoder]:
    """A random ViLT and a random dual encoder, as small as they get."""
    tokenizer = models.word_piece(captions, 200)
    shared = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 32,
        "patch_size": 16,
        "max_text_len": 24,
    }
    dual = models.DualSize(num_vision_layers=1, num_text_layers=1, projection_dim=8, **shared)
    return models.new_vilt(models.ViltSize(num_hidden_layers=2, **shared), tokenizer), models.new_dual(dual, tokenizer)


def make_wide_dual(captions: Sequence[str]) -> models.DualEncoder:
    """A random dual encoder whose weights are large enough that its vectors differ; it reads images of 48 px and 12
    tokens."""
    size = models.DualSize(
        hidden_size=16, num_attention_heads=2, intermediate_size=32, image_size=48, patch_size=16, max_text_len=12,
        num_vision_layers=1, num_text_layers=1, projection_dim=8,
    )  # fmt: skip
    dual = models.new_dual(size, models.word_piece(captions, 200))
    with torch.no_grad():
        for parameter in dual.parameters():
            parameter.mul_(2 if parameter.ndim > 1 else 1)
    return dual


Copies = Mapping[int, int]
"""Images that repeat another one, by their numbers."""
NO_COPIES: Copies = {}


def make_corpus(
    folder: Path,
    captions: Sequence[Sequence[str]],
    copies: Mapping[int, int] | None = None,
    *,
    has_colors: bool = False,
) -> Corpus:
    """A corpus of noise images with these captions; `copies` maps an image to an earlier one whose file it has.

    With `has_colors` each image has a color of its own: noise alone looks the same to a network.
    """
    return make_splits(folder, {"train": captions}, copies, has_colors=has_colors)


def make_splits(
    folder: Path,
    splits: Mapping[str, Sequence[Sequence[str]]],
    copies: Mapping[int, int] | None = None,
    *,
    has_colors: bool = False,
) -> Corpus:
    """The same for several splits, which have the same images; returns the first one."""
    folder.mkdir(parents=True)
    entries = {
        name: _write_noise(folder, name, captions, copies or {}, has_colors=has_colors)
        for name, captions in splits.items()
    }
    write_document(folder / "corpus.json", {"format": 2, "name": "made", "splits": entries})
    return Corpus.open(folder, next(iter(splits)))


def make_pool(
    folder: Path, captions: Sequence[Sequence[str]], *, split: str = "train", copies: Copies = NO_COPIES, **colors: bool
) -> Corpus:
    """A pool of the images and the captions of `make_corpus`, whose pairing is hidden: the captions are in another
    order, with the numbers of their places in the corpus. `copies` are images that repeat others."""
    folder.mkdir(parents=True)
    entry = write_pool(folder, split, captions, np.random.default_rng(1), copies, **colors)
    write_document(folder / "corpus.json", {"format": 2, "name": "made pool", "splits": {split: entry}})
    return Corpus.open(folder, split)


def write_pool(
    folder: Path,
    split: str,
    captions: Sequence[Sequence[str]],
    rng: np.random.Generator,
    copies: Copies = NO_COPIES,
    *,
    has_colors: bool = False,
) -> dict[str, Any]:
    """Write a split that is a pool; returns its entry in corpus.json."""
    noise = np.random.default_rng(0)
    rows = [_row(noise, image, [], has_colors=has_colors) for image in range(len(captions))]
    entry = write_split(folder, split, _with_copies(rows, copies))
    flat = [text for texts in captions for text in texts]
    order = rng.permutation(len(flat)).tolist()
    texts, file = [flat[i] for i in order], f"texts-{split}.parquet"
    write_texts(folder / file, texts, order)
    digests = [*(row.digest() for row in rows), *map(text_digest, texts)]
    seal = {"file": file, **seal_of(folder / file, rows=len(texts))}
    return {**entry, "captions": len(texts), "fingerprint": fingerprint_of(digests), "texts": seal}


def _write_noise(
    folder: Path, split: str, captions: Sequence[Sequence[str]], copies: Copies, *, has_colors: bool
) -> dict[str, Any]:
    """A split of noise images, in one shard."""
    rng = np.random.default_rng(0)
    rows = [_row(rng, image, texts, has_colors=has_colors) for image, texts in enumerate(captions)]
    return write_split(folder, split, _with_copies(rows, copies))


def _with_copies(rows: list[CorpusRow], copies: Copies) -> list[CorpusRow]:
    return [replace(row, data=rows[copies.get(number, number)].data) for number, row in enumerate(rows)]


def write_split(folder: Path, split: str, rows: Sequence[CorpusRow], rows_a_shard: int = 1000) -> dict[str, Any]:
    """Write the shards of a split; returns its entry in corpus.json."""
    parts = [rows[i : i + rows_a_shard] for i in range(0, max(len(rows), 1), rows_a_shard)]
    digests, shards = [], []
    for number, part in enumerate(parts):
        file = shard_name(split, number, len(parts))
        digests += [row.digest() for row in write_shard(folder / file, part)]
        shards.append({"file": file, **seal_of(folder / file, rows=len(part))})
    num_captions = sum(len(row.captions) for row in rows)
    return {
        "images": len(rows),
        "captions": num_captions,
        "fingerprint": fingerprint_of(digests),
        "shards": shards,
    }


def _row(rng: np.random.Generator, image: int, texts: Sequence[str], *, has_colors: bool) -> CorpusRow:
    stream = io.BytesIO()
    pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
    if has_colors:
        pixels = pixels // 4 + rng.integers(0, 191, 3, dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    ids = [image * 10 + k for k in range(len(texts))]
    return CorpusRow(
        image_id=f"i{image}",
        path=f"{image}.png",
        data=stream.getvalue(),
        width=32,
        height=32,
        captions=list(texts),
        caption_ids=ids,
    )


def run_script(script: str, *arguments: object) -> str:
    """The output of a Python script in a separate process with one thread; AssertionError with its stderr if it
    fails."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(SUPPORT)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = processes.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def model_contents(folder: Path) -> dict[str, Any]:
    """Every file of the model of a run, without the run that its settings name."""
    files = contents(folder)
    settings = json.loads(files["dcdctl.json"])
    return {**files, "dcdctl.json": {key: settings[key] for key in settings if key not in ("run", "checksum")}}
