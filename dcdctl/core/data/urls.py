"""Places of files: local paths, and URLs that are read by byte ranges with retries, without a copy on disk.

https://, http:// and hf:// are read here, because fsspec's readers need further packages and repeat no failed request.
Every other protocol (s3://, gs://, memory://, ...) is read and written through fsspec (`file_systems`). Passwords and
queries of URLs, which may be credentials, appear in no message.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dcdctl.core import files
from dcdctl.core.data import file_systems
from dcdctl.core.data.attempts import attempted
from dcdctl.core.data.download import cache, http, hub
from dcdctl.core.data.file_systems import READ_BYTES, refuse_password
from dcdctl.core.errors import ConfigError, InputError, SourceError, StaleError
from dcdctl.core.files import atomic_path, unreadable
from dcdctl.core.places import local_path, shown, url_of
from dcdctl.core.progress import Track, silent

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_NUMBERS = re.compile(r"(\d{1,18})\.\.(\d{1,18})")
_BRACES = re.compile(r"\{([^{}]*)\}")
MAX_NAMES = 1_000_000
"""Files that a pattern may name: the pairs of LAION-5B in tars of 10,000 are 585,000 files. A training looks up each
name before it starts."""
_WEB = ("http://", "https://")


def expand(pattern: str) -> list[str]:
    """The places that a pattern names: {0000..0331} and {a,b} in the order written, then *, locally also ? and [...],
    by name.

    InputError or SourceError if nothing matches. ConfigError for a * on a plain web server, which lists no files, and
    for braces that name none or more than `MAX_NAMES`.
    """
    places = [place for written in _expand_braces(pattern) for place in _expand_stars(written)]
    if repeated := next((place for place, group in itertools.groupby(sorted(places)) if len(list(group)) > 1), None):
        raise ConfigError(f"{shown(repeated)} is named twice", hint="name each file once")
    return places


def _expand_braces(pattern: str) -> list[str]:
    parts: list[tuple[Sequence[object], int]] = []
    # What is between braces is at the odd positions.
    for position, text in enumerate(_BRACES.split(pattern)):
        if position % 2 and (numbers := _NUMBERS.fullmatch(text)):
            parts.append((range(int(numbers[1]), int(numbers[2]) + 1), len(numbers[1])))
        else:
            parts.append((text.split(",") if position % 2 else [text], 0))
    num_names = math.prod(len(choices) for choices, _ in parts)
    if not 0 < num_names <= MAX_NAMES:
        raise ConfigError(
            f"{shown(pattern)} names {num_names:,} files, expected 1 to {MAX_NAMES:,}", hint="check the braces"
        )
    padded = []
    for choices, width in parts:
        padded.append([str(choice).zfill(width) for choice in choices])
    return ["".join(names) for names in itertools.product(*padded)]


def _expand_stars(pattern: str) -> list[str]:
    url = url_of(pattern)
    # A ? of a URL begins its query.
    wildcards = "*?[" if url is None else "*"
    if not any(letter in pattern for letter in wildcards):
        return [pattern if url is None else url]
    if url is None:
        path = local_path(pattern)
        paths = sorted(str(match) for match in Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    elif url.startswith(("http://", "https://")):
        raise ConfigError(f"{shown(url)}: a web server lists no files", hint="write the names as in {0000..0331}")
    elif url.startswith("hf://"):
        parts = hub.HubPath.parse(url)
        paths = [parts.folder + name for name in parts.matching(hub.sizes(parts))]
    else:
        paths = file_systems.matching(url)
    if not paths:
        raise InputError(f"no file matches {shown(pattern)}", hint="check the pattern, and quote it for the shell")
    return paths


def size_and_version(place: str | Path) -> tuple[int, str]:
    """Size and version of a file; InputError or SourceError if there is none."""
    url = url_of(place)
    if url is not None:
        remote = open_remote(url)
        return remote.size, remote.version
    path = local_path(place)
    try:
        status = path.stat()
    except OSError as error:
        raise unreadable(path, error, hint="check the path") from error
    return status.st_size, str(status.st_mtime_ns)


def open_file(place: str | Path, *, buffer_bytes: int = 0) -> io.BufferedReader | RangeFile:
    """A file to read, at any position; with `buffer_bytes`, a URL is requested in ranges of that size, ahead of what is
    read."""
    url = url_of(place)
    if url is not None:
        raw = RangeFile(open_remote(url))
        return io.BufferedReader(raw, buffer_bytes) if buffer_bytes else raw
    path = local_path(place)
    try:
        return path.open("rb")
    except OSError as error:
        raise unreadable(path, error, hint="check the path") from error


def read_text(url: str) -> str:
    """The text of a small remote file."""
    remote = open_remote(url)
    return remote.read_range(0, remote.size).decode("utf-8")


def open_remote(url: str) -> Remote:
    """A remote file, whose size and version are read now. SourceError if it cannot be read, MissingError without the
    protocol's package."""
    if url.startswith("hf://"):
        return _HubFile(url)
    return _WebFile(url) if url.startswith(("http://", "https://")) else file_systems.open_remote(url)


