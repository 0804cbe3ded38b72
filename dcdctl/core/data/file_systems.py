"""Files of all protocols of fsspec, such as s3://: read by ranges of one version, listed, and written atomically.

An object of a store appears when its upload is complete, so a reader sees all of it or the one before. Credentials and
endpoints are those of the protocol's own environment variables and files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from dcdctl.core.data.attempts import attempted, changed_error
from dcdctl.core.data.download import http
from dcdctl.core.errors import ConfigError, MissingError, SourceError, first_line, install_command
from dcdctl.core.places import links_of, shown

T = TypeVar("T")
PART_BYTES = 50 << 20
"""The size of a part of an upload, to S3 for files of 100 MB and more. The ETag of such a file depends on it."""
READ_BYTES = 4 << 20
"""What is requested at once where a file is read from start to end."""
_VERSION_FACTS = ("ETag", "etag", "generation")
"""What tells one version of a file from the next. Listings and requests for one file agree in these facts only."""
_OPTIONS: dict[str, dict[str, Any]] = {
    # botocore and s3fs each repeat a failed request five times by default, and `attempted` five times theirs: 125
    # requests, and half an hour against a server that is silent.
    "s3": {"config_kwargs": {"retries": {"total_max_attempts": 1}}, "use_listings_cache": False},
}
_EXTRAS = {"s3": "s3", "s3a": "s3"}
"""The extra of dcdctl with the package of a protocol."""
_TRIAL = ".dcdctl-write-trial"


class FileSystemFile:
    """A file at the version that it has when it is opened."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._system, self._path = file_system(url)
        facts = asked(lambda: self._system.info(self._path), url)
        if facts.get("type") == "directory" or facts.get("size") is None:
            raise SourceError(
                f"{shown(url)} is a folder, a file is expected", hint="name a file, such as a table, a zip or a tar"
            )
        self.size, self.version = int(facts["size"]), _version(facts)

    def read_range(self, start: int, stop: int) -> bytes:
        """The bytes from start to before stop; SourceError after repeated failures, StaleError if the file was
        replaced."""

        def read() -> bytes:
            data = self._read(start, stop)
            if len(data) != stop - start:
                raise http.RetryError(f"it sent {len(data):,} of {stop - start:,} bytes")
            return data

        return asked(read, self.url)

    def _read(self, start: int, stop: int) -> bytes:
        data: bytes = self._system.cat_file(self._path, start=start, end=stop)
        # After reading: what was still there then is what was read. fsspec has no reading under a condition.
        if _version(self._system.info(self._path)) != self.version:
            raise changed_error(self.url)
        return data


class _S3File(FileSystemFile):
    """A file of S3, which is read under the condition that its ETag is the same; this saves a request per range."""

    def _read(self, start: int, stop: int) -> bytes:
        from fsspec.asyn import sync

        data: bytes = sync(self._system.loop, self._get, start, stop)
        return data

    # Not a file object of s3fs, which gives up with an IndexError where a connection times out.
    async def _get(self, start: int, stop: int) -> bytes:
        bucket, key, _ = self._system.split_path(self._path)
        answer = await self._system._call_s3(
            "get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}", IfMatch=self.version
        )
        try:
            data: bytes = await answer["Body"].read()
        finally:
            answer["Body"].close()
        return data


def open_remote(url: str) -> FileSystemFile:
    """A file of a protocol of fsspec; SourceError if there is none, MissingError without the protocol's package."""
    return (_S3File if urlsplit(url).scheme in ("s3", "s3a") else FileSystemFile)(url)


def matching(url: str) -> list[str]:
    """The files that match a pattern, by name."""
    system, pattern = file_system(url)
    return [str(system.unstrip_protocol(name)) for name in sorted(asked(lambda: system.glob(pattern), url))]


def list_folder(url: str) -> dict[str, int]:
    """The size of each file of a folder, however deep, by its path in the folder; that of "" if the URL is a file."""
    system, folder = file_system(url)
    try:
        found = asked(lambda: system.find(folder, detail=True), url)
    except SourceError as error:
        # Other stores, and `find` of s3fs, give an empty list for a folder that is not there.
        if isinstance(error.__cause__, FileNotFoundError):
            return {}
        raise
    # Consoles of stores make an object with a / at its end for an empty folder. A trial stays where nothing may be
    # removed.
    names = [name for name in sorted(found) if not name.endswith(("/", _TRIAL))]
    return {name.removeprefix(folder.rstrip("/")).lstrip("/"): int(found[name]["size"]) for name in names}


def upload(path: Path, url: str) -> None:
    """Write a file to a URL, and compare what is there with it. SourceError if it cannot be written."""
    system, target = file_system(url)
    options = {"chunksize": PART_BYTES} if urlsplit(url).scheme in ("s3", "s3a") else {}
    _written(lambda: system.put_file(str(path), target, **options), url)
    if not FileFacts.of(path).fit(open_remote(url)):
        raise SourceError(f"{shown(url)} differs from {path} after its upload", hint="run the command again")


