"""The images of a source, reading them ahead in threads, and embedding them.

Shape letters: I images.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from dcdctl.core import artifacts, data, distributed
from dcdctl.core.artifacts import Build
from dcdctl.core.data import Corpus, FolderImageFile, ImageError, RowError
from dcdctl.core.devices import Compute
from dcdctl.core.errors import InputError, ModelError
from dcdctl.core.machine import read_in_threads
from dcdctl.core.memory import Fitting
from dcdctl.core.models import DualEncoder, ImageBatch, Preprocessor, prefix_vectors
from dcdctl.core.progress import Advance, Track, silent
from dcdctl.core.scoring import embed_batch
from dcdctl.core.search import part_files
from dcdctl.core.search.exact import Half
from dcdctl.core.search.part_files import SkippedFile, SourceImage, part_name
from dcdctl.core.search.storage import INDEX, ImageSource

MAX_ASPECT = 200
"""Maximum aspect ratio. The shorter side is resized to the input size of the model, so a longer strip would take
gigabytes."""
DEFAULT_BATCH_SIZE = 32
"""Images per forward pass, unless the user sets a batch size."""
IN_SMALL_BATCHES = Compute(batch_size=DEFAULT_BATCH_SIZE)


def find_source(images: Path, split: str | None = None) -> ImageSource:
    """The source at a path: a corpus if `dcdctl prepare` wrote it, else a folder of images; InputError if it is
    neither.

    Without `split`, a corpus is read with all its splits; InputError if two of them have an image of the same id.
    """
    path = images.expanduser()
    if not path.is_dir():
        problem = "is a file" if path.exists() else "does not exist"
        raise InputError(
            f"{images} {problem}", hint="--images takes a folder of images, or one that `dcdctl prepare` wrote"
        )
    path = path.resolve()
    if (path / data.CORPUS_FILE).is_file():
        corpus = Corpus.open(path, split or data.all_splits(path))
        if repeated := [image_id for image_id, count in Counter(corpus.image_ids).items() if count > 1]:
            found = f"{len(repeated):,} images of {images} have the same id in two splits, such as {repeated[0]!r}"
            raise InputError(found, hint="index one split with --split NAME")
        return ImageSource(kind="corpus", path=str(path), split=corpus.split, fingerprint=corpus.fingerprint)
    if other := artifacts.other_folder_error(path, "folder of images or a corpus", error=InputError):
        raise other
    if not os.access(path, os.R_OK | os.X_OK):
        raise InputError(f"the folder {images} cannot be read", hint="change its permissions, or name another")
    return ImageSource(kind="folder", path=str(path))


def list_images(source: ImageSource, ignored: Path) -> Iterator[SourceImage | SkippedFile]:
    """The images of a source in a fixed order, and files that cannot be images; the folder `ignored` is left out."""
    if source.kind == "corpus":
        corpus = Corpus.open(Path(source.path), str(source.split))
        return (SourceImage(image_id=image_id, corpus_row=row) for row, image_id in enumerate(corpus.image_ids))
    return _files(Path(source.path), ignored.resolve())


def _files(root: Path, ignored: Path) -> Iterator[SourceImage | SkippedFile]:
    """Files sorted by name, before those of subfolders; without hidden files and the folders that macOS adds to
    zips."""
    failed: list[OSError] = []
    for folder, folders, names in os.walk(root, onerror=failed.append):
        yield from (
            SkippedFile(path=_printable(_relative(Path(error.filename), root)), reason=f"{error.strerror}")
            for error in failed
        )
        failed.clear()
        here = Path(folder)
        # os.walk lists links to folders among the folders, and does not follow them.
        links = [name for name in folders if (here / name).is_symlink()]
        # In place, because os.walk visits what this list then holds; sorted, because file systems list in any order.
        folders[:] = sorted(
            name for name in folders if name not in links and _is_visible(name) and here / name != ignored
        )
        for name in sorted([*names, *links]):
            if _is_visible(name):
                yield _source_image(here / name, root)
    yield from (
        SkippedFile(path=_printable(_relative(Path(error.filename), root)), reason=f"{error.strerror}")
        for error in failed
    )


def _source_image(path: Path, root: Path) -> SourceImage | SkippedFile:
    name = _relative(path, root)
    if _printable(name) != name:
        return SkippedFile(path=_printable(name), reason="its name is not UTF-8")
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return SkippedFile(path=name, reason="a broken link" if path.is_symlink() else f"{error.strerror}")
    if stat.S_ISDIR(mode):
        return SkippedFile(path=name, reason="a link to a folder, which is not followed")
    if not stat.S_ISREG(mode):
        return SkippedFile(path=name, reason="not a regular file")
    return SourceImage(image_id=name, path=name)


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _printable(name: str) -> str:
    """A file name as text; bytes that are not UTF-8 become question marks."""
    return name.encode("utf-8", "replace").decode()


@dataclass(frozen=True)
class ReadChunk:
    """Images of a planned part that are read together."""

    part: int
    start: int
    stop: int


@dataclass(frozen=True)
class ReadImages:
    """The images of a chunk that could be read, and the files that could not."""

    chunk: ReadChunk
    pixels: ImageBatch | None
    """None if no file could be read."""
    images: list[SourceImage]
    skipped: list[SkippedFile]


class ChunkReader:
    """Reads the images of chunks of a source; safe to call from threads."""

    def __init__(self, source: ImageSource, preprocess: Preprocessor) -> None:
        self.source, self.preprocess = source, preprocess
        self._corpus = Corpus.open(Path(source.path), str(source.split)) if source.kind == "corpus" else None

    def __call__(self, planned: tuple[ReadChunk, Sequence[SourceImage]]) -> ReadImages:
        """The images of a chunk. CorpusError for a damaged image of a corpus; a file of a folder is skipped."""
        chunk, chunk_images = planned
        pixels, images, skipped = [], [], []
        for image in chunk_images:
            try:
                decoded = self._decoded(image)
                _refuse_strip(decoded)
                # One by one, because photos are large until they are resized.
                pixels.append(self.preprocess.images([decoded]))
                images.append(image)
            except (RowError, ImageError) as error:
                skipped.append(SkippedFile(path=image.path or image.image_id, reason=str(error)))
        return ReadImages(chunk, ImageBatch.cat(pixels) if pixels else None, images, skipped)

    def _decoded(self, image: SourceImage) -> Image.Image:
        if self._corpus is None or image.corpus_row is None:
            return data.decode_image(FolderImageFile(Path(self.source.path), str(image.path)).read())
        return self._corpus.image(image.corpus_row)


def _planned_chunks(
    build: Build, counts: Mapping[int, int], size: int
) -> Iterator[tuple[ReadChunk, Sequence[SourceImage]]]:
    """The chunks of planned parts of so many images, with their images; one part is in memory at a time."""
    for part, count in counts.items():
        images = part_files.read_images(build.written(part_files.planned_name(part)))
        for start in range(0, count, size):
            yield ReadChunk(part, start, min(start + size, count)), images[start : start + size]


def _refuse_strip(image: Image.Image) -> None:
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise ImageError(
            f"a strip of {image.width} x {image.height} pixels, more than {MAX_ASPECT} times as long as wide"
        )


def in_parts(images: Iterator[SourceImage], rows: int) -> Iterator[list[SourceImage]]:
    """Images in lists of `rows`."""
    while part := list(itertools.islice(images, rows)):
        yield part


@dataclass(frozen=True)
class EmbeddingTask:
    """Planned parts, and the model that embeds them."""

    folder: Path
    plan: dict[str, Any]
    model: DualEncoder
    compute: Compute
    """With the precision of the plan."""
    fitting: Fitting = field(default_factory=Fitting)
    """Kept for all batches."""

    @property
    def parts(self) -> range:
        """Numbers of the parts."""
        return range(self.plan["first_part"], self.plan["first_part"] + len(self.plan["rows"]))

    @property
    def dim(self) -> int:
        """Numbers of a stored vector."""
        return int(self.plan["model"]["dim"])

    @property
    def source(self) -> ImageSource:
        return ImageSource(**self.plan["sources"][self.plan["source"]])

    @property
    def build(self) -> Build:
        return Build(self.folder, self.plan, INDEX)

    def name(self, part: int) -> str:
        """The path of a file of vectors in the folder of the index."""
        return f"vectors/{part_name(part)}"

    def num_planned(self, part: int) -> int:
        """Number of files of a part, including files that turn out not to be images."""
        return int(self.plan["rows"][part - self.plan["first_part"]])


@torch.inference_mode()
def embed(task: EmbeddingTask, track: Track = silent) -> None:
    """Write this process's share of the missing parts, and wait for the other processes."""
    task.model.to(task.compute.device).eval()
    size = task.compute.batch_size or DEFAULT_BATCH_SIZE
    mine = [task.parts[number] for number in distributed.local_indices(len(task.parts))]
    # A part that was damaged since a killed run wrote it is written again.
    local = [part for part in mine if not task.build.is_written(task.name(part))]
    counts = {part: task.num_planned(part) for part in local}
    if not local:
        return distributed.barrier()
    reader = ChunkReader(task.source, task.model.preprocess)
    reading = read_in_threads(reader, _planned_chunks(task.build, counts, size), task.compute.readers)
    with track("embed", total=sum(counts.values()), unit="images") as advance:
        for part in local:
            _embed_part(task, part, reading, advance)
    distributed.barrier()


