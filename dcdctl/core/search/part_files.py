"""The files of vectors of an index: written once, compared with index.json, and memory-mapped.

A part's vectors are stored plain, one page per row group: the numbers have the same layout in the file as in memory.
They are checked to be finite when a process first maps them. An index of tokens has a column of tokens in place of the
vectors, and before it the number of tokens of each row.

Shape letters: R rows, D width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dcdctl.core import files
from dcdctl.core.artifacts import seal_of
from dcdctl.core.errors import StaleError, first_line
from dcdctl.core.search.entries import Part
from dcdctl.core.search.exact import Element, Elements
from dcdctl.core.search.storage import INDEX, PLANNED, IndexDocument
from dcdctl.core.search.stored import COUNTS, Stored, StoredTokens, StoredType, StoredVectors

ROWS_PER_PART = 8192
"""Images in a file of vectors; a killed run loses at most this much work."""
ROWS_PER_GROUP = 1024
"""Rows of a row group. The name of a hit is read with all names of its group."""
_SKIPPED = b"dcdctl.skipped"
_READ: set[Part] = set()
"""The parts whose footers this process has compared with index.json."""
_CHECKED: set[tuple[Part, Element]] = set()
"""The parts that this process has checked, with the type of their vectors; a part has its SHA-256."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceImage:
    """An image of a source, not read yet."""

    image_id: str
    path: str | None = None
    """Relative to the image folder, with slashes; None in a corpus."""
    corpus_row: int | None = None
    """None in a folder."""
    num_bytes: int | None = field(default=None, compare=False)
    modified_ns: int | None = field(default=None, compare=False)
    """The size and the time of a file of a folder when it was listed."""
    copied_from: int | None = field(default=None, compare=False)
    """The row of the index that has the vectors of a file of the same bytes; None for an image to embed."""


