"""Negatives of lists without a teacher cache: drawn from the whole corpus, or from what was mined for the query.

What is mined is a function of the corpus and the recipe, and lies in the run's folder, RUN/mined.safetensors: the main one of several
processes mines, once, and all of them and a run that goes on read it. What is drawn is a function of the generator handed in.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dcdctl.core import distributed, files, scoring, teacher
from dcdctl.core.config import to_table
from dcdctl.core.data import Corpus, Direction, RaggedArray
from dcdctl.core.devices import CPU
from dcdctl.core.errors import ConfigError, MissingError, StaleError
from dcdctl.core.progress import Track, silent
from dcdctl.core.scoring import Source
from dcdctl.core.teacher import CandidateConfig, Candidates, Index
from dcdctl.core.training.recipe import Recipe

FORMAT = 1
FILE = "mined.safetensors"
"""In a run's folder. Of each of LISTS `offsets` (int64) and `values` (int32); in the header what they depend on, and a checksum."""
LISTS = ("texts_of_image", "images_of_text")
MINE_AGAIN = "delete it and go on with --resume: it is mined again"
TRIES = 50
"""How often as many as are wanted are drawn, before there are taken to be no others."""


@dataclass(frozen=True)
class MinedNegatives:
    """What lists draw their negatives from, and from which step on."""

    candidates: Candidates
    per_list: int
    """Of the drawn ones of a list, so many are mined."""
    first_step: int = 0
    """Before it all negatives are random."""

    def some_of(self, rng: np.random.Generator, direction: Direction, query: int) -> Index:
        """Some mined captions of an image (text) or images of a caption (image): as many as a list has, or all there are."""
        found = (self.candidates.texts_of_image if direction == Direction.TEXT else self.candidates.images_of_text)[query]
        return rng.choice(found, min(self.per_list, len(found)), replace=False)


def check(recipe: Recipe, *, has_cache: bool) -> None:
    """ConfigError if a recipe asks for mined negatives and cannot have them."""
    if recipe.batch.negatives != "mined":
        if (recipe.batch.mined_share, recipe.batch.mined_from) != (1.0, 0.0):
            raise ConfigError("batch.mined_share and batch.mined_from are for batch.negatives mined, and it is random")
        return
    if has_cache:
        hint = "set it to random and mine for the cache: --set candidates.kind=KIND of cache-teacher"
        raise ConfigError("batch.negatives is mined, and with a cache the negatives are those of the cache", hint=hint)
    if not recipe.loss.on_lists:
        hint = "take a loss on lists, such as ranking"
        raise ConfigError(f"batch.negatives is mined, and loss {', '.join(recipe.loss.terms)} is on all pairs of a batch", hint=hint)
    if recipe.candidates.kind == "blocks":
        hint = "set it to random, lexical, embedding or mixed"
        raise ConfigError("batch.negatives is mined, and candidates.kind blocks makes batches, not candidates of a query", hint=hint)
    if missing := [direction for direction in recipe.batch.directions if direction not in recipe.candidates.directions]:
        hint = "set candidates.directions to those of the batch"
        raise ConfigError(f"batch.negatives is mined, and candidates.directions lacks {', '.join(missing)}", hint=hint)
    for name in ("absolute_margin", "relative_margin"):
        if getattr(recipe.candidates, name) is not None:
            raise ConfigError(f"candidates.{name} needs the teacher's scores, and batch.negatives mined has none", hint="leave it out")


def mine(source: Source, recipe: Recipe, device: torch.device = CPU, track: Track = silent) -> Candidates:
    """Mine what a recipe's `[candidates]` says, in the directions of its batches."""
    config = _config(recipe)
    found = scoring.embed_source(config.model, source, device, track) if config.model else None
    return teacher.mine_candidates(source.corpus, config, found, track)


def for_lists(mined: Candidates, recipe: Recipe, num_steps: int) -> MinedNegatives:
    """What lists draw from in a training of so many steps; ConfigError where the processes have not mined the same."""
    distributed.check_equal(_checksum(mined), "the negatives they mined")
    per_list = max(1, int(recipe.batch.mined_share * recipe.batch.random_negatives + 0.5))
    return MinedNegatives(mined, per_list, int(recipe.batch.mined_from * num_steps + 0.5))


