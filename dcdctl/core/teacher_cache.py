"""The teacher's scores on disk: a folder written once, read by every distillation.

    CACHE/plan.json              what is to be scored, written first: fingerprints, candidates, shard boundaries
    CACHE/candidates.parquet     the negatives of every query, both directions
    CACHE/pairs-00000.parquet    scored pairs of a range of images: image int32, text int32, score float32, by image and text
    CACHE/cache.json             the sign that all is there, written last: number of pairs, versions, size and SHA-256 of each file

A shard is whole or absent. A killed run goes on with the shards that are missing and ends with the same bytes. Scores are found
by image and caption index, never by position; there is no fallback for a score that is missing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from dcdctl.core import candidates, files, scoring
from dcdctl.core.candidates import CandidateConfig, Candidates, Lists
from dcdctl.core.config import to_table
from dcdctl.core.corpus import Corpus
from dcdctl.core.devices import versions
from dcdctl.core.errors import MissingError, StaleError
from dcdctl.core.features import CorpusSource, Features
from dcdctl.core.models.protocols import FusionScorer
from dcdctl.core.progress import Track, silent

FORMAT = 1
IMAGES_PER_SHARD = 256
Index = NDArray[np.int64]
PAIRS_SCHEMA = pa.schema([("image", pa.int32()), ("text", pa.int32()), ("score", pa.float32())])


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """Where and how fast to score; `precision` is part of what a cache is made of, the rest is not."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    batch_size: int = 256
    precision: str = "float32"
    """float32, or the torch name of what to compute in under autocast."""


@dataclass(frozen=True)
class TeacherCache:
    """Scored pairs in memory, sorted by (image, text), and the candidate lists that point at them."""

    plan: dict[str, Any]
    image_P: Index
    text_P: Index
    score_P: NDArray[np.float32]
    candidates: Candidates
    num_texts: int

    @property
    def num_pairs(self) -> int:
        return len(self.score_P)

    def lookup(self, image_ix: Index, text_ix: Index) -> NDArray[np.float32]:
        """The scores of these pairs, in their shape; NaN where the teacher has not scored a pair."""
        texts = np.asarray(text_ix)
        if texts.size and not 0 <= texts.min() <= texts.max() < self.num_texts:
            raise ValueError(f"caption indices must lie in [0, {self.num_texts}), got {texts.min()} to {texts.max()}")
        wanted = np.asarray(image_ix) * self.num_texts + texts
        place = np.minimum(np.searchsorted(self._keys, wanted), self.num_pairs - 1)
        return np.where(self._keys[place] == wanted, self.score_P[place], np.float32(np.nan))

    @cached_property
    def _keys(self) -> Index:
        """One number a pair, ascending."""
        return self.image_P * self.num_texts + self.text_P


def build(
    corpus: Corpus,
    teacher: FusionScorer,
    folder: Path,
    config: CandidateConfig,
    *,
    options: ScoringOptions = ScoringOptions(),
    features: Features | None = None,
    track: Track = silent,
) -> TeacherCache:
    """Score the candidates of every query and keep the scores; goes on where a killed run of the same plan stopped.

    With `features` the teacher's encoders are not run. The teacher is put in eval mode: one that drops out at random has no score to keep.
    StaleError if the folder holds a cache of another corpus, teacher or plan.
    """
    plan = make_plan(corpus, teacher, config, options, has_features=features is not None)
    source = CorpusSource(corpus, teacher.preprocess) if features is None else features
    _claim(folder, plan)
    teacher.to(options.device).eval()
    if not (folder / "cache.json").exists():
        drawn = candidates.draw(corpus, config)
        image_P, text_P = drawn.pairs(corpus.caption_image)
        _write_candidates(folder / "candidates.parquet", drawn)
        with track("score", total=len(image_P), unit="pairs") as advance:
            for shard, (first, last) in enumerate(_shards(plan)):
                inside = slice(*np.searchsorted(image_P, (first, last)).tolist())
                path = folder / _shard_name(shard)
                if path.exists():
                    advance(inside.stop - inside.start)
                    continue
                scores = scoring.score_pairs(
                    teacher,
                    source,
                    image_P[inside],
                    text_P[inside],
                    device=options.device,
                    batch_size=options.batch_size,
                    precision=options.precision,
                    advance=advance,
                )
                _write_pairs(path, image_P[inside], text_P[inside], scores)
        whole = {"format": FORMAT, "pairs": len(image_P), "versions": versions(), "files": _seals(folder, plan)}
        files.write_json(folder / "cache.json", whole)
    return read(folder, corpus=corpus)


def make_plan(
    corpus: Corpus, teacher: FusionScorer, config: CandidateConfig, options: ScoringOptions, *, has_features: bool = False
) -> dict[str, Any]:
    """All that decides what a cache holds."""
    return {
        "format": FORMAT,
        "corpus": corpus.fingerprint,
        "split": corpus.split,
        "images": corpus.num_images,
        "captions": corpus.num_captions,
        "teacher": teacher.digest,
        "image_size_px": teacher.preprocess.image_size_px,
        "max_text_len": teacher.preprocess.max_text_len,
        "candidates": to_table(config),
        "precision": options.precision,
        "features": "float16" if has_features else None,
        "images_per_shard": IMAGES_PER_SHARD,
    }


