"""Embedding files of a list of images, one call per file: what a task of Slurm, of Spark or of a loop over ssh does.

    LIST/images-00000.parquet      of `index --plan-only`; or a Parquet file of a corpus
    VECTORS/images-00000.parquet   image_id, vector (float32, as the model gives it), model_digest; the vector of a file
        that is no image is null

Images are read as `index` reads them: upright, and files that are no images are left out. With the vectors of a list,
`index --vectors` makes the bytes of embedding there. The files of a corpus end elsewhere than the batches of `index`,
so vectors may differ by rounding.

Shape letters: N rows of a file, D width.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from dcdctl.core import data, models
from dcdctl.core.data import ImageError, TaskFile, complete_tasks, facts_in, find_tasks
from dcdctl.core.engines import Compute
from dcdctl.core.errors import CorpusError, InputError, StaleError
from dcdctl.core.machine import read_in_threads
from dcdctl.core.memory import Fitting
from dcdctl.core.models import DualEncoder
from dcdctl.core.places import shown
from dcdctl.core.progress import Advance, Track, silent
from dcdctl.core.scoring import embed_batch
from dcdctl.core.search import embed
from dcdctl.core.search.embed import ReadImages
from dcdctl.core.search.part_files import SourceImage
from dcdctl.core.search.storage import ImageSource
from dcdctl.core.search.vector_files import MODEL, NAME, VECTOR

PATH, IMAGE = "path", "image"
LEFT_OUT = "left_out"
"""The number of files of each kind that are no images, in what is known of a file of vectors."""
_HINT = "give files of `cache-teacher --plan-only` or of `index --plan-only`, or the Parquet files of a corpus"


@dataclass(frozen=True)
class _Batch:
    """Rows of a file, which are read together by a thread."""

    images: Sequence[SourceImage]
    read: Callable[[Sequence[SourceImage]], ReadImages]


@dataclass(frozen=True, kw_only=True)
class EmbedWorkJob:
    """Which files of a list to embed, with which dual encoder."""

    lists: Sequence[str]
    """Files, folders or patterns."""
    model: str
    out: Path
    """The folder of the vectors."""
    compute: Compute = embed.IN_SMALL_BATCHES


@dataclass(frozen=True, kw_only=True)
class EmbeddedWork:
    """Vectors of files of a list."""

    folder: Path
    model: str
    """Its digest."""
    num_files: int
    num_there: int
    """Files that were embedded before."""
    num_images: int
    left_out: Mapping[str, int]
    """Files that are no images, by kind."""


@torch.inference_mode()
def embed_work(job: EmbedWorkJob, *, track: Track = silent) -> EmbeddedWork:
    """Embed the files that have no vectors yet.

    InputError for a file of other columns, StaleError for a list of another model; then nothing is embedded. StaleError
    if the folder has vectors of another model. InputError for a file of a corpus with a damaged image; the others are
    embedded and kept.
    """
    models.check_ref(job.model, kind="dual")
    tasks = find_tasks(job.lists, job.out, noun="list file", metavar="FILE")
    for task in tasks:
        _check_columns(task)
    model = models.load_dual(job.model)
    for task in tasks:
        _expect_model(task, model.digest)
    model.to(job.compute.device).eval()
    fitting = Fitting()
    with track("embed", total=sum(task.num_rows for task in tasks), unit="images") as advance:

        def compute(task: TaskFile) -> tuple[pa.Table, Mapping[str, Any]]:
            return _embed_file(task, model, job.compute, fitting, advance)

        num_there = complete_tasks(tasks, {"model": model.digest, "precision": job.compute.precision}, compute)
    left_out: Counter[str] = Counter()
    for task in tasks:
        if (results := task.results()) is not None:
            left_out.update(facts_in(results)[LEFT_OUT])
    return EmbeddedWork(
        folder=job.out,
        model=model.digest,
        num_files=len(tasks),
        num_there=num_there,
        num_images=sum(task.num_rows for task in tasks) - left_out.total(),
        left_out=left_out,
    )


def _check_columns(task: TaskFile) -> None:
    """InputError for a file that is neither of a list nor of a corpus."""
    with task.open() as file:
        schema = file.schema_arrow
    names = schema.names
    needed = (NAME, IMAGE) if IMAGE in names else (NAME, PATH, MODEL)
    if missing := [name for name in needed if name not in names]:
        columns = ", ".join(names) or "none"
        raise InputError(f"{shown(task.source)} has no column {missing[0]} (it has {columns})", hint=_HINT)
    for name in needed:
        type_ = schema.field(name).type
        is_image = pa.types.is_struct(type_) and "bytes" in [each.name for each in type_]
        is_text = pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_dictionary(type_)
        if not (is_image if name == IMAGE else is_text):
            expected = "a struct with bytes" if name == IMAGE else "string"
            raise InputError(
                f"the column {name} of {shown(task.source)} is {type_}, {expected} is expected", hint=_HINT
            )


def _expect_model(task: TaskFile, digest: str) -> None:
    """StaleError for a list that was written for another model."""
    with task.open() as file:
        if MODEL not in file.schema_arrow.names:
            return
        listed = set(_texts(file.read(columns=[MODEL]).column(0), MODEL, task.source))
    if other := listed - {digest}:
        raise StaleError(
            f"{shown(task.source)} is a list for the model {other.pop()[:8]}, and this is the model {digest[:8]}",
            hint="name the model of the list, or write the list again with `dcdctl index --plan-only`",
        )


def _embed_file(
    task: TaskFile, model: DualEncoder, compute: Compute, fitting: Fitting, advance: Advance
) -> tuple[pa.Table, dict[str, Any]]:
    """The rows of a file with their vectors, and how many files of each kind were left out."""
    size = compute.batch_size or embed.DEFAULT_BATCH_SIZE
    ids: list[str] = []
    vectors: list[NDArray[np.float32] | None] = []
    kinds: list[str] = []

    def read(batch: _Batch) -> tuple[_Batch, ReadImages]:
        return batch, batch.read(batch.images)

    with task.open() as file:
        batches = _of_corpus if IMAGE in file.schema_arrow.names else _of_list
        for batch, found in read_in_threads(read, batches(file, task.source, model, size), compute.readers):
            embedded: dict[int, NDArray[np.float32]] = {}
            if found.pixels is not None:
                vectors_BD = embed_batch(model.embed_images, found.pixels, compute, fitting)
                # As an index stores them: in half precision, a number may be too large.
                if not embed.has_direction(embed.unit_prefixes(vectors_BD, vectors_BD.shape[1])).all():
                    raise embed.no_direction()
                # By its object: an image may be listed twice.
                embedded = dict(zip(map(id, found.images), vectors_BD.cpu().numpy(), strict=True))
            ids += [image.image_id for image in batch.images]
            vectors += [embedded.get(id(image)) for image in batch.images]
            kinds += [skipped.kind for skipped in found.skipped]
            advance(len(batch.images))
        data.check_rows(len(ids), file, task.source)
    columns = {
        NAME: pa.array(ids, pa.string()),
        VECTOR: pa.array(vectors, pa.list_(pa.float32())),
        MODEL: pa.array([model.digest] * len(ids), pa.string()),
    }
    return pa.table(columns), {LEFT_OUT: data.count_kinds(kinds)}


def _of_list(file: pq.ParquetFile, path: Path, model: DualEncoder, size: int) -> Iterator[_Batch]:
    """The images of a list, which lie in the folder that the ids are relative to."""
    rows = file.read(columns=[NAME, PATH])
    ids, paths = (_texts(rows.column(name), name, path) for name in (NAME, PATH))
    # On a machine that lacks their folder, all images would be left out.
    # Not Path.exists, which raises for a name that is too long.
    if paths and not any(os.path.exists(each) for each in paths):  # noqa: PTH110
        raise InputError(
            f"no image of {path} is on this machine, such as {paths[0]!r:.200}",
            hint="make their folder available under the same path, or write the list on this machine",
        )
    root = _folder_of(ids, paths)
    read = embed.image_reader(ImageSource(kind="folder", path=str(root)), model.preprocess)
    images = [
        SourceImage(image_id=image_id, path=str(Path(each).absolute().relative_to(root)))
        for image_id, each in zip(ids, paths, strict=True)
    ]
    for start in range(0, len(images), size):
        yield _Batch(images[start : start + size], read)


def _folder_of(ids: Sequence[str], paths: Sequence[str]) -> Path:
    """The folder to which the ids of a list are relative, out of which no link may lead; the root of the disk for a
    list with other ids."""
    folders = {each.removesuffix(f"/{image_id}") for image_id, each in zip(ids, paths, strict=True)}
    if len(folders) == 1 and os.path.isdir(folder := folders.pop()):  # noqa: PTH112 - as above
        return Path(folder).absolute()
    return Path(Path.cwd().anchor)


def _of_corpus(file: pq.ParquetFile, path: Path, model: DualEncoder, size: int) -> Iterator[_Batch]:
    """The images of a file of a corpus, which holds their bytes."""
    for batch in file.iter_batches(size, columns=[NAME, IMAGE]):
        ids = _texts(batch.column(NAME), NAME, path)
        contents = pc.struct_field(batch.column(IMAGE), "bytes").to_pylist()
        images = [SourceImage(image_id=image_id, corpus_row=row) for row, image_id in enumerate(ids)]

        def read_file(image: SourceImage, contents: Sequence[bytes | None] = contents) -> tuple[bytes, Image.Image]:
            content = contents[image.corpus_row or 0] or b""
            try:
                return content, data.decode_image(content)
            except ImageError as error:
                raise CorpusError(f"image {image.image_id!r} of {shown(path)} cannot be decoded: {error}") from error

        yield _Batch(
            images, partial(embed.read_images, read_file=read_file, preprocess=model.preprocess, folder=path.parent)
        )


def _texts(column: pa.Array | pa.ChunkedArray, name: str, path: Path) -> list[str]:
    """The texts of a column; InputError for a row without one."""
    if column.null_count:
        raise InputError(f"{column.null_count:,} rows of {shown(path)} have no {name}", hint=_HINT)
    texts: list[str] = column.cast(pa.string()).to_pylist()
    return texts
