"""The pictures that an index is made of: which there are, and reading them in worker processes, a bounded number ahead.

Shape letters: I images.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from dcdctl.core import data, distributed
from dcdctl.core.data import Corpus, FolderImageFile, ImageError, RowError
from dcdctl.core.devices import Compute
from dcdctl.core.errors import DcdError, InputError, ModelError
from dcdctl.core.models import DualEncoder, ImageBatch, Preprocessor
from dcdctl.core.progress import Advance, Track, silent
from dcdctl.core.scoring import embed_batch
from dcdctl.core.search import storage
from dcdctl.core.search.exact import Half
from dcdctl.core.search.storage import PLANNED, Place, Skipped, Source, part_name

MAX_ASPECT = 200
"""A longer strip, whose shorter side is made as long as a model wants it, would take gigabytes."""
START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
"""Of worker processes. Not fork: a copy of a process with threads in it may hang."""
STRETCHES_OF_A_WORKER = 8
"""Fewer are read sooner than a process has started."""


def find(images: Path, split: str) -> Source:
    """The source that a path names: a corpus if `dcdctl prepare` made it, else a folder; InputError if it is neither."""
    path = images.expanduser()
    if not path.is_dir():
        found = "is a file" if path.exists() else "does not exist"
        raise InputError(f"{images} {found}", hint="--images takes a folder of pictures, or one that `dcdctl prepare` wrote")
    path = path.resolve()
    if (path / data.CORPUS_FILE).is_file():
        return Source(kind="corpus", path=str(path), split=split, fingerprint=Corpus.open(path, split).fingerprint)
    if not os.access(path, os.R_OK | os.X_OK):
        raise InputError(f"the folder {images} may not be read", hint="change its permissions, or name another")
    return Source(kind="folder", path=str(path))


def places(source: Source, leave_out: Path) -> Iterator[Place | Skipped]:
    """The pictures of a source in a fixed order, and files that cannot be some; in a folder, all of `leave_out` is passed over."""
    if source.kind == "corpus":
        corpus = Corpus.open(Path(source.path), str(source.split))
        return (Place(image_id=image_id, corpus_row=row) for row, image_id in enumerate(corpus.image_ids))
    return _files(Path(source.path), leave_out.resolve())


def _files(root: Path, leave_out: Path) -> Iterator[Place | Skipped]:
    """Files by name, those of a folder before its folders; without hidden ones and what macOS adds."""
    failed: list[OSError] = []
    for folder, folders, names in os.walk(root, onerror=failed.append):
        yield from (Skipped(path=_printable(_relative(Path(error.filename), root)), reason=f"{error.strerror}") for error in failed)
        failed.clear()
        here = Path(folder)
        links = [name for name in folders if (here / name).is_symlink()]
        folders[:] = sorted(name for name in folders if name not in links and _is_wanted(name) and here / name != leave_out)
        for name in sorted([*names, *links]):
            if _is_wanted(name):
                yield _place_of(here / name, root)
    yield from (Skipped(path=_printable(_relative(Path(error.filename), root)), reason=f"{error.strerror}") for error in failed)


def _place_of(path: Path, root: Path) -> Place | Skipped:
    name = _relative(path, root)
    if _printable(name) != name:
        return Skipped(path=_printable(name), reason="its name is not UTF-8")
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return Skipped(path=name, reason="a link that leads nowhere" if path.is_symlink() else f"{error.strerror}")
    if stat.S_ISDIR(mode):
        return Skipped(path=name, reason="a link to a folder, which is not followed")
    if not stat.S_ISREG(mode):
        return Skipped(path=name, reason="no regular file")
    return Place(image_id=name, path=name)


def _is_wanted(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _printable(name: str) -> str:
    """A file name as text; bytes that are no UTF-8 become question marks."""
    return name.encode("utf-8", "replace").decode()


@dataclass(frozen=True)
class Stretch:
    """Pictures of a planned part that are read together."""

    part: int
    start: int
    stop: int


@dataclass(frozen=True)
class ReadPictures:
    """Pictures that were read, and those that could not be."""

    stretch: Stretch
    images: ImageBatch | None
    """None where there is none."""
    places: list[Place]
    skipped: list[Skipped]


class Pictures(Dataset[ReadPictures | DcdError]):
    """Planned parts of a source, read by stretches; small, so that every worker process may have it."""

    def __init__(self, planned: Path, source: Source, preprocess: Preprocessor) -> None:
        self.planned, self.source, self.preprocess = planned, source, preprocess
        self._part: tuple[int, list[Place]] = (-1, [])
        self._corpus: Corpus | None = None

    def __getitem__(self, stretch: Stretch) -> ReadPictures | DcdError:
        """What was read, or why no more can be: a worker process would wrap an error that it raises into another's words."""
        try:
            return self._read(stretch)
        except DcdError as error:
            return error

    def _read(self, stretch: Stretch) -> ReadPictures:
        images, kept, skipped = [], [], []
        for place in self._places(stretch.part)[stretch.start : stretch.stop]:
            try:
                picture = data.decode_image(self._bytes_of(place))
                _refuse_strip(picture)
                # One at a time: photos are large until they are made small.
                images.append(self.preprocess.images([picture]).pixel_values)
                kept.append(place)
            except (RowError, ImageError) as error:
                skipped.append(Skipped(path=place.path or place.image_id, reason=str(error)))
        return ReadPictures(stretch, ImageBatch(torch.cat(images)) if images else None, kept, skipped)

    def _places(self, part: int) -> list[Place]:
        if self._part[0] != part:
            self._part = part, storage.read_places(self.planned / storage.part_name(part))
        return self._part[1]

    def _bytes_of(self, place: Place) -> bytes:
        if place.corpus_row is None:
            return FolderImageFile(Path(self.source.path), str(place.path)).read()
        if self._corpus is None:
            self._corpus = Corpus.open(Path(self.source.path), str(self.source.split))
        return self._corpus.image_bytes(place.corpus_row)


