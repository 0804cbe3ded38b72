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
    INDEX/files-N.parquet                  what is known of the file of each image (`image_files`)
    INDEX/plan.json, planned/              only during a build: the images of each part

index.json holds the SHA-256 of every file; it is compared when a process first reads or maps the file.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dcdctl.core import artifacts, files, models
from dcdctl.core import config as configs
from dcdctl.core.artifacts import Kind
from dcdctl.core.config import NOT_EMPTY, Constraint, Key, Natural, between, settle_fields
from dcdctl.core.errors import ConfigError, InputError, MissingError, StaleError
from dcdctl.core.models import TextTower
from dcdctl.core.search import exact
from dcdctl.core.search.columns.where import BUILT_IN, COLUMN_TYPES
from dcdctl.core.search.exact import Element, Elements
from dcdctl.core.search.index_config import IndexConfig
from dcdctl.core.search.stored import STORED, StoredTokens, StoredType

INDEX_FILE, PLANNED, TEXT = "index.json", "planned", "text"
PART_NAME = re.compile(r"part-\d{5,8}\.parquet")
_FOLDER_OF_TEXTS = re.compile(r"text(-\d{1,10})?")
_FINGERPRINT = re.compile(r"\w{1,100}", re.ASCII)
IN_LIBRARY = "index"
"""The folder of the index in a library of `dcdctl photos`."""
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
        "files-*.parquet",
        f"{TEXT}*/*",
        PLANNED,
    ),
    make="make one with `dcdctl index RUN --images DIR --out INDEX`, or without a model of your own with "
    "`dcdctl photos FOLDER --out LIBRARY`",
    make_again="run the same `dcdctl index` or `dcdctl photos` again",
)

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


@dataclass(frozen=True, kw_only=True)
class IndexDocument:
    """The content of index.json."""

    format: int = INDEX.format
    generation: Annotated[int, between(0, 2**31)]
    """Counts the changes. It is in the names of new files, so that the files of the index before stay intact."""
    images: Natural = 0
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
    image_files: Annotated[RowsFile | None, Key(omits_default=True)] = None
    text: Annotated[TextSide | None, Key(omits_default=True)] = None
    keywords: Annotated[WordFiles | None, Key(omits_default=True)] = None

    def __post_init__(self) -> None:
        settle_fields(self)

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

    def is_part(self, part: Part) -> bool:
        """Whether the entries of a part of this index fit each other, and its vectors into its bytes."""
        # Not by annotations, which take 0.1 ms for a part: an index of a million images has 122.
        is_late = self.stored_type is StoredTokens
        counts = part.num_tokens if is_late else (part.rows,)
        is_one_group_each = len(part.num_tokens) == len(part.vectors_at) if is_late else not part.num_tokens
        has_room = min(part.vectors_at, default=0) >= 0 and self.vector_type.itemsize * sum(counts) <= part.bytes
        has_rows = 0 < part.rows <= sum(counts) and min(counts) > 0 and 0 <= part.source < len(self.sources)
        return bool(PART_NAME.fullmatch(part.file)) and has_rows and is_one_group_each and has_room

    @property
    def num_rows(self) -> int:
        """Images, with removed ones."""
        return sum(part.rows for part in self.parts)

    @property
    def files(self) -> dict[str, tuple[int | None, str]]:
        """Size and SHA-256 of each file, by its path in the folder; the lists of rows and of files have no size."""
        folders: dict[str, Sequence[Part | Segment | SealedFile | ColumnsFile | RowsFile]] = {
            "vectors": self.parts,
            "ann": self.segments,
            "": [table for table in (self.columns, self.image_files) if table is not None],
        }
        if self.keywords is not None:
            folders["keywords"] = self.keywords.files
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
    if not path.is_file() and (error := _other_error(folder)):
        raise error
    try:
        document = configs.build(IndexDocument, INDEX.read_seal(folder))
        _check(document)
    except ConfigError as error:
        raise StaleError(
            f"{path} is not as this dcdctl writes it: {error}", hint="update dcdctl, or build the index again"
        ) from error
    # Names and sizes only, to open in milliseconds; checksums are compared when a file is first read.
    for name, (size, _) in document.files.items():
        INDEX.check_part(folder, name, size)
    return document


