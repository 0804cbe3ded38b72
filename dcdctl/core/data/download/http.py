"""One file over HTTP: what came before a cut is kept, and the next attempt, or the next run, asks for the rest."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcdctl import __version__
from dcdctl.core.errors import InputError, SourceError
from dcdctl.core.files import read_json, write_json
from dcdctl.core.progress import Advance

if TYPE_CHECKING:
    import httpx2


ATTEMPTS = 5
"""So many attempts in a row that bring nothing new, and a download is given up."""
FIRST_WAIT_SECONDS = 1.0
"""The wait after the first of them; each further one waits twice as long."""
LONGEST_WAIT_SECONDS = 300.0
"""A server that asks for a longer wait than this is not waited for."""
TIMEOUT_SECONDS = 30.0
"""How long a server may be silent."""
TRY_AGAIN = {408, 429, *range(500, 600)}
"""Answers that another attempt may change."""
BY_HAND = "it may want a login or accepted terms: get the file with a browser and place it by hand"
Begin = Callable[[int | None, bool], Advance]
"""Opens the bar: called once, with the bytes that are to come and whether they are only the rest of a file."""


class _CutError(Exception):
    """An attempt that failed and may be repeated; `wait_seconds` is what the server asks for."""

    def __init__(self, reason: str, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


def hashes_of(path: Path, kinds: Collection[str]) -> dict[str, Any]:
    """Running hashes of all bytes of a file, by kind: sha256, md5, or git-sha1, which is how git names a file."""
    hashes = {kind: hashlib.new(kind.removeprefix("git-"), usedforsecurity=False) for kind in sorted(kinds)}
    if "git-sha1" in hashes:
        hashes["git-sha1"].update(f"blob {path.stat().st_size}\0".encode())
    if path.exists():
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                for value in hashes.values():
                    value.update(block)
    return hashes


def discard(partial: Path) -> None:
    """Remove a half file, and what was noted of it."""
    partial.unlink(missing_ok=True)
    _notes_of(partial).unlink(missing_ok=True)


def get(url: str, partial: Path, *, size: int | None, kinds: Collection[str], has_checksum: bool, begin: Begin) -> dict[str, str]:
    """Download into `partial`, going on where it ends if the server still has that file; gives its digests in hex, by kind.

    `size` is the length in bytes, where known. `has_checksum` says that the caller will notice a file put together from two versions: only
    then is a half file used that the server has no ETag or date for. SourceError says why the file cannot be had; what came is kept.
    """
    import httpx2

    headers = {"Accept-Encoding": "identity", "User-Agent": f"dcdctl/{__version__}"}
    with httpx2.Client(follow_redirects=True, timeout=TIMEOUT_SECONDS, headers=headers) as client:
        transfer = _Transfer(client=client, url=url, partial=partial, size=size, kinds=kinds, has_checksum=has_checksum, begin=begin)
        furthest, failures = transfer.length(), 0
        while True:
            try:
                return transfer.attempt()
            except _CutError as cut:
                failures = 1 if transfer.length() > furthest else failures + 1
                furthest = max(furthest, transfer.length())
                if failures >= ATTEMPTS:
                    kept = f"{transfer.length():,} bytes are kept: " if transfer.length() else ""
                    hint = f"{kept}run the same command again{' to go on' if kept else ' later'}"
                    raise SourceError(f"{url}: gave up after {failures} attempts ({cut})", hint=hint) from cut
                time.sleep(FIRST_WAIT_SECONDS * 2 ** (failures - 1) if cut.wait_seconds is None else cut.wait_seconds)


@dataclass(kw_only=True)
class _Transfer:
    """A half file, and the attempts to make it whole."""

    client: httpx2.Client
    url: str
    partial: Path
    size: int | None
    kinds: Collection[str]
    has_checksum: bool
    begin: Begin
    advance: Advance | None = None
    num_shown: int = 0
    """Bytes the bar was told of."""

    def length(self) -> int:
        """Bytes that are there."""
        return self.partial.stat().st_size if self.partial.exists() else 0

    def attempt(self) -> dict[str, str]:
        """Ask once; _CutError where asking again may help."""
        import httpx2

        known = self._known()
        start = self.length()
        if not start or start != known.get("size"):
            headers = {"Range": f"bytes={start}-"} if start else {}
            if start and known["validator"]:
                headers["If-Range"] = known["validator"]
            try:
                with self.client.stream("GET", self.url, headers=headers) as response:
                    self._look(response)
                    return self._receive(response, start)
            except (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError, httpx2.ProxyError) as error:
                raise _CutError(str(error) or type(error).__name__) from error
            except (httpx2.RequestError, httpx2.InvalidURL) as error:
                raise SourceError(f"{self.url} cannot be asked for ({error})") from error
        return _hex(hashes_of(self.partial, self.kinds))

    def _known(self) -> dict[str, Any]:
        """What was noted of the half file; one of which too little is known is dropped."""
        try:
            known = read_json(_notes_of(self.partial))
        except InputError:
            known = {}
        if not self.length() or not (known.get("validator") or (known and self.has_checksum)):
            self._drop()
        return known

    def _drop(self) -> None:
        self._show(-self.num_shown)
        discard(self.partial)

    def _show(self, count: int) -> None:
        if self.advance is not None and count:
            self.num_shown += count
            self.advance(count)

    def _look(self, response: httpx2.Response) -> None:
        """SourceError or _CutError where the answer is not the file."""
        status, words = response.status_code, f"{response.status_code} {response.reason_phrase}"
        if status == 416:
            self._drop()
            raise _CutError(words)
        if status in TRY_AGAIN:
            wait = _retry_after_seconds(response.headers)
            if wait is not None and wait > LONGEST_WAIT_SECONDS:
                hint = f"run the same command again then: {self.length():,} bytes are kept"
                raise SourceError(f"{self.url} asks to come back in {wait:,.0f} seconds ({words})", hint=hint)
            raise _CutError(words, wait)
        if status in (404, 410):
            raise SourceError(f"{self.url} is not there ({words})", hint="it may have moved: look for it and place it by hand")
        if status not in (200, 206):
            raise SourceError(f"{self.url} was refused ({words})", hint=BY_HAND)
        name = self.url.partition("?")[0]
        if response.headers.get("content-type", "").startswith("text/html") and not name.endswith((".html", ".htm")):
            raise SourceError(f"{self.url} answers with a web page, not with the file", hint=BY_HAND)

    def _receive(self, response: httpx2.Response, start: int) -> dict[str, str]:
        """Write what comes, after what is there or in its place."""
        if response.status_code != 206:
            self._drop()
            start = 0
        elif not response.headers.get("content-range", "").startswith(f"bytes {start}-"):
            self._drop()
            raise _CutError("it sent another part of the file than was asked for")
        total = _total(response.headers, start)
        if None not in (total, self.size) and total != self.size:
            self._drop()
            raise SourceError(f"{self.url} has {total:,} bytes, {self.size:,} are wanted")
        if not _is_encoded(response.headers):  # else a half file is of no use
            write_json(_notes_of(self.partial), {"url": self.url, "validator": _validator(response.headers), "size": total})
        if self.advance is None:
            whole = total if total is not None else self.size
            self.advance = self.begin(None if whole is None else whole - start, start > 0)
        hashes = hashes_of(self.partial, self.kinds)
        with self.partial.open("ab") as file:
            for block in response.iter_bytes():
                file.write(block)
                for value in hashes.values():
                    value.update(block)
                self._show(len(block))
        wanted = total if total is not None else self.size
        if wanted is not None and self.length() < wanted:
            raise _CutError(f"it ended after {self.length():,} of {wanted:,} bytes")
        return _hex(hashes)


def _notes_of(partial: Path) -> Path:
    """What is to be known of a half file when it is gone on with."""
    return partial.with_name(f"{partial.name}.json")


def _hex(hashes: Mapping[str, Any]) -> dict[str, str]:
    return {kind: value.hexdigest() for kind, value in hashes.items()}


def _is_encoded(headers: Mapping[str, str]) -> bool:
    """Whether a server compresses against our wish: its bytes are not the file's."""
    return headers.get("content-encoding", "identity") != "identity"


def _total(headers: Mapping[str, str], start: int) -> int | None:
    """Bytes of the whole file as an answer tells them; None where it does not."""
    if _is_encoded(headers):
        return None
    after_slash = headers.get("content-range", "").rpartition("/")[2]
    if after_slash.isdecimal():
        return int(after_slash)
    length = headers.get("content-length", "")
    return start + int(length) if length.isdecimal() else None


def _validator(headers: Mapping[str, str]) -> str:
    """What If-Range takes: a strong ETag, else the date; empty where there is neither."""
    etag = headers.get("etag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("last-modified", "")


def _retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """The wait a server asks for, in seconds or as a date; None where it asks for none."""
    text = headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None
