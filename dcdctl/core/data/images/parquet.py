"""Image files in rows of Parquet files, read a few rows at a time, and refused before they unpack to far more than
images do."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from dcdctl.core.data.images.archives import MAX_FILE_BYTES, RowError, reject_large_file
from dcdctl.core.machine import num_cores

MAX_INFLATION = 200
"""A column of a Parquet file that unpacks to more than `MAX_FILE_BYTES` and to more than this multiple of its size is
refused."""
# Images of some 200 kB: a batch is a few megabytes, and a row in the middle costs little to reach.
PARQUET_BATCH_ROWS = 16
# Smaller buffers cost a system call per image, larger ones memory per open column.
PARQUET_BUFFER_BYTES = 1 << 20
KEPT_BATCHES = 2 + num_cores() // PARQUET_BATCH_ROWS
"""Batches of a column that stay in memory. Threads, one per core by default, read rows nearly in order: one is behind
by a row for each other. A row of an earlier batch is read from the top again."""
_OPEN_COLUMN = threading.Lock()


@dataclass(frozen=True, slots=True)
class ParquetImageFile:
    """An image file in a row of a Parquet file, in a column of struct<bytes, path>, as on the Hugging Face Hub, or of
    plain bytes."""

    path: Path
    row_group: int
    row_in_group: int
    column: str = "image"
    is_here: ClassVar = True

    def read(self) -> bytes:
        try:
            # Two threads that find no column would both open one.
            with _OPEN_COLUMN:
                version = self.path.stat().st_mtime_ns
                column = _cached_column(self.path, version, os.getpid(), self.row_group, self.column)
            value = column.value(self.row_in_group)
        except (pa.ArrowException, OSError) as error:
            raise RowError(f"its image cannot be read from {self.path.name} ({error})") from error
        # A buffer, so that a large file is rejected before it is copied.
        data = value.as_buffer()
        if data is None:
            raise RowError(f"{self.path.name} has no bytes of its image in column {self.column!r}, at most a path")
        reject_large_file(data.size)
        return data.to_pybytes()

    def stamp(self) -> str:
        return f"{self.path.name} {self.path.stat().st_size} {self.row_group} {self.row_in_group}"


# The key has the process and the time of the last change, for the reasons given in `archives`. Two columns, because
# their batches of images are in memory, and threads that read rows in order are in one row group or at the border of
# two.
@lru_cache(maxsize=2)
def _cached_column(path: Path, mtime_ns: int, process: int, row_group: int, column: str) -> _ImageColumn:
    return _ImageColumn(path, row_group, column)


class _ImageColumn:
    """The image files of a row group, read a few rows at a time: some writers put a whole file into one row group. Safe
    for threads."""

    def __init__(self, path: Path, row_group: int, column: str) -> None:
        # pre_buffer would read the column of the whole row group into memory before the first batch.
        self._file = pq.ParquetFile(path, pre_buffer=False, buffer_size=PARQUET_BUFFER_BYTES)
        self._is_struct = pa.types.is_struct(self._file.schema_arrow.field(column).type)
        self._row_group, self._column = row_group, f"{column}.bytes" if self._is_struct else column
        refuse_inflation(self._file.metadata, row_group, [self._column])
        self._lock = threading.Lock()
        # The batches to come, the number of their first row, and the batches in memory by the number of their first
        # row.
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._next_row = 0
        self._kept: deque[tuple[int, pa.Array]] = deque(maxlen=KEPT_BATCHES)

    def value(self, row: int) -> pa.Scalar:
        """The image file in a row, a binary or null. Fast for nearly ascending rows; one before the kept batches reads
        from the top again.

        pa.ArrowException or OSError if it cannot be read.
        """
        with self._lock:
            if not self._kept or row < self._kept[0][0]:
                self._start_over()
            try:
                while row >= self._next_row:
                    batch = next(self._batches, None)
                    if batch is None:
                        raise pa.ArrowIndexError(f"row group {self._row_group} ends before row {row}")
                    values = batch.column(0)
                    self._kept.append((self._next_row, values.field("bytes") if self._is_struct else values))
                    self._next_row += len(batch)
            except (pa.ArrowException, OSError):
                self._start_over()  # the batches after a damaged one are not where they would be
                raise
            return next(rows[row - start] for start, rows in reversed(self._kept) if start <= row)

    def _start_over(self) -> None:
        self._kept.clear()
        self._next_row = 0
        self._batches = self._file.iter_batches(
            PARQUET_BATCH_ROWS, row_groups=[self._row_group], columns=[self._column], use_threads=False
        )


def refuse_inflation(metadata: pq.FileMetaData, row_group: int, columns: Collection[str]) -> None:
    """pa.ArrowInvalid if columns of a row group unpack to far more than captions and image files do, before they are
    read.

    A column is named as a whole or by its path, such as image.bytes.
    """
    group = metadata.row_group(row_group)
    for chunk in map(group.column, range(group.num_columns)):
        is_read = chunk.path_in_schema in columns or chunk.path_in_schema.partition(".")[0] in columns
        unpacked, stored = chunk.total_uncompressed_size, chunk.total_compressed_size
        if is_read and unpacked > max(MAX_FILE_BYTES, MAX_INFLATION * stored):
            raise pa.ArrowInvalid(f"{stored:,} bytes of its column {chunk.path_in_schema} unpack to {unpacked:,}")
