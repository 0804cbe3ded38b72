"""Image files in folders, zips and tars: found by name without reading them, then read one at a time in any order.

An `ImageFile` is an image that is not read yet: small, cheap to pickle, and safe for several threads. An `ImageStore`
finds image files by the names that annotations use.
"""

from __future__ import annotations

import os
import stat
import struct
import tarfile
import threading
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO, ClassVar, Protocol

from dcdctl.core.data.images.formats import (
    CANNOT_OPEN,
    HEAD_BYTES,
    LINK,
    NOT_IMAGE,
    TOO_LARGE,
    VIDEO,
    Unread,
    is_video,
)
from dcdctl.core.errors import InputError
from dcdctl.core.files import escapes_root, files_below

MAX_FILE_BYTES = 256 << 20
"""Larger files are rejected unread; a photo of 200 megapixels has some 60 MiB, a RAW photo at most some 200."""
# zipfile counts its open members without a lock (until 3.11.8), and could close the file while another thread reads.
_READ_ZIP = threading.Lock()

UNREADABLE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    NotImplementedError,
)
"""What zipfile and tarfile raise for a damaged archive, or for one of a kind that they do not read."""


class RowError(ValueError):
    """A row that cannot be used. The message is the reason; the caller adds which row it is. `kind` is a key of
    `UNREAD`, if it is the file of its image that cannot be read."""

    def __init__(self, message: str, unread: Unread = CANNOT_OPEN) -> None:
        super().__init__(message)
        self.kind = unread.kind


class ImageFile(Protocol):
    """An image file that is not read yet."""

    is_here: ClassVar[bool]
    """Whether only this machine can read it, so that a worker on another one needs its bytes."""

    def read(self) -> bytes:
        """The bytes of the file; RowError if they cannot be read."""
        ...

    def stamp(self) -> str:
        """A text that changes when the file changes, known without reading the file: its name and size, and its
        checksum in a zip."""
        ...


@dataclass(frozen=True, slots=True)
class FolderImageFile:
    """An image file in a folder."""

    root: Path
    name: str
    is_here: ClassVar = True

    def read(self) -> bytes:
        with self.open() as file:
            try:
                head = file.read(HEAD_BYTES)
                # Here, because a video is large, and the one of a Live Photo lies beside each photo.
                if is_video(head):
                    raise RowError("it is a video, expected an image", VIDEO)
                return head + file.read()
            except OSError as error:
                raise RowError(f"its image cannot be read ({error.strerror})") from error

    def open(self) -> BinaryIO:
        """The open file; RowError if it cannot be opened."""
        if "\0" in self.name:
            raise RowError("its path holds a NUL, which no path can")
        try:
            return self._checked_path().open("rb")
        except OSError as error:
            raise RowError(f"its image cannot be read ({error.strerror})") from error

    def _checked_path(self) -> Path:
        """The path; RowError for a link out of the folder and for a large file, OSError if there is no file."""
        path = self.root / self.name
        status = path.lstat()
        # A file of the folder itself that is no link need not be resolved, which asks the system about each folder of
        # its path.
        if path.parent != self.root or not stat.S_ISREG(status.st_mode):
            if not path.resolve().is_relative_to(_resolve_folder(self.root)):
                raise RowError(f"its image is a link that leads out of the folder {self.root}", LINK)
            status = path.stat()
            # A device has no end, and a pipe waits for its writer.
            if not stat.S_ISREG(status.st_mode):
                raise RowError("its image is a folder, a device or a pipe, expected a file", NOT_IMAGE)
        if status.st_size > MAX_FILE_BYTES and _begins_video(path):
            raise RowError("it is a video, expected an image", VIDEO)
        reject_large_file(status.st_size)
        return path

    def stamp(self) -> str:
        return f"{self.name} {(self.root / self.name).stat().st_size}"


@dataclass(frozen=True, slots=True)
class ZipImageFile:
    """An image file in a zip."""

    archive: Path
    member: str
    is_here: ClassVar = True

    def read(self) -> bytes:
        info = _open_zip(self.archive).getinfo(self.member)
        reject_large_file(max(info.file_size, info.compress_size))
        try:
            # zipfile unpacks others without a limit, and 4,096 bytes may unpack to 3 GB.
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError("it is compressed by another method than deflate")
            with _READ_ZIP, _open_zip(self.archive).open(info) as file:
                # At most what the directory of the zip says, which may lie; its CRC-32 is compared at that place.
                data = file.read(info.file_size)
            if len(data) != info.file_size:
                raise ValueError(f"the zip says {info.file_size:,} bytes, it holds {len(data):,}")
            return data
        # RuntimeError: the member is encrypted.
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError) as error:
            raise RowError(f"its image cannot be read from {self.archive.name} ({error})") from error

    def stamp(self) -> str:
        info = _open_zip(self.archive).getinfo(self.member)
        return f"{self.member} {info.file_size} {info.CRC:08x}"