UNREADABLE = "unreadable"
"""The kind of a file or folder that the system does not let us read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SkippedFile:
    """A file of a source that could not be indexed."""

    path: str
    reason: str
    kind: str = UNREADABLE
    """Such as "heif": a key of `UNREAD` in data/images/formats.py."""
    num_bytes: int | None = field(default=None, compare=False)
    modified_ns: int | None = field(default=None, compare=False)
    """As of an image: a file that is still the same is not read again."""


IMAGE_COLUMNS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("path", pa.string()),
        pa.field("corpus_row", pa.int64()),
    ]
)
"""What an index keeps of a `SourceImage`."""
PLANNED_COLUMNS = pa.schema(
    [*IMAGE_COLUMNS, ("num_bytes", pa.int64()), ("modified_ns", pa.int64()), ("copied_from", pa.int64())]
)
"""All fields of a `SourceImage`."""


def part_name(number: int) -> str:
    """
    >>> part_name(3)
    'part-00003.parquet'
    """
    # Padded, so that names sort in the order of parts.
    return f"part-{number:05d}.parquet"


def part_number(name: str) -> int:
    """
    >>> part_number("part-00003.parquet")
    3
    """
    return int(name.removeprefix("part-").removesuffix(".parquet"))


def planned_name(number: int) -> str:
    """The path of the planned images of a part in the folder of the index."""
    return f"{PLANNED}/{part_name(number)}"


def vectors_name(number: int) -> str:
    """The path of a file of vectors in the folder of the index."""
    return f"vectors/{part_name(number)}"


def write_part(path: Path, images: Sequence[SourceImage], stored: Stored, skipped: Sequence[SkippedFile] = ()) -> None:
    """Write a file of vectors; its metadata lists the skipped files."""
    vectors = stored.file_columns()
    metadata = {_SKIPPED: json.dumps([asdict(file) for file in skipped])}
    schema = pa.schema([*IMAGE_COLUMNS, *vectors.schema], metadata)
    table = pa.Table.from_arrays([*_columns(images, IMAGE_COLUMNS), *vectors.columns], schema=schema)
    # Numbers of unit vectors hardly shrink, and only plain ones can be memory-mapped.
    plain = dict.fromkeys(("vector.list.element", "tokens.list.element"), "none")
    compression = {name: "zstd" for name in IMAGE_COLUMNS.names} | plain
    pq.write_table(
        table,
        path,
        row_group_size=ROWS_PER_GROUP,
        compression=compression,
        # Ids differ in each row, so a dictionary would only add bytes.
        use_dictionary=False,
        # Readers skip row groups by id; the least number of a vector helps nobody.
        write_statistics=["image_id"],
        # One plain page per row group can be memory-mapped; pyarrow would start a new page at each MiB.
        data_page_size=1 << 30,
    )
    # The offsets rely on how pyarrow lays out a page, so each file is compared with the given numbers.
    raw, first, element = path.read_bytes(), 0, np.dtype((stored.data.dtype, stored.data.shape[1:]))
    for count, offset in _layout(pq.ParquetFile(path), element):
        if _at(raw, offset, count, element).tobytes() != stored.data[first : first + count].tobytes():
            raise AssertionError("this version of pyarrow lays out vectors in another way")
        first += count


def _columns(images: Sequence[SourceImage], schema: pa.Schema) -> list[pa.Array]:
    columns = []
    for column in schema:
        columns.append(pa.array([getattr(image, column.name) for image in images], type=column.type))
    return columns


def describe_part(path: Path, source: int, type_: Element) -> tuple[Part, list[SkippedFile]]:
    """The entry in index.json of a written part, and the files that were skipped when it was written."""
    file = pq.ParquetFile(path)
    layout = _layout(file, type_)
    part = Part(
        file=path.name,
        source=source,
        rows=file.metadata.num_rows,
        **seal_of(path),
        vectors_at=tuple(offset for _, offset in layout),
        num_tokens=tuple(count for count, _ in layout) if COUNTS in file.schema_arrow.names else (),
    )
    return part, [SkippedFile(**entry) for entry in json.loads(file.schema_arrow.metadata[_SKIPPED])]


def write_planned(path: Path, images: Sequence[SourceImage]) -> None:
    """Write the images of a part, before they are embedded."""
    table = pa.Table.from_arrays(_columns(images, PLANNED_COLUMNS), schema=PLANNED_COLUMNS)
    pq.write_table(table, path, compression="zstd")


def read_planned(path: Path) -> list[SourceImage]:
    """The images that were planned for a part."""
    return _read_images(path, PLANNED_COLUMNS)


def read_images(path: Path) -> list[SourceImage]:
    """The images of a part that is written."""
    return _read_images(path, IMAGE_COLUMNS)


def _read_images(path: Path, columns: pa.Schema) -> list[SourceImage]:
    with pq.ParquetFile(path) as file:  # half of the time of `read_table` for a small part
        return [SourceImage(**row) for row in file.read(columns=columns.names).to_pylist()]


def part_path(folder: Path, part: Part) -> Path:
    """The file of a part. StaleError if it is damaged, or has other rows or columns than index.json says."""
    path = INDEX.checked(folder / "vectors" / part.file, part.sha256)
    if part in _READ:
        return path
    with reading(path), pq.ParquetFile(path) as file:
        footer = file.metadata
        columns = file.schema_arrow.remove_metadata()
        rows = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]
    if pa.schema(list(columns)[: len(IMAGE_COLUMNS)]) != IMAGE_COLUMNS:
        raise INDEX.damaged(path, f"its columns are {', '.join(columns.names)}, not those of images")
    if rows != group_rows(part.rows):
        raise INDEX.damaged(path, f"it has {sum(rows):,} rows in {len(rows):,} groups, index.json has {part.rows:,}")
    # Once per process, as the checksum.
    _READ.add(part)
    return path


def read_column(folder: Path, part: Part, name: str) -> pa.ChunkedArray:
    """The texts of all rows of a part in a column."""
    path = part_path(folder, part)
    with reading(path):
        column = pq.read_table(path, columns=[name])[name]
        column.validate(full=True)
        if len(column) != part.rows:
            raise ValueError(f"it has {len(column):,} rows")
    return column


def group_rows(num_rows: int) -> list[int]:
    """The rows of each row group of a file."""
    return [min(ROWS_PER_GROUP, num_rows - first) for first in range(0, num_rows, ROWS_PER_GROUP)]


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """A block that reads a Parquet file of an index; StaleError if it cannot be read."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        # Arrow's error for a file that is gone is an OSError too.
        if isinstance(error, FileNotFoundError | PermissionError):
            raise files.unreadable(path, error, error=StaleError) from error
        raise INDEX.damaged(path, first_line(error)[:200]) from error


