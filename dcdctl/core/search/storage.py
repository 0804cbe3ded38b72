"""The files of an index of images: vectors in Parquet that are memory-mapped, and index.json, which names all files of the index.

    INDEX/index.json                       replaced atomically, last; files that it does not name are not part of the index
    INDEX/model/                           the dual encoder that made the vectors
    INDEX/text/                            the text side of the model for ONNX Runtime (`models.text_tower`), if it could be made
    INDEX/vectors/part-00000.parquet ...   one row per image, in source order
    INDEX/ann/...                          graphs or inverted lists over ranges of rows; none for small indices
    INDEX/keywords/...                     words of captions and file names, for hybrid search; none without the setting
    INDEX/removed-N.npy, skipped-N.json    removed rows; image files that could not be read
    INDEX/columns-N.parquet                the columns of images, if there are any: one row per image, removed ones too
    INDEX/plan.json, planned/              only during a build: the images of each part

A part's vectors are stored plain, one page per row group: the numbers have the same layout in the file as in memory, and are memory-mapped.
index.json holds the SHA-256 of every file; it is compared when a process first reads or maps the file. So are the places and the numbers of
the vectors of a part.
Shape letters: R rows, D width.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dcdctl.core import config as configs
from dcdctl.core.artifacts import Kind, seal_of
from dcdctl.core.errors import ConfigError, StaleError
from dcdctl.core.search import where
from dcdctl.core.search.exact import Half

INDEX_FILE, PLANNED, TEXT = "index.json", "planned", "text"
INDEX = Kind(
    name="index",
    format=3,
    seal_file=INDEX_FILE,
    keeps_plan=False,
    files=("vectors/*", "ann/*", "keywords/*", "removed-*.npy", "skipped-*.json", "columns-*.parquet", f"{TEXT}/*", PLANNED),
    make="make one with `dcdctl index RUN --images DIR --out INDEX`",
    make_again="run the same `dcdctl index` again",
)
ROWS_PER_PART = 8192
"""Images in a file of vectors; a killed run loses at most this much work."""
ROWS_PER_GROUP = 1024
"""Rows of a row group. The name of a hit is read with all names of its group."""
_SKIPPED = b"dcdctl.skipped"
_WELL_LAID: set[tuple[Part, int]] = set()
"""The parts whose layout this process has compared, with the width of their vectors; a part has its SHA-256."""
_FINITE: set[str] = set()
"""The SHA-256 of the parts whose numbers this process has checked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceImage:
    """An image of a source, not read yet."""

    image_id: str
    path: str | None = None
    """Relative to the image folder, with slashes; None in a corpus."""
    corpus_row: int | None = None
    """None in a folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SkippedFile:
    """A file of a source that could not be indexed."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Part:
    """The entry of a file of vectors in index.json."""

    file: str
    source: int
    """The source of its images, an index into `sources` of index.json."""
    rows: int
    bytes: int
    sha256: str
    vectors_at: tuple[int, ...]
    """File offset of the numbers of each row group."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The entry of a graph or a set of inverted lists in index.json."""

    file: str
    kind: str
    first_row: int
    rows: int
    bytes: int
    sha256: str

    @property
    def stop(self) -> int:
        return self.first_row + self.rows


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """The entry of a source in index.json: a folder of image files, or a split of a corpus."""

    kind: str
    path: str
    """Absolute, with links resolved."""
    split: str | None = None
    fingerprint: str | None = None

    @property
    def key(self) -> tuple[str, str | None]:
        """Equal for sources at the same place."""
        return self.path, self.split


@dataclass(frozen=True, kw_only=True)
class _Model:
    kind: str
    dim: int
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Listed:
    """The entry of a file that lists rows or image files in index.json; without entries there is no file."""

    count: int = 0
    file: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class SealedFile:
    """The entry of a file in index.json that has no facts of its own."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class WordFiles:
    """The entry of the words of captions and file names in index.json; see `keywords.Keywords`."""

    num_rows: int
    removed: int
    """Number of removed rows, which have no words."""
    words: SealedFile
    vocabulary: SealedFile
    starts: SealedFile
    rows: SealedFile
    scores: SealedFile

    @property
    def files(self) -> tuple[SealedFile, ...]:
        return self.words, self.vocabulary, self.starts, self.rows, self.scores


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the images in index.json."""

    name: str
    type: str
    """A key of `COLUMN_TYPES`."""


