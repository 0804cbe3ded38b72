"""Parquet files with pictures in them, as data sets on the Hub are: only the columns beside the pictures are read here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from dcdctl.core.data.image_archives import ImageFile, ParquetImageFile, RowError
from dcdctl.core.data.readers.karpathy import splits_by_name
from dcdctl.core.data.readers.rows import (
    SPLITS,
    Listing,
    Paths,
    RowCheck,
    SourceRow,
    caption_text,
    caption_texts,
    check_splits,
    checksum_of,
    describe_value,
    gather,
    make_listing,
    read_caption_ids,
    read_split,
)
from dcdctl.core.errors import InputError

CAPTION_COLUMNS = ("captions", "caption", "sentences", "raw", "text")
NUMBER_COLUMNS = ("caption_ids", "sentids")
_NUMBERED = re.compile(r"caption_(\d+)")


@dataclass(frozen=True, kw_only=True)
class ParquetSource:
    """Parquet files with images in them, as on the Hub; captions as a list, as caption_0, caption_1, ... or one row per caption."""

    format: ClassVar[str] = "parquet"
    rows: dict[str, Paths]
    """By split, or `all` where a column or `splits` gives the split; names may hold a *."""
    image_column: str = "image"
    id_column: str = ""
    """The column that identifies images, such as filename; the path in the image column where empty."""
    caption_column: str = ""
    """A dot leads into a struct: sentences.raw. Found by its name where empty."""
    splits: Path | None = None
    """A JSON in Karpathy's form with the split of each file name; images that it does not name are left out."""

    def __post_init__(self) -> None:
        if set(self.rows) != {"all"}:
            check_splits("rows", self.rows)

    def list_rows(self, check: RowCheck) -> Listing:
        """The rows of Parquet files, those of one image joined."""
        splits = None if self.splits is None else splits_by_name(self.splits)
        files = [path for part in self.rows.values() for path in part]

        def entries() -> Iterator[ParquetEntry]:
            for name in ("all", *SPLITS):
                if name in self.rows and (name == "all" or not check.splits or name in check.splits):
                    yield from _entries(self, name, splits)

        rows = gather(entries(), check, joins=True)
        provenance: dict[str, Any] = {"kind": "parquet", "captions_sha256": _digest_of_captions(rows)}
        if self.splits is not None:
            provenance["splits"] = checksum_of(self.splits)
        return make_listing(rows, check, provenance, files)


@dataclass(frozen=True, slots=True)
class Columns:
    """Where in a file things stand; empty where they do not."""

    captions: tuple[str, ...]
    """One column, or caption_0, caption_1, ...; a dot leads into a struct."""
    numbers: str
    split: str
    image_id: str


@dataclass(frozen=True, slots=True)
class ParquetEntry:
    """A row, without its picture."""

    where: str
    value: Mapping[str, Any]
    columns: Columns
    split_name: str | None
    """None: the row says."""
    splits: Mapping[str, str] | None
    fallback: str
    """The name of an image that has none."""
    stored: ParquetImageFile

    @property
    def image_name(self) -> str:
        value = _inside(self.value, self.columns.image_id)
        return "" if value is None else str(value)

    def split(self) -> str | None:
        if self.split_name is not None:
            return self.split_name
        if self.splits is not None:
            return self.splits.get(PurePosixPath(self.path()).name)
        return read_split(self.value.get(self.columns.split))

    def path(self) -> str:
        value = _inside(self.value, self.columns.image_id)
        if value is None or value == "":
            return self.fallback
        if not isinstance(value, str | int):
            raise RowError(f'"{self.columns.image_id}" is {describe_value(value)}, a name or a number is wanted')
        return str(PurePosixPath(str(value)))

    def captions(self) -> list[str]:
        found = [_inside(self.value, name) for name in self.columns.captions]
        if len(found) > 1:
            return [caption_text(text, name) for name, text in zip(self.columns.captions, found, strict=True)]
        return caption_texts(found[0]) if isinstance(found[0], list) else [caption_text(found[0], "the caption")]

    def caption_ids(self) -> list[int] | None:
        return read_caption_ids(self.value.get(self.columns.numbers), len(self.captions()))

    def image_file(self, path: str) -> ImageFile:
        return self.stored


def _entries(source: ParquetSource, name: str, splits: Mapping[str, str] | None) -> Iterator[ParquetEntry]:
    place = 0
    for path in source.rows[name]:
        with _open(path) as file:
            columns = _columns(path, file.schema_arrow, source, says_split=name == "all" and splits is None)
            # Of the image column only the path: the pictures are read later.
            tops = [name.partition(".")[0] for name in columns.captions]
            wanted = [*tops, *filter(None, (columns.numbers, columns.split, columns.image_id))]
            first = 0
            for group in range(file.num_row_groups):
                for i, value in enumerate(file.read_row_group(group, columns=wanted).to_pylist()):
                    stored = ParquetImageFile(path, group, i, source.image_column)
                    split = None if name == "all" else name
                    where = f"{path.name} row {first + i}"
                    yield ParquetEntry(where, value, columns, split, splits, f"{name}/{place:06}", stored)
                    place += 1
                first += file.metadata.row_group(group).num_rows


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist", hint="rows names Parquet files, a * stands for any letters") from error
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a Parquet file ({error})", hint="a download may have been cut off") from error


def _columns(path: Path, schema: pa.Schema, source: ParquetSource, *, says_split: bool) -> Columns:
    def wanted(what: str, name: str) -> str:
        if name.partition(".")[0] not in schema.names:
            raise InputError(f"{path} has no column {name!r} for {what}, its columns are {', '.join(schema.names)}")
        return name

    image = wanted("the image", source.image_column)
    kind = schema.field(image).type
    if pa.types.is_struct(kind):
        has_bytes = kind.get_field_index("bytes") >= 0
    else:
        has_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if not has_bytes:
        raise InputError(f"{path}: column {image!r} is {kind}, image files are wanted", hint="set image_column, or download with pictures")
    image_id = wanted("what tells images apart", source.id_column) if source.id_column else ""
    if not image_id and pa.types.is_struct(kind) and kind.get_field_index("path") >= 0:
        image_id = f"{image}.path"
    numbered = sorted((name for name in schema.names if _NUMBERED.fullmatch(name)), key=lambda name: int(name.rpartition("_")[2]))
    if source.caption_column:
        captions = (wanted("the captions", source.caption_column),)
    else:
        named = next((name for name in CAPTION_COLUMNS if name in schema.names), None)
        captions = tuple(numbered) or (named or wanted("the captions", "captions"),)
    numbers = next((name for name in NUMBER_COLUMNS if name in schema.names), "")
    return Columns(captions, numbers, wanted("the split", "split") if says_split else "", image_id)


def _inside(value: Any, name: str) -> Any:
    """The value under a dotted name; of a list, each member's."""
    for part in filter(None, name.split(".")):
        if isinstance(value, list):
            value = [one.get(part) if isinstance(one, dict) else None for one in value]
        else:
            value = value.get(part) if isinstance(value, Mapping) else None
    return value if name else None


def _digest_of_captions(rows: Mapping[str, Sequence[SourceRow]]) -> str:
    digest = hashlib.sha256()
    for split in SPLITS:
        for row in rows[split]:
            digest.update(json.dumps([split, row.path, row.captions, row.caption_ids]).encode())
    return digest.hexdigest()