@dataclass(frozen=True, slots=True)
class TarImageFile:
    """An image file in an uncompressed tar."""

    archive: Path
    member: str
    offset: int
    """Where its bytes are."""
    size: int
    modified: int
    """Seconds since 1970, as saved in the tar."""
    is_here: ClassVar = True

    def read(self) -> bytes:
        reject_large_file(self.size)
        try:
            # Unbuffered, because the buffer would read past the image.
            with self.archive.open("rb", buffering=0) as file:
                file.seek(self.offset)
                data = file.read(self.size)
            if len(data) < self.size:
                raise OSError(f"the archive ends {self.size - len(data):,} bytes early")
            return data
        except OSError as error:
            raise RowError(f"its image cannot be read from {self.archive.name} ({error})") from error

    def stamp(self) -> str:
        return f"{self.member} {self.size} {self.modified}"


@dataclass(frozen=True, slots=True)
class PackedImageFile:
    """An image file that was read, to travel to another machine."""

    content: bytes | RowError
    """Its bytes, or why they cannot be read."""

    @classmethod
    def of(cls, file: ImageFile) -> PackedImageFile:
        """A file that is read now; the same as `read` of it gives."""
        try:
            return cls(file.read())
        except RowError as error:
            return cls(error)

    def read(self) -> bytes:
        """The bytes of the file; RowError if they cannot be read."""
        if isinstance(self.content, RowError):
            raise self.content
        return self.content


class ImageStore:
    """Folders, zips and uncompressed tars of images, searched as one; names match with or without the folders before
    them."""

    def __init__(self, paths: Path | Sequence[Path]) -> None:
        self.paths = (paths,) if isinstance(paths, Path) else tuple(paths)
        self._containers = [_open_container(path) for path in self.paths]
        self._roots = [root for path in self.paths for root in (path.absolute(), path.resolve())]

    def find(self, name: str) -> ImageFile:
        """The image file of that name; RowError if there is none, more than one, or if the name leads out of the
        folder.

        Matches by the whole path; else by the end of the path, to which the name of the folder or archive may belong;
        else by file name.
        """
        if escapes_root(name):
            of_windows = "; it is a path of Windows" if PureWindowsPath(name).drive else ""
            raise RowError(f"its image path leads out of the folder of images{of_windows}{self._meant(name)}")
        exact = [container for container in self._containers if container.has(name)]
        if len(exact) == 1:
            return exact[0].image_file(name)
        container, member = self._match(name)
        return container.image_file(member)

    def relative(self, name: str) -> str:
        """An absolute path in one of the folders, relative to it; another name as it is."""
        if name.startswith("/"):
            path = PurePosixPath(name)
            return next((str(path.relative_to(root)) for root in self._roots if path.is_relative_to(root)), name)
        return name

    def members(self) -> list[str]:
        """The names of all files, in archive order, sorted in folders, without macOS metadata. `find` accepts or
        rejects each of them."""
        return [name for container in self._containers for name in container.names if not is_macos_metadata(name)]

    def _match(self, name: str) -> tuple[_Container, str]:
        same_file_name = self._by_file_name.get(PurePosixPath(name).name, [])
        # The best of three ways to name an image: its path, the end of its path, its file name.
        matches = [match for match in same_file_name if match[1] == name]
        if not matches:
            paths = [f"/{container.path.stem}/{member}" for container, member in same_file_name]
            matches = [match for match, path in zip(same_file_name, paths, strict=True) if path.endswith(f"/{name}")]
        matches = matches or same_file_name
        searched = " or ".join(map(str, self.paths))
        if not matches:
            raise RowError(f"there is no such image in {searched}{self._meant(name)}")
        if len(matches) > 1:
            names = [member for _, member in matches[:2]]
            if len(self.paths) > 1:
                names = [f"{container.path.name}: {member}" for container, member in matches[:2]]
            shown = ", ".join(names)
            raise RowError(f"{len(matches)} images in {searched} have that name ({shown}): give the full path")
        return matches[0]

    def _meant(self, name: str) -> str:
        """The image that a name may stand for, as the end of a message; empty if there is none."""
        near = self._by_near_name.get(PureWindowsPath(name).name.lower())
        return f" (did you mean {near}?)" if near else ""

    @cached_property
    def _by_near_name(self) -> dict[str, str]:
        """The path of an image by its file name in small letters, also without its ending."""
        near: dict[str, str] = {}
        for name, members in self._by_file_name.items():
            for written in (name, PurePosixPath(name).stem):
                near.setdefault(written.lower(), members[0][1])
        return near

    @cached_property
    def _by_file_name(self) -> dict[str, list[tuple[_Container, str]]]:
        by_file_name = defaultdict(list)
        for container in self._containers:
            for member in container.names:
                if not is_macos_metadata(member):
                    by_file_name[PurePosixPath(member).name].append((container, member))
        return by_file_name


