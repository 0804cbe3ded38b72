"""Image indices of made-up vectors, without weights of a model; a test adds image files where it needs them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcdctl.core import artifacts, config
from dcdctl.core.engines import Compute
from dcdctl.core.models import saved_folder
from dcdctl.core.progress import Track, silent
from dcdctl.core.search import (
    Changes,
    FolderIndex,
    ImageSource,
    IndexJob,
    IndexSearcher,
    StoredTokens,
    StoredVectors,
    add_images,
    build_index,
    change_index,
    commit,
    part_files,
)
from dcdctl.core.search.entries import IndexedModel, Part
from dcdctl.core.search.exact import encoded, token_type
from dcdctl.core.search.index_config import IndexConfig
from dcdctl.core.search.part_files import SourceImage, part_name
from dcdctl.core.search.storage import IndexDocument

BATCHES = Compute(batch_size=2)


class Killed(BaseException):
    """What no code of ours catches."""


def unit_vectors(count: int, dim: int = 16, seed: int = 0) -> NDArray[np.float16]:
    vectors = np.random.default_rng(seed).normal(size=(count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def write_index(
    folder: Path,
    parts: Sequence[NDArray[np.float16]],
    *,
    images: Path | None = None,
    removed: Sequence[int] | None = None,
    **settings: object,
) -> FolderIndex:
    """An index of these parts, whose images are called 0.png, 1.png, ... by their rows."""
    entries, first = [], 0
    for number, vectors in enumerate(parts):
        names = [f"{row}.png" for row in range(first, first + len(vectors))]
        path = folder / "vectors" / part_name(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        part_files.write_part(path, [SourceImage(image_id=name, path=name) for name in names], StoredVectors(vectors))
        entries.append(part_files.describe_part(path, 0, token_type(vectors.shape[1], "float16"))[0])
        first += len(vectors)
    source = ImageSource(kind="folder", path=str(images or folder.parent / "nowhere"))
    return seal_index(folder, source, entries, dim=parts[0].shape[1], removed=removed, **settings)


def ragged(counts: Sequence[int], width: int = 6, seed: int = 0) -> NDArray[np.float32]:
    """Random unit vectors of items with so many tokens, one after another."""
    tokens = np.random.default_rng(seed).normal(size=(sum(counts), width)).astype(np.float32)
    return tokens / np.linalg.norm(tokens, axis=1, keepdims=True)


def write_late(
    folder: Path,
    counts: Sequence[int],
    codes: Any = "float16",
    removed: Sequence[int] | None = None,
    **settings: object,
) -> tuple[FolderIndex, NDArray[np.float32]]:
    """An index of random tokens: the index, and its tokens."""
    tokens, entries, ends = ragged(counts), [], np.cumsum([0, *counts])
    for number, first in enumerate(range(0, len(counts), 3)):
        rows = range(first, min(first + 3, len(counts)))
        path = folder / "vectors" / part_files.part_name(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        images = [SourceImage(image_id=f"{row}.png", path=f"{row}.png") for row in rows]
        here = encoded(tokens[ends[first] : ends[rows.stop]], codes)
        part_files.write_part(path, images, StoredTokens(here, np.array(counts[first : rows.stop])))
        entries.append(part_files.describe_part(path, 0, token_type(6, codes))[0])
    source = ImageSource(kind="folder", path=str(folder.parent / "nowhere"))
    settings = {"tokens": {"codes": codes}, **settings}
    return seal_index(folder, source, entries, dim=6, model_kind="late", removed=removed, **settings), tokens


def seal_index(
    folder: Path,
    source: ImageSource,
    parts: Sequence[Part],
    *,
    dim: int,
    removed: Sequence[int] | None = None,
    fingerprint: str = 64 * "a",
    model_kind: Any = "dual",
    **settings: object,
) -> FolderIndex:
    """The index of files of vectors that are written, of images of one source."""
    document = IndexDocument(
        generation=1,
        model=IndexedModel(kind=model_kind, dim=dim, fingerprint=fingerprint),
        precision="float32",
        settings=config.build(IndexConfig, settings),
        sources=(source,),
        parts=tuple(parts),
    )
    if not (model := folder / "model").exists():
        model.mkdir(parents=True)
        saved_folder.seal(model, {artifacts.FINGERPRINT: fingerprint})
    commit.commit(folder, document, removed=None if removed is None else np.array(removed, dtype=np.int64))
    return FolderIndex.open(folder)


def build(
    ref: str | Path,
    images: Path,
    folder: Path,
    settings: IndexConfig | None = None,
    *,
    split: str | None = None,
    given: Path | None = None,
    compute: Compute = BATCHES,
    track: Track = silent,
) -> FolderIndex:
    """The index that `dcdctl index RUN --images DIR --out INDEX` builds."""
    sets = config.flatten(config.to_table(settings or IndexConfig()))
    job = IndexJob(
        model=str(ref),
        images=images,
        out=folder,
        split=split,
        sets=tuple(f"{name}={str(value).lower()}" for name, value in sets.items()),
        vectors=() if given is None else (str(given),),
    )
    return build_index(job, compute=compute, track=track).index


def build_of(ref: Path, images: Path, folder: Path, *sets: str) -> FolderIndex:
    """The same with these settings alone."""
    return build_index(IndexJob(model=str(ref), images=images, out=folder, sets=sets), compute=BATCHES).index


def update(
    folder: Path,
    *,
    add: Path | None = None,
    split: str | None = None,
    vectors: Sequence[str] = (),
    compute: Compute = BATCHES,
    track: Track = silent,
    **changes: Any,
) -> FolderIndex:
    """The index that `dcdctl change INDEX` gives for these changes, the fields of `Changes`, and then
    `dcdctl sync INDEX --add`."""
    if changes or add is None:
        change_index(str(folder), Changes(**changes), track=track)
    if add is not None:
        add_images(str(folder), add, split=split, vectors=vectors, compute=compute, track=track)
    return FolderIndex.open(folder)


def copied(index: FolderIndex, folder: Path, images: Path) -> FolderIndex:
    """A copy of an index of one image folder, whose images are in a copy of that folder now."""
    shutil.copytree(index.folder, folder)
    document = artifacts.read_document(folder / "index.json")
    document["sources"][0]["path"] = str(images)
    artifacts.write_document(folder / "index.json", document)
    return FolderIndex.open(folder)


def searcher_of(folder: Path, **options: Any) -> IndexSearcher:
    """The searcher of an index, on the CPU unless another device is named."""
    return IndexSearcher.for_index(FolderIndex.open(folder), **{"device": "cpu", **options})


def exact(
    vectors_RD: NDArray[np.float16], query_D: NDArray[np.floating], k: int, removed: Sequence[int] = ()
) -> list[int]:
    """The rows of the largest cosines in double precision, the smaller row first among equals: the oracle."""
    vectors = vectors_RD.astype(np.float64)
    scores = (vectors @ query_D / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query_D)).astype(np.float32)
    gone = set(removed)
    return [row for row in np.argsort(-scores, kind="stable").tolist() if row not in gone][:k]


def killed_before(monkeypatch: object, number: int, work: Callable[[], object]) -> bool:
    """Do some work, but die before the change of a file of this number, from 0. Returns whether the work got that
    far."""
    count = -1

    def counted(move: Callable[..., object]) -> Callable[..., object]:
        def moved(path: Path, *arguments: object, **options: object) -> object:
            nonlocal count
            # After each file that is written, the removal of its partial file finds none: the same state twice.
            count += os.path.lexists(path)
            if count == number:
                raise Killed
            return move(path, *arguments, **options)

        return moved

    with monkeypatch.context() as patched:  # type: ignore[attr-defined]
        for name in ("replace", "rename", "unlink"):
            patched.setattr(Path, name, counted(getattr(Path, name)))
        try:
            work()
        except Killed:
            return True
    return False