def read_or_mine(folder: Path, source: Source, recipe: Recipe, device: torch.device = CPU, track: Track = silent) -> Candidates:
    """What a run's folder keeps, or else mined now.

    StaleError if that was mined of another corpus or by other settings: a run goes on with what it began with, so the folder is another
    run's, as when run.json differs. For the same reason a candidates.model that has changed under its name is not asked again. StaleError
    if the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return mine(source, recipe, device, track)
    try:
        with safe_open(path, framework="np") as file:
            told = json.loads((file.metadata() or {}).get("mined", "{}"))
            for key, wanted in _plan(source.corpus, recipe).items():
                if (found := told.get(key)) != wanted:
                    raise StaleError(f"{path} was mined with another {key} ({found}, not {wanted})", hint="name another folder with --out")
            parts = {name: [file.get_tensor(f"{name}.{part}").astype(np.int64) for part in ("offsets", "values")] for name in LISTS}
    except SafetensorError as error:
        raise StaleError(f"{path} is damaged: {error}", hint=MINE_AGAIN) from error
    mined = Candidates(**{name: RaggedArray(*part) for name, part in parts.items()}, dropped=told["dropped"])
    if _checksum(mined) != told["checksum"]:
        raise StaleError(f"{path} is damaged: its checksum is another", hint=MINE_AGAIN)
    return mined


def keep(folder: Path, mined: Candidates, corpus: Corpus, recipe: Recipe) -> None:
    """Leave what was mined in a run's folder, whole or not at all, where it is not there yet."""
    if not (folder / FILE).exists():
        told = {**_plan(corpus, recipe), "dropped": mined.dropped, "checksum": _checksum(mined)}
        both = list(zip(LISTS, (mined.texts_of_image, mined.images_of_text), strict=True))
        arrays = {f"{name}.offsets": lists.offsets for name, lists in both}
        arrays |= {f"{name}.values": lists.values.astype(np.int32) for name, lists in both}
        with files.atomic_path(folder / FILE) as partial:
            partial.write_bytes(save(arrays, metadata={"mined": json.dumps(told)}))


def _config(recipe: Recipe) -> CandidateConfig:
    return dataclasses.replace(recipe.candidates, directions=recipe.batch.directions)


def _plan(corpus: Corpus, recipe: Recipe) -> dict[str, Any]:
    """All that what is mined depends on, in JSON's types."""
    settings = {f"candidates.{name}": value for name, value in to_table(_config(recipe)).items()}
    return {"format": FORMAT, "corpus": corpus.fingerprint, **settings}


def _checksum(mined: Candidates) -> int:
    lists = (mined.texts_of_image, mined.images_of_text)
    return zlib.crc32(b"".join(array.tobytes() for one in lists for array in (one.offsets, one.values)))


def draw(rng: np.random.Generator, population: int, count: int, is_own: Callable[[int], bool]) -> Index:
    """Negatives from the whole corpus; with replacement, as in the paper's code, but never one of the query's own."""
    chosen: list[int] = []
    for _ in range(TRIES):
        chosen += [int(i) for i in rng.integers(0, population, count) if not is_own(int(i))]
        if len(chosen) >= count:
            return np.array(chosen[:count], dtype=np.int64)
    raise MissingError(f"no negatives to draw among {population} images or captions", hint="the corpus needs more than one picture")


def filled_up(rng: np.random.Generator, mined: Index, count: int, population: int, own: set[int], class_of: Callable[[int], int]) -> Index:
    """The mined ones, then random ones up to `count`: neither own nor, while there are others, the same as another. Two are the same that
    are of one class; `own` are classes."""
    chosen = mined.tolist()
    seen = own | {class_of(i) for i in chosen}
    for _ in range(TRIES if len(chosen) < count else 0):
        for i in rng.integers(0, population, count).tolist():
            if len(chosen) < count and class_of(i) not in seen:
                chosen.append(i)
                seen.add(class_of(i))
    # A corpus of a few pictures has no others: then some come again.
    return np.concatenate([chosen, draw(rng, population, count - len(chosen), lambda i: class_of(i) in own)]).astype(np.int64)
