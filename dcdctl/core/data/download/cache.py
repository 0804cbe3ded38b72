"""A cache of remote files, each downloaded once and verified: from plain URLs and from repositories on the Hugging Face
Hub."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

from dcdctl.core import config
from dcdctl.core.config import OMITTED, Key
from dcdctl.core.data.download import http, hub
from dcdctl.core.data.download.hub import HubPath
from dcdctl.core.errors import RUN_AGAIN, ConfigError, InputError, SourceError, resumed_by
from dcdctl.core.files import PARTIAL_SUFFIX, is_file_name, lock, read_json, sync, user_errors, write_json
from dcdctl.core.progress import Advance, Track, silent

HUB = "hf://"
_DELETE = "delete it and run the same command again"
CHECKSUM = re.compile(r"sha256:[0-9a-fA-F]{64}|md5:[0-9a-fA-F]{32}")
BLOB_HASHES = {64: "sha256", 40: "git-sha1"}
"""The hash by which the Hub names the content of a file, by the length of the name: SHA-256 for large files, git's
SHA-1 for others."""


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file to download, and its size and checksum if they are known."""

    url: str
    """https://HOST/PATH, http://HOST/PATH, hf://datasets/OWNER/NAME@REVISION/PATH, or hf://OWNER/NAME@REVISION/PATH for
    a model repository. @REVISION defaults to main."""
    size: int | None = None
    """Bytes, if known."""
    checksum: str = ""
    """sha256:HEX or md5:HEX, if known."""

    def __post_init__(self) -> None:
        if self.is_on_hub:
            HubPath.parse(self.url)
        elif urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).netloc:
            raise ConfigError(f"{self.url!r} is not a URL to download from: expected https://, http:// or hf://")
        if not is_file_name(self.name):
            raise ConfigError(f"{self.url} must end with a file name")
        if self.checksum and not CHECKSUM.fullmatch(self.checksum):
            raise ConfigError(f"the checksum of {self.url} must be sha256:HEX or md5:HEX, got {self.checksum!r}")

    @property
    def is_on_hub(self) -> bool:
        """Whether it is in a repository on the Hugging Face Hub."""
        return self.url.startswith(HUB)

    @property
    def name(self) -> str:
        """The last part of the path; also the name of the file when it is placed by hand."""
        path = self.url if self.is_on_hub else unquote(urlsplit(self.url).path)
        return path.rpartition("/")[2]


@dataclass(frozen=True, kw_only=True)
class LocalFile:
    """A local file."""

    path: Path
    check: str
    """How it was verified, in words: by its checksum, the Hub's hash, or the SHA-256 of the first download, which may
    be this one."""


@dataclass(frozen=True, kw_only=True)
class DownloadRecord:
    """What is known of a downloaded file, in a file beside it."""

    url: str
    size: int
    modified_ns: int
    """Its size and time of change when it was hashed: while both are the same, it is not hashed again."""
    git_sha1: Annotated[str, Key("git-sha1", omits_default=True)] = ""
    md5: Annotated[str, OMITTED] = ""
    sha256: str
    """Of the first download: a later one is compared with it where no checksum is known."""


def cache_folder() -> Path:
    """The folder of downloads: $DCDCTL_CACHE, else $XDG_CACHE_HOME/dcdctl, else ~/.cache/dcdctl. Files of the Hub are
    in its own cache."""
    if folder := os.environ.get("DCDCTL_CACHE"):
        return Path(folder).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "dcdctl"


def fetch_file(file: RemoteFile, *, offline: bool = False, track: Track = silent) -> LocalFile:
    """The file, from the cache or downloaded, and verified. If several processes need it, one downloads and the others
    wait.

    SourceError: it is not available, it is not the expected file, or it is not in the cache and `offline` (or
    HF_HUB_OFFLINE) is set. InputError: the disk is full, or the cache cannot be written.
    """
    # The hash of the URL separates files of the same name.
    target = cache_folder() / "downloads" / f"{_short(file.url)}-{file.name}"
    offline_reason = _offline_reason(offline)
    fetch = _fetch_from_hub if file.is_on_hub else _fetch_plain
    with _disk_errors(target.parent), lock(target, wait=track):
        return fetch(file, target, offline_reason, track)


