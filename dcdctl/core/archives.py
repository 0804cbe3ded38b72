"""What lies in zips, tars and Parquet files, and where: listed once, then read at random."""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath

import pyarrow as pa
import pyarrow.parquet as pq

from dcdctl.core.errors import InputError

TAR_BLOCK = 512
PARQUET_ROWS = 16
PARQUET_BUFFER_BYTES = 1 << 20
_NO_ROWS = pa.nulls(0, pa.binary())  # not pa.array, for which pyarrow imports pandas: a third of a second in every process
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True, slots=True)
class TarEntry:
    """A member of a tar: where its bytes lie, or why it is not read."""

    offset: int
    size: int
    changed: int
    """When the file was changed, in seconds, as the tar has it."""
    refused: str = ""


def climbs_out(name: str) -> bool:
    """Whether a file name, read as POSIX or as Windows would, leads out of the folder it is looked for in."""
    windows = PureWindowsPath(name)
    return PurePosixPath(name).is_absolute() or bool(windows.drive or windows.root) or ".." in windows.parts


def is_tar(path: Path) -> bool:
    """Whether a file is a tar, by its first bytes, or by its name where they do not say; InputError if it is a compressed one."""
    try:
        with path.open("rb") as file:
            head = file.read(TAR_BLOCK)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            hint = f"decompress it first: pictures of a tar are read at random, and {name} does not allow that"
            raise InputError(f"{path} is compressed with {name}, a plain tar is wanted", hint=hint)
    return head[257:262] == b"ustar" or (path.suffix == ".tar" and not head.startswith(b"PK"))


def tar_entries(path: Path) -> dict[str, TarEntry]:
    """All members but folders, in archive order, by name without a leading `./`; of two of one name the later one, as in unpacking."""
    entries = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for info in archive:
                if not info.isdir():
                    name = PurePosixPath(info.name).as_posix()
                    entries[name] = TarEntry(info.offset_data, info.size, int(info.mtime), _why_refused(info))
            end = archive.offset
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        hint = "--images takes a folder or a zip or a tar; a download may have been cut off"
        raise InputError(f"{path} is not a tar ({error})", hint=hint) from error
    # The standard library takes a damaged header for the end of the archive.
    with path.open("rb") as file:
        file.seek(end)
        if file.read(TAR_BLOCK).strip(b"\0"):
            raise InputError(f"the tar {path} is damaged at byte {end:,}", hint="a download may have been cut off")
    return entries


def _why_refused(info: tarfile.TarInfo) -> str:
    if climbs_out(info.name):
        return "its path in the tar climbs out"
    if info.issym() or info.islnk():
        return f"it is a link in the tar, to {info.linkname}; a file is wanted"
    return "" if info.isreg() and not info.issparse() else "it is a device or another special file in the tar"


def zip_members(path: Path) -> list[str]:
    """The names of all files in a zip, in archive order; InputError if it is none."""
    try:
        return list(dict.fromkeys(info.filename for info in open_zip(path).infolist() if not info.is_dir()))
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        hint = "--images takes a folder or a zip or a tar; a download may have been cut off"
        raise InputError(f"{path} is not a zip ({error})", hint=hint) from error


# Opened once a process, for each has a directory to read first, and not shared with a forked child, which would move the file position.


def open_zip(path: Path) -> zipfile.ZipFile:
    return _open_zip(path, path.stat().st_mtime_ns, os.getpid())


def image_scalar(path: Path, row_group: int, row: int, column: str) -> pa.Scalar:
    """The image file in a row of a row group, a binary or null; rows are best asked for in order.

    pa.ArrowException or OSError if it cannot be had.
    """
    return _image_column(path, path.stat().st_mtime_ns, os.getpid(), row_group, column).at(row)


class _ImageColumn:
    """The image files of a row group, a page of it in memory at a time, for some writers put a whole file into one group."""

    def __init__(self, path: Path, row_group: int, column: str) -> None:
        self._file = pq.ParquetFile(path, pre_buffer=False, buffer_size=PARQUET_BUFFER_BYTES)
        schema = self._file.schema_arrow
        if column not in schema.names:
            raise pa.ArrowKeyError(f"it has no column {column!r}, its columns are {', '.join(schema.names)}")
        kind = schema.field(column).type
        self._is_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        if not (self._is_struct or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise pa.ArrowTypeError(f"column {column!r} holds {kind}, struct<bytes, path> or binary is wanted")
        self._row_group, self._column = row_group, f"{column}.bytes" if self._is_struct else column
        # The batch in memory, the row it starts at, and the batches to come; without a batch all are read from the start.
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._start, self._rows = 0, _NO_ROWS

    def at(self, row: int) -> pa.Scalar:
        batches, start, rows = self._batches, self._start, self._rows
        self._batches, self._start, self._rows = iter(()), 0, _NO_ROWS  # should a batch be damaged
        if row < start or not len(rows):
            batches, start, rows = self._from_the_start(), 0, _NO_ROWS
        while row >= start + len(rows):
            start += len(rows)
            batch = next(batches, None)
            if batch is None:
                raise pa.ArrowIndexError(f"row group {self._row_group} ends before row {row}")
            rows = batch.column(0).field("bytes") if self._is_struct else batch.column(0)
        self._batches, self._start, self._rows = batches, start, rows
        return rows[row - start]

    def _from_the_start(self) -> Iterator[pa.RecordBatch]:
        return self._file.iter_batches(PARQUET_ROWS, row_groups=[self._row_group], columns=[self._column], use_threads=False)


@lru_cache(maxsize=4)
def _open_zip(path: Path, changed: int, process: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


@lru_cache(maxsize=1)
def _image_column(path: Path, changed: int, process: int, row_group: int, column: str) -> _ImageColumn:
    return _ImageColumn(path, row_group, column)