def _other_error(folder: Path) -> MissingError | None:
    """The error for a library or a model in place of an index, with the index or the command that makes one; None for
    anything else."""
    within = folder / IN_LIBRARY
    if (within / INDEX_FILE).is_file():
        return MissingError(f"{folder} is no index, its index is {within}", hint=f"name {within}")
    kind = artifacts.kind_of_folder(folder)
    command = f"`dcdctl index {shlex.quote(str(folder))} --images DIR --out INDEX`"
    if kind in ("a run", "a saved model"):
        return MissingError(f"{folder} is {kind}, an index is expected", hint=f"give it as RUN to make one: {command}")
    # The name of a model, which the Hub may have.
    if not folder.exists() and not folder.is_absolute() and len(folder.parts) == 2:
        return MissingError(f"there is no index {folder}", hint=f"if it is a model, make an index with it: {command}")
    return None


def _check(document: IndexDocument) -> None:
    """ConfigError for entries of index.json that do not fit each other."""
    rows, removed, kind = document.num_rows, document.removed, document.settings.kind
    parts, segments, words = document.parts, document.segments, document.keywords
    for file in (*(part.file for part in parts), *(segment.file for segment in segments)):
        if not FILE_NAME.admits(file):
            raise ConfigError(f"each file must {FILE_NAME.demand}, got {file!r}")
    # Ascending numbers, which have more digits from 100,000.
    names = [(len(part.file), part.file) for part in parts]
    starts = [segment.first_row for segment in segments]
    stops = [0, *(segment.stop for segment in segments)]
    is_right = {
        "images": document.images == rows - removed.count,
        "removed": (removed.file is None) == (removed.count == 0),
        "skipped": (document.skipped.file is None) == (document.skipped.count == 0),
        "kind": document.kind == (kind if segments else "flat") and kind in document.stored_type.kinds,
        "settings.dims": document.settings.dims in (None, document.model.dim),
        "parts": names == sorted(set(names)) and all(map(document.is_part, parts)),
        "segments": starts == stops[:-1]
        and stops[-1] <= rows
        and all(each.rows > 0 and each.kind == kind for each in segments),
        "columns": document.columns is None or document.columns.rows <= rows,
        "image_files": document.image_files is None or document.image_files.rows <= rows,
        "keywords": words is None or (words.num_rows, words.removed) == (rows, removed.count),
    }
    if wrong := [name for name, right in is_right.items() if not right]:
        raise ConfigError(f"{wrong[0]} does not fit the other entries")


def check_comes_first(place: str, texts: Sequence[str]) -> None:
    """InputError for a query in the place of the index, and the index after it."""
    *others, last = texts or [""]
    try:
        is_index = bool(last) and artifacts.kind_of_folder(Path(last).expanduser()) == "an index"
    except OSError:  # a text may be too long for the name of a file
        return
    if is_index and not Path(place).exists():
        words = shlex.join(["dcdctl", "search", last, place, *others])
        raise InputError(f"{place!r} is no index, and {last} is one", hint=f"the index comes first: `{words}`")


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
    path = INDEX.checked(folder / listed.file, str(listed.sha256))
    (rows,) = mapped_arrays(path, (np.int64, (listed.count,)))
    if len(rows) and not (rows[0] >= 0 and rows[-1] < document.num_rows and (np.diff(rows) > 0).all()):
        raise INDEX.damaged(path, f"its rows are not ascending and among {document.num_rows:,}")
    is_removed[rows] = True
    return is_removed


def skipped_of(folder: Path, document: IndexDocument) -> list[dict[str, Any]]:
    """The skipped files of an index, with their sources and the reasons."""
    if document.skipped.file is None:
        return []
    path = INDEX.checked(folder / document.skipped.file, str(document.skipped.sha256))
    return files.read_json(path, kind=list, error=StaleError, hint=INDEX.remake)


def mapped_arrays(path: Path, *expected: tuple[Any, tuple[int | None, ...]]) -> list[NDArray[Any]]:
    """The arrays of a file (`files.map_arrays`); StaleError if it holds anything else."""
    try:
        return files.map_arrays(path, *expected)
    except ValueError as error:
        raise INDEX.damaged(path, str(error)) from error


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
