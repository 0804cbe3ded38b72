"""Damages to the files of an artifact, and what reading it gives then.

A trial damages one file, or swaps two, and reads the whole artifact as a new process would. Its outcome must be an
error that names a file of the artifact, or the intact result. Never another result, another exception, or a signal.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dcdctl.core import artifacts
from dcdctl.core.artifacts import checksums
from dcdctl.core.data.shards import read_shard, write_shard
from dcdctl.core.errors import DcdError
from dcdctl.core.scoring import features
from dcdctl.core.search import part_files

NAMED, HARMLESS, WRONG, OTHER = "named", "harmless", "wrong", "another exception"


@dataclass(frozen=True)
class Artifact:
    """A finished artifact, another one of its kind, and a function that opens an artifact and reads all of it."""

    folder: Path
    other: Path
    read: Callable[[Path], Any]
    """What reading gives: arrays, dataclasses, lists and plain values, which `digest_of` compares."""
    is_part: Callable[[Path], bool] = lambda _: True
    """Which files of the folder belong to the artifact."""

    @property
    def files(self) -> list[Path]:
        """All files of the artifact."""
        return [path for path in sorted(self.folder.rglob("*")) if path.is_file() and self.is_part(path)]


def damages(artifact: Artifact, rng: np.random.Generator, count: int) -> Iterator[tuple[str, dict[Path, bytes]]]:
    """Kinds of damage, each with the new content of files: `count` of each kind for each file, and swaps with every
    file."""
    intact = {path: path.read_bytes() for path in artifact.files}
    for path, data in intact.items():
        for bit in {0, 8 * len(data) - 1, *rng.integers(0, 8 * len(data), count).tolist()}:
            yield "flipped bit", {path: _edited(data, bit // 8, bytes([data[bit // 8] ^ 1 << bit % 8]))}
        for start in rng.integers(0, len(data), count).tolist():
            length = min(int(rng.choice([1, 4, 64, 512])), len(data) - start)
            yield "zeros", {path: _edited(data, start, bytes(length))}
        for length in {0, len(data) - 1, *rng.integers(0, len(data), count).tolist()}:
            yield "truncated", {path: data[:length]}
        yield "longer", {path: data + b"\0"}
        other = artifact.other / path.relative_to(artifact.folder)
        if other.exists():
            yield "file of another", {path: other.read_bytes()}
    pairs = list(itertools.combinations(intact, 2))
    for first, second in (pairs[i] for i in rng.permutation(len(pairs))[: 4 * count].tolist()):
        yield "swapped files", {first: intact[second], second: intact[first]}


def _edited(data: bytes, start: int, new: bytes) -> bytes:
    return data[:start] + new + data[start + len(new) :]


@contextmanager
def replaced(contents: Mapping[Path, bytes]) -> Iterator[bool]:
    """Files with other contents in the block, as a new process sees them; yields whether any byte is another."""
    intact = {path: path.read_bytes() for path in contents}
    for path, data in contents.items():
        path.write_bytes(data)
    as_new_process()
    try:
        yield contents != intact
    finally:
        for path, data in intact.items():
            path.write_bytes(data)


def count_outcomes(artifact: Artifact, rng: np.random.Generator, count: int) -> Counter[tuple[str, str]]:
    """The number of trials by damage and outcome; AssertionError with the damage for an outcome that must not be."""
    as_new_process()
    expected = digest_of(artifact.read(artifact.folder))
    names = {path.name for path in artifact.files}
    outcomes: Counter[tuple[str, str]] = Counter()
    for damage, contents in damages(artifact, rng, count):
        with replaced(contents) as is_changed:
            if not is_changed:
                continue
            outcome, result = _outcome(artifact, expected, names)
        assert outcome in (NAMED, HARMLESS), (
            f"{damage} of {', '.join(path.name for path in contents)}: {outcome}: {result}"
        )
        outcomes[damage, outcome] += 1
    as_new_process()
    assert digest_of(artifact.read(artifact.folder)) == expected
    return outcomes


def _outcome(artifact: Artifact, expected: str, names: set[str]) -> tuple[str, object]:
    try:
        found = digest_of(artifact.read(artifact.folder))
    except DcdError as error:
        return (NAMED if any(name in str(error) for name in names) else OTHER), error
    except Exception as error:
        return OTHER, repr(error)
    return (HARMLESS if found == expected else WRONG), found


def as_new_process() -> None:
    """Forget what this process knows of files."""
    checksums._DIGESTS.clear()
    features._mapped.cache_clear()
    part_files._CHECKED.clear()
    part_files._READ.clear()


def digest_of(value: Any) -> str:
    """A checksum of a result: arrays, images, dataclasses, dicts, lists and plain values."""
    total = hashlib.sha256()
    for part in _parts_of(value):
        total.update(part)
    return total.hexdigest()


def _parts_of(value: Any) -> Iterator[bytes]:
    if hasattr(value, "numpy"):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape}".encode()
        yield value.tobytes()
    elif isinstance(value, Image.Image):
        yield f"{value.mode} {value.size}".encode()
        yield value.tobytes()
    elif isinstance(value, dict):
        yield from _parts_of(list(value.items()))
    elif isinstance(value, list | tuple):
        yield f"{len(value)} values".encode()
        for part in value:
            yield from _parts_of(part)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _parts_of([getattr(value, field.name) for field in fields(value)])
    else:
        yield repr(value).encode()


def damage_image(folder: Path, split: str, row: int, data: bytes = b"no image") -> str:
    """Replace the bytes of an image in the first shard of a split, with checksums that fit; returns the id of the
    image."""
    document = artifacts.read_document(folder / "corpus.json")
    shard = document["splits"][split]["shards"][0]
    path = folder / shard["file"]
    rows = list(read_shard(path))
    rows[row] = replace(rows[row], data=data)
    list(write_shard(path, rows))
    shard |= artifacts.seal_of(path)
    artifacts.write_document(folder / "corpus.json", document)
    return rows[row].image_id
