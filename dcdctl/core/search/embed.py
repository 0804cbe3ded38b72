"""Embedding the planned images of a source by the workers of an engine, and writing them part by part.

In this process, a task is a part. For workers elsewhere a part is divided into tasks of a few batches, whose files
travel; in files (`engines.task_files`), images that are files are named by their paths.

    tasks     image_id; path (absolute), num_bytes and modified_ns of a file, or image_bytes of an image of a corpus;
        model_digest
    results   image_id; vector, or num_tokens and tokens, as an index stores them; the facts of the file; reason and
        kind of one that is no image, whose other columns are null

Shape letters: I images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from dcdctl.core import config as configs
from dcdctl.core import data, files
from dcdctl.core.artifacts import Parts
from dcdctl.core.data import Corpus, FolderImageFile, ImageError, PackedImageFile, RowError
from dcdctl.core.engines import Compute, Task, TaskRows, whole_shards
from dcdctl.core.errors import ModelError
from dcdctl.core.machine import ReadAhead, read_in_threads
from dcdctl.core.memory import Fitting
from dcdctl.core.models import ImageBatch, Preprocessor, Searchable, pool_tokens, prefix_vectors
from dcdctl.core.progress import Advance, Track
from dcdctl.core.scoring import embed_batch, named_model
from dcdctl.core.search import exact, image_files, part_files, sources
from dcdctl.core.search.comparison import Comparison
from dcdctl.core.search.entries import ImageSource
from dcdctl.core.search.exact import Half
from dcdctl.core.search.image_files import FileFacts, read_facts
from dcdctl.core.search.index_config import ExifColumns, IndexConfig
from dcdctl.core.search.part_files import SkippedFile, SourceImage
from dcdctl.core.search.stored import Stored, StoredTokens, StoredVectors

MAX_ASPECT = 200
"""Maximum aspect ratio. The shorter side is resized to the input size of the model, so a longer strip would take
gigabytes."""
DEFAULT_BATCH_SIZE = 32
"""Images per forward pass, unless the user sets a batch size."""
IN_SMALL_BATCHES = Compute(batch_size=DEFAULT_BATCH_SIZE)
MOST_SENT_IMAGES, MOST_SENT_BYTES = 128, 64 << 20
"""A task that is sent to a worker has no more, unless a single batch has: few, so that workers end at about the same
time, and small, because each worker has two tasks in memory."""

VECTORS = "vectors"
"""The kind of work of tasks in files."""
NAME, PATH, MODEL, STAMP = "image_id", "path", "model_digest", ("num_bytes", "modified_ns")
REASON, KIND = "left_out_reason", "left_out_kind"
"""Columns of tasks and results in files."""

ReadFile = Callable[[SourceImage], tuple[bytes, Image.Image]]
"""Reads and decodes the file of an image; RowError or ImageError for one that is left out, CorpusError for damage in a
corpus."""


@dataclass(frozen=True)
class ReadImages:
    """Images that were read together, and files that could not be read."""

    pixels: ImageBatch | None
    """None if no file could be read."""
    images: Sequence[SourceImage]
    """The images of these pixels."""
    facts: Sequence[FileFacts]
    """What is known of their files."""
    skipped: Sequence[SkippedFile]


def image_reader(
    source: ImageSource, preprocess: Preprocessor, exif: ExifColumns = "none"
) -> Callable[[Sequence[SourceImage]], ReadImages]:
    """Reads images of a source; safe to call from threads. CorpusError for a damaged image of a corpus; a file of a
    folder is skipped. `exif` says what is looked for in the EXIF data of the files of a folder."""
    return partial(
        read_images,
        read_file=file_reader(source),
        preprocess=preprocess,
        folder=Path(source.path),
        exif="none" if source.is_corpus else exif,
    )


def file_reader(source: ImageSource) -> ReadFile:
    """Reads the files of a source in this process; safe to call from threads."""
    folder = Path(source.path)
    corpus = Corpus.open(folder, str(source.split)) if source.is_corpus else None

    def read_file(image: SourceImage) -> tuple[bytes, Image.Image]:
        if corpus is not None and image.corpus_row is not None:
            return corpus.image_bytes(image.corpus_row), corpus.image(image.corpus_row)
        file = FolderImageFile(folder, str(image.path)).read()
        return file, data.decode_image(file)

    return read_file


@dataclass(frozen=True)
class PackedFiles:
    """The files of some images, which travel to a worker."""

    files: Mapping[str, PackedImageFile]
    """By the ids of the images."""
    corpus: str | None
    """The split and the folder of a corpus, for messages."""

    def __call__(self, image: SourceImage) -> tuple[bytes, Image.Image]:
        """The bytes of an image file, and the image, as `file_reader` gives them."""
        file = self.files[image.image_id].read()
        if self.corpus is None:
            return file, data.decode_image(file)
        return file, data.decode_image_of(self.corpus, image.image_id, file)


def read_images(
    planned: Sequence[SourceImage],
    *,
    read_file: ReadFile,
    preprocess: Preprocessor,
    folder: Path,
    exif: ExifColumns = "none",
) -> ReadImages:
    """The images that `read_file` reads and decodes. One for which it raises RowError or ImageError is skipped, and so
    is a strip."""
    pixels, images, facts, skipped = [], [], [], []
    for image in planned:
        try:
            file, decoded = read_file(image)
            width, height = decoded.size
            if max(width, height) > MAX_ASPECT * min(width, height):
                raise ImageError(
                    f"a strip of {width} x {height} pixels, more than {MAX_ASPECT} times as long as wide",
                    data.STRIP,
                )
            # One by one, because photos are large until they are resized.
            pixels.append(preprocess.images([decoded]))
            images.append(image)
            facts.append(read_facts(image, file, decoded, exif))
        except (RowError, ImageError) as error:
            skipped.append(sources.unread_file(image, error, folder))
    return ReadImages(ImageBatch.cat(pixels) if pixels else None, images, facts, skipped)


@dataclass(frozen=True)
class ImagesToEmbed:
    """Some images of a part, which begin and end with a batch."""

    images: Sequence[SourceImage]
    read_file: ReadFile


@dataclass(frozen=True)
class EmbeddedImages:
    """What an index keeps of images, and files that could not be read."""

    stored: Sequence[Stored]
    """Of each batch that has an image."""
    images: Sequence[SourceImage]
    facts: Sequence[FileFacts]
    skipped: Sequence[SkippedFile]


@dataclass(frozen=True)
class EmbedWorker:
    """Reads and embeds images of a source, in the batches of its index."""

    model: Searchable
    compute: Compute
    """With the precision of the index."""
    source: ImageSource
    dim: int
    """Numbers of a vector."""
    settings: IndexConfig
    fitting: Fitting = field(default_factory=Fitting)
    """Kept for all batches."""

    def placed(self) -> EmbedWorker:
        """This worker in the process that computes, with the model on its device."""
        compute = self.compute.in_worker()
        return replace(self, model=self.model.to(compute.device).eval(), compute=compute)

    @property
    def batch_size(self) -> int:
        """Images per forward pass."""
        return self.compute.batch_size or DEFAULT_BATCH_SIZE

    def start(self, inputs: ImagesToEmbed) -> Callable[[Advance], EmbeddedImages]:
        """Begin to read images, and return what embeds them."""
        read = partial(
            read_images,
            read_file=inputs.read_file,
            preprocess=self.model.preprocess,
            folder=Path(self.source.path),
            exif="none" if self.source.is_corpus else self.settings.exif,
        )
        batches = in_batches(inputs.images, self.batch_size)
        return partial(self._embed, read_in_threads(read, batches, self.compute.readers))

    @torch.inference_mode()
    def _embed(self, reading: ReadAhead[ReadImages], advance: Advance) -> EmbeddedImages:
        stored: list[Stored] = []
        images: list[SourceImage] = []
        facts: list[FileFacts] = []
        skipped: list[SkippedFile] = []
        # Closed here, because the traceback of an error would keep the threads.
        with closing(reading):
            for batch in reading:
                if batch.pixels is not None:
                    stored.append(self.embed(batch.pixels))
                images += batch.images
                facts += batch.facts
                skipped += batch.skipped
                advance(len(batch.images) + len(batch.skipped))
        return EmbeddedImages(stored, images, facts, skipped)

    def embed(self, images: ImageBatch) -> Stored:
        """What an index stores of images; ModelError if a vector is zero or not finite."""
        model, tokens = self.model, self.settings.tokens
        stored: Stored
        if model.kind == "late":
            tokens_IND = embed_batch(
                lambda batch: model.encode_images(batch).tokens, images, self.compute, self.fitting
            )
            if (factor := tokens.pooling or model.token_pooling) > 1:
                tokens_IND = pool_tokens(tokens_IND, factor)
            is_token_IN = tokens_IND.ne(0).any(dim=-1)
            counts_I, tokens_ND = is_token_IN.sum(dim=1).cpu().numpy(), tokens_IND[is_token_IN].cpu().numpy()
            stored = StoredTokens(exact.encoded(tokens_ND, tokens.codes), counts_I)
            is_good = np.isfinite(tokens_ND).all() and (counts_I > 0).all()
        else:
            vectors_ID = embed_batch(model.embed_images, images, self.compute, self.fitting)
            stored = StoredVectors(unit_prefixes(vectors_ID, self.dim))
            is_good = has_direction(stored.data).all()
        if not is_good:
            raise no_direction()
        return stored


def in_batches(images: Sequence[SourceImage], size: int) -> list[Sequence[SourceImage]]:
    """Images in order, in batches of a size; the last one may be smaller."""
    return [images[start : start + size] for start in range(0, len(images), size)]


def embed(found: Comparison, worker: EmbedWorker, track: Track) -> None:
    """Write the missing parts of images to embed."""
    engine = worker.compute.engine
    missing = Parts(found.build, found.vectors_names[: found.num_embedded]).missing()
    sent = replace(worker, compute=worker.compute.for_workers())
    total = sum(found.rows[number] for number in missing)
    with track("embed", total=total, unit="images") as advance:
        tasks = _tasks(found, worker, missing)
        for number, embedded in whole_shards(engine.map(tasks, sent.placed, advance)):
            _write(found, found.part_numbers[number], embedded)


def _tasks(found: Comparison, worker: EmbedWorker, numbers: Sequence[int]) -> Iterator[Task[ImagesToEmbed]]:
    """The tasks of some planned parts, by their places; the images of one part are listed at a time."""
    if not numbers:
        return
    source = found.source
    read_file = file_reader(source)
    corpus = Corpus.open(Path(source.path), str(source.split)) if source.is_corpus else None
    job = _job_in_files(found, worker)
    for number in numbers:
        images = found.images(found.part_numbers[number])
        groups = [images]
        if worker.compute.engine.sends_tasks:
            # The sizes of images of a corpus are not known before they are read.
            num_bytes = 0 if corpus is None else corpus.num_bytes // corpus.num_images
            groups = _to_send(in_batches(images, worker.batch_size), num_bytes)
        for part, group in enumerate(groups):
            yield Task(
                number,
                part_files.vectors_name(found.part_numbers[number]),
                inputs=partial(ImagesToEmbed, group, read_file),
                packed=partial(_packed, group, source, corpus),
                in_file=partial(_in_file, found, job, group, corpus),
                part=part,
                num_parts=len(groups),
            )


def _job_in_files(found: Comparison, worker: EmbedWorker) -> dict[str, Any]:
    """What is done in all tasks of a source."""
    return {
        "work": VECTORS,
        **named_model(str(found.build.folder / "model"), worker.model.digest, {}),
        "precision": worker.compute.precision,
        "batch_size": worker.compute.batch_size,
        "source": configs.to_table(worker.source),
        "dim": worker.dim,
        "settings": configs.to_table(worker.settings),
        "plan": files.digest_of(found.build.plan),
    }


def _in_file(
    found: Comparison, job: Mapping[str, Any], images: Sequence[SourceImage], corpus: Corpus | None
) -> TaskRows[EmbeddedImages]:
    """Images as the rows of a task."""
    document = found.index.document
    rows = {NAME: pa.array([image.image_id for image in images], pa.string())}
    if corpus is None:
        root = PurePosixPath(found.source.path)
        rows[PATH] = pa.array([str(root / str(image.path)) for image in images], pa.string())
        for name in STAMP:
            rows[name] = pa.array([getattr(image, name) for image in images], pa.int64())
    rows[MODEL] = pa.array([found.index.fingerprint] * len(images), pa.string())

    def contents() -> pa.Array:
        assert corpus is not None
        return pa.array([corpus.image_bytes(int(image.corpus_row or 0)) for image in images], pa.binary())

    def result(table: pa.Table) -> EmbeddedImages:
        read = table.filter(table.column(KIND).is_null())
        stored = document.stored_type.of_file_columns(read, document.vector_type)
        kept, skipped = [], []
        for image, row in zip(images, table.select([REASON, KIND]).to_pylist(), strict=True):
            if row[KIND] is None:
                kept.append(image)
            else:
                stamp = {name: getattr(image, name) for name in STAMP}
                skipped.append(
                    SkippedFile(path=image.path or image.image_id, reason=row[REASON], kind=row[KIND], **stamp)
                )
        return EmbeddedImages([stored], kept, image_files.facts_of_table(read), skipped)

    return TaskRows(job, pa.table(rows), None if corpus is None else contents, result)


def _to_send(batches: Sequence[Sequence[SourceImage]], unknown_bytes: int) -> list[list[SourceImage]]:
    """Batches joined to tasks; a file of unknown size counts as so many bytes."""
    groups: list[list[SourceImage]] = []
    num_bytes = 0
    for batch in batches:
        size = sum(unknown_bytes if image.num_bytes is None else image.num_bytes for image in batch)
        if groups and len(groups[-1]) + len(batch) <= MOST_SENT_IMAGES and num_bytes + size <= MOST_SENT_BYTES:
            groups[-1] += batch
            num_bytes += size
        else:
            groups.append(list(batch))
            num_bytes = size
    return groups


def _packed(images: Sequence[SourceImage], source: ImageSource, corpus: Corpus | None) -> ImagesToEmbed:
    """Images with their files, which are read now."""
    files = {}
    for image in images:
        if corpus is not None and image.corpus_row is not None:
            file = PackedImageFile(corpus.image_bytes(image.corpus_row))
        else:
            file = PackedImageFile.of(FolderImageFile(Path(source.path), str(image.path)))
            if isinstance(file.content, RowError):
                # Here, because the kind of a video depends on the photo beside it.
                file.content.kind = data.kind_of(file.content, Path(source.path) / str(image.path))
        files[image.image_id] = file
    return ImagesToEmbed(images, PackedFiles(files, None if corpus is None else corpus.place))


def _write(found: Comparison, part: int, embedded: Sequence[EmbeddedImages]) -> None:
    """Write the images of a part, of which each task gave some."""
    document = found.index.document
    stored = [batch for each in embedded for batch in each.stored]
    images = [image for each in embedded for image in each.images]
    facts = [fact for each in embedded for fact in each.facts]
    skipped = [file for each in embedded for file in each.skipped]
    with found.build.write(image_files.facts_name(part)) as partial_file:
        image_files.write_facts(partial_file, facts)
    with found.build.write(part_files.vectors_name(part)) as partial_file:
        # A part without a readable image is written empty, so that a resumed run does not read its files again.
        vectors = document.stored_type.joined(stored, document.vector_type)
        part_files.write_part(partial_file, images, vectors, skipped)


def no_direction() -> ModelError:
    """The error for a model whose vectors are zero or not finite."""
    hint = "try --precision fp32; if that does not help, its training diverged"
    return ModelError("the model gives vectors that are zero, NaN or infinite", hint=hint)


def unit_prefixes(vectors_ID: Tensor, dims: int) -> Half:
    """The first `dims` numbers of vectors, of unit length before rounding, I x `dims`; zero or not finite where the
    vector is."""
    # Twice, because the first numbers of a unit vector are no unit vector.
    first_ID = prefix_vectors(functional.normalize(vectors_ID, dim=-1), dims)
    return functional.normalize(first_ID, dim=-1).half().cpu().numpy()


def has_direction(vectors_ID: Half) -> NDArray[np.bool_]:
    """(I,): which vectors are finite and not zero."""
    return np.logical_and(np.isfinite(vectors_ID).all(axis=1), vectors_ID.any(axis=1))
