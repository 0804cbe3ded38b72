"""Download of a file over HTTP with retries and resume: a partial file is kept, and the next attempt or run requests
the rest."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcdctl import __version__
from dcdctl.core.errors import InputError, SourceError
from dcdctl.core.files import read_json, write_json
from dcdctl.core.places import shown
from dcdctl.core.progress import Advance

if TYPE_CHECKING:
    import httpx2


ATTEMPTS = 5
"""Attempts in a row without a new byte after which a download fails."""
FIRST_WAIT_SECONDS = 1.0
"""The wait after the first failed attempt; it doubles with each further one."""
LONGEST_WAIT_SECONDS = 300.0
"""The most that a server's Retry-After is waited for."""
TIMEOUT_SECONDS = 30.0
"""The longest time without an answer from a server."""
RETRY_STATUS = {408, 429, *range(500, 600)}
"""Status codes for which another attempt may help."""
CONTENT_RANGE = re.compile(r"bytes (?P<first>\d{1,18})-(?P<last>\d{1,18})/(?P<size>\d{1,18}|\*)")
BY_HAND_HINT = "it may need a login or accepted terms: download the file with a browser and place it by hand"
Bar = Callable[[int | None, bool], AbstractContextManager[Advance]]
"""A progress bar of a request, for the number of bytes to download and whether they resume a partial file."""


