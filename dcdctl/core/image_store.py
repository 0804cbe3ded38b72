"""Folders and zips of images: files are found by name, and read later, in whichever process."""

from __future__ import annotations

import os
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Protocol

from dcdctl.core.errors import InputError

MAX_FILE_BYTES = 256 << 20
"""A larger image file is refused unread."""


class RowError(ValueError):
    """A row that cannot be used; the message says why, the one who catches it knows where."""


class Picture(Protocol):
    """An image file that is not read yet."""

    def read(self) -> bytes: ...

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
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise RowError(f"its image is a link that leads out of the folder {self.root}")
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise RowError(f"its image file is larger than {MAX_FILE_BYTES:,} bytes")
            return path.read_bytes()
        except OSError as error:
            raise RowError(f"its image cannot be read ({error.strerror})") from error

    def stamp(self) -> str:
        return f"{self.name} {(self.root / self.name).stat().st_size}"


@dataclass(frozen=True, slots=True)
class ZipPicture:
    """A member of a zip of images."""

    archive: Path
    member: str

    def read(self) -> bytes:
        archive = _open_zip(self.archive)
        if archive.getinfo(self.member).file_size > MAX_FILE_BYTES:
            raise RowError(f"its image file is larger than {MAX_FILE_BYTES:,} bytes")
        try:
            return archive.read(self.member)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:  # RuntimeError: it wants a password
            raise RowError(f"its image cannot be read from {self.archive.name} ({error})") from error

    def stamp(self) -> str:
        info = _open_zip(self.archive).getinfo(self.member)
        return f"{self.member} {info.file_size} {info.CRC:08x}"


def _open_zip(path: Path) -> zipfile.ZipFile:
    """The archive, opened once a process: a forked child must not share its parent's file position."""
    return _open_zip_once(path, path.stat().st_mtime_ns, os.getpid())


@lru_cache(maxsize=4)
def _open_zip_once(path: Path, changed: int, process: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _is_file(path: Path) -> bool:
    """Whether there is such a file; a name no file can have, such as one of 5,000 letters, is no error."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


class ImageStore:
    """A folder or a zip of images, in which names are found with or without the folders they lie in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            raise InputError(f"the images {path} do not exist", hint="--images takes a folder or a zip")
        if path.is_file():
            try:
                _open_zip(path)
            except (zipfile.BadZipFile, OSError) as error:
                hint = "--images takes a folder or a zip; a download may have been cut off"
                raise InputError(f"{path} is not a zip ({error})", hint=hint) from error

    def find(self, name: str) -> Picture:
        """The picture of that name; RowError if there is none, more than one, or if the name climbs out of the folder."""
        windows = PureWindowsPath(name)
        if PurePosixPath(name).is_absolute() or windows.drive or windows.root or ".." in windows.parts:
            raise RowError("its image path climbs out of the folder of images")
        if self.path.is_dir():
            member = name if _is_file(self.path / name) else self._match(name)
            return FilePicture(self.path, member)
        return ZipPicture(self.path, self._match(name))

    def _match(self, name: str) -> str:
        # One name may lie in several folders: the longest known path decides, and a guess between two is no match.
        same_base = self._by_base.get(PurePosixPath(name).name, [])
        if name in same_base:
            return name
        matches = [member for member in same_base if member.endswith(f"/{name}")] or same_base
        if not matches:
            raise RowError(f"there is no such image in {self.path}")
        if len(matches) > 1:
            raise RowError(f"{len(matches)} images in {self.path} have that name ({matches[0]}, {matches[1]}): the full path is wanted")
        return matches[0]

    @cached_property
    def _by_base(self) -> dict[str, list[str]]:
        if self.path.is_dir():
            members = [path.relative_to(self.path).as_posix() for path in sorted(self.path.rglob("*")) if path.is_file()]
        else:
            members = [info.filename for info in _open_zip(self.path).infolist() if not info.is_dir()]
        by_base: dict[str, list[str]] = {}
        for member in members:
            if not member.startswith("__MACOSX/"):
                by_base.setdefault(PurePosixPath(member).name, []).append(member)
        return by_base
