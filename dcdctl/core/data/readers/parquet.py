"""Parquet files that contain images, such as data sets on the Hub. Listing reads all columns except the bytes of the
images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from dcdctl.core.data.images import ImageFile, ParquetImageFile, RowError, refuse_inflation, reject_large_file
from dcdctl.core.data.readers.captions import (
    NO_LABEL,
    CaptionLabel,
    numbered_captions,
    read_caption,
    read_caption_ids,
    read_captions,
    read_labels,
)
from dcdctl.core.data.readers.karpathy import splits_by_name
from dcdctl.core.data.readers.rows import (
    SPLITS,
    Entry,
    Listing,
    Paths,
    RowCheck,
    SourceConfig,
    SourceRow,
    check_splits,
    file_checksum,
    group_by_image,
    make_listing,
    read_split,
)
from dcdctl.core.data.text_encoding import describe_value, find_column
from dcdctl.core.errors import InputError

_CAPTION_COLUMNS = ("captions", "caption", "sentences", "raw", "text")
_LABEL_COLUMNS = {label: (label, f"caption_{label}s") for label in CaptionLabel._fields}
"""The second name is that of a prepared corpus, which can be read as Parquet files."""
LISTED_ROWS = 1 << 14
"""Rows that are listed at a time: their texts are a few megabytes."""


@dataclass(frozen=True, kw_only=True)
class ParquetSource(SourceConfig):
    """Parquet files that contain images, as on the Hub; captions as a list, as caption_0, caption_1, ... or as one row
    per caption."""

    format: ClassVar[str] = "parquet"
    rows: dict[str, Paths]
    """By split, or `all` if a column or `splits` gives the split; names may contain a *."""
    image_column: str = "image"
    id_column: str = ""
    """The column that identifies images, such as filename; the path in the image column if empty."""
    caption_column: str = ""
    """A dot leads into a struct: sentences.raw. Found by its usual names if empty."""
    splits: Path | None = None
    """A JSON in Karpathy's form with the split of each file name; images that it does not name are left out."""

    def __post_init__(self) -> None:
        if set(self.rows) != {"all"}:
            check_splits("rows", self.rows)

    def list_rows(self, check: RowCheck) -> Listing:
        """The rows of the files; rows of the same image become one."""
        splits = None if self.splits is None else splits_by_name(self.splits)
        files = [path for part in self.rows.values() for path in part]

        names = ["all"] if "all" in self.rows else check.requested(self.rows)

        def entries() -> Iterator[ParquetEntry]:
            for name in names:
                yield from _entries(self, name, splits)

        rows = group_by_image(entries(), check, merge=True)
        # Not a checksum of the files, because listing does not read the image bytes in them.
        provenance: dict[str, Any] = {"kind": "parquet", "captions_sha256": _captions_digest(rows)}
        if self.splits is not None:
            provenance["splits"] = file_checksum(self.splits)
        return make_listing(rows, check, provenance, files)


@dataclass(frozen=True, slots=True)
class ParquetColumns:
    """The names of the columns in a file; empty if there is no such column."""

    captions: Sequence[str]
    """One column, or caption_0, caption_1, ...; a dot leads into a struct."""
    numbers: str
    split: str
    image_id: str
    labels: dict[str, str]
    """By `source` and `weight` of the captions, as far as there are such columns."""


@dataclass(frozen=True, slots=True)
class ParquetEntry(Entry):
    """A row, without its image."""

    columns: ParquetColumns
    split_name: str | None
    """None: `splits` or a column of the row gives it."""
    splits: Mapping[str, str] | None
    fallback: str
    """The path of an image that has none."""
    stored: ParquetImageFile

    def split(self) -> str | None:
        if self.split_name is not None:
            return self.split_name
        if self.splits is not None:
            return self.splits.get(PurePosixPath(self.image_path()).name)
        return read_split(self.value.get(self.columns.split))

    def image_path(self) -> str:
        value = _nested_value(self.value, self.columns.image_id)
        if value is None or value == "":
            return self.fallback
        if not isinstance(value, str | int):
            raise RowError(f'"{self.columns.image_id}" is {describe_value(value)}, expected a name or a number')
        return str(PurePosixPath(str(value)))

    def captions(self) -> tuple[list[str], list[int] | None]:
        captions = captions_of_row(self.value, self.columns.captions)
        return captions, read_caption_ids(self.value.get(self.columns.numbers), len(captions))

    def labels(self, count: int) -> list[CaptionLabel]:
        return read_labels({label: self.value[name] for label, name in self.columns.labels.items()}, count)

    def image_file(self, path: str) -> ImageFile:
        return self.stored


def list_images(path: Path) -> Iterator[tuple[str, str, ParquetImageFile]]:
    """Of each row of a Parquet file that needs no captions: where it is, the path of its image, or else a number, and
    the image."""
    for entry in _entries(ParquetSource(rows={"all": (path,)}), "all", {}, has_captions=False):
        yield entry.where, entry.image_path(), entry.stored