@dataclass(frozen=True, kw_only=True)
class ColumnsFile:
    """The entry of the file of columns in index.json; an index without columns has none."""

    file: str
    rows: int
    """The first rows of the index; later rows were added since and have no values."""
    bytes: int
    sha256: str
    columns: tuple[Column, ...]

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([(column.name, COLUMN_TYPES[column.type]) for column in self.columns])


COLUMN_TYPES = {str(type_): type_ for type_ in where.TYPES}


@dataclass(frozen=True, kw_only=True)
class TextSide:
    """The entry of the text side of the model in index.json; an index without the packages has none."""

    files: tuple[SealedFile, ...] = ()
    refused: str = ""
    """Why the model has no text side for ONNX Runtime; empty if it has one."""


@dataclass(frozen=True, kw_only=True)
class _Contents:
    """The content of index.json."""

    format: int
    generation: int
    images: int
    kind: str
    model: _Model
    precision: str
    settings: Mapping[str, Any]
    sources: tuple[ImageSource, ...]
    skipped: Listed
    removed: Listed
    versions: Mapping[str, str]
    parts: tuple[Part, ...]
    segments: tuple[Segment, ...]
    keywords: WordFiles | None = None
    columns: ColumnsFile | None = None
    text: TextSide | None = None


IMAGE_COLUMNS = pa.schema(
    [pa.field("image_id", pa.string(), nullable=False), pa.field("path", pa.string()), pa.field("corpus_row", pa.int64())]
)
"""The fields of `SourceImage`."""


def schema(dim: int) -> pa.Schema:
    """The columns of a part."""
    vector = pa.list_(pa.field("element", pa.float16(), nullable=False), dim)
    return pa.schema([*IMAGE_COLUMNS, pa.field("vector", vector, nullable=False)])


def part_name(number: int) -> str:
    """
    >>> part_name(3)
    'part-00003.parquet'
    """
    return f"part-{number:05d}.parquet"


def planned_name(number: int) -> str:
    """The path of the planned images of a part in the folder of the index."""
    return f"{PLANNED}/{part_name(number)}"


def write_part(path: Path, images: Sequence[SourceImage], vectors_RD: Half, skipped: Sequence[SkippedFile] = ()) -> None:
    """Write a file of vectors; its metadata lists the skipped files."""
    dim = vectors_RD.shape[1]
    vector = pa.FixedSizeListArray.from_arrays(pa.array(vectors_RD.reshape(-1)), type=schema(dim).field("vector").type)
    metadata = {_SKIPPED: json.dumps([asdict(file) for file in skipped])}
    table = pa.Table.from_arrays([*_columns(images), vector], schema=schema(dim).with_metadata(metadata))
    compression = {name: "zstd" for name in IMAGE_COLUMNS.names} | {"vector.list.element": "none"}
    pq.write_table(
        table,
        path,
        row_group_size=ROWS_PER_GROUP,
        compression=compression,
        use_dictionary=False,
        write_statistics=["image_id"],
        # One plain page per row group can be memory-mapped; pyarrow would start a new page at each MiB.
        data_page_size=1 << 30,
    )
    # The offsets rely on how pyarrow lays out a page, so each file is compared with the given numbers.
    written = _vectors_at(path, dim)
    if not all(np.array_equal(block_RD, vectors_RD[first : first + len(block_RD)], equal_nan=True) for first, block_RD in written):
        raise AssertionError("this version of pyarrow lays out vectors in another way")


def _columns(images: Sequence[SourceImage]) -> list[pa.Array]:
    return [pa.array([getattr(image, field.name) for image in images], type=field.type) for field in IMAGE_COLUMNS]


def describe_part(path: Path, source: int, dim: int) -> tuple[Part, list[SkippedFile]]:
    """The entry in index.json of a written part, and the files that were skipped when it was written."""
    file = pq.ParquetFile(path)
    offsets = tuple(offset for _, offset in _layout(file.metadata, dim))
    skipped = [SkippedFile(**entry) for entry in json.loads(file.schema_arrow.metadata[_SKIPPED])]
    return Part(file=path.name, source=source, rows=file.metadata.num_rows, **seal_of(path), vectors_at=offsets), skipped


def _offset(group: Any, dim: int) -> int:
    # The numbers are at the end of the only page of the group, after its header and levels.
    column = group.column(group.num_columns - 1)
    return int(column.data_page_offset + column.total_compressed_size - 2 * dim * group.num_rows)


