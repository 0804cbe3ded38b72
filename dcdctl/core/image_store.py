"""Folders, zips and tars of images: files are found by name, and read later, in whichever process."""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Protocol

import pyarrow as pa

from dcdctl.core import archives
from dcdctl.core.errors import InputError

MAX_FILE_BYTES = 256 << 20
"""A larger image file is refused unread."""


class RowError(ValueError):
    """A row that cannot be used; the message says why, the one who catches it knows where."""


class Picture(Protocol):
    """An image file that is not read yet."""

    def read(self) -> bytes:
        """The bytes of the file; RowError if they cannot be had."""
        ...

    def stamp(self) -> str:
        """What changes when the file does, and can be had without reading it."""
        ...


@dataclass(frozen=True, slots=True)
class FilePicture:
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
class ZipPicture:
    """A member of a zip of images."""

    archive: Path
    member: str

    def read(self) -> bytes:
        archive = archives.open_zip(self.archive)
        _refuse_large(archive.getinfo(self.member).file_size)
        try:
            return archive.read(self.member)
        # RuntimeError: it wants a password
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
            raise RowError(f"its image cannot be read from {self.archive.name} ({error})") from error

    def stamp(self) -> str:
        info = archives.open_zip(self.archive).getinfo(self.member)
        return f"{self.member} {info.file_size} {info.CRC:08x}"


@dataclass(frozen=True, slots=True)
class TarPicture:
    """A member of a plain tar; `entry` says where in the archive its bytes are."""

    archive: Path
    member: str
    entry: archives.TarEntry

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
        return f"{self.member} {self.entry.size} {self.entry.changed}"


@dataclass(frozen=True, slots=True)
class ParquetPicture:
    """A row of a Parquet file as the Hugging Face Hub has them: a column of struct<bytes, path>, or of plain bytes."""

    path: Path
    row_group: int
    row_in_group: int
    column: str = "image"

    def read(self) -> bytes:
        try:
            value = archives.image_scalar(self.path, self.row_group, self.row_in_group, self.column)
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

    def find(self, name: str) -> Picture:
        """The picture of that name; RowError if there is none, more than one, or if the name climbs out of the folder.

        The whole path decides, then its end (in which the folder's or archive's own name may come first), then the file name alone.
        """
        if archives.climbs_out(name):
            raise RowError("its image path climbs out of the folder of images")
        exact = [part for part in self._parts if part.has(name)]
        if len(exact) == 1:
            return exact[0].picture(name)
        part, member = self._match(name)
        return part.picture(member)

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

    def picture(self, name: str) -> Picture: ...


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

    def picture(self, name: str) -> Picture:
        return FilePicture(self.path, name)


class _Zip:
    def __init__(self, path: Path) -> None:
        self.path, self.names = path, archives.zip_members(path)
        self._names = frozenset(self.names)

    def has(self, name: str) -> bool:
        return name in self._names

    def picture(self, name: str) -> Picture:
        if archives.climbs_out(name):
            raise RowError(f"its path in the zip climbs out ({name})")
        if stat.S_ISLNK(archives.open_zip(self.path).getinfo(name).external_attr >> 16):
            raise RowError(f"it is a link in the zip; a file is wanted ({name})")
        return ZipPicture(self.path, name)


class _Tar:
    def __init__(self, path: Path) -> None:
        self.path, self._entries = path, archives.tar_entries(path)

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    def has(self, name: str) -> bool:
        return name in self._entries

    def picture(self, name: str) -> Picture:
        entry = self._entries[name]
        if entry.refused:
            raise RowError(f"{entry.refused} ({name})")
        return TarPicture(self.path, name, entry)


def _open_part(path: Path) -> _Part:
    if not path.exists():
        raise InputError(f"the images {path} do not exist", hint="--images takes a folder or a zip or a tar")
    if path.is_dir():
        return _Folder(path)
    return _Tar(path) if archives.is_tar(path) else _Zip(path)


def _is_of_macos(member: str) -> bool:
    return member.startswith("__MACOSX/") or PurePosixPath(member).name.startswith("._")
