"""index.json, which names all files of an index of images and their facts.

    INDEX/index.json                       replaced atomically, last; files that it does not name are not part of
        the index
    INDEX/model/                           the model that made the vectors
    INDEX/text/                            the text side of the model for ONNX Runtime (`models.text_tower`), if it
        could be made; its graph reads the weights of INDEX/model
    INDEX/text-N/                          that of a query encoder, in its place
    INDEX/vectors/part-00000.parquet ...   one row per image, in source order
    INDEX/ann/...                          graphs or codes over ranges of rows; none for small indices
    INDEX/keywords/...                     words of captions and file names, for hybrid search; none without the setting
    INDEX/removed-N.npy, skipped-N.json    removed rows; image files that could not be read
    INDEX/columns-N.parquet                the columns of images, if there are any: one row per image, removed ones too
    INDEX/plan.json, planned/              only during a build: the images of each part

index.json holds the SHA-256 of every file; it is compared when a process first reads or maps the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dcdctl.core import config as configs
from dcdctl.core import models
from dcdctl.core.artifacts import Kind
from dcdctl.core.config import Key
from dcdctl.core.errors import ConfigError, MissingError, StaleError
from dcdctl.core.search import exact
from dcdctl.core.search.columns.where import COLUMN_TYPES
from dcdctl.core.search.exact import Element, Elements
from dcdctl.core.search.index_config import IndexConfig
from dcdctl.core.search.stored import STORED, StoredTokens, StoredType

INDEX_FILE, PLANNED, TEXT = "index.json", "planned", "text"
INDEX = Kind(
    name="index",
    format=3,
    seal_file=INDEX_FILE,
    # An index changes, so a plan would say nothing of what it is later.
    keeps_plan=False,
    files=(
        "vectors/*",
        "ann/*",
        "keywords/*",
        "removed-*.npy",
        "skipped-*.json",
        "columns-*.parquet",
        f"{TEXT}*/*",
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
    """File offset of the vectors of each row group, of a late index the tokens."""
    num_tokens: Annotated[tuple[int, ...], Key(omits_default=True)] = ()
    """Tokens of each row group of a late index."""


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
    def is_corpus(self) -> bool:
        return self.kind == "corpus"


@dataclass(frozen=True, kw_only=True)
class IndexedModel:
    """The model that made the vectors."""

    kind: Literal["dual", "late"] = "dual"
    dim: int
    """Numbers of a stored vector, or of a token."""
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class ListFile:
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


@dataclass(frozen=True, kw_only=True)
class TextSide:
    """The entry of the text side of the model in index.json; an index without the packages has none."""

    folder: Annotated[str, Key(omits_default=True)] = TEXT
    query_model: Annotated[str | None, Key(omits_default=True)] = None
    """Fingerprint of the query encoder that embeds texts in the model's place."""
    query_ref: Annotated[str, Key(omits_default=True)] = ""
    """What the user called it."""
    files: tuple[SealedFile, ...] = ()
    refused: str = ""
    """Why the model has no text side for ONNX Runtime; empty if it has one."""


