"""index.json, which names all files of an index of images and their facts.

    INDEX/index.json                       replaced atomically, last; files that it does not name are not part of
        the index
    INDEX/model/                           the dual encoder that made the vectors
    INDEX/text/                            the text side of the model for ONNX Runtime (`models.text_tower`), if it
        could be made
    INDEX/vectors/part-00000.parquet ...   one row per image, in source order
    INDEX/ann/...                          graphs or codes over ranges of rows; none for small indices
    INDEX/keywords/...                     words of captions and file names, for hybrid search; none without the setting
    INDEX/removed-N.npy, skipped-N.json    removed rows; image files that could not be read
    INDEX/columns-N.parquet                the columns of images, if there are any: one row per image, removed ones too
    INDEX/plan.json, planned/              only during a build: the images of each part

index.json holds the SHA-256 of every file; it is compared when a process first reads or maps the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from dcdctl.core import config as configs
from dcdctl.core.artifacts import Kind
from dcdctl.core.errors import ConfigError, StaleError
from dcdctl.core.search.columns import where

INDEX_FILE, PLANNED, TEXT = "index.json", "planned", "text"
INDEX = Kind(
    name="index",
    format=3,
    seal_file=INDEX_FILE,
    keeps_plan=False,
    files=(
        "vectors/*",
        "ann/*",
        "keywords/*",
        "removed-*.npy",
        "skipped-*.json",
        "columns-*.parquet",
        f"{TEXT}/*",
        PLANNED,
    ),
    make="make one with `dcdctl index RUN --images DIR --out INDEX`",
    make_again="run the same `dcdctl index` again",
)


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
    """The entry of a graph or a file of codes in index.json."""

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


def read_document(folder: Path) -> dict[str, Any]:
    """The content of index.json. Opens no other file, and compares their sizes.

    MissingError if there is no finished index, or if a file is missing; StaleError if a file is damaged, of another
    format, or outside of the folder.
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
        (
            document["images"] == num_rows - removed,
            f"{document['images']:,} images, and parts of {num_rows:,} rows, {removed:,} removed",
        ),
        (
            starts == [0, *stops][: len(starts)] and max(stops, default=0) <= num_rows,
            "segments that do not follow each other",
        ),
        (are_sources_known, "a part whose source it does not list"),
        (
            kinds == [kind if starts else "flat"],
            f"settings of kind {kind}, and segments that are searched by {', '.join(kinds)}",
        ),
        (words_fit, "words of other rows"),
        (columns is None or columns.rows <= num_rows, "columns of more rows than its parts"),
        (
            columns is None or {column.type for column in columns.columns} <= set(COLUMN_TYPES),
            "columns of unknown types",
        ),
        (
            dims in (None, document["model"]["dim"]),
            f"settings for {dims} numbers, and vectors of {document['model']['dim']}",
        ),
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


def text_side_note(document: dict[str, Any]) -> str:
    """Why texts are searched with torch, for the user; empty if they are not."""
    if (side := document.get("text")) is None:
        return (
            "a search starts with torch, in seconds: the packages onnx and onnxruntime were missing when the "
            "index was made"
        )
    return f"a search starts with torch, in seconds: {side['refused']}" if side["refused"] else ""


def files_of(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The entry of each file of an index, by its path in the folder."""
    # Joined as paths, so that an absolute name stays one and is refused.
    entries = {PurePosixPath("vectors", part["file"]).as_posix(): part for part in document["parts"]}
    entries |= {PurePosixPath("ann", segment["file"]).as_posix(): segment for segment in document["segments"]}
    if (words := words_of(document)) is not None:
        entries |= {PurePosixPath("keywords", file.file).as_posix(): asdict(file) for file in words.files}
    if (columns := document.get("columns")) is not None:
        entries[columns["file"]] = columns
    entries |= {
        PurePosixPath(TEXT, entry["file"]).as_posix(): entry
        for entry in (document.get("text") or {"files": []})["files"]
    }
    return entries | {
        listed["file"]: listed for listed in (document["removed"], document["skipped"]) if listed["file"] is not None
    }
