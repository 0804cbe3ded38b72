"""index.json, which names all files of an index of images and their facts.

    INDEX/index.json                       replaced atomically, last; files that it does not name are not part of
        the index
    INDEX/model/                           the model that made the vectors
    INDEX/text/                            the text side of the model for ONNX Runtime (`models.text_tower`), if it
        could be made; its graph reads the weights of INDEX/model
    INDEX/text-N/                          that of a query encoder, in its place
    INDEX/vectors/part-00000.parquet ...   one row per image, in source order
    INDEX/ann/...                          codes or centroids of ranges of rows; none for small indices
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
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from dcdctl.core import artifacts, files, models
from dcdctl.core import config as configs
from dcdctl.core.artifacts import Kind
from dcdctl.core.config import Key, Natural, between, settle_fields
from dcdctl.core.errors import ConfigError, InputError, MissingError, StaleError
from dcdctl.core.search import exact
from dcdctl.core.search.entries import (
    FILE_NAME,
    NO_FILE,
    TEXT,
    ColumnsFile,
    ImageSource,
    IndexedModel,
    ListFile,
    Part,
    RowsFile,
    SealedFile,
    Segment,
    TextSide,
    WordFiles,
)
from dcdctl.core.search.exact import Element
from dcdctl.core.search.index_config import IndexConfig
from dcdctl.core.search.stored import STORED, StoredTokens, StoredType

INDEX_FILE, PLANNED = "index.json", "planned"
PART_NAME = re.compile(r"part-\d{5,8}\.parquet")
IN_LIBRARY = "index"
"""The folder of the index in a library of `dcdctl photos`."""
INDEX = Kind(
    name="index",
    format=4,
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


@dataclass(frozen=True, kw_only=True)
class IndexDocument:
    """The content of index.json."""

    format: int = INDEX.format
    generation: Annotated[int, between(0, 2**31)]
    """Counts the changes. It is in the names of new files, so that the files of the index before stay intact."""
    images: Natural = 0
    """Without removed ones."""
    model: IndexedModel
    precision: str
    settings: IndexConfig
    sources: tuple[ImageSource, ...]
    skipped: ListFile = NO_FILE
    removed: ListFile = NO_FILE
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
    rows, removed = document.num_rows, document.removed
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
        "settings.dims": document.settings.dims in (None, document.model.dim),
        "parts": names == sorted(set(names)) and all(map(document.is_part, parts)),
        "segments": starts == stops[:-1] and stops[-1] <= rows and all(each.rows > 0 for each in segments),
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


def save_arrays(arrays: Sequence[NDArray[Any]], path: Path) -> None:
    """Write a file of any name, which `mapped_arrays` reads."""
    # An open file, because np.save appends .npy to other names.
    with path.open("wb") as file:
        for array in arrays:
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
