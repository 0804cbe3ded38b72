"""Files from elsewhere, each downloaded once, checked, and kept in a cache: plain URLs, and files of repositories on the Hub."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from dcdctl.core.data.download import http, hub
from dcdctl.core.data.download.hub import HubPath
from dcdctl.core.errors import ConfigError, InputError, SourceError
from dcdctl.core.files import PARTIAL_SUFFIX, read_json, write_json
from dcdctl.core.progress import Advance, Track, silent

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]
HUB = "hf://"
CHECKSUM = re.compile(r"sha256:[0-9a-fA-F]{64}|md5:[0-9a-fA-F]{32}")
BLOB_NAMES = {64: "sha256", 40: "git-sha1"}
"""How the Hub names the content of a file, by the length of the name: large files by the first, others by the second."""


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file to download, and what is known of it before."""

    url: str
    """https://HOST/PATH, http://HOST/PATH, hf://datasets/OWNER/NAME@REVISION/PATH, or hf://OWNER/NAME@REVISION/PATH for a model
    repository; without @REVISION it is main."""
    size: int | None = None
    """Bytes, where known."""
    checksum: str = ""
    """sha256:HEX or md5:HEX, where known."""

    def __post_init__(self) -> None:
        if self.is_on_hub:
            HubPath.parse(self.url)
        elif urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).netloc:
            raise ConfigError(f"{self.url!r} is no URL to download from: https://, http:// or hf:// is wanted")
        if self.name in ("", ".", ".."):
            raise ConfigError(f"{self.url} names no file")
        if self.checksum and not CHECKSUM.fullmatch(self.checksum):
            raise ConfigError(f"the checksum of {self.url} must be sha256:HEX or md5:HEX, got {self.checksum!r}")

    @property
    def is_on_hub(self) -> bool:
        """Whether it is in a repository on the Hugging Face Hub."""
        return self.url.startswith(HUB)

    @property
    def name(self) -> str:
        """What the file is called when it is placed by hand: the last part of its path."""
        path = self.url if self.is_on_hub else unquote(urlsplit(self.url).path)
        return path.rpartition("/")[2]


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A file that is here."""

    path: Path
    check: str
    """How it was verified, in words: "checksum", "as the Hub names it", "first download, sha256 recorded" or "as recorded"."""


def cache_folder() -> Path:
    """Where downloads are kept: $DCDCTL_CACHE, else $XDG_CACHE_HOME/dcdctl, else ~/.cache/dcdctl. Files of the Hub are in its own cache."""
    if own := os.environ.get("DCDCTL_CACHE"):
        return Path(own).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "dcdctl"


def fetch_file(file: RemoteFile, *, offline: bool = False, track: Track = silent) -> Fetched:
    """The file, from the cache or downloaded, and verified; of several processes one downloads and the others wait.

    SourceError: it cannot be had, it is another file than expected, or it is not in the cache and `offline` (or HF_HUB_OFFLINE) is set.
    InputError: there is no room for it, or the cache cannot be written.
    """
    place = cache_folder() / "downloads" / f"{_short(file.url)}-{file.name}"
    offline_word = _offline_word(offline)
    with _written(file.url, place.parent), _alone(place):
        if file.is_on_hub:
            with _written(file.url, hub.cache_folder(), keeps_halves=False):
                return _fetch_from_hub(file, place, offline_word, track)
        return _fetch_plain(file, place, offline_word, track)


def expand(pattern: str, *, offline: bool = False) -> list[RemoteFile]:
    """The files an hf:// URL with * in its path stands for, sorted by path; * is any part of a name within one folder.

    A URL without * is itself. The list is kept for runs with `offline`. SourceError if there are none, or the repository cannot be read.
    """
    if "*" not in pattern:
        return [RemoteFile(url=pattern)]
    if not pattern.startswith(HUB):
        raise ConfigError(f"{pattern} cannot be listed: only hf:// URLs may have *")
    wanted = HubPath.parse(pattern)
    place = cache_folder() / "listings" / f"{_short(wanted.folder)}.json"
    if word := _offline_word(offline):
        listing = _read_json(place)
        if not listing:
            raise SourceError(f"the list of files of {wanted.folder} is not in the cache and {word} is set")
        sizes = listing["sizes"]
    else:
        sizes = hub.sizes(wanted)
        with _written("a list of files", place.parent):
            write_json(place, {"url": wanted.folder, "sizes": sizes})
    names = re.compile("[^/]*".join(map(re.escape, wanted.path.split("*"))))
    files = [RemoteFile(url=wanted.folder + path, size=sizes[path]) for path in sorted(sizes) if names.fullmatch(path)]
    if not files:
        raise SourceError(f"{pattern} fits none of the {len(sizes):,} files there", hint=f"look at {wanted.page}/tree/{wanted.revision}")
    return files


def _fetch_plain(file: RemoteFile, place: Path, offline_word: str, track: Track) -> Fetched:
    record = _read_json(_record_path(place))
    kinds = {"sha256", *_checksum_kind(file)}
    if place.exists():
        digests = _digests(place, kinds, record)
        error = _difference(file, place, digests, record)
        if error is None:
            _write_record(file, place, place, digests)
            return Fetched(path=place, check=_check(file, record))
        if offline_word:
            raise error
        place.unlink()
    if offline_word:
        raise _not_here(file, offline_word)
    partial = place.with_name(place.name + PARTIAL_SUFFIX)
    with ExitStack() as bars:

        def begin(total: int | None, is_rest: bool) -> Advance:
            label = f"download the rest of {file.name}" if is_rest else f"download {file.name}"
            return bars.enter_context(track(label, total=total, unit="bytes"))

        has_checksum = bool(file.checksum or record)
        digests = http.get(file.url, partial, size=file.size, kinds=kinds, has_checksum=has_checksum, begin=begin)
    error = _difference(file, partial, digests, record)
    if error is not None:
        http.discard(partial)
        raise error
    with partial.open("rb") as data:
        os.fsync(data.fileno())
    # The record first: a run that is killed between the two finds a whole partial file, and the record that fits it.
    _write_record(file, place, partial, digests)
    partial.replace(place)
    http.discard(partial)
    return Fetched(path=place, check=_check(file, record))


def _fetch_from_hub(file: RemoteFile, place: Path, offline_word: str, track: Track) -> Fetched:
    try:
        path = hub.get(HubPath.parse(file.url), offline=bool(offline_word), track=track)
    except SourceError as refusal:
        if offline_word:
            raise _not_here(file, offline_word) from refusal
        raise
    blob = path.resolve()
    # Where links are not to be had the cached file has its own name, and is judged as one from a plain URL is.
    named = BLOB_NAMES.get(len(blob.name)) if re.fullmatch("[0-9a-f]+", blob.name) else None
    record = _read_json(_record_path(place))
    digests = _digests(path, {"sha256", *_checksum_kind(file), *([named] if named else [])}, record)
    if named and digests[named] != blob.name:
        blob.unlink()
        path.unlink(missing_ok=True)
        hint = "it was removed: run the same command again"
        raise SourceError(f"{file.url} came with {named} {digests[named]}, the Hub names it {blob.name}", hint=hint)
    error = _difference(file, path, digests, {} if named else record)
    if error is not None:
        raise error
    _write_record(file, place, path, digests)
    return Fetched(path=path, check="as the Hub names it" if named and not file.checksum else _check(file, record))


def _difference(file: RemoteFile, path: Path, digests: dict[str, str], record: dict[str, Any]) -> SourceError | None:
    """Why this is not the file that is wanted, if it is not: what was found and what was wanted."""
    found = path.stat().st_size
    if file.size is not None and found != file.size:
        return SourceError(f"{file.url} has {found:,} bytes, {file.size:,} are wanted")
    kind, _, wanted = file.checksum.lower().partition(":")
    if kind and digests[kind] != wanted:
        return SourceError(f"{file.url} has {kind} {digests[kind]}, {wanted} is wanted", hint="the file was not kept")
    if not kind and record and digests["sha256"] != record["sha256"]:
        known = _record_path(cache_folder() / "downloads" / f"{_short(file.url)}-{file.name}")
        hint = f"if the new file is right, delete {known} and run the same command again"
        return SourceError(f"{file.url} has sha256 {digests['sha256']}, it had {record['sha256']} at the first download", hint=hint)
    return None


def _check(file: RemoteFile, record: dict[str, Any]) -> str:
    if file.checksum:
        return "checksum"
    return "as recorded" if record else "first download, sha256 recorded"


def _checksum_kind(file: RemoteFile) -> list[str]:
    return [file.checksum.partition(":")[0]] if file.checksum else []


def _digests(path: Path, kinds: Collection[str], record: dict[str, Any]) -> dict[str, str]:
    """Digests of a file in hex, by kind: those on record if it has not changed since, else read from all its bytes."""
    state = path.stat()
    if (record.get("size"), record.get("modified_ns")) == (state.st_size, state.st_mtime_ns) and set(kinds) <= record.keys():
        return {kind: record[kind] for kind in kinds}
    return {kind: value.hexdigest() for kind, value in http.hashes_of(path, kinds).items()}


def _record_path(place: Path) -> Path:
    return place.with_name(f"{place.name}.sha256")


def _write_record(file: RemoteFile, place: Path, path: Path, digests: dict[str, str]) -> None:
    state = path.stat()
    record = {"url": file.url, "size": state.st_size, "modified_ns": state.st_mtime_ns, **dict(sorted(digests.items()))}
    if record != _read_json(_record_path(place)):
        write_json(_record_path(place), record)


def _read_json(path: Path) -> dict[str, Any]:
    """A document of ours; empty if it is not there."""
    return read_json(path, hint="delete it and run the same command again") if path.exists() else {}


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _offline_word(offline: bool) -> str:
    """What keeps us from the network, as the user knows it; empty if nothing does."""
    if offline:
        return "--offline"
    return "HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE") else ""


def _not_here(file: RemoteFile, word: str) -> SourceError:
    return SourceError(f"{file.url} is not in the cache and {word} is set", hint="run once without it, or place the file by hand")


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """The place for this process alone; another waits. Systems without POSIX locks have none."""
    with place.with_name(f".{place.name}.lock").open("a") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # the lock ends with the file; its name stays, as another process may be waiting at it


@contextmanager
def _written(what: str, folder: Path, *, keeps_halves: bool = True) -> Iterator[None]:
    """Says in words what is wrong with the disk."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = f"make room and run the same command again{': finished files are kept' if keeps_halves else ''}"
            raise InputError(f"there is no room left for {what} in {folder}", hint=hint) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            hint = "set DCDCTL_CACHE (and for files of the Hub HF_HOME) to a folder that can be written"
            raise InputError(f"the cache cannot be written ({error})", hint=hint) from error
        raise