class RangeReader(Protocol):
    """A remote file."""

    size: int
    version: str

    def read_range(self, start: int, stop: int) -> bytes: ...


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What a file of this machine is compared by with a remote one."""

    size: int
    etag: str
    """That which S3 gives for an upload in parts of `PART_BYTES`."""
    sha256: str

    def fit(self, remote: RangeReader) -> bool:
        """Whether a remote file has the same content."""
        if remote.size != self.size:
            return False
        if remote.version.strip('"') == self.etag:
            return True
        # An ETag is no checksum of an upload in other parts, or with encryption by a key of the user.
        digest = hashlib.sha256()
        for start in range(0, self.size, READ_BYTES):
            digest.update(remote.read_range(start, min(start + READ_BYTES, self.size)))
        return digest.hexdigest() == self.sha256

    @staticmethod
    def of(path: Path) -> FileFacts:
        """The facts of a file."""
        size, sha256, whole, parts = 0, hashlib.sha256(), _md5(), []
        with path.open("rb") as file:
            while part := file.read(PART_BYTES):
                size += len(part)
                sha256.update(part)
                whole.update(part)
                parts.append(_md5(part).digest())
        # s3fs sends a file of less than two parts as one.
        is_one = size < 2 * PART_BYTES
        etag = whole.hexdigest() if is_one else f"{_md5(b''.join(parts)).hexdigest()}-{len(parts)}"
        return FileFacts(size=size, etag=etag, sha256=sha256.hexdigest())


_md5 = partial(hashlib.md5, usedforsecurity=False)  # without which builds of OpenSSL for FIPS refuse it


def check_writable(folder: str) -> None:
    """SourceError or ConfigError, before any work, if no file can be written to the folder of a URL. An empty file is
    written there and removed."""
    url = f"{folder.rstrip('/')}/{_TRIAL}"
    system, path = file_system(url)
    _written(lambda: system.pipe_file(path, b""), url, shown_as=folder)
    # Whoever may write need not be allowed to remove.
    with suppress(Exception):
        system.rm_file(path)


def _written(write: Callable[[], object], url: str, shown_as: str = "") -> None:
    try:
        asked(write, shown_as or url)
    except NotImplementedError as error:
        scheme = urlsplit(url).scheme
        raise ConfigError(f"{scheme}:// cannot be written to", hint="name an s3:// URL, or a folder") from error


def file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it; MissingError names the package that its protocol needs."""
    from fsspec.core import url_to_fs

    refuse_password(url)
    schemes = [urlsplit(link).scheme or link for link in links_of(url)]
    options = {scheme: _OPTIONS["s3"] for scheme in schemes if scheme in ("s3", "s3a")}
    try:
        # Opens the archive of zip://NAME::URL.
        system, path = asked(lambda: url_to_fs(url, **options), url)
    except ImportError as error:
        # simplecache::s3://bucket needs what s3:// needs.
        protocol = schemes[-1]
        extra = _EXTRAS.get(protocol)
        raise MissingError(
            f"{shown(url)} needs a package that is not installed: {first_line(error)}",
            hint=install_command(extra) if extra else f"install what fsspec needs for {protocol}",
        ) from error
    link = system
    while link is not None:  # a chain ends at the file system that makes requests
        if hasattr(link, "retries"):
            link.retries = 1
        link = getattr(link, "fs", None)
    return system, path


def asked(request: Callable[[], T], url: str) -> T:
    """`attempted` for fsspec; ConfigError for a protocol that it lacks, or that takes more than a URL (reference://)."""
    try:
        return attempted(request, url)
    except (ValueError, TypeError, AttributeError) as error:
        if "endpoint" in str(error):
            raise ConfigError(
                f"{shown(url)}: the endpoint of its protocol is no URL", hint="correct AWS_ENDPOINT_URL"
            ) from error
        known = "s3://, gs://, az://, https://, hf:// and the other protocols of fsspec"
        reason = "is unknown" if "not known" in str(error) else "names no files by a URL alone"
        raise ConfigError(
            f"{shown(url)}: the protocol {urlsplit(url).scheme}:// {reason}", hint=f"known are {known}"
        ) from error


def _version(facts: dict[str, Any]) -> str:
    for name in _VERSION_FACTS:
        if facts.get(name):
            return str(facts[name])
    # Such as mtime, or created.
    return hashlib.sha256(repr(sorted(facts.items(), key=str)).encode()).hexdigest()[:16]


def refuse_password(url: str) -> None:
    """ConfigError for a password in a URL, which would end up in command histories and in saved command lines."""
    if any(":" in urlsplit(link).netloc.rpartition("@")[0] for link in links_of(url)):
        raise ConfigError(
            f"{shown(url)} is given with a password", hint="use the settings or environment variables of its protocol"
        )