class _Folder:
    """A folder of images."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def names(self) -> Collection[str]:
        """The names of all files."""
        return [path.relative_to(self.path).as_posix() for path in files_below(self.path) if path.is_file()]

    def has(self, name: str) -> bool:
        """Whether there is a file of that name, without a list of the folder."""
        try:
            return (self.path / name).is_file()
        except (OSError, ValueError):  # a name that no file can have, such as one of 5,000 letters
            return False

    def image_file(self, name: str) -> ImageFile:
        return FolderImageFile(self.path, name)


_Members = dict[str, ImageFile | str]
"""The file of each name, or why it is not read, in archive order."""


class _Archive:
    """A zip or a tar."""

    def __init__(self, path: Path, members: _Members) -> None:
        self.path, self.names = path, members.keys()
        self._members = members

    def has(self, name: str) -> bool:
        return name in self._members

    def image_file(self, name: str) -> ImageFile:
        """The file of that name; RowError if it may not be read."""
        member = self._members[name]
        if isinstance(member, str):
            raise RowError(f"{member} ({name})")
        return member


_Container = _Folder | _Archive


def _open_container(path: Path) -> _Container:
    if path.is_dir():
        return _Folder(path)
    try:
        with path.open("rb") as file:
            is_zip = file.read(2) == b"PK"
        return _Archive(path, _zip_members(path) if is_zip else _tar_members(path))
    except FileNotFoundError as error:
        raise InputError(f"the images {path} do not exist", hint="--images takes a folder or a zip or a tar") from error
    except UNREADABLE as error:
        raise InputError(
            f"{path} cannot be read as a zip or an uncompressed tar ({error})",
            hint="decompress a compressed tar first; a download may have been cut off",
        ) from error


def is_macos_metadata(member: str) -> bool:
    """Whether a file in an archive is one that macOS adds."""
    return member.startswith("__MACOSX/") or member.rpartition("/")[2].startswith("._")


def _tar_members(path: Path) -> _Members:
    """All members except folders, or why one is not read, in archive order, by name without a leading `./`; the later
    of two with one name, as when unpacking."""
    members: _Members = {}
    # "r:" refuses compressed tars, whose members cannot be read at an offset.
    with tarfile.open(path, "r:") as archive:
        for info in archive:
            if not info.isdir():
                name = PurePosixPath(info.name).as_posix()
                image = TarImageFile(path, name, info.offset_data, info.size, int(info.mtime))
                members[name] = why_refused(info) or image
        end = archive.offset
    with path.open("rb") as file:
        check_tar_end(file, end, str(path))
    return members


def check_tar_end(file: Any, end: int, name: str) -> None:
    """InputError unless only zeros follow the byte where tarfile stops: it takes a damaged header, or zeros in place of
    files, for the end."""
    file.seek(end)
    while block := file.read(1 << 20):
        if block.strip(b"\0"):
            raise InputError(
                f"the tar {name} is damaged at byte {end:,}: it ends there, and data follows",
                hint="a download may have been cut off, or several tars joined into one",
            )


def why_refused(info: tarfile.TarInfo) -> str:
    """Why a member of a tar is not read; empty if it is."""
    if escapes_root(info.name):
        return "its path in the tar leads out of it"
    if info.size < 0:
        return "its size in the tar is negative"
    if info.issym() or info.islnk():
        return f"it is a link in the tar to {info.linkname}, expected a file"
    # The bytes of a sparse member are not stored in one piece.
    return "" if info.isreg() and not info.issparse() else "it is a device or another special file in the tar"


def _zip_members(path: Path) -> _Members:
    """All files in a zip, or why one is not read, in archive order."""
    members: _Members = {}
    # May hold a name twice; zipfile reads the later one.
    for info in _open_zip(path).infolist():
        name = info.filename
        if info.is_dir():
            continue
        if escapes_root(name):
            members[name] = "its path in the zip leads out of it"
        # The upper 16 bits hold the Unix file mode.
        elif stat.S_ISLNK(info.external_attr >> 16):
            members[name] = "it is a link in the zip, expected a file"
        else:
            members[name] = ZipImageFile(path, name)
    return members


def _open_zip(path: Path) -> zipfile.ZipFile:
    return _cached_zip(path, path.stat().st_mtime_ns, os.getpid())


# The caches know the process because a forked process must not share a file position, and the time of the last change
# because a path may get other content. Four zips: COCO comes in two.
@lru_cache(maxsize=4)
def _cached_zip(path: Path, mtime_ns: int, process: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


@lru_cache(maxsize=4)
def _resolve_folder(folder: Path) -> Path:
    return folder.resolve()


def reject_large_file(size: int) -> None:
    """RowError for an image file of more than `MAX_FILE_BYTES`."""
    if size > MAX_FILE_BYTES:
        raise RowError(f"its image file is larger than {MAX_FILE_BYTES:,} bytes", TOO_LARGE)


def _begins_video(path: Path) -> bool:
    with path.open("rb") as file:
        return is_video(file.read(HEAD_BYTES))