def _vectors_at(path: Path, dim: int) -> list[tuple[int, Half]]:
    metadata = pq.ParquetFile(path).metadata
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    firsts = itertools.accumulate((group.num_rows for group in groups), initial=0)
    raw = path.read_bytes()
    return [
        # Parquet stores numbers as little-endian on every machine.
        (first, np.frombuffer(raw, dtype="<f2", count=dim * group.num_rows, offset=_offset(group, dim)).reshape(-1, dim))
        for first, group in zip(firsts, groups, strict=False)
    ]


def write_planned(path: Path, images: Sequence[SourceImage]) -> None:
    """Write the images of a part, before they are embedded."""
    pq.write_table(pa.Table.from_arrays(_columns(images), schema=IMAGE_COLUMNS), path, compression="zstd")


def read_images(path: Path) -> list[SourceImage]:
    """The images of a part, planned or written."""
    return [SourceImage(**row) for row in pq.read_table(path, columns=IMAGE_COLUMNS.names).to_pylist()]


def part_path(folder: Path, part: Part, dim: int) -> Path:
    """The file of a part. StaleError if it is damaged, or if its rows and the places of its vectors are not those of index.json."""
    path = INDEX.checked(folder / "vectors" / part.file, part.sha256)
    if (part, dim) not in _WELL_LAID:
        _check_layout(path, part, dim)
        _WELL_LAID.add((part, dim))
    return path


def mapped(folder: Path, part: Part, dim: int) -> tuple[Half, ...]:
    """The vectors of each row group of a part, memory-mapped. StaleError also if a number is not finite."""
    path = part_path(folder, part, dim)
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    # Plain arrays, because indexing a np.memmap takes longer than reading a few vectors.
    groups = tuple(
        np.frombuffer(raw, dtype="<f2", count=count * dim, offset=offset).reshape(count, dim) for count, offset in _groups_of(part)
    )
    if part.sha256 not in _FINITE:
        if not all(map(_all_finite, groups)):
            raise INDEX.damaged(path, "it has vectors that are NaN or infinite")
        _FINITE.add(part.sha256)
    return groups


def _groups_of(part: Part) -> list[tuple[int, int]]:
    """The number of rows of each row group of a part, and the file offset of its numbers, as index.json says."""
    counts = (min(ROWS_PER_GROUP, part.rows - first) for first in range(0, part.rows, ROWS_PER_GROUP))
    return list(zip(counts, part.vectors_at, strict=False))


def _check_layout(path: Path, part: Part, dim: int) -> None:
    try:
        groups = _layout(pq.read_metadata(path), dim)
    except pa.ArrowException as error:
        raise INDEX.damaged(path, f"it is not a Parquet file ({error})") from error
    if groups != _groups_of(part) or len(groups) != len(part.vectors_at):
        expected = f"{part.rows:,} rows with vectors of {dim} numbers at byte {', '.join(map(str, part.vectors_at))}"
        raise INDEX.damaged(path, f"{INDEX_FILE} says that it has {expected}, and it has not")


def _layout(metadata: pq.FileMetaData, dim: int) -> list[tuple[int, int]]:
    """The number of rows of each row group that is not empty, and the file offset of its numbers."""
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    return [(group.num_rows, _offset(group, dim)) for group in groups if group.num_rows]


def _all_finite(vectors_RD: Half) -> bool:
    """Whether all numbers are finite.

    >>> _all_finite(np.array([[6e4, -6e4]], np.float16)), _all_finite(np.array([[-np.inf]], np.float16))
    (True, False)
    """
    # np.isfinite takes 20 times as long for float16. As whole numbers, the infinities and NaN are the largest of each sign.
    return bool(vectors_RD.view("<i2").max() < 0x7C00 and vectors_RD.view("<u2").max() < 0xFC00)


def read_blocks(folder: Path, parts: Sequence[Part], dim: int, rows: range) -> Iterator[tuple[int, Half]]:
    """The stored vectors of a range of rows in blocks of at most a part, each with its first row."""
    first = 0
    for part in parts:
        start, stop = max(rows.start, first), min(rows.stop, first + part.rows)
        if start < stop:
            yield start, np.concatenate(mapped(folder, part, dim))[start - first : stop - first]
        first += part.rows


