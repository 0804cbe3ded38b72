"""The entries of index.json: what it says of each file of an index, of its sources and of its model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

import pyarrow as pa

from dcdctl.core import files
from dcdctl.core.config import NOT_EMPTY, OMITTED, Constraint, Key, Natural, between, settle_fields
from dcdctl.core.errors import ConfigError
from dcdctl.core.models import TextTower
from dcdctl.core.search.columns.where import BUILT_IN, COLUMN_TYPES

TEXT = "text"
"""The folder of the text side of the model."""
_FOLDER_OF_TEXTS = re.compile(r"text(-\d{1,10})?")
_FINGERPRINT = re.compile(r"\w{1,100}", re.ASCII)

# An index may come from a stranger, and its checksums fit then too.
FILE_NAME = Constraint("be the name of a file", lambda name: files.is_file_name(name) and name.isascii())
TEXT_FOLDER = Constraint("be text or such as text-3", lambda name: bool(_FOLDER_OF_TEXTS.fullmatch(name)))
FINGERPRINT = Constraint("be a fingerprint", lambda text: bool(_FINGERPRINT.fullmatch(text)))
# No system has paths of 4,096 characters.
PATH = Constraint("be a path", lambda path: 0 < len(path) < 4096 and "\0" not in path)


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
    """File offset of the vectors of each row group, of a late index the tokens."""
    num_tokens: Annotated[tuple[int, ...], Key(omits_default=True)] = ()
    """Tokens of each row group of a late index."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The entry of a file of codes or centroids in index.json."""

    file: str
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

    kind: Literal["folder", "corpus"]
    path: Annotated[str, PATH]
    """Absolute, with links resolved."""
    split: str | None = None
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        settle_fields(self, "sources")

    @property
    def is_corpus(self) -> bool:
        return self.kind == "corpus"


@dataclass(frozen=True, kw_only=True)
class IndexedModel:
    """The model that made the vectors."""

    kind: Literal["dual", "late"] = "dual"
    dim: Annotated[int, between(1, 2**16 - 1)]
    """Numbers of a stored vector, or of a token."""
    fingerprint: Annotated[str, FINGERPRINT]
    space_of: Annotated[str | None, OMITTED] = None
    """The fingerprint of the large model whose vectors an image student gives, and whose query encoders read texts."""

    def __post_init__(self) -> None:
        settle_fields(self, "model")


@dataclass(frozen=True, kw_only=True)
class ListFile:
    """The entry of a file that lists rows or image files in index.json; without entries there is no file."""

    count: Natural = 0
    file: Annotated[str, FILE_NAME] | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        settle_fields(self)


NO_FILE = ListFile()


@dataclass(frozen=True, kw_only=True)
class SealedFile:
    """The entry of a file in index.json that has no facts of its own."""

    file: Annotated[str, FILE_NAME]
    bytes: Natural
    sha256: str

    def __post_init__(self) -> None:
        settle_fields(self)


@dataclass(frozen=True, kw_only=True)
class WordFiles:
    """The entry of the words of captions and file names in index.json; see `keywords.Keywords`."""

    num_rows: Natural
    removed: Natural
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

    name: Annotated[str, NOT_EMPTY]
    type: str
    """A key of `COLUMN_TYPES`."""

    def __post_init__(self) -> None:
        settle_fields(self, "columns")
        if self.type not in COLUMN_TYPES:
            raise ConfigError(f"columns.type must be one of {', '.join(COLUMN_TYPES)}, got {self.type!r}")


@dataclass(frozen=True, kw_only=True)
class ColumnsFile:
    """The entry of the file of columns in index.json; an index without columns has none."""

    file: Annotated[str, FILE_NAME]
    rows: Natural
    """The first rows of the index; later rows were added since and have no values."""
    bytes: Natural
    sha256: str
    columns: tuple[Column, ...]

    def __post_init__(self) -> None:
        settle_fields(self, "columns")
        names = [column.name for column in self.columns]
        if len({*names, *BUILT_IN.names}) < len(names) + len(BUILT_IN.names):
            raise ConfigError("columns has a name twice, or that of an image's own column")

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([(column.name, COLUMN_TYPES[column.type]) for column in self.columns])


@dataclass(frozen=True, kw_only=True)
class RowsFile:
    """The entry of the table of image files in index.json; an index of an earlier dcdctl has none."""

    file: Annotated[str, FILE_NAME]
    rows: Natural
    """The first rows of the index; of later ones nothing is known."""
    bytes: Natural
    sha256: str

    def __post_init__(self) -> None:
        settle_fields(self, "image_files")


@dataclass(frozen=True, kw_only=True)
class TextSide:
    """The entry of the text side of the model in index.json; an index without the packages has none."""

    folder: Annotated[str, TEXT_FOLDER, Key(omits_default=True)] = TEXT
    query_model: Annotated[Annotated[str, FINGERPRINT] | None, Key(omits_default=True)] = None
    """Fingerprint of the query encoder that embeds texts in the model's place."""
    query_ref: Annotated[str, Key(omits_default=True)] = ""
    """What the user called it."""
    files: tuple[SealedFile, ...] = ()
    refused: str = ""
    """Why the model has no text side for ONNX Runtime; empty if it has one."""

    def __post_init__(self) -> None:
        settle_fields(self, "text")
        names = {file.file for file in self.files}
        if self.files and not {*TextTower.FILES} <= names:
            raise ConfigError(f"text.files has not all of {', '.join(TextTower.FILES)}")
