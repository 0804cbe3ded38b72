"""Negatives of candidate lists without a teacher cache: random ones from the whole corpus, or mined ones of the query.

Mined negatives are a function of the corpus and the recipe. They are stored in the run's folder, RUN/mined.safetensors
with its seal, RUN/mined.json: the main process mines once; the other processes, and a run that resumes, read them.
Draws are a function of the given generator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from dcdctl.core import artifacts, files, scoring, teacher
from dcdctl.core.config import to_table
from dcdctl.core.data import Corpus, Indices, RaggedArray
from dcdctl.core.devices import CPU
from dcdctl.core.errors import ConfigError, MissingError, StaleError
from dcdctl.core.progress import Track, silent
from dcdctl.core.scoring import Source
from dcdctl.core.teacher import CandidateConfig, Candidates
from dcdctl.core.training.recipe import Recipe

FILE = "mined.safetensors"
"""In a run's folder: `offsets` (int64) and `values` (int32) of each of LISTS."""
SEAL_FILE = "mined.json"
"""What they were mined from, how many candidates were left out, and size and SHA-256 of FILE; written after it."""
FORMAT = 3
LISTS = ("texts_of_image", "images_of_text")
MAX_DRAW_ROUNDS = 50
"""Maximum number of rejection-sampling rounds before the population counts as exhausted."""


def check(recipe: Recipe, *, has_cache: bool) -> None:
    """ConfigError if a recipe asks for mined negatives that cannot be mined."""
    if recipe.batch.negatives != "mined":
        return
    if has_cache:
        raise ConfigError(
            "batch.negatives is mined, and with a cache the negatives are those of the cache",
            hint="set it to random and mine for the cache: --set candidates.kind=KIND of cache-teacher",
        )
    if not recipe.loss.on_lists:
        raise ConfigError(
            f"batch.negatives is mined, and loss {', '.join(recipe.loss.terms)} is on all pairs of a batch",
            hint="take a loss on lists, such as ranking",
        )
    if recipe.candidates.kind == "blocks":
        raise ConfigError(
            "batch.negatives is mined, and candidates.kind blocks makes batches, not candidates of a query",
            hint="set it to random, lexical or embedding",
        )
    if missing := [direction for direction in recipe.batch.directions if direction not in recipe.candidates.directions]:
        raise ConfigError(
            f"batch.negatives is mined, and candidates.directions lacks {', '.join(missing)}",
            hint="set candidates.directions to those of the batch",
        )
    check_margin(recipe)


def check_margin(recipe: Recipe) -> None:
    """ConfigError if a recipe without a cache has a margin, which removes candidates by the scores of all of them."""
    if recipe.candidates.relative_margin is not None:
        raise ConfigError("candidates.relative_margin is for the candidates of a cache", hint="leave it out")


def mine(source: Source, recipe: Recipe, device: torch.device = CPU, track: Track = silent) -> Candidates:
    """Mine the negatives of a recipe's `[candidates]`, in the directions of its batches."""
    config = _config(recipe)
    vectors = scoring.embed_source(config.model, source, device, track) if config.model else None
    return teacher.mine_candidates(source.corpus, config, vectors, track)


def read_or_mine(
    folder: Path, source: Source, recipe: Recipe, device: torch.device = CPU, track: Track = silent
) -> Candidates:
    """The mined negatives of a run's folder, or newly mined ones if it has none."""
    if (folder / SEAL_FILE).exists():
        return read(folder, source.corpus, recipe)
    return mine(source, recipe, device, track)


def read(folder: Path, corpus: Corpus, recipe: Recipe) -> Candidates:
    """The mined negatives of a started run.

    StaleError if they were mined from another corpus or with other settings, because a run resumes with what it started
    with: the folder belongs to another run then. For the same reason a candidates.model that has changed under its name
    is not used again. StaleError if the file is damaged.
    """
    seal, arrays = read_mined(folder)
    artifacts.expect(folder / SEAL_FILE, seal, _plan(corpus, recipe), hint="name another folder with --out")
    lists = []
    for name in LISTS:
        offsets, values = arrays[f"{name}.offsets"], arrays[f"{name}.values"]
        lists.append(RaggedArray(offsets.astype(np.int64), values.astype(np.int64)))
    texts_of_image, images_of_text = lists
    return Candidates(texts_of_image, images_of_text, seal["dropped"])


def read_mined(folder: Path) -> tuple[artifacts.Document, dict[str, NDArray[Any]]]:
    """The seal and the arrays of a run's mined negatives; StaleError if they are damaged or of another format."""
    hint = f"delete {SEAL_FILE} there and resume with --resume: they are mined again"
    seal = artifacts.read_document(folder / SEAL_FILE, FORMAT, hint=hint)
    artifacts.check_file(folder / FILE, seal["bytes"], seal["sha256"], error=StaleError, hint=hint)
    return seal, load_file(folder / FILE)


def save_mined(folder: Path, mined: Candidates, corpus: Corpus, recipe: Recipe) -> None:
    """Save mined negatives in a run's folder, atomically, unless they are there already."""
    if (folder / SEAL_FILE).exists():
        return
    arrays = {f"{name}.offsets": getattr(mined, name).offsets for name in LISTS}
    # int32 halves the values on disk.
    arrays |= {f"{name}.values": getattr(mined, name).values.astype(np.int32) for name in LISTS}
    with files.atomic_path(folder / FILE) as partial:
        save_file(arrays, partial)
    seal = artifacts.seal_of(folder / FILE, dropped=mined.dropped, **_plan(corpus, recipe))
    artifacts.write_document(folder / SEAL_FILE, seal)


def _config(recipe: Recipe) -> CandidateConfig:
    # Lists of a direction that no batch has would be mined for nothing.
    return dataclasses.replace(recipe.candidates, directions=recipe.batch.directions)


def _plan(corpus: Corpus, recipe: Recipe) -> artifacts.Document:
    """Everything that mined negatives depend on, as JSON values."""
    settings = {f"candidates.{name}": value for name, value in to_table(_config(recipe)).items()}
    return {"format": FORMAT, "corpus": corpus.fingerprint, **settings}


def draw(rng: np.random.Generator, population: int, count: int, is_positive: Callable[[int], bool]) -> Indices:
    """Random negatives from the whole corpus, with replacement as in the released code, and never a positive of the
    query."""
    # The released code does not exclude other captions of the same image.
    chosen: list[int] = []
    for _ in range(MAX_DRAW_ROUNDS):
        chosen += [int(i) for i in rng.integers(0, population, count) if not is_positive(int(i))]
        if len(chosen) >= count:
            return np.array(chosen[:count], dtype=np.int64)
    raise MissingError(
        f"no negatives to draw among {population} images or captions", hint="the corpus needs more than one image"
    )


def pad_with_random(
    rng: np.random.Generator,
    mined: Indices,
    count: int,
    *,
    population: int,
    is_positive: Callable[[int], bool],
    class_of: Callable[[int], int],
) -> Indices:
    """Mined negatives, padded with random ones to `count`: no positives, and no two of one class while the population
    has others."""
    chosen = mined.tolist()
    seen = {class_of(i) for i in chosen}
    for _ in range(MAX_DRAW_ROUNDS if len(chosen) < count else 0):
        for i in rng.integers(0, population, count).tolist():
            if len(chosen) < count and class_of(i) not in seen and not is_positive(i):
                chosen.append(i)
                seen.add(class_of(i))
    # A corpus of a few images runs out of classes: then some repeat.
    repeated = draw(rng, population, count - len(chosen), is_positive)
    return np.concatenate([chosen, repeated]).astype(np.int64)
