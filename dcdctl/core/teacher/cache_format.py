"""The files of a teacher cache: what their columns are, how a shard is written, and the seal that says it is as it was written.

    CACHE/plan.json               what is to be scored, written first: fingerprints, candidates, shard boundaries
    CACHE/items.parquet           a digest of each picture and caption, by which a larger corpus finds its own again
    CACHE/planned-00000.parquet   pairs of a range of images before they are scored; gone when the cache is whole
    CACHE/pairs-00000.parquet     the same, scored
    CACHE/cache.json              the sign that all is there, written last: counts, versions, size and SHA-256 of each file

A pair has image and text (int32, positions in the corpus; a shard is sorted by them), score (float32, the teacher's raw logit) and role
(uint8, a sum of `candidates`' POSITIVE, TEXT_CANDIDATE and IMAGE_CANDIDATE).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dcdctl.core import files
from dcdctl.core.errors import MissingError, StaleError

FORMAT = 2
IMAGES_PER_SHARD = 256
SCHEMA = pa.schema([("image", pa.int32()), ("text", pa.int32()), ("score", pa.float32()), ("role", pa.uint8())])
_ENCODINGS = {"image": "DELTA_BINARY_PACKED", "text": "DELTA_BINARY_PACKED", "score": "BYTE_STREAM_SPLIT", "role": "PLAIN"}
Index = NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Pairs sorted by image and text; score is NaN where a pair is not scored."""

    image: Index
    text: Index
    score: NDArray[np.float32]
    role: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.image)


def shards_of(plan: dict[str, Any]) -> list[range]:
    """The images of each shard."""
    num_images, size = plan["images"], plan["images_per_shard"]
    return [range(first, min(first + size, num_images)) for first in range(0, num_images, size)]


def pairs_name(shard: int) -> str:
    return f"pairs-{shard:05d}.parquet"


def planned_name(shard: int) -> str:
    return f"planned-{shard:05d}.parquet"


def write_pairs(path: Path, pairs: Pairs) -> None:
    """Write a shard, whole or not at all."""
    columns = {
        "image": pairs.image.astype(np.int32),
        "text": pairs.text.astype(np.int32),
        "score": pairs.score.astype(np.float32),
        "role": pairs.role.astype(np.uint8),
    }
    with files.atomic_path(path) as partial:
        table = pa.table(columns, schema=SCHEMA)
        pq.write_table(table, partial, compression="zstd", use_dictionary=False, column_encoding=_ENCODINGS)


def read_pairs(path: Path) -> Pairs:
    """The pairs of a shard."""
    table = pq.read_table(path, schema=SCHEMA)
    image, text, score, role = (table[name].to_numpy() for name in SCHEMA.names)
    return Pairs(image.astype(np.int64), text.astype(np.int64), score, role)


def seal_of(path: Path, **facts: Any) -> dict[str, Any]:
    """Size and SHA-256 of a file, and what else is to be known of it."""
    return {"bytes": path.stat().st_size, "sha256": files.sha256_of(path), **facts}


def check_size(folder: Path, name: str, seal: dict[str, Any]) -> None:
    """Raise if a file is gone or has another size than when it was sealed."""
    path = folder / name
    if not path.is_file():
        raise MissingError(f"{folder} lacks {name}", hint=_hint(name))
    if path.stat().st_size != seal["bytes"]:
        raise StaleError(f"{path} is damaged: it has {path.stat().st_size} bytes, not {seal['bytes']}", hint=_hint(name))


def check_content(folder: Path, name: str, seal: dict[str, Any]) -> None:
    """Raise if a file is not what it was when it was sealed."""
    check_size(folder, name, seal)
    if (found := files.sha256_of(folder / name)) != seal["sha256"]:
        raise StaleError(f"{folder / name} is damaged: its SHA-256 is {short(found)}, not {short(seal['sha256'])}", hint=_hint(name))


def _hint(name: str) -> str:
    return f"delete {name} and cache.json there and run `dcdctl cache-teacher` again with the same options"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a cache; StaleError if it is missing or damaged."""
    damaged = "it" if path.name == "cache.json" else path.parent
    return files.read_json(path, error=StaleError, hint=f"delete {damaged} and run `dcdctl cache-teacher` again with the same options")


def expect(folder: Path, what: str, found: Any, wanted: Any) -> None:
    """StaleError that names both sides where they differ."""
    if found != wanted:
        raise StaleError(
            f"{folder} was made with another {what} ({short(found)}, not {short(wanted)})",
            hint="run `dcdctl cache-teacher` into another folder, or delete this one",
        )


def short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else json.dumps(value)