def read(folder: Path, *, corpus: Corpus | None = None, teacher: str | None = None) -> TeacherCache:
    """The cache in a folder.

    `corpus` and `teacher` (a fingerprint) are what the reader expects: StaleError names both sides where they differ, and a file
    that is not as it was written. MissingError if there is no finished cache, or a file of it is gone.
    """
    if not (folder / "cache.json").exists():
        state = "an unfinished" if (folder / "plan.json").exists() else "no"
        raise MissingError(f"{folder} holds {state} teacher cache", hint="run `dcdctl cache-teacher` with the same options")
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    if corpus is not None:
        _expect(folder, "corpus", plan["corpus"], corpus.fingerprint)
    if teacher is not None:
        _expect(folder, "teacher", plan["teacher"], teacher)
    if plan["format"] != FORMAT:
        raise StaleError(
            f"{folder} is of format {plan['format']}, this dcdctl reads format {FORMAT}", hint="run `dcdctl cache-teacher` anew"
        )
    _check_seals(folder, json.loads((folder / "cache.json").read_text(encoding="utf-8"))["files"])
    table = pa.concat_tables([pq.read_table(folder / name, schema=PAIRS_SCHEMA) for name in _shard_names(plan)])
    return TeacherCache(
        plan,
        table["image"].to_numpy().astype(np.int64),
        table["text"].to_numpy().astype(np.int64),
        table["score"].to_numpy(),
        _read_candidates(folder / "candidates.parquet"),
        plan["captions"],
    )


def _claim(folder: Path, plan: dict[str, Any]) -> None:
    """Make the folder this plan's, or say why it cannot be."""
    path = folder / "plan.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        for key in plan:
            _expect(folder, key, found.get(key), plan[key])
        files.remove_partials(folder)
        return
    if not files.is_vacant(folder):
        raise StaleError(f"{folder} holds something that is not a teacher cache", hint="name an empty or a new folder with --out")
    files.remove_partials(folder)
    files.write_json(path, plan)


def _expect(folder: Path, what: str, found: Any, wanted: Any) -> None:
    if found != wanted:
        raise StaleError(
            f"{folder} was made with another {what} ({_short(found)}, not {_short(wanted)})",
            hint="run `dcdctl cache-teacher` into another folder, or delete this one",
        )


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else json.dumps(value)


def _shards(plan: dict[str, Any]) -> list[tuple[int, int]]:
    """First image and end of each shard."""
    num_images, size = plan["images"], plan["images_per_shard"]
    return [(first, min(first + size, num_images)) for first in range(0, num_images, size)]


def _shard_name(shard: int) -> str:
    return f"pairs-{shard:05d}.parquet"


def _shard_names(plan: dict[str, Any]) -> list[str]:
    return [_shard_name(shard) for shard in range(len(_shards(plan)))]


def _write_pairs(path: Path, image: Index, text: Index, score: NDArray[np.float32]) -> None:
    table = pa.table({"image": image.astype(np.int32), "text": text.astype(np.int32), "score": score}, schema=PAIRS_SCHEMA)
    _write_table(path, table)


def _write_candidates(path: Path, drawn: Candidates) -> None:
    lists = [("image", drawn.texts_of_image), ("text", drawn.images_of_text)]
    table = pa.concat_tables(
        pa.table(
            {
                "query": pa.array([query] * len(them), pa.string()),
                "candidates": pa.ListArray.from_arrays(them.offsets.astype(np.int32), them.values.astype(np.int32)),
            }
        )
        for query, them in lists
    )
    _write_table(path, table)


def _write_table(path: Path, table: pa.Table) -> None:
    if not path.exists():
        with files.atomic_path(path) as partial:
            pq.write_table(table, partial, compression="zstd")


def _read_candidates(path: Path) -> Candidates:
    table = pq.read_table(path)
    queries = np.array(table["query"].to_pylist())
    return Candidates(*(_to_lists(table.filter(pa.array(queries == query))["candidates"].combine_chunks()) for query in ("image", "text")))


def _to_lists(column: pa.ListArray) -> Lists:
    lengths = column.value_lengths().to_numpy().astype(np.int64)
    return Lists(np.concatenate([[0], np.cumsum(lengths)]), column.flatten().to_numpy().astype(np.int64))


def _seals(folder: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """Size and SHA-256 of each file."""
    paths = [folder / name for name in ("candidates.parquet", *_shard_names(plan))]
    return {path.name: {"bytes": path.stat().st_size, "sha256": files.sha256_of(path)} for path in paths}


def _check_seals(folder: Path, seals: dict[str, Any]) -> None:
    """Raise for a file that is gone or is not as it was written; reading a gigabyte for it takes about a second."""
    for name, seal in seals.items():
        path = folder / name
        hint = f"delete {name} and cache.json there and run `dcdctl cache-teacher` again with the same options"
        if not path.is_file():
            raise MissingError(f"{folder} lacks {name}", hint=hint)
        if path.stat().st_size != seal["bytes"]:
            raise StaleError(f"{path} is damaged: it has {path.stat().st_size} bytes, not {seal['bytes']}", hint=hint)
        if (found := files.sha256_of(path)) != seal["sha256"]:
            raise StaleError(f"{path} is damaged: its SHA-256 is {_short(found)}, not {_short(seal['sha256'])}", hint=hint)