def _embed_part(task: EmbeddingTask, part: int, reading: Iterator[ReadImages], advance: Advance) -> None:
    # A part without a readable image is written empty, so that a resumed run does not read its files again.
    vectors: list[Half] = [np.empty((0, task.dim), dtype=np.float16)]
    images: list[SourceImage] = []
    skipped: list[SkippedFile] = []
    done = 0
    while done < task.num_planned(part):
        read = next(reading)
        if read.pixels is not None:
            vectors.append(embed_stored(task, read.pixels))
        images += read.images
        skipped += read.skipped
        advance(read.chunk.stop - done)
        done = read.chunk.stop
    with task.build.write(task.name(part)) as partial:
        part_files.write_part(partial, images, np.concatenate(vectors), skipped)


def embed_stored(task: EmbeddingTask, images: ImageBatch) -> Half:
    """The vectors of images as an index stores them, I x D; ModelError if one is zero or not finite."""
    stored_ID = stored(embed_batch(task.model.embed_images, images, task.compute, task.fitting), task.dim)
    if not bool((np.isfinite(stored_ID).all(axis=1) & stored_ID.any(axis=1)).all()):
        hint = "try --precision fp32; if that does not help, its training diverged"
        raise ModelError("the model gives vectors that are zero, NaN or infinite", hint=hint)
    return stored_ID


def stored(vectors_ID: Tensor, dims: int) -> Half:
    """The first `dims` numbers of vectors, of unit length before rounding, I x `dims`; zero or not finite where the
    vector is."""
    first_ID = prefix_vectors(functional.normalize(vectors_ID, dim=-1), dims)
    return functional.normalize(first_ID, dim=-1).half().cpu().numpy()