def expand(pattern: str, *, offline: bool = False) -> list[RemoteFile]:
    """The files that match an hf:// URL with * in its path, sorted by path; * matches any part of a name within one
    folder.

    The list is cached for runs with `offline`. SourceError if nothing matches, or if the repository cannot be read.
    """
    if not pattern.startswith(HUB):
        raise ConfigError(f"{pattern} cannot be listed: only hf:// URLs may have *")
    hub_path = HubPath.parse(pattern)
    target = cache_folder() / "listings" / f"{_short(hub_path.folder)}.json"
    if reason := _offline_reason(offline):
        listing = _read_json(target)
        if not listing:
            raise SourceError(f"the list of files of {hub_path.folder} is not in the cache and {reason} is set")
        sizes = listing["sizes"]
    else:
        sizes = hub.sizes(hub_path)
        with _disk_errors(target.parent):
            write_json(target, {"url": hub_path.folder, "sizes": sizes})
    files = [RemoteFile(url=hub_path.folder + path, size=sizes[path]) for path in hub_path.matching(sizes)]
    if not files:
        raise SourceError(
            f"{pattern} matches none of the {len(sizes):,} files there",
            hint=f"see {hub_path.page}/tree/{hub_path.revision}",
        )
    return files


def _fetch_plain(file: RemoteFile, target: Path, offline_reason: str, track: Track) -> LocalFile:
    record = _read_record(target)
    # SHA-256 in any case, because it is recorded at the first download and compared later.
    kinds = {"sha256", *_checksum_kind(file)}
    if target.exists():
        digests = _digests(target, kinds, record)
        error = _difference(file, target, target, digests, record)
        if error is None:
            _write_record(file, target, target, digests)
            return LocalFile(path=target, check=_check(file, record))
        if offline_reason:
            raise error
        target.unlink()
    if offline_reason:
        raise _not_cached(file, offline_reason)
    partial = target.with_name(target.name + PARTIAL_SUFFIX)

    def bar(total: int | None, is_rest: bool) -> AbstractContextManager[Advance]:
        what = f"the rest of {file.name}" if is_rest else file.name
        return track(f"download {what}", total=total, unit="bytes")

    http.Transfer(url=file.url, partial=partial, size=file.size, bar=bar).run()
    digests = http.digests_of(partial, kinds)
    error = _difference(file, target, partial, digests, record)
    if error is not None:
        http.discard(partial)
        raise error
    sync(partial)
    # The record is written first: a run that is killed in between leaves a complete partial file and its record.
    _write_record(file, target, partial, digests)
    partial.replace(target)
    http.discard(partial)
    return LocalFile(path=target, check=_check(file, record))


def _fetch_from_hub(file: RemoteFile, target: Path, offline_reason: str, track: Track) -> LocalFile:
    try:
        path = hub.get(HubPath.parse(file.url), offline=bool(offline_reason), track=track)
    except SourceError as refusal:
        if offline_reason:
            raise _not_cached(file, offline_reason) from refusal
        raise
    blob = path.resolve()
    # On systems without symbolic links, the cached file has its own name and is checked like one from a plain URL.
    blob_hash = BLOB_HASHES.get(len(blob.name)) if re.fullmatch("[0-9a-f]+", blob.name) else None
    record = _read_record(target)
    kinds = {"sha256", *_checksum_kind(file)}
    if blob_hash:
        kinds.add(blob_hash)
    digests = _digests(path, kinds, record)
    if blob_hash and digests[blob_hash] != blob.name:
        # huggingface_hub does not verify files of its cache: it would return the damaged file again.
        blob.unlink()
        path.unlink(missing_ok=True)
        raise SourceError(
            f"{file.url} has {blob_hash} {digests[blob_hash]}, expected {blob.name} from the Hub",
            hint="it was removed: run the same command again",
        )
    # With the Hub's hash the record is not compared: a branch such as main may have moved to other content since the
    # first download.
    error = _difference(file, target, path, digests, None if blob_hash else record)
    if error is not None:
        raise error
    _write_record(file, target, path, digests)
    is_hub_hash = blob_hash is not None and not file.checksum
    return LocalFile(path=path, check="matches the Hub's hash" if is_hub_hash else _check(file, record))