def copy_to(url: str, folder: Path, track: Track) -> Path:
    """A remote file copied into a folder, unless this version of it is there. Its name begins with a digest of URL,
    size and version."""
    remote = open_remote(url)
    name = urlsplit(url).path.rpartition("/")[2]
    digest = hashlib.sha256(f"{url} {remote.size} {remote.version}".encode()).hexdigest()[:16]
    path = folder / f"{digest}-{name}"
    if path.exists():
        return path
    with (
        atomic_path(path) as partial,
        partial.open("wb") as file,
        track(f"download {name}", total=remote.size, unit="bytes") as advance,
    ):
        for start in range(0, remote.size, READ_BYTES):
            advance(file.write(remote.read_range(start, min(start + READ_BYTES, remote.size))))
    return path


def list_files(place: str | Path, suffixes: Sequence[str] = ()) -> list[str]:
    """The files of a place with one of the suffixes, by name: the place itself if it is a file or a pattern, and all
    files of a folder, however deep. All files without suffixes.

    Names in a folder that begin with `_` or `.` are left out, since engines write markers under such names. InputError
    or SourceError if there is no file, or another one is named than the suffixes allow.
    """
    url = url_of(place)
    if url is None:
        return [str(path) for path in files.find_named([str(local_path(place))], suffixes, what="file", option="it")]
    if url.startswith(_WEB) or any(letter in url for letter in "*{"):
        found, is_folder = expand(url), False
    else:
        names = list_folder(url)
        is_folder = "" not in names
        found = [f"{url.rstrip('/')}/{name}".rstrip("/") for name in names]
    if is_folder:
        found = [name for name in found if not _is_marker(name, url) and _ends_with(name, suffixes)]
    kinds = f" that ends with {', '.join(suffixes)}" if suffixes else ""
    if not found:
        raise InputError(f"{shown(url)} holds no file{kinds}", hint="check the URL")
    if other := next((name for name in found if not _ends_with(name, suffixes)), None):
        raise InputError(f"{shown(other)} is no file{kinds}", hint="check the URL, or name a pattern in quotes")
    return found


def list_folder(url: str) -> dict[str, int]:
    """The size of each file of a folder at an s3:// or hf:// URL, however deep, by its path in it; that of "" if the
    URL is a file."""
    if not url.startswith("hf://"):
        return file_systems.list_folder(url)
    parts = hub.HubPath.parse(url)
    folder = parts.path.rstrip("/")
    found = {path: size for path, size in sorted(hub.sizes(parts).items()) if f"{path}/".startswith(f"{folder}/")}
    return {path.removeprefix(folder).lstrip("/"): size for path, size in found.items()}


def _is_marker(name: str, folder: str) -> bool:
    return any(part.startswith(("_", ".")) for part in name[len(folder.rstrip("/")) :].split("/"))


def _ends_with(name: str, suffixes: Sequence[str]) -> bool:
    # Only the URL of a web server has a query; a key of a store may have a ? or a #.
    path = urlsplit(name).path if name.startswith(_WEB) else name
    return not suffixes or Path(path).suffix.lower() in suffixes


def find_named(names: Sequence[str], suffixes: Sequence[str], *, what: str, option: str) -> list[Path]:
    """`files.find_named` that also takes URLs of files, folders and patterns. `open_file` opens what it returns."""
    found: list[Path] = []
    for name in names:
        if url_of(name) is None:
            found += files.find_named([name], suffixes, what=what, option=option)
        else:
            found += map(Path, list_files(name, suffixes))
    return list(dict.fromkeys(found))


def open_stream(place: str | Path) -> io.BufferedReader:
    """A file to read from start to end."""
    file = open_file(place, buffer_bytes=READ_BYTES)
    assert isinstance(file, io.BufferedReader)
    return file


def readable(path: Path) -> Path | io.BufferedReader:
    """What a reader takes that accepts paths and open files: a path of this machine itself, and a URL opened."""
    return path if url_of(path) is None else open_stream(path)


