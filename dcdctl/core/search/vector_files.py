"""Vectors that another program computed, in place of embedding here: files of vectors that become an index.

    VECTORS/*.parquet    `image_id`, `vector`, and `model_digest` where it was kept; the images may be those of
        `--engine files:DIR`, whose tasks have these columns and paths, or the bytes of images

A vector is stored with the bits that embedding here would give for the same numbers. The images must be there: they
decide the order of rows, files that are no images are skipped as always, and some are embedded again to compare. Shape
letters: B rows of a batch, N planned images, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from dcdctl.core import data, files
from dcdctl.core.errors import NUM_EXAMPLES, Faults, InputError, MissingError, StaleError, first_line
from dcdctl.core.machine import read_in_threads
from dcdctl.core.models import ImageBatch
from dcdctl.core.places import shown
from dcdctl.core.progress import Track
from dcdctl.core.search import embed, image_files, part_files
from dcdctl.core.search.columns.change import position_in
from dcdctl.core.search.comparison import Comparison
from dcdctl.core.search.embed import MODEL, NAME, EmbedWorker
from dcdctl.core.search.exact import Rows
from dcdctl.core.search.image_files import FileFacts
from dcdctl.core.search.part_files import SkippedFile, SourceImage
from dcdctl.core.search.sources import SourceImages
from dcdctl.core.search.storage import PLANNED
from dcdctl.core.search.stored import StoredVectors

VECTOR = "vector"
# About 16 MB of float32 at 512 numbers per vector.
ROWS_PER_BATCH = 8192
NUM_VERIFIED = 32
"""Given vectors that are compared, spread over all files, because one of them may be of another model."""
ROTATED_AMONG = 1000
"""Among so many first images, every rotated one is compared too: an engine that forgets to turn photos upright is right
about all others."""
LEAST_COSINE = 0.99
"""Between a given vector and that of the model here. Other number formats and decoders stay above, another model or
preprocessing below."""
_HINT = "give a row per image with image_id, and vector: a list of numbers"
Flags = NDArray[np.bool_]


def find(names: Sequence[str]) -> list[Path]:
    """The files of vectors that files, folders or patterns name; InputError for a name without one, and for a file
    without the columns."""
    paths = data.find_named(names, (".parquet", ".pq"), what="file of vectors", option="--vectors")
    for path in paths:
        _check_columns(path)
    return paths


def take(found: Comparison, worker: EmbedWorker, names: Sequence[str], track: Track) -> None:
    """Write the planned parts with the vectors of files, in place of `embed`; some are embedded again to compare.

    InputError for rows that cannot be used, an image without a vector, and vectors that the model does not give;
    StaleError for vectors of another model. Nothing is then written.
    """
    gathered = _GivenVectors(found, worker)
    gathered.read(find(names), track)
    skipped = gathered.check_missing()
    gathered.verify(track)
    # All parts: some may have been written from other files before a kill.
    gathered.write(skipped)


class _GivenVectors:
    """The given vectors by planned image, in a file that is mapped."""

    def __init__(self, found: Comparison, worker: EmbedWorker) -> None:
        # The worker is used in this process, whatever the engine is: few images are embedded.
        self.found, self.worker, self.dim = found, worker, worker.dim
        parts = [found.build.written(name) for name in found.planned_names]
        columns = [pq.read_table(part, columns=["image_id"]).column(0) for part in parts]
        self.ids = pa.chunked_array(
            [chunk for column in columns for chunk in column.chunks], pa.string()
        ).combine_chunks()
        self.starts = list(accumulate(map(len, columns), initial=0))
        """The first image of each part, and the number of all."""
        # On the disk of the index, because the vectors may be more than fit into memory. `planned` is removed at the
        # end.
        path = found.build.folder / PLANNED / "vectors.f16"
        # An empty file cannot be mapped.
        self.vectors_ND = np.memmap(path, dtype=np.float16, mode="w+", shape=(max(len(self.ids), 1), self.dim))
        self.is_given: Flags = np.zeros(len(self.ids), dtype=np.bool_)
        self.faults = Faults("the vectors cannot be used")
        self._files = SourceImages(found.source.path, [found.source])

    def read(self, paths: Sequence[Path], track: Track) -> None:
        """Take the vectors of files. All names are checked before the first vector is read."""
        names = [_read_names(path) for path in paths]
        rows = self._rows_of(names, paths)
        self.faults.check()
        with track("read vectors", total=len(rows), unit="vectors") as advance:
            first = 0
            for path in paths:
                for batch in _batches(path):
                    self._expect_model(batch, path)
                    self._take(batch.column(VECTOR), rows[first : first + len(batch)], path)
                    first += len(batch)
                    advance(len(batch))
        self.faults.check()

    def _rows_of(self, columns: Sequence[pa.Array], paths: Sequence[Path]) -> Rows:
        """The planned image that each name of the files means. Notes names of no image, and images that are named
        twice, as faults."""
        names = pa.chunked_array(columns, pa.string()).combine_chunks()
        rows = position_in(names, self.ids)
        where = np.repeat([path.name for path in paths], [len(column) for column in columns])
        known = np.flatnonzero(rows >= 0)
        _, firsts = np.unique(rows[known], return_index=True)
        unknown = f"rows of images that are not in {self.found.source.path} or are in the index already"
        places = {
            unknown: np.flatnonzero(rows < 0),
            "rows of images that another row has too": np.delete(known, firsts),
        }
        for fault, wrong in places.items():
            examples = [f"{names[int(place)].as_py()!r} in {where[place]}" for place in wrong[:NUM_EXAMPLES]]
            self.faults.add(fault, examples, len(wrong))
        return rows

    def _expect_model(self, batch: pa.RecordBatch, path: Path) -> None:
        """StaleError for the vectors of another model, if the file says of which they are."""
        models = pc.unique(batch.column(MODEL)).to_pylist() if MODEL in batch.schema.names else []
        if other := set(models) - {None, self.worker.model.digest}:
            message = (
                f"the vectors of {shown(path)} are of the model {str(other.pop())[:8]}, and this is the model "
                f"{self.worker.model.digest[:8]}"
            )
            raise StaleError(message, hint="name the model that made them, or run this one")

    def _take(self, column: pa.Array, row_B: Rows, path: Path) -> None:
        """Take a batch of vectors; a null is an image without one."""
        is_valid = column.is_valid().to_numpy(zero_copy_only=False)
        row_B = row_B[is_valid]
        widths = np.unique(pc.list_value_length(column.drop_null()).to_numpy(zero_copy_only=False))
        accepted: set[Any] = {self.worker.model.embedding_dim, self.dim}
        if len(row_B) == 0:
            return
        if len(widths) > 1 or int(widths[0]) not in accepted:
            numbers = " or ".join(map(str, sorted(accepted)))
            given = ", ".join(map(str, widths[:NUM_EXAMPLES]))
            raise InputError(
                f"the vectors of {shown(path)} have {given} numbers, and those of the model have {numbers}", hint=_HINT
            )
        values = column.flatten().cast(pa.float32()).to_numpy(zero_copy_only=False)
        # A copy, because torch warns about arrays that are not writable, and Arrow's are not.
        vectors_BD = torch.from_numpy(values.reshape(len(row_B), -1).copy())
        stored_BD = embed.unit_prefixes(vectors_BD, self.dim)
        # As they are stored: squares may be too large, and the first numbers zero.
        is_good = embed.has_direction(stored_BD)
        wrong = row_B[~is_good]
        examples = [f"{self.ids[int(row)].as_py()!r} in {path.name}" for row in wrong[:NUM_EXAMPLES]]
        self.faults.add("vectors that are zero, NaN or infinite", examples, len(wrong))
        self.vectors_ND[row_B[is_good]] = stored_BD[is_good]
        self.is_given[row_B[is_good]] = True

    def check_missing(self) -> dict[int, SkippedFile]:
        """The files without a vector that are no images, by their place; InputError for an image without a vector."""
        skipped: dict[int, SkippedFile] = {}
        missing = np.flatnonzero(~self.is_given).tolist()
        for row, read in self._read_images(missing):
            if read.pixels is not None:
                message = (
                    f"{len(missing):,} of {len(self.ids):,} files have no vector, and {self.ids[row].as_py()!r} "
                    "is an image"
                )
                raise InputError(message, hint="give the files of all vectors; `--engine files:DIR` lists the images")
            skipped[row] = read.skipped[0]
        return skipped

    @torch.inference_mode()
    def verify(self, track: Track) -> None:
        """Embed some images and compare; InputError if a vector is not that of the model."""
        rows = self._rows_to_verify()
        self.worker.model.to(self.worker.compute.device).eval()
        readable: list[tuple[int, ImageBatch]] = []
        with track("compare vectors", total=len(rows), unit="images") as advance:
            for number, (row, read) in enumerate(self._read_images(rows), 1):
                if read.pixels is not None:
                    readable.append((row, read.pixels))
                # One batch of images in memory at a time.
                if readable and (len(readable) == embed.DEFAULT_BATCH_SIZE or number == len(rows)):
                    self._compare([row for row, _ in readable], ImageBatch.cat([pixels for _, pixels in readable]))
                    readable = []
                advance(1)

    def _rows_to_verify(self) -> list[int]:
        """Images with a vector, spread over all files, and the rotated ones among the first; ascending."""
        given = np.flatnonzero(self.is_given)
        places = np.unique(np.linspace(0, len(given) - 1, min(NUM_VERIFIED, len(given))).astype(np.int64))
        first = given[given < ROTATED_AMONG].tolist()
        images = self._planned_images(first)
        rotated = [row for row, image in zip(first, images, strict=True) if self._orientation_of(image) != 1]
        return sorted({*given[places].tolist(), *rotated})

    def _compare(self, rows: Sequence[int], pixels: ImageBatch) -> None:
        """InputError if the given vector of an image differs from that of the model."""
        cosines = self._cosines(rows, pixels)
        if (least := float(cosines.min())) >= LEAST_COSINE:
            return
        for wrong in np.flatnonzero(cosines < LEAST_COSINE).tolist():
            self._expect_upright(rows[wrong])
        name = self.ids[rows[int(cosines.argmin())]].as_py()
        message = (
            f"the vector of {name!r} is not that of this model: the cosine is {least:.4f}, and at least "
            f"{LEAST_COSINE} is expected"
        )
        raise InputError(message, hint="embed with this model and its image preprocessing")

    def _expect_upright(self, row: int) -> None:
        """InputError if the given vector is that of the image as its file stores it, without its EXIF orientation."""
        [image] = self._planned_images([row])
        if (orientation := self._orientation_of(image)) == 1:
            return
        stored = data.turned_back(data.decode_image(self._files.read(0, image)), orientation)
        if self._cosines([row], self.worker.model.preprocess.images([stored])).min() >= LEAST_COSINE:
            raise InputError(
                f"the vector of {image.image_id!r} is that of the image as stored, not rotated upright as its EXIF "
                "data say",
                hint="rotate each image with PIL.ImageOps.exif_transpose before embedding it, or let the engine run "
                "`dcdctl work`",
            )

    def _cosines(self, rows: Sequence[int], pixels: ImageBatch) -> NDArray[np.float32]:
        """The cosine of the given vector of each image and of that which the model gives."""
        computed = self.worker.embed(pixels).data.astype(np.float32)
        theirs = self.vectors_ND[list(rows)].astype(np.float32)
        lengths = np.linalg.norm(computed, axis=1) * np.linalg.norm(theirs, axis=1)
        return (computed * theirs).sum(axis=1) / lengths

    def _orientation_of(self, image: SourceImage) -> int:
        """The EXIF orientation of an image file, of which only the beginning is read; 1 if it is gone."""
        try:
            with self._files.open(0, image) as file:
                return data.read_orientation(file)
        except MissingError:
            return 1

    def _read_images(self, rows: Sequence[int]) -> Iterator[tuple[int, embed.ReadImages]]:
        """The planned images of some ascending rows, one by one; read ahead in threads."""
        read = embed.image_reader(self.found.source, self.worker.model.preprocess)
        images = ([image] for image in self._planned_images(rows))
        return zip(rows, read_in_threads(read, images, self.worker.compute.readers), strict=True)

    def _planned_images(self, rows: Sequence[int]) -> Iterator[SourceImage]:
        """The images of some ascending rows; one part is in memory at a time."""
        part_of = lru_cache(maxsize=1)(self.found.images)
        for row in rows:
            number = int(np.searchsorted(self.starts, row, side="right")) - 1
            yield part_of(self.found.part_numbers[number])[row - self.starts[number]]

    def write(self, skipped: dict[int, SkippedFile]) -> None:
        """Write the vectors of all parts."""
        for first, part in zip(self.starts[:-1], self.found.part_numbers, strict=True):
            images = self.found.images(part)
            here = range(first, first + len(images))
            given = self.is_given[first : here.stop]
            kept = [image for image, is_given in zip(images, given, strict=True) if is_given]
            vectors = StoredVectors(np.ascontiguousarray(self.vectors_ND[first : here.stop][given]))
            with self.found.build.write(image_files.facts_name(part)) as partial:
                image_files.write_facts(partial, [FileFacts.listed(image) for image in kept])
            with self.found.build.write(part_files.vectors_name(part)) as partial:
                part_files.write_part(partial, kept, vectors, [skipped[row] for row in here if row in skipped])


def _check_columns(path: Path) -> None:
    """InputError for a file without a name or a vector per row."""
    with _readable(path), pq.ParquetFile(data.readable(path), page_checksum_verification=True) as file:
        schema = file.schema_arrow
    if missing := next((name for name in (NAME, VECTOR) if name not in schema.names), None):
        names = ", ".join(schema.names) or "none"
        raise InputError(f"{shown(path)} has no column {missing} (it has {names})", hint=_HINT)
    vector_type = schema.field(VECTOR).type
    type_ = vector_type.storage_type if isinstance(vector_type, pa.BaseExtensionType) else vector_type
    is_list = pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
    if not is_list or type_.value_type not in (pa.float16(), pa.float32(), pa.float64()):
        raise InputError(
            f"the column {VECTOR} of {shown(path)} is {vector_type}, lists of floating-point numbers are expected",
            hint=_HINT,
        )


def _read_names(path: Path) -> pa.Array:
    """The name of each row; InputError for a row without one."""
    with _readable(path), pq.ParquetFile(data.readable(path), page_checksum_verification=True) as file:
        column = file.read(columns=[NAME]).column(0).cast(pa.string()).combine_chunks()
    if column.null_count:
        raise InputError(f"{column.null_count:,} rows of {shown(path)} have no {NAME}", hint=_HINT)
    return column


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The rows of a file, with vectors as plain lists."""
    with _readable(path), pq.ParquetFile(data.readable(path), page_checksum_verification=True) as file:
        columns = [name for name in (VECTOR, MODEL) if name in file.schema_arrow.names]
        for batch in file.iter_batches(ROWS_PER_BATCH, columns=columns):
            place = batch.schema.get_field_index(VECTOR)
            vectors = batch.column(place)
            # Engines write tensors as an extension type over lists.
            if isinstance(vectors.type, pa.BaseExtensionType):
                vectors = vectors.storage
            yield batch.set_column(place, VECTOR, vectors)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """InputError for a file that is not Parquet or is damaged."""
    try:
        yield
    except OSError as error:
        raise files.unreadable(path, error) from error
    except pa.ArrowException as error:
        raise InputError(f"{shown(path)} cannot be read as vectors: {first_line(error)}", hint=_HINT) from error