def _difference(
    file: RemoteFile, target: Path, path: Path, digests: dict[str, str], record: DownloadRecord | None
) -> SourceError | None:
    """The error if this is not the expected file, with what was found and what was expected; None if it is."""
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return SourceError(f"{file.url} has {size:,} bytes, expected {file.size:,}")
    kind, _, expected = file.checksum.lower().partition(":")
    if kind and digests[kind] != expected:
        return SourceError(f"{file.url} has {kind} {digests[kind]}, expected {expected}", hint="the file was not kept")
    if not kind and record and digests["sha256"] != record.sha256:
        return SourceError(
            f"{file.url} has sha256 {digests['sha256']}, but had {record.sha256} at the first download",
            hint=f"if the new file is right, delete {_record_path(target)} and run the same command again",
        )
    return None


def _check(file: RemoteFile, record: DownloadRecord | None) -> str:
    if file.checksum:
        return "checksum matches"
    return "matches the first download" if record else "first download, sha256 recorded"


def _checksum_kind(file: RemoteFile) -> list[str]:
    return [file.checksum.partition(":")[0]] if file.checksum else []


def _digests(path: Path, kinds: Collection[str], record: DownloadRecord | None) -> dict[str, str]:
    """Digests of a file in hex, by kind: from the record if size and time of change are the same, else from all its
    bytes."""
    state = path.stat()
    if record is not None and (record.size, record.modified_ns) == (state.st_size, state.st_mtime_ns):
        known = config.to_table(record)
        if set(kinds) <= known.keys():
            return {kind: known[kind] for kind in kinds}
    return http.digests_of(path, kinds)


def _record_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _write_record(file: RemoteFile, target: Path, path: Path, digests: dict[str, str]) -> None:
    state = path.stat()
    facts = {"url": file.url, "size": state.st_size, "modified_ns": state.st_mtime_ns, **digests}
    record = config.build(DownloadRecord, facts)
    if record != _read_record(target):
        write_json(_record_path(target), config.to_table(record))


def _read_record(target: Path) -> DownloadRecord | None:
    path = _record_path(target)
    document = _read_json(path)
    return config.build_document(DownloadRecord, document, path, error=InputError, hint=_DELETE) if document else None


def _read_json(path: Path) -> dict[str, Any]:
    """A document of the cache; empty if there is none."""
    return read_json(path, hint=_DELETE) if path.exists() else {}


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _offline_reason(offline: bool) -> str:
    """The flag or variable that forbids the network; empty if none does."""
    if offline:
        return "--offline"
    # The values that huggingface_hub reads as true.
    return "HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE") else ""


def _not_cached(file: RemoteFile, reason: str) -> SourceError:
    return SourceError(
        f"{file.url} is not in the cache and {reason} is set", hint="run once without it, or place the file by hand"
    )


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turns a full disk and missing permissions into InputErrors that say what to do."""
    with resumed_by(RUN_AGAIN, lambda: any(folder.iterdir())), user_errors(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            # ENOTDIR and EEXIST: there is a file in the place of a folder.
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
                raise
            raise InputError(
                f"the cache cannot be written ({error})",
                hint="set DCDCTL_CACHE (and for files of the Hub HF_HOME) to a folder that can be written",
            ) from error
