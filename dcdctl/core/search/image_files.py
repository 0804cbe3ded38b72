"""What an index knows of the file of each image.

    INDEX/files-N.parquet   one row per image, removed ones too

A change of a file is noticed by its size and time, and confirmed by its SHA-256, which also knows a file again under
another name. The difference hash finds look-alikes. The date and the camera are kept too, so that columns are filled
without reading the files a second time.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from dcdctl.core import files
from dcdctl.core.artifacts import Build, seal_of
from dcdctl.core.data import CAMERA_COLUMNS, PLACE_COLUMNS, difference_hash, read_exif
from dcdctl.core.search.entries import RowsFile
from dcdctl.core.search.exact import Rows
from dcdctl.core.search.index_config import ExifColumns
from dcdctl.core.search.part_files import MappedTable, SourceImage
from dcdctl.core.search.storage import INDEX, PLANNED

EXIF_TYPES = CAMERA_COLUMNS | PLACE_COLUMNS
GROUP = "group"
FACT_COLUMNS = pa.schema(
    [
        ("num_bytes", pa.int64()),
        ("modified_ns", pa.int64()),
        ("sha256", pa.binary(32)),
        ("dhash", pa.uint64()),
        ("copied_from", pa.int64()),
        ("exif_read", pa.string()),
        *EXIF_TYPES.items(),
    ]
)
"""The fields of `FileFacts`, its EXIF values as columns of their own."""
FILE_COLUMNS = FACT_COLUMNS.append(pa.field(GROUP, pa.int64(), nullable=False))
"""Also the first row of the group of copies and look-alikes that a row belongs to: its own if it has none."""


class Stamps(NamedTuple):
    """What tells whether a file is as it was, for each row; None where it is not known."""

    bytes_R: list[int | None]
    modified_R: list[int | None]
    """Nanoseconds since 1970."""
    sha256_R: list[bytes | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class FileFacts:
    """What is known of the file of an image; None for what was not read."""

    num_bytes: int | None = None
    modified_ns: int | None = None
    """Nanoseconds since 1970, as the file system gives them; None for an image of a corpus."""
    sha256: bytes | None = None
    dhash: int | None = None
    """`data.difference_hash` of the upright image."""
    copied_from: int | None = None
    """The row whose vectors the image took, because its file has the same bytes."""
    exif_read: str | None = None
    """camera or place: which values of `exif` were looked for."""
    exif: Mapping[str, Any] = field(default_factory=dict)
    """Values of `EXIF_TYPES` by name."""

    @staticmethod
    def listed(image: SourceImage) -> FileFacts:
        """What is known of a file that was listed and not read."""
        return FileFacts(num_bytes=image.num_bytes, modified_ns=image.modified_ns)


def read_facts(image: SourceImage, data: bytes, decoded: Image.Image, exif: ExifColumns) -> FileFacts:
    """The facts of an image that was read and decoded."""
    listed = FileFacts.listed(image)
    facts = replace(listed, sha256=hashlib.sha256(data).digest(), dhash=difference_hash(decoded))
    if exif == "none":
        return facts
    return replace(facts, exif_read=exif, exif=read_exif(io.BytesIO(data), place=exif == "place"))


_PLAIN = tuple(item.name for item in fields(FileFacts) if item.name != "exif")


def facts_table(facts: Sequence[FileFacts]) -> pa.Table:
    """Facts as rows of `FACT_COLUMNS`."""
    columns = {name: [getattr(each, name) for each in facts] for name in _PLAIN}
    columns |= {name: [each.exif.get(name) for each in facts] for name in EXIF_TYPES}
    return pa.table(columns, schema=FACT_COLUMNS)


def facts_of_table(table: pa.Table) -> list[FileFacts]:
    """The facts in rows of `FACT_COLUMNS`."""
    facts = []
    for row in table.select(FACT_COLUMNS.names).to_pylist():
        exif = {name: value for name in EXIF_TYPES if (value := row.pop(name)) is not None}
        facts.append(FileFacts(**row, exif=exif))
    return facts


class StoredFiles:
    """The table of image files of an index, read when it is first asked for; safe to use from several threads."""

    def __init__(self, folder: Path, entry: RowsFile | None, num_rows: int) -> None:
        self._num_rows, self._num_covered = num_rows, 0 if entry is None else entry.rows
        self._mapped = None if entry is None else MappedTable(folder / entry.file, entry.sha256)

    @cached_property
    def table(self) -> pa.Table:
        """`FACT_COLUMNS` of all rows, without values for rows that the file does not cover."""
        return self._read(FACT_COLUMNS)

    @cached_property
    def stamps(self) -> Stamps:
        """Those of each row."""
        # Lists: Arrow would import pandas, which takes longer than to compare a folder.
        return Stamps(*(self.table.column(name).to_pylist() for name in ("num_bytes", "modified_ns", "sha256")))

    @cached_property
    def group_R(self) -> NDArray[np.int64]:
        """(R,): the first row of the group of each row."""
        group_R = np.arange(self._num_rows)
        if self._mapped is not None:
            column = self._read(pa.schema([FILE_COLUMNS.field(GROUP)]), covered=True).column(0).combine_chunks()
            # Not `to_numpy`, which imports pandas.
            read = np.frombuffer(column.buffers()[1], np.int64, len(column), 8 * column.offset)
            if not ((read >= 0) & (read <= group_R[: len(read)])).all():
                raise INDEX.damaged(self._mapped.path, "its groups are no earlier rows")
            group_R[: len(read)] = read
        return group_R

    def _read(self, schema: pa.Schema, *, covered: bool = False) -> pa.Table:
        if self._mapped is None:
            return _empty_rows(schema, self._num_rows)
        with self._mapped.open() as file:
            table = file.read(columns=schema.names).cast(schema)
            table.validate(full=True)
            if len(table) != self._num_covered:
                raise ValueError(f"it has {len(table):,} rows")
        missing = 0 if covered else self._num_rows - len(table)
        return pa.concat_tables([table, _empty_rows(schema, missing)]).combine_chunks()


def _empty_rows(schema: pa.Schema, count: int) -> pa.Table:
    return pa.Table.from_arrays([pa.nulls(count, each.type) for each in schema], schema=schema)


def write_files_table(folder: Path, generation: int, facts: pa.Table, group_R: NDArray[np.int64]) -> RowsFile:
    """Write the facts of all rows atomically, with their groups, and return the entry of the file."""
    path = folder / f"files-{generation}.parquet"
    table = facts.append_column(FILE_COLUMNS.field(GROUP), pa.array(group_R)).cast(FILE_COLUMNS)
    with files.atomic_path(path) as partial:
        pq.write_table(table, partial, compression="zstd")
    return RowsFile(file=path.name, rows=len(table), **seal_of(path))


CHANGED_ROWS = f"{PLANNED}/rows.parquet"
"""The rows that a planned change removes, or whose facts it replaces."""
_CHANGED = FACT_COLUMNS.insert(0, pa.field("row", pa.int64())).insert(1, pa.field("is_removed", pa.bool_()))


def write_changed_rows(path: Path, removed: Rows, touched: Mapping[int, FileFacts]) -> None:
    """Write the rows that a change removes, and those of which something else is known now."""
    facts = facts_table([*(FileFacts() for _ in removed), *touched.values()])
    rows = [*removed.tolist(), *touched]
    is_removed = [True] * len(removed) + [False] * len(touched)
    columns = [pa.array(rows, pa.int64()), pa.array(is_removed, pa.bool_()), *facts.columns]
    pq.write_table(pa.Table.from_arrays(columns, schema=_CHANGED), path, compression="zstd")


def read_changed_rows(path: Path) -> tuple[Rows, pa.Table]:
    """The rows to remove, and a table of the other rows, with their facts and `row`."""
    table = pq.read_table(path)
    is_removed = table.column("is_removed")
    removed = table.filter(is_removed).column("row").to_numpy()
    return removed, table.filter(pc.invert(is_removed)).drop_columns("is_removed")


def changed_facts(facts: pa.Table, changed: pa.Table) -> pa.Table:
    """A table of facts in which rows have other sizes, times and digests, as `read_changed_rows` gives them."""
    for name in ("num_bytes", "modified_ns", "sha256"):
        values = facts.column(name).to_pylist()
        for row, value in zip(changed.column("row").to_pylist(), changed.column(name).to_pylist(), strict=True):
            values[row] = value
        place = facts.schema.get_field_index(name)
        facts = facts.set_column(place, facts.schema.field(name), pa.array(values, facts.schema.field(name).type))
    return facts


def facts_name(number: int) -> str:
    """The path of the facts of a part in the folder of the index, until they are committed."""
    return f"{PLANNED}/facts-{number:05d}.parquet"


def write_facts(path: Path, facts: Sequence[FileFacts]) -> None:
    """Write the facts of the images of a part, before its vectors."""
    pq.write_table(facts_table(facts), path, compression="zstd")


def write_copied_facts(path: Path, known: pa.Table, images: Sequence[SourceImage]) -> None:
    """Write the facts of images that take the vectors of rows: those of the rows, `known`, but for size and time."""
    for name in ("num_bytes", "modified_ns", "copied_from"):
        values = pa.array([getattr(image, name) for image in images], pa.int64())
        known = known.set_column(known.schema.get_field_index(name), known.schema.field(name), values)
    pq.write_table(known, path, compression="zstd")


def read_facts_of(build: Build, part: int) -> pa.Table:
    """The facts of the images of a part that is not committed yet."""
    return pq.read_table(build.written(facts_name(part)))