def check_vectors(folder: Path, document: dict[str, Any]) -> None:
    """StaleError for the first file of vectors that is damaged, laid out in another way, or not finite."""
    for part in parts_of(document):
        mapped(folder, part, document["model"]["dim"])


def read_document(folder: Path) -> dict[str, Any]:
    """The content of index.json. Opens no other file, and compares their sizes.

    MissingError if there is no finished index, or if a file is missing; StaleError if a file is damaged, of another format, or outside of
    the folder.
    """
    document = INDEX.read_seal(folder)
    try:
        # Only the check is used: a change edits the plain document and writes it back.
        configs.build(_Contents, document)
    except ConfigError as error:
        message = f"{folder / INDEX_FILE} is not as this dcdctl writes it: {error}"
        raise StaleError(message, hint="update dcdctl, or build the index again") from error
    _check_counts(folder / INDEX_FILE, document)
    # Names and sizes only, to open in milliseconds; checksums are compared when a file is first read.
    for name, entry in files_of(document).items():
        INDEX.check_part(folder, name, entry.get("bytes"))
    return document


def _check_counts(path: Path, document: dict[str, Any]) -> None:
    """StaleError if the entries of index.json do not fit together."""
    kind, dims = document["settings"].get("kind"), document["settings"].get("dims")
    kinds = sorted({document["kind"], *(segment["kind"] for segment in document["segments"])})
    num_rows, removed = sum(part["rows"] for part in document["parts"]), document["removed"]["count"]
    columns = columns_file(document)
    starts = [segment["first_row"] for segment in document["segments"]]
    stops = [segment["first_row"] + segment["rows"] for segment in document["segments"]]
    words = words_of(document)
    words_fit = words is None or (words.num_rows, words.removed) == (num_rows, removed)
    are_sources_known = all(0 <= part["source"] < len(document["sources"]) for part in document["parts"])
    for fits, problem in (
        (document["images"] == num_rows - removed, f"{document['images']:,} images, and parts of {num_rows:,} rows, {removed:,} removed"),
        (starts == [0, *stops][: len(starts)] and max(stops, default=0) <= num_rows, "segments that do not follow each other"),
        (are_sources_known, "a part whose source it does not list"),
        (kinds == [kind if starts else "flat"], f"settings of kind {kind}, and segments that are searched by {', '.join(kinds)}"),
        (words_fit, "words of other rows"),
        (columns is None or columns.rows <= num_rows, "columns of more rows than its parts"),
        (columns is None or {column.type for column in columns.columns} <= set(COLUMN_TYPES), "columns of unknown types"),
        (dims in (None, document["model"]["dim"]), f"settings for {dims} numbers, and vectors of {document['model']['dim']}"),
    ):
        if not fits:
            raise StaleError(f"{path} contradicts itself: it has {problem}", hint=INDEX.remake)


def parts_of(document: dict[str, Any]) -> list[Part]:
    """The files of vectors of an index."""
    return [Part(**{**entry, "vectors_at": tuple(entry["vectors_at"])}) for entry in document["parts"]]


def words_of(document: dict[str, Any]) -> WordFiles | None:
    """The words of captions and file names of an index; None for an index without."""
    entry = document.get("keywords")
    return None if entry is None else configs.build(WordFiles, entry)


def columns_file(document: dict[str, Any]) -> ColumnsFile | None:
    """The entry of the file of columns; None for an index without columns."""
    if (entry := document.get("columns")) is None:
        return None
    return ColumnsFile(**{**entry, "columns": tuple(Column(**column) for column in entry["columns"])})


def files_of(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The entry of each file of an index, by its path in the folder."""
    # Joined as paths, so that an absolute name stays one and is refused.
    entries = {PurePosixPath("vectors", part["file"]).as_posix(): part for part in document["parts"]}
    entries |= {PurePosixPath("ann", segment["file"]).as_posix(): segment for segment in document["segments"]}
    if (words := words_of(document)) is not None:
        entries |= {PurePosixPath("keywords", file.file).as_posix(): asdict(file) for file in words.files}
    if (columns := document.get("columns")) is not None:
        entries[columns["file"]] = columns
    entries |= {PurePosixPath(TEXT, entry["file"]).as_posix(): entry for entry in (document.get("text") or {"files": []})["files"]}
    return entries | {listed["file"]: listed for listed in (document["removed"], document["skipped"]) if listed["file"] is not None}
