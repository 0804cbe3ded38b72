"""Places of files: local paths, and URLs that are read by byte ranges with retries, without a copy on disk.

https://, http:// and hf:// are read here, because fsspec's readers need further packages and repeat no failed request.
Every other protocol (s3://, gs://, memory://, ...) is read through fsspec. Passwords and queries of URLs, which may be
credentials, appear in no message.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import os
import re
import tarfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from dcdctl.core.data.download import http, hub
from dcdctl.core.errors import ConfigError, InputError, MissingError, SourceError, StaleError, first_line
from dcdctl.core.files import atomic_path, unreadable
from dcdctl.core.places import links_of, local_path, shown, url_of
from dcdctl.core.progress import Track

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

T = TypeVar("T")
_NUMBERS = re.compile(r"(\d{1,18})\.\.(\d{1,18})")
_BRACES = re.compile(r"\{([^{}]*)\}")
MAX_NAMES = 1_000_000
"""Files that a pattern may name: the pairs of LAION-5B in tars of 10,000 are 585,000 files. A training looks up each
name before it starts."""
READ_BYTES = 4 << 20
"""What is requested at once where a file is read from start to end."""


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
        system, within = _file_system(url)
        paths = [str(system.unstrip_protocol(name)) for name in sorted(_asked(lambda: system.glob(within), url))]
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
    return _WebFile(url) if url.startswith(("http://", "https://")) else _FileSystemFile(url)


def copy_to(url: str, folder: Path, track: Track) -> Path:
    """A remote file copied into a folder, unless this version of it is there. Its name begins with a digest of URL,
    size and version."""
    remote = open_remote(url)
    name = urlsplit(url).path.rpartition("/")[2]
    digest = hashlib.sha256(f"{url} {remote.size} {remote.version}".encode()).hexdigest()[:16]
    path = folder / f"{digest}-{name}"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with (
        atomic_path(path) as partial,
        partial.open("wb") as file,
        track(f"download {name}", total=remote.size, unit="bytes") as advance,
    ):
        for start in range(0, remote.size, READ_BYTES):
            advance(file.write(remote.read_range(start, min(start + READ_BYTES, remote.size))))
    return path


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


def _attempted(request: Callable[[], T], url: str) -> T:
    """The result of a request, repeated with increasing waits; SourceError if it fails for good, or as often as a
    download may."""
    import httpx2

    for attempt in itertools.count(1):
        try:
            return request()
        except FileNotFoundError as error:
            raise SourceError(f"{shown(url)} does not exist", hint="check the URL") from error
        except PermissionError as error:
            raise SourceError(f"{shown(url)} was refused", hint="check the credentials of its protocol") from error
        except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, httpx2.HTTPError, http.RetryError) as error:
            if attempt == http.ATTEMPTS:
                # Not the text of the error, in which libraries quote URLs with their queries.
                reason = str(error) if isinstance(error, http.RetryError) else type(error).__name__
                raise SourceError(
                    f"{shown(url)}: gave up after {attempt} attempts ({reason})", hint="run the command again later"
                ) from error
            time.sleep(http.FIRST_WAIT_SECONDS * 2 ** (attempt - 1))
    raise AssertionError("unreachable")


class _WebFile:
    """A file on a web server, at the version that it has when it is opened."""

    def __init__(self, url: str) -> None:
        self.url = url
        refuse_password(url)
        self._open(url, {})

    def _open(self, address: str, headers: dict[str, str]) -> None:
        self._address, self._headers = address, headers
        head = _attempted(
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
        return _attempted(lambda: self._request(start, stop), self.url)

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


class _FileSystemFile:
    """A file of any other protocol, through fsspec."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._system, self._path = _file_system(url)
        facts = _asked(lambda: self._system.info(self._path), url)
        if facts.get("type") == "directory" or facts.get("size") is None:
            raise SourceError(f"{shown(url)} is not a file", hint="check the URL")
        self.size = int(facts["size"])
        # Their names differ: ETag, generation, mtime, ...
        self.version = hashlib.sha256(repr(sorted(facts.items(), key=str)).encode()).hexdigest()[:16]

    def read_range(self, start: int, stop: int) -> bytes:
        def read() -> bytes:
            data: bytes = self._system.cat_file(self._path, start=start, end=stop)
            if len(data) != stop - start:
                raise http.RetryError(f"it sent {len(data):,} of {stop - start:,} bytes")
            return data

        return _attempted(read, self.url)


Remote = _WebFile | _FileSystemFile
"""A file that is read by ranges of bytes."""


def _file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it; MissingError names the package that its protocol needs."""
    from fsspec.core import url_to_fs

    refuse_password(url)
    protocol = urlsplit(url).scheme
    try:
        # Opens the archive of zip://NAME::URL.
        system, path = _asked(lambda: url_to_fs(url), url)
    except ImportError as error:
        # simplecache::s3://bucket needs what s3:// needs.
        protocol = urlsplit(links_of(url)[-1]).scheme
        raise MissingError(
            f"{shown(url)} needs a package that is not installed: {first_line(error)}",
            hint=f"install what fsspec needs for {protocol}",
        ) from error
    return system, path


def _asked(request: Callable[[], T], url: str) -> T:
    """`_attempted` for fsspec; ConfigError for a protocol that it lacks, or that takes more than a URL (reference://)."""
    try:
        return _attempted(request, url)
    except (ValueError, TypeError, AttributeError) as error:
        known = "s3://, gs://, az://, https://, hf:// and the other protocols of fsspec"
        reason = "is unknown" if "not known" in str(error) else "names no files by a URL alone"
        raise ConfigError(
            f"{shown(url)}: the protocol {urlsplit(url).scheme}:// {reason}", hint=f"known are {known}"
        ) from error


def refuse_password(url: str) -> None:
    """ConfigError for a password in a URL, which would end up in command histories and in saved command lines."""
    if any(":" in urlsplit(link).netloc.rpartition("@")[0] for link in links_of(url)):
        raise ConfigError(
            f"{shown(url)} is given with a password", hint="use the settings or environment variables of its protocol"
        )
