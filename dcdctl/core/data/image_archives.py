"""What lies in zips, tars and Parquet files, and where: listed once, then read at random."""

from __future__ import annotations

import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Protocol

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
    modified: int
    """When the file was changed, in seconds, as the tar has it."""
    refused: str = ""


def escapes_root(name: str) -> bool:
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
    if escapes_root(info.name):
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
def _open_zip(path: Path, modified: int, process: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


@lru_cache(maxsize=1)
def _image_column(path: Path, modified: int, process: int, row_group: int, column: str) -> _ImageColumn:
    return _ImageColumn(path, row_group, column)


MAX_FILE_BYTES = 256 << 20
"""A larger image file is refused unread."""


class RowError(ValueError):
    """A row that cannot be used; the message says why, the one who catches it knows where."""


class ImageFile(Protocol):
    """An image file that is not read yet."""

    def read(self) -> bytes:
        """The bytes of the file; RowError if they cannot be had."""
        ...

    def stamp(self) -> str:
        """What changes when the file does, and can be had without reading it."""
        ...


@dataclass(frozen=True, slots=True)
class FolderImageFile:
    """A file in the folder of images."""

    root: Path
    name: str

    def read(self) -> bytes:
        path = self.root / self.name
        if not path.resolve().is_relative_to(_resolved(self.root)):
            raise RowError(f"its image is a link that leads out of the folder {self.root}")
        try:
            _refuse_large(path.stat().st_size)
            return path.read_bytes()
        except OSError as error:
            raise RowError(f"its image cannot be read ({error.strerror})") from error

    def stamp(self) -> str:
        return f"{self.name} {(self.root / self.name).stat().st_size}"


@lru_cache(maxsize=4)
def _resolved(folder: Path) -> Path:
    return folder.resolve()


@dataclass(frozen=True, slots=True)
class ZipImageFile:
    """A member of a zip of images."""

    archive: Path
    member: str

    def read(self) -> bytes:
        archive = open_zip(self.archive)
        _refuse_large(archive.getinfo(self.member).file_size)
        try:
            return archive.read(self.member)
        # RuntimeError: it wants a password
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
            raise RowError(f"its image cannot be read from {self.archive.name} ({error})") from error

    def stamp(self) -> str:
        info = open_zip(self.archive).getinfo(self.member)
        return f"{self.member} {info.file_size} {info.CRC:08x}"


@dataclass(frozen=True, slots=True)
class TarImageFile:
    """A member of a plain tar; `entry` says where in the archive its bytes are."""

    archive: Path
    member: str
    entry: TarEntry

    def read(self) -> bytes:
        _refuse_large(self.entry.size)
        try:
            with self.archive.open("rb", buffering=0) as file:
                file.seek(self.entry.offset)
                data = file.read(self.entry.size)
        except OSError as error:
            raise RowError(f"its image cannot be read from {self.archive.name} ({error})") from error
        if len(data) < self.entry.size:
            raise RowError(
                f"its image cannot be read from {self.archive.name} (the archive ends {self.entry.size - len(data):,} bytes early)"
            )
        return data

    def stamp(self) -> str:
        return f"{self.member} {self.entry.size} {self.entry.modified}"


@dataclass(frozen=True, slots=True)
class ParquetImageFile:
    """A row of a Parquet file as the Hugging Face Hub has them: a column of struct<bytes, path>, or of plain bytes."""

    path: Path
    row_group: int
    row_in_group: int
    column: str = "image"

    def read(self) -> bytes:
        try:
            value = image_scalar(self.path, self.row_group, self.row_in_group, self.column)
        except (pa.ArrowException, OSError) as error:
            raise RowError(f"its image cannot be read from {self.path.name} ({error})") from error
        data = value.as_buffer()
        if data is None:
            raise RowError(f"{self.path.name} has no bytes of its image in column {self.column!r}, at most a path")
        _refuse_large(data.size)
        return data.to_pybytes()

    def stamp(self) -> str:
        return f"{self.path.name} {self.path.stat().st_size} {self.row_group} {self.row_in_group}"


def _refuse_large(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise RowError(f"its image file is larger than {MAX_FILE_BYTES:,} bytes")


class ImageStore:
    """Folders, zips and plain tars of images, searched as one; names are found with or without the folders they lie in."""

    def __init__(self, paths: Path | Sequence[Path]) -> None:
        self.paths = (paths,) if isinstance(paths, Path) else tuple(paths)
        self._parts = [_open_part(path) for path in self.paths]

    def find(self, name: str) -> ImageFile:
        """The picture of that name; RowError if there is none, more than one, or if the name climbs out of the folder.

        The whole path decides, then its end (in which the folder's or archive's own name may come first), then the file name alone.
        """
        if escapes_root(name):
            raise RowError("its image path climbs out of the folder of images")
        exact = [part for part in self._parts if part.has(name)]
        if len(exact) == 1:
            return exact[0].image_file(name)
        part, member = self._match(name)
        return part.image_file(member)

    def members(self) -> list[str]:
        """The names of all files, in archive order, folders sorted; without what macOS adds. `find` takes or refuses each of them."""
        return [name for part in self._parts for name in part.names if not _is_of_macos(name)]

    def read(self, member: str) -> bytes:
        """The bytes of a file, such as the caption beside an image; found as `find` does."""
        return self.find(member).read()

    def _match(self, name: str) -> tuple[_Part, str]:
        same_base = self._by_base.get(PurePosixPath(name).name, [])
        matches = (
            [found for found in same_base if found[1] == name]
            or [(part, member) for part, member in same_base if f"/{part.path.stem}/{member}".endswith(f"/{name}")]
            or same_base
        )
        where = " or ".join(str(path) for path in self.paths)
        if not matches:
            raise RowError(f"there is no such image in {where}")
        if len(matches) > 1:
            shown = [member if len(self.paths) == 1 else f"{part.path.name}: {member}" for part, member in matches[:2]]
            raise RowError(f"{len(matches)} images in {where} have that name ({shown[0]}, {shown[1]}): the full path is wanted")
        return matches[0]

    @cached_property
    def _by_base(self) -> dict[str, list[tuple[_Part, str]]]:
        by_base: dict[str, list[tuple[_Part, str]]] = {}
        for part in self._parts:
            for member in part.names:
                if not _is_of_macos(member):
                    by_base.setdefault(PurePosixPath(member).name, []).append((part, member))
        return by_base


class _Part(Protocol):
    """A folder or an archive."""

    path: Path

    @property
    def names(self) -> list[str]: ...

    def has(self, name: str) -> bool: ...

    def image_file(self, name: str) -> ImageFile: ...


class _Folder:
    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def names(self) -> list[str]:
        return [path.relative_to(self.path).as_posix() for path in sorted(self.path.rglob("*")) if path.is_file()]

    def has(self, name: str) -> bool:
        try:
            return (self.path / name).is_file()
        except (OSError, ValueError):  # a name no file can have, such as one of 5,000 letters
            return False

    def image_file(self, name: str) -> ImageFile:
        return FolderImageFile(self.path, name)


class _Zip:
    def __init__(self, path: Path) -> None:
        self.path, self.names = path, zip_members(path)
        self._names = frozenset(self.names)

    def has(self, name: str) -> bool:
        return name in self._names

    def image_file(self, name: str) -> ImageFile:
        if escapes_root(name):
            raise RowError(f"its path in the zip climbs out ({name})")
        if stat.S_ISLNK(open_zip(self.path).getinfo(name).external_attr >> 16):
            raise RowError(f"it is a link in the zip; a file is wanted ({name})")
        return ZipImageFile(self.path, name)


class _Tar:
    def __init__(self, path: Path) -> None:
        self.path, self._entries = path, tar_entries(path)

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    def has(self, name: str) -> bool:
        return name in self._entries

    def image_file(self, name: str) -> ImageFile:
        entry = self._entries[name]
        if entry.refused:
            raise RowError(f"{entry.refused} ({name})")
        return TarImageFile(self.path, name, entry)


def _open_part(path: Path) -> _Part:
    if not path.exists():
        raise InputError(f"the images {path} do not exist", hint="--images takes a folder or a zip or a tar")
    if path.is_dir():
        return _Folder(path)
    return _Tar(path) if is_tar(path) else _Zip(path)


def _is_of_macos(member: str) -> bool:
    return member.startswith("__MACOSX/") or PurePosixPath(member).name.startswith("._")
