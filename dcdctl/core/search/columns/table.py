"""The columns of an index: read from their file when a query needs them, and summarized."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dcdctl.core import files
from dcdctl.core.artifacts import seal_of
from dcdctl.core.search import part_files
from dcdctl.core.search.columns.where import TYPES, Value
from dcdctl.core.search.entries import Column, ColumnsFile
from dcdctl.core.search.part_files import MappedTable
from dcdctl.core.search.storage import INDEX

# Ten hits of an index with a thousand columns would take 60 to 130 ms to read.
NUM_SHOWN = 50
"""Columns of a hit, the first ones; conditions read all."""
NUM_FREQUENT = 50
"""Most frequent values of a column in its summary."""


class StoredColumns:
    """The columns of the images of an index, memory-mapped; safe to use from several threads."""

    def __init__(self, folder: Path, entry: ColumnsFile | None, num_rows: int) -> None:
        self._num_rows = num_rows
        self._mapped = None if entry is None else MappedTable(folder / entry.file, entry.sha256)
        self.schema: pa.Schema = pa.schema([]) if entry is None else entry.schema
        self.num_covered = 0 if entry is None else entry.rows
        """The first rows, which have had a chance to get values; rows that were added since have none."""
        # Unbounded: an index has few columns, and users repeat conditions.
        self.column = lru_cache(maxsize=None)(self._read_column)
        # The hits of a page share groups.
        self._group = lru_cache(maxsize=256)(self._read_group)
        self._footer: pq.FileMetaData | None = None

    def table(self) -> pa.Table:
        """All columns of all rows."""
        return self._read(self.schema.names) if self.schema.names else self.schema.empty_table()

    def values(self, row: int) -> dict[str, Value | None]:
        """The values of a row in the first `NUM_SHOWN` columns; empty for an index without columns."""
        names = self.schema.names[:NUM_SHOWN]
        if row >= self.num_covered or not names:
            return dict.fromkeys(names)
        group, within = divmod(row, part_files.ROWS_PER_GROUP)
        return {name: column[within].as_py() for name, column in zip(names, self._group(group).columns, strict=True)}

    def _read_column(self, name: str) -> pa.Array:
        """The values of all rows."""
        return self._read([name]).column(0).combine_chunks()

    def _read(self, names: list[str]) -> pa.Table:
        """Columns of all rows."""
        with self._file() as file:
            table = file.read(columns=names)
            table.validate(full=True)
            if len(table) != self.num_covered:
                raise ValueError(f"it has {len(table):,} rows")
        missing = {field.name: pa.nulls(self._num_rows - self.num_covered, field.type) for field in table.schema}
        return pa.concat_tables([table, pa.table(missing)]).combine_chunks()

    def _read_group(self, group: int) -> pa.Table:
        with self._file() as file:
            names = self.schema.names[:NUM_SHOWN]
            table = file.read_row_group(group, columns=names, use_threads=False).combine_chunks()
            table.validate(full=True)
            if len(table) != part_files.group_rows(self.num_covered)[group]:
                raise ValueError(f"a group has {len(table):,} rows")
            return table

    @contextmanager
    def _file(self) -> Iterator[pq.ParquetFile]:
        assert self._mapped is not None  # an index without columns has none to ask for
        with self._mapped.open(self._footer) as file:
            if self._footer is None:
                self._check(file, self._mapped.path)
            self._footer = file.metadata  # 20 ms for a thousand columns
            yield file

    def _check(self, file: pq.ParquetFile, path: Path) -> None:
        """StaleError if the file has other columns or rows than index.json says."""
        rows = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        is_same = file.schema_arrow.remove_metadata() == self.schema
        if not is_same or [row for row in rows if row] != part_files.group_rows(self.num_covered):
            raise INDEX.damaged(path, "its columns or rows are not those of index.json")


def write_columns(folder: Path, generation: int, table: pa.Table) -> ColumnsFile | None:
    """Write the columns of all rows atomically, and return their entry; None for a table without columns."""
    if not table.column_names:
        return None
    path = folder / f"columns-{generation}.parquet"
    with files.atomic_path(path) as partial:
        # The groups of the files of vectors, so that a hit reads one of each.
        pq.write_table(table, partial, row_group_size=part_files.ROWS_PER_GROUP, compression="zstd")
    columns = tuple(Column(name=field.name, type=str(field.type)) for field in table.schema)
    return ColumnsFile(file=path.name, rows=len(table), **seal_of(path), columns=columns)


@dataclass(frozen=True, kw_only=True)
class ColumnSummary:
    """A column, and what its values are."""

    name: str
    type: str
    missing: int
    """Images without a value."""
    distinct: int
    frequent: tuple[tuple[Value, int], ...]
    """The most frequent values, each with its number of images; equal numbers in the order of values."""
    low: Value | None
    """The least value; None for a column without values, and for true and false."""
    high: Value | None


def summarize_column(name: str, values: pa.ChunkedArray, is_removed: NDArray[np.bool_]) -> ColumnSummary:
    """The summary of a column over the images that were not removed."""
    live = values.filter(pa.array(~is_removed))
    filled = live.drop_null()
    counts = pc.value_counts(filled)
    table = pa.table({"value": counts.field("values"), "count": counts.field("counts")})
    frequent = table.sort_by([("count", "descending"), ("value", "ascending")]).slice(0, NUM_FREQUENT)
    # The least and the greatest of true and false say nothing.
    low = high = None
    if len(filled) > 0 and not pa.types.is_boolean(filled.type):
        ends = pc.min_max(filled).as_py()
        low, high = ends["min"], ends["max"]
    return ColumnSummary(
        name=name,
        type=TYPES[values.type].removeprefix("a "),
        missing=live.null_count,
        distinct=len(counts),
        frequent=tuple((row["value"], row["count"]) for row in frequent.to_pylist()),
        low=low,
        high=high,
    )