@dataclass(frozen=True, kw_only=True)
class IndexDocument:
    """The content of index.json."""

    format: int = INDEX.format
    generation: int
    """Counts the changes. It is in the names of new files, so that the files of the index before stay intact."""
    images: int = 0
    """Without removed ones."""
    kind: str = "flat"
    """How the segments are searched; flat without segments."""
    model: IndexedModel
    precision: str
    settings: IndexConfig
    sources: tuple[ImageSource, ...]
    skipped: ListFile = ListFile()
    removed: ListFile = ListFile()
    versions: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    segments: tuple[Segment, ...] = ()
    columns: Annotated[ColumnsFile | None, Key(omits_default=True)] = None
    text: Annotated[TextSide | None, Key(omits_default=True)] = None
    keywords: Annotated[WordFiles | None, Key(omits_default=True)] = None

    @property
    def stored_type(self) -> StoredType:
        """What the index stores of an image."""
        return STORED[self.model.kind]

    @property
    def vector_type(self) -> Element:
        """How a vector is stored, or a token: little-endian float16, or int8 and a scale."""
        # Only tokens have codes.
        codes = self.settings.tokens.codes if self.stored_type is StoredTokens else "float16"
        return exact.token_type(self.model.dim, codes)

    @property
    def num_rows(self) -> int:
        """Images, with removed ones."""
        return sum(part.rows for part in self.parts)

    @property
    def files(self) -> dict[str, tuple[int | None, str]]:
        """Size and SHA-256 of each file, by its path in the folder; the lists of rows and of files have no size."""
        folders: dict[str, Sequence[Part | Segment | SealedFile | ColumnsFile]] = {
            "vectors": self.parts,
            "ann": self.segments,
        }
        if self.keywords is not None:
            folders["keywords"] = self.keywords.files
        if self.columns is not None:
            folders[""] = (self.columns,)
        if self.text is not None:
            folders[self.text.folder] = self.text.files
        # Joined as paths, so that an absolute name stays one and is refused.
        found: dict[str, tuple[int | None, str]] = {}
        for folder, entries in folders.items():
            for entry in entries:
                found[PurePosixPath(folder, entry.file).as_posix()] = entry.bytes, entry.sha256
        for each in (self.removed, self.skipped):
            if each.file is not None:
                found[each.file] = None, str(each.sha256)
        return found


def read_document(folder: Path) -> IndexDocument:
    """The content of index.json. Opens no other file, and compares their sizes.

    MissingError if there is no finished index, or if a file is missing; StaleError if a file is damaged, of another
    format, or outside of the folder.
    """
    path = folder / INDEX_FILE
    try:
        document = configs.build(IndexDocument, INDEX.read_seal(folder))
    except ConfigError as error:
        raise StaleError(
            f"{path} is not as this dcdctl writes it: {error}", hint="update dcdctl, or build the index again"
        ) from error
    # Names and sizes only, to open in milliseconds; checksums are compared when a file is first read.
    for name, (size, _) in document.files.items():
        INDEX.check_part(folder, name, size)
    return document


def check_model(folder: Path, document: IndexDocument) -> None:
    """StaleError if the folder of the model holds another one, MissingError if it holds none; opens no weights."""
    model = folder / "model"
    if not (model / "dcdctl.json").exists():
        raise MissingError(f"{model} is missing, or has no dcdctl.json", hint="restore it, or index the images again")
    if models.saved_fingerprint(model) != document.model.fingerprint:
        raise StaleError(
            f"{model} is not the model {document.model.fingerprint[:8]}, which made the vectors",
            hint="restore it, or index the images again",
        )


def removed_rows(folder: Path, document: IndexDocument) -> NDArray[np.bool_]:
    """A mask of the removed rows."""
    listed, is_removed = document.removed, np.zeros(document.num_rows, dtype=np.bool_)
    if listed.file is None:
        return is_removed
    is_removed[np.load(INDEX.checked(folder / listed.file, str(listed.sha256)))] = True
    return is_removed


def save_array(array: Elements, path: Path) -> None:
    """Write a .npy file of any name."""
    # An open file, because np.save appends .npy to other names.
    with path.open("wb") as file:
        np.save(file, array)


def text_side_note(document: IndexDocument) -> str:
    """Why texts are searched with torch, for the user; empty if they are not."""
    text, missing = document.text, "the packages onnx and onnxruntime were missing when the index was made"
    reason = missing if text is None else text.refused
    return f"a search starts with torch, in seconds: {reason}" if reason else ""


def query_model_of(document: IndexDocument) -> str:
    """The query encoder that embeds texts, for the user; empty if there is none."""
    text = document.text
    return f"{text.query_ref} ({text.query_model[:8]})" if text is not None and text.query_model else ""