class MappedTable:
    """A Parquet file of an index, mapped when the index is opened: who has it open reads on after a change that
    replaces the file. It is compared with its SHA-256 when it is first read. Safe to use from several threads."""

    def __init__(self, path: Path, sha256: str) -> None:
        self.path, self._sha256, self._is_checked = path, sha256, False
        with reading(path):
            self._buffer = pa.memory_map(str(path)).read_buffer()

    @contextmanager
    def open(self, footer: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
        """The file in a block, with its footer if that was read before; StaleError if it is damaged."""
        if not self._is_checked:
            digest = hashlib.sha256(memoryview(self._buffer)).hexdigest()
            if digest != self._sha256:
                raise INDEX.damaged(self.path, f"its SHA-256 is {digest[:8]}, not {self._sha256[:8]}")
            self._is_checked = True
        # Reading ahead would copy the pages that are mapped.
        with (
            reading(self.path),
            pq.ParquetFile(pa.BufferReader(self._buffer), pre_buffer=False, metadata=footer) as file,
        ):
            yield file


def mapped(folder: Path, part: Part, type_: Element) -> tuple[Elements, ...]:
    """The vectors of each row group of a part, memory-mapped. StaleError if a number is not finite."""
    path = part_path(folder, part)
    layout = list(zip(part.num_tokens or group_rows(part.rows), part.vectors_at, strict=False))
    is_checked = (part, type_) in _CHECKED
    if not is_checked:
        with reading(path), pq.ParquetFile(path) as file:
            is_same = _is_plain(file, type_) and _layout(file, type_) == layout
            is_same = is_same and len(layout) == file.num_row_groups
        if not is_same:
            raise INDEX.damaged(path, "its vectors are not where index.json says, or of another type")
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    # Plain arrays, because indexing a np.memmap takes longer than reading a few vectors.
    groups = tuple(_at(raw, offset, count, type_) for count, offset in layout)
    if not is_checked:
        if not all(map(_all_finite, groups)):
            raise INDEX.damaged(path, "it has vectors that are NaN or infinite")
        # A token may be zero, a vector has no direction then. As whole numbers, which takes a tenth of the time.
        if type_.names is None and not (
            part.num_tokens or all(group.view("<u2").any(axis=1).all() for group in groups)
        ):
            raise INDEX.damaged(path, "it has vectors that are zero")
    # Once per process, because it reads the whole file.
    _CHECKED.add((part, type_))
    return groups


def _is_plain(file: pq.ParquetFile, type_: Element) -> bool:
    """Whether the last column has elements of this type as `write_part` writes them."""
    columns = file.schema_arrow.remove_metadata()
    stored_type: StoredType = StoredTokens if COUNTS in columns.names or type_.names else StoredVectors
    if pa.schema(list(columns)[len(IMAGE_COLUMNS) :]) != stored_type.file_schema(type_):
        return False
    for number in range(file.num_row_groups):
        column = file.metadata.row_group(number).column(file.metadata.num_columns - 1)
        if column.compression != "UNCOMPRESSED" or column.dictionary_page_offset is not None:
            return False
    return True


def _layout(file: pq.ParquetFile, type_: Element) -> list[tuple[int, int]]:
    """The number of vectors of each row group that is not empty, and their file offset."""
    has_counts, layout = COUNTS in file.schema_arrow.names, []
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        count = group.num_rows
        if count == 0:
            continue
        if has_counts:
            count = pc.sum(file.read_row_group(number, columns=[COUNTS]).column(0)).as_py()
        # The numbers are at the end of the only page of the group, after its header and levels.
        column = group.column(group.num_columns - 1)
        end = column.data_page_offset + column.total_compressed_size
        layout.append((count, int(end - type_.itemsize * count)))
    return layout


def _at(raw: bytes | NDArray[np.uint8], offset: int, count: int, type_: Element) -> Elements:
    """The vectors at an offset of a file."""
    # Parquet stores numbers as little-endian on every machine.
    return np.frombuffer(raw, dtype=type_, count=count, offset=offset)


def _all_finite(vectors_RD: Elements) -> bool:
    """Whether all numbers are finite.

    >>> _all_finite(np.array([[6e4, -6e4]], np.float16)), _all_finite(np.array([[-np.inf]], np.float16))
    (True, False)
    """
    if vectors_RD.dtype.names is not None:
        return bool(np.isfinite(vectors_RD["scale"]).all())
    # np.isfinite takes 20 times as long for float16. As whole numbers, the infinities and NaN are the largest of each
    # sign.
    return bool(vectors_RD.view("<i2").max() < 0x7C00 and vectors_RD.view("<u2").max() < 0xFC00)


def check_vectors(folder: Path, document: IndexDocument) -> None:
    """StaleError for the first file of vectors that is damaged or not finite."""
    for part in document.parts:
        mapped(folder, part, document.vector_type)