def local_copy(path: Path, track: Track = silent) -> Path:
    """A path of this machine itself, and a copy of a URL in the cache of downloads, for readers that need a path."""
    url = url_of(path)
    return path if url is None else copy_to(url, cache.cache_folder() / "downloads", track)


def check_writable(folder: str | Path) -> None:
    """An error, before any work, if no file can be written to a folder or to the folder of a URL."""
    url = url_of(folder)
    if url is None:
        files.check_output_folder(local_path(folder))
    else:
        _refuse_to_write(url)
        file_systems.check_writable(url)


def write_file(place: str | Path, path: Path) -> None:
    """Write a file of this machine to a place atomically. SourceError if it cannot be written, or if what is at a URL
    then differs from it."""
    url = url_of(place)
    if url is not None:
        _refuse_to_write(url)
        file_systems.upload(path, url)
    else:
        with atomic_path(local_path(place)) as partial:
            shutil.copyfile(path, partial)


def exists(place: str | Path) -> bool:
    """Whether there is a file. An error for a place that does not say so, such as one without a permission."""
    url = url_of(place)
    if url is None:
        return local_path(place).exists()
    try:
        open_remote(url)
    except SourceError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return False
        raise
    return True


def _refuse_to_write(url: str) -> None:
    if url.startswith((*_WEB, "hf://")):
        raise ConfigError(
            f"{shown(url)}: {urlsplit(url).scheme}:// is read only here", hint="name an s3:// URL, or a folder"
        )


class RangeFile(io.RawIOBase):
    """A remote file as a file object; each read is one request."""

    def __init__(self, remote: Remote) -> None:
        self.remote, self._position = remote, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.remote.size}[whence]
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        stop = min(self._position + len(view), self.remote.size)
        if stop <= self._position:
            return 0
        data = self.remote.read_range(self._position, stop)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


class _WebFile:
    """A file on a web server, at the version that it has when it is opened."""

    def __init__(self, url: str) -> None:
        self.url = url
        refuse_password(url)
        self._open(url, {})

    def _open(self, address: str, headers: dict[str, str]) -> None:
        self._address, self._headers = address, headers
        head = attempted(
            lambda: http.check_status(http.client(os.getpid()).head(address, headers=headers), self.url), self.url
        )
        # The Hub stores large files elsewhere, and gives their size in a header of its own.
        length = str(head.headers.get("x-linked-size") or head.headers.get("content-length", ""))
        if not length.isdecimal():
            raise SourceError(
                f"{shown(self.url)}: the server does not say how long the file is", hint="download it first"
            )
        self.size = int(length)
        linked, etag = (str(head.headers.get(name, "")) for name in ("x-linked-etag", "etag"))
        # Changes when the file changes; empty if the server does not say.
        self.version = linked or etag or str(head.headers.get("last-modified", ""))
        # The host to which the Hub redirects has ETags of its own.
        self._etag = "" if linked else etag

    def read_range(self, start: int, stop: int) -> bytes:
        """The bytes from start to before stop; SourceError after repeated failures."""
        return attempted(lambda: self._request(start, stop), self.url)

    def _request(self, start: int, stop: int) -> bytes:
        headers = {**self._headers, "Range": f"bytes={start}-{stop - 1}"}
        with http.client(os.getpid()).stream("GET", self._address, headers=headers) as response:
            http.check_status(response, self.url)
            span = http.CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
            if response.status_code != 206 or span is None:
                raise SourceError(f"{shown(self.url)}: the server sends no byte ranges", hint="download the file first")
            if span["size"] != str(self.size) or (
                self._etag and response.headers.get("etag", self._etag) != self._etag
            ):
                raise StaleError(f"{shown(self.url)} has changed while it was read", hint="run the command again")
            data = response.read()
        if int(span["first"]) != start or len(data) != stop - start:
            raise http.RetryError(f"it sent {len(data):,} of {stop - start:,} bytes")
        return data


class _HubFile(_WebFile):
    """A file in a repository of the Hub, at the commit that its revision names when it is opened."""

    def __init__(self, url: str) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        self.url, parts = url, hub.HubPath.parse(url)
        address = hf_hub_url(
            parts.repo,
            parts.path,
            repo_type=parts.kind,
            revision=parts.revision,
            endpoint=os.environ.get("HF_ENDPOINT") or None,
        )
        self._open(address, build_hf_headers())


Remote = _WebFile | file_systems.FileSystemFile
"""A file that is read by ranges of bytes."""