def read_ahead(data: Pictures, stretches: Sequence[Stretch], workers: int) -> Iterator[ReadPictures]:
    """The stretches in order, read by worker processes, two of each worker's ahead; by this process where there are few, or no workers."""
    if not stretches:
        return
    workers = min(workers, len(stretches) // STRETCHES_OF_A_WORKER)
    context = START_METHOD if workers else None
    loader: Any = DataLoader(data, batch_size=None, sampler=stretches, num_workers=workers, multiprocessing_context=context)
    try:
        for found in loader:
            if isinstance(found, DcdError):
                raise found
            yield found
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InputError("a worker process died, perhaps for want of memory", hint="try again with --workers 0") from error


def _refuse_strip(picture: Image.Image) -> None:
    if max(picture.size) > MAX_ASPECT * min(picture.size):
        raise ImageError(f"a strip of {picture.width} x {picture.height} pixels, more than {MAX_ASPECT} times as long as wide")


def in_parts(found: Iterator[Place], rows: int) -> Iterator[list[Place]]:
    """Pictures in lists of so many."""
    while part := list(itertools.islice(found, rows)):
        yield part


IN_SMALL_BATCHES = Compute(batch_size=32)


@dataclass(frozen=True)
class Job:
    """Planned parts and the model that embeds them."""

    folder: Path
    plan: dict[str, Any]
    model: DualEncoder
    compute: Compute
    """Its precision is that of the plan."""

    @property
    def parts(self) -> range:
        """The numbers of the parts."""
        return range(self.plan["first_part"], self.plan["first_part"] + len(self.plan["rows"]))

    @property
    def source(self) -> Source:
        return Source(**self.plan["sources"][self.plan["source"]])

    def path(self, part: int) -> Path:
        return self.folder / "vectors" / part_name(part)

    def num_planned(self, part: int) -> int:
        """Files of a part, before it is known which of them are pictures."""
        return int(self.plan["rows"][part - self.plan["first_part"]])


@torch.inference_mode()
def embed(job: Job, track: Track = silent) -> None:
    """Write this process's share of the parts that are not there, and wait for the others."""
    job.model.to(job.compute.device).eval()
    size = job.compute.batch_size
    mine = [job.parts[number] for number in distributed.local_indices(len(job.parts)) if not job.path(job.parts[number]).exists()]
    counts = {part: job.num_planned(part) for part in mine}
    stretches = [Stretch(part, at, min(at + size, count)) for part, count in counts.items() for at in range(0, count, size)]
    if not mine:
        return distributed.barrier()
    reading = read_ahead(Pictures(job.folder / PLANNED, job.source, job.model.preprocess), stretches, job.compute.workers)
    with track("embed", total=sum(counts.values()), unit="images") as advance:
        for part in mine:
            _embed_part(job, part, reading, advance)
    distributed.barrier()


def _embed_part(job: Job, part: int, reading: Iterator[ReadPictures], advance: Advance) -> None:
    vectors: list[Half] = [np.empty((0, job.model.embedding_dim), dtype=np.float16)]
    places: list[Place] = []
    skipped: list[Skipped] = []
    done = 0
    while done < job.num_planned(part):
        found = next(reading)
        if found.images is not None:
            vectors.append(_vectors(job, found.images))
        places += found.places
        skipped += found.skipped
        advance(found.stretch.stop - done)
        done = found.stretch.stop
    storage.write_part(job.path(part), places, np.concatenate(vectors), skipped)


def _vectors(job: Job, images: ImageBatch) -> Half:
    vectors_ID = functional.normalize(embed_batch(job.model.embed_images, images, job.compute), dim=-1)
    if not bool((vectors_ID.isfinite().all(dim=-1) & vectors_ID.any(dim=-1)).all()):
        hint = "try --precision fp32; if that does not help, its training diverged"
        raise ModelError("the model gives vectors that are zero, NaN or infinite", hint=hint)
    return functional.normalize(vectors_ID, dim=-1).half().cpu().numpy()