class RetryError(Exception):
    """A failed attempt that may be repeated; `wait_seconds` is the server's Retry-After."""

    def __init__(self, reason: str, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


def digests_of(path: Path, kinds: Collection[str]) -> dict[str, str]:
    """Digests of a file in hex, by kind: sha256, md5, or git-sha1, git's name of a file."""
    # usedforsecurity=False, because FIPS builds of OpenSSL refuse MD5 otherwise.
    hashes = {kind: hashlib.new(kind.removeprefix("git-"), usedforsecurity=False) for kind in sorted(kinds)}
    if "git-sha1" in hashes:
        # git hashes the size before the content.
        hashes["git-sha1"].update(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        # Files of many gigabytes are hashed in little memory.
        while block := file.read(1 << 20):
            for value in hashes.values():
                value.update(block)
    return {kind: value.hexdigest() for kind, value in hashes.items()}


def discard(partial: Path) -> None:
    """Remove a partial file and its notes."""
    partial.unlink(missing_ok=True)
    _notes_of(partial).unlink(missing_ok=True)


@lru_cache(maxsize=1)
def client(process: int) -> httpx2.Client:
    """The connections of a process: a forked one must not share them. Made once, because reading the certificates takes
    as long as the download of a small file."""
    import httpx2

    # Uncompressed, because lengths and ranges of a compressed response do not fit the file.
    headers = {"Accept-Encoding": "identity", "User-Agent": f"dcdctl/{__version__}"}
    return httpx2.Client(follow_redirects=True, timeout=TIMEOUT_SECONDS, headers=headers)


@dataclass(kw_only=True)
class Transfer:
    """A download into `partial`, which resumes a partial file if the server's file is unchanged."""

    url: str
    partial: Path
    size: int | None
    """Bytes, if known."""
    bar: Bar

    def run(self) -> None:
        """Complete the file; SourceError gives the reason for a failure and keeps the partial file."""
        furthest, failures = self.length(), 0
        while True:
            try:
                self.attempt()
                return
            except RetryError as failure:
                # A large file over a bad line may need many attempts; only those without progress count.
                failures = 1 if self.length() > furthest else failures + 1
                furthest = max(furthest, self.length())
                if failures >= ATTEMPTS:
                    hint = "run the same command again later"
                    if self.length():
                        hint = f"{self.length():,} bytes are kept: run the same command again to resume"
                    raise SourceError(
                        f"{self.url}: gave up after {failures} attempts ({failure})", hint=hint
                    ) from failure
                wait = FIRST_WAIT_SECONDS * 2 ** (failures - 1)
                time.sleep(wait if failure.wait_seconds is None else failure.wait_seconds)

    def length(self) -> int:
        """Bytes in the partial file."""
        return self.partial.stat().st_size if self.partial.exists() else 0

    def attempt(self) -> None:
        """Make one request; RetryError if another one may help."""
        import httpx2

        notes = self._read_notes()
        start = self.length()
        # A complete partial file, left by a run that was killed before the rename, needs no request: the server would
        # answer 416.
        if not start or start != notes.get("size"):
            headers = {"Range": f"bytes={start}-"} if start else {}
            # If the file has changed, If-Range makes the server send all of it instead of the rest.
            if start:
                headers["If-Range"] = notes["validator"]
            try:
                with client(os.getpid()).stream("GET", self.url, headers=headers, timeout=TIMEOUT_SECONDS) as response:
                    self._check_response(response)
                    self._receive(response, start, notes)
            except (
                httpx2.TimeoutException,
                httpx2.NetworkError,
                httpx2.RemoteProtocolError,
                httpx2.ProxyError,
            ) as error:
                raise RetryError(str(error) or type(error).__name__) from error
            except (httpx2.RequestError, httpx2.InvalidURL) as error:
                raise SourceError(f"{self.url} cannot be requested ({error})") from error

    def _read_notes(self) -> dict[str, Any]:
        """The notes of the partial file. One for which the server gave no ETag or date is dropped: two versions of the
        file could be mixed."""
        try:
            notes = read_json(_notes_of(self.partial))
        except InputError:
            notes = {}
        if not self.length() or not notes.get("validator"):
            discard(self.partial)
        return notes

    def _check_response(self, response: httpx2.Response) -> None:
        """SourceError or RetryError unless the response is the file."""
        # The partial file is longer than the server's file, which must have changed.
        if response.status_code == 416:
            discard(self.partial)
            raise RetryError("416")
        check_status(response, self.url)
        # Some servers answer 200 with a login or error page.
        name = self.url.partition("?")[0]
        if response.headers.get("content-type", "").startswith("text/html") and not name.endswith((".html", ".htm")):
            raise SourceError(f"{self.url} is a web page, expected a file", hint=BY_HAND_HINT)

    def _receive(self, response: httpx2.Response, start: int, notes: Mapping[str, Any]) -> None:
        """Write the bytes of the response after the partial file, or in its place."""
        # With 200 the server does not support ranges, or its file has changed.
        if response.status_code == 206:
            self._check_rest(response.headers, start, notes)
        else:
            discard(self.partial)
            start = 0
        total = _total(response.headers, start)
        if _differ(total, self.size):
            discard(self.partial)
            raise SourceError(f"{self.url} has {total:,} bytes, expected {self.size:,}")
        # The notes precede the bytes: a killed run leaves a partial file that can be resumed.
        notes = {"url": self.url, "validator": _validator(response.headers), "size": total}
        write_json(_notes_of(self.partial), notes)
        expected = total if total is not None else self.size
        received = start
        num_left = None if expected is None else expected - start
        with self.partial.open("ab") as file, self.bar(num_left, start > 0) as advance:
            # Raw, because lengths and ranges count the bytes that are sent.
            for block in response.iter_raw():
                received += file.write(block)
                advance(len(block))
        # If it sent too much, the next attempt is answered with 416, and starts again.
        if expected is not None and received != expected:
            raise RetryError(f"it ended after {received:,} of {expected:,} bytes")

    def _check_rest(self, headers: Mapping[str, str], start: int, notes: Mapping[str, Any]) -> None:
        """RetryError, which starts again from the first byte, unless a response of status 206 is the rest of the
        partial file."""
        span = CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
        # Some servers send another part, or ignore If-Range: the rest may then come from another version of the file.
        if (
            span is None
            or int(span["first"]) != start
            or notes.get("validator", "") != _validator(headers)
            or _differ(notes.get("size"), _total(headers, start))
        ):
            discard(self.partial)
            raise RetryError("it sent a part of the file that was not requested, or the file has changed")


def check_status(response: httpx2.Response, url: str) -> httpx2.Response:
    """The response itself; SourceError if it is not the file, RetryError if another attempt may help."""
    status, status_text = response.status_code, f"{response.status_code} {response.reason_phrase}"
    if status in RETRY_STATUS:
        asked = response.headers.get("retry-after", "").strip()
        # A date, which servers may send too, is as good as nothing: the next attempts wait longer each.
        raise RetryError(status_text, min(float(asked), LONGEST_WAIT_SECONDS) if asked.isdecimal() else None)
    if status in (404, 410):
        raise SourceError(
            f"{shown(url)} does not exist ({status_text})", hint="it may have moved: find it and place it by hand"
        )
    if status not in (200, 206):
        raise SourceError(f"{shown(url)} was refused ({status_text})", hint=BY_HAND_HINT)
    return response


def _differ(size: int | None, other: int | None) -> bool:
    """Whether two sizes are known and not the same."""
    return None not in (size, other) and size != other


def _notes_of(partial: Path) -> Path:
    """The notes beside a partial file that are needed to resume it."""
    return partial.with_name(f"{partial.name}.json")


def _total(headers: Mapping[str, str], start: int) -> int | None:
    """The size of the whole file in bytes according to a response; None if unknown."""
    if span := CONTENT_RANGE.fullmatch(headers.get("content-range", "")):
        return int(span["size"]) if span["size"].isdecimal() else None
    length = headers.get("content-length", "")
    return start + int(length) if length.isdecimal() else None


def _validator(headers: Mapping[str, str]) -> str:
    """The value for If-Range: a strong ETag, else the date; empty if there is neither."""
    etag = headers.get("etag", "")
    # If-Range requires a strong ETag (RFC 9110): a weak one may stay the same when bytes change.
    return etag if etag and not etag.startswith("W/") else headers.get("last-modified", "")
