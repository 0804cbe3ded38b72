"""Embedding the planned images of a source: read ahead in threads, and written part by part.

Shape letters: I images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from dcdctl.core import data, distributed
from dcdctl.core.artifacts import Build
from dcdctl.core.data import Corpus, FolderImageFile, ImageError, RowError
from dcdctl.core.distributed import Parts
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ModelError
from dcdctl.core.machine import read_in_threads
from dcdctl.core.memory import Fitting
from dcdctl.core.models import ImageBatch, Preprocessor, Searchable, pool_tokens, prefix_vectors
from dcdctl.core.progress import Track
from dcdctl.core.scoring import embed_batch
from dcdctl.core.search import exact, image_files, part_files
from dcdctl.core.search.exact import Half
from dcdctl.core.search.image_files import FileFacts, read_facts
from dcdctl.core.search.index_config import ExifColumns
from dcdctl.core.search.part_files import PlannedParts, SkippedFile, SourceImage
from dcdctl.core.search.storage import ImageSource, IndexDocument
from dcdctl.core.search.stored import Stored, StoredTokens, StoredVectors

MAX_ASPECT = 200
"""Maximum aspect ratio. The shorter side is resized to the input size of the model, so a longer strip would take
gigabytes."""
DEFAULT_BATCH_SIZE = 32
"""Images per forward pass, unless the user sets a batch size."""
IN_SMALL_BATCHES = Compute(batch_size=DEFAULT_BATCH_SIZE)


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
    folder = Path(source.path)
    corpus = Corpus.open(folder, str(source.split)) if source.is_corpus else None

    def read_file(image: SourceImage) -> tuple[bytes, Image.Image]:
        if corpus is not None and image.corpus_row is not None:
            return corpus.image_bytes(image.corpus_row), corpus.image(image.corpus_row)
        file = FolderImageFile(folder, str(image.path)).read()
        return file, data.decode_image(file)

    return partial(
        read_images, read_file=read_file, preprocess=preprocess, folder=folder, exif="none" if corpus else exif
    )


def read_images(
    planned: Sequence[SourceImage],
    *,
    read_file: Callable[[SourceImage], tuple[bytes, Image.Image]],
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
            name = image.path or image.image_id
            stamp = {"num_bytes": image.num_bytes, "modified_ns": image.modified_ns}
            skipped.append(SkippedFile(path=name, reason=str(error), kind=data.kind_of(error, folder / name), **stamp))
    return ReadImages(ImageBatch.cat(pixels) if pixels else None, images, facts, skipped)


@dataclass(frozen=True)
class EmbeddingTask:
    """Planned parts of a source, and the model that embeds them."""

    build: Build
    source: ImageSource
    planned: PlannedParts
    model: Searchable
    document: IndexDocument
    """The index before."""
    compute: Compute
    """With the precision of the index."""
    fitting: Fitting = field(default_factory=Fitting)
    """Kept for all batches."""

    def images(self, part: int) -> list[SourceImage]:
        """The planned images of a part."""
        return part_files.read_planned(self.build.written(part_files.planned_name(part)))


@torch.inference_mode()
def embed(task: EmbeddingTask, track: Track) -> None:
    """Write this process's share of the missing parts, and wait for the other processes."""
    task.model.to(task.compute.device).eval()
    size, planned = task.compute.batch_size or DEFAULT_BATCH_SIZE, task.planned
    names, rows = planned.vectors_names[: planned.num_embedded], planned.rows
    counts = {planned.part_numbers[number]: rows[number] for number in Parts(task.build, names).share()}
    if not counts:
        return distributed.barrier()

    def batches() -> Iterator[list[SourceImage]]:
        for part in counts:
            images = task.images(part)  # one part in memory at a time
            for start in range(0, len(images), size):
                yield images[start : start + size]

    read = image_reader(task.source, task.model.preprocess, task.document.settings.exif)
    reading = read_in_threads(read, batches(), task.compute.readers)
    with track("embed", total=sum(counts.values()), unit="images") as advance:
        for part, count in counts.items():
            stored: list[Stored] = []
            images: list[SourceImage] = []
            facts: list[FileFacts] = []
            skipped: list[SkippedFile] = []
            while len(images) + len(skipped) < count:
                batch = next(reading)
                if batch.pixels is not None:
                    stored.append(embed_stored(task, batch.pixels))
                images += batch.images
                facts += batch.facts
                skipped += batch.skipped
                advance(len(batch.images) + len(batch.skipped))
            with task.build.write(image_files.facts_name(part)) as partial:
                image_files.write_facts(partial, facts)
            with task.build.write(part_files.vectors_name(part)) as partial:
                # A part without a readable image is written empty, so that a resumed run does not read its files again.
                vectors = task.document.stored_type.joined(stored, task.document.vector_type)
                part_files.write_part(partial, images, vectors, skipped)
    distributed.barrier()


def embed_stored(task: EmbeddingTask, images: ImageBatch) -> Stored:
    """What an index stores of images; ModelError if a vector is zero or not finite."""
    model, document = task.model, task.document
    stored: Stored
    if model.kind == "late":
        tokens_IND = embed_batch(lambda batch: model.encode_images(batch).tokens, images, task.compute, task.fitting)
        if (factor := document.settings.tokens.pooling or model.token_pooling) > 1:
            tokens_IND = pool_tokens(tokens_IND, factor)
        is_token_IN = tokens_IND.ne(0).any(dim=-1)
        counts_I, tokens_ND = is_token_IN.sum(dim=1).cpu().numpy(), tokens_IND[is_token_IN].cpu().numpy()
        stored = StoredTokens(exact.encoded(tokens_ND, document.settings.tokens.codes), counts_I)
        is_good = np.isfinite(tokens_ND).all() and (counts_I > 0).all()
    else:
        vectors_ID = embed_batch(model.embed_images, images, task.compute, task.fitting)
        stored = StoredVectors(unit_prefixes(vectors_ID, document.model.dim))
        is_good = has_direction(stored.data).all()
    if not is_good:
        raise no_direction()
    return stored


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