def _entries(
    source: ParquetSource, name: str, splits: Mapping[str, str] | None, *, has_captions: bool = True
) -> Iterator[ParquetEntry]:
    position = 0
    for path in source.rows[name]:
        with open_parquet(path) as file:
            has_split = name == "all" and splits is None
            columns = find_columns(path, file.schema_arrow, source, has_split=has_split, has_captions=has_captions)
            # The image column is not read, except for the path in it: its bytes are read later, by the workers.
            names = [
                *(name.partition(".")[0] for name in columns.captions),
                *filter(None, (columns.numbers, columns.split, columns.image_id)),
                *columns.labels.values(),
            ]
            first = 0
            for group in range(file.num_row_groups):
                for i, value in enumerate(read_rows(str(path), file, group, names, LISTED_ROWS)):
                    stored = ParquetImageFile(path, group, i, source.image_column)
                    split = None if name == "all" else name
                    where = f"{path.name} row {first + i}"
                    yield ParquetEntry(
                        where=where,
                        value=value,
                        columns=columns,
                        split_name=split,
                        splits=splits,
                        fallback=f"{name}/{position:06}",
                        stored=stored,
                    )
                    position += 1
                first += file.metadata.row_group(group).num_rows


def read_rows(
    name: str, file: pq.ParquetFile, group: int, columns: Sequence[str], batch_rows: int
) -> Iterator[dict[str, Any]]:
    """The rows of a row group with these columns; InputError if they are damaged, or unpack to far more than images
    and captions do."""
    try:
        refuse_inflation(file.metadata, group, columns)
        # In this thread: a remote file has one position.
        for batch in file.iter_batches(batch_rows, row_groups=[group], columns=columns, use_threads=False):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"row group {group} of {name} cannot be read ({error})", hint="a download may have been cut off"
        ) from error


def open_parquet(path: Path) -> pq.ParquetFile:
    """An open Parquet file; InputError if it is none."""
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise InputError(
            f"{path} does not exist", hint="rows gives the names of Parquet files; a * matches any characters"
        ) from error
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a Parquet file ({error})", hint="a download may have been cut off") from error


def find_columns(
    path: Path | str, schema: pa.Schema, source: ParquetSource, *, has_split: bool, has_captions: bool = True
) -> ParquetColumns:
    """The columns of a file, by the names in the source or by usual ones; InputError if one is missing or holds no
    image files."""

    def require(*known: str) -> str:
        columns = {name.partition(".")[0]: name for name in known}
        return columns[
            find_column(
                path, schema.names, tuple(columns), "name others with image_column, id_column or caption_column"
            )
        ]

    image = require(source.image_column)
    type_ = schema.field(image).type
    if pa.types.is_struct(type_):
        has_bytes = type_.get_field_index("bytes") >= 0
    else:
        has_bytes = pa.types.is_binary(type_) or pa.types.is_large_binary(type_)
    if not has_bytes:
        raise InputError(
            f"{path}: column {image!r} is {type_}, expected image files",
            hint="set image_column, or download the images too",
        )
    image_id = require(source.id_column) if source.id_column else ""
    if not image_id and pa.types.is_struct(type_) and type_.get_field_index("path") >= 0:
        image_id = f"{image}.path"
    captions: Sequence[str] = ()
    if source.caption_column:
        captions = [require(source.caption_column)]
    elif has_captions:
        captions = numbered_captions(schema.names) or [require(*_CAPTION_COLUMNS)]
    numbers = next((name for name in ("caption_ids", "sentids") if name in schema.names), "")
    labels = {label: name for label, known in _LABEL_COLUMNS.items() for name in known if name in schema.names}
    return ParquetColumns(
        captions=captions,
        numbers=numbers,
        split=require("split") if has_split else "",
        image_id=image_id,
        labels=labels,
    )


def captions_of_row(row: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    """The captions in a row; RowError if they are not text."""
    cells = [_nested_value(row, name) for name in columns]
    if len(cells) > 1:
        return [read_caption(cell, name) for name, cell in zip(columns, cells, strict=True)]
    return read_captions(cells[0])


def image_bytes_of_row(value: Any) -> bytes:
    """The image file in a cell of an image column; RowError if it has none."""
    data = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(data, bytes):
        raise RowError("there are no bytes of its image, at most a path")
    reject_large_file(len(data))
    return data


def _nested_value(value: Any, name: str) -> Any:
    """The value under a dotted name; for a list, the values of its items."""
    for part in filter(None, name.split(".")):
        if isinstance(value, list):
            value = [item.get(part) if isinstance(item, dict) else None for item in value]
        else:
            value = value.get(part) if isinstance(value, Mapping) else None
    return value if name else None


def _captions_digest(rows: Mapping[str, Sequence[SourceRow]]) -> str:
    digest = hashlib.sha256()
    for split in SPLITS:
        for row in rows[split]:
            labels = [row.labels] if set(row.labels) != {NO_LABEL} else []
            digest.update(json.dumps([split, row.path, row.captions, row.caption_ids, *labels]).encode())
    return digest.hexdigest()
