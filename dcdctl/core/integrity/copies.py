"""Whole artifacts copied to a URL, from a URL or between folders, so that a cut copy is never taken for a whole one.

Only what is finished and undamaged is copied, and every file that a document lists is compared with its SHA-256: before
an upload, and after a download. At a URL the documents by which artifacts are recognized are written last, and
`copying.json` stands there until then. On this machine a copy is made in the folder `TARGET.copying` and renamed at the
end. A command that is repeated copies what is missing or differs.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from dcdctl.core import artifacts, data, files, locks
from dcdctl.core.artifacts import Document
from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.integrity.verification import CHECKS, require_folder, verify
from dcdctl.core.machine import read_in_threads
from dcdctl.core.places import local_path, shown, url_of
from dcdctl.core.progress import Advance, Track, silent

COPYING = "copying.json"
"""The document at a URL while a copy to it is not complete: of which files it is."""
COPYING_SUFFIX = ".copying"
_FORMAT = 1
SEALS = frozenset(name for names, _ in CHECKS for name in names)
"""The documents by which artifacts are recognized."""
COPIERS = 4
"""Files that are copied at once. An upload holds up to 100 MB of each in memory."""
_ELSEWHERE = "name an empty or a new place"


@dataclass(frozen=True, kw_only=True)
class Copy:
    """What `copy` did."""

    target: str
    num_files: int
    num_bytes: int
    num_copied: int
    """Files that were not there yet, or differed."""

    def to_json(self) -> Document:
        return {"target": self.target, "files": self.num_files, "bytes": self.num_bytes, "copied": self.num_copied}


def copy(source: str | Path, target: str | Path, track: Track = silent) -> Copy:
    """Copy a folder of finished artifacts. StaleError for one that is unfinished or damaged, and for a target that
    holds something else; InputError or SourceError for a place that cannot be read or written."""
    from_url, to_url = url_of(source), url_of(target)
    if from_url is not None and to_url is not None:
        raise InputError(
            f"{shown(source)} and {shown(target)} are both URLs",
            hint="copy to a folder of this machine first",
        )
    if to_url is not None:
        return _upload(local_path(source), to_url.rstrip("/"), track)
    if from_url is not None:
        return _to_folder(_RemoteFolder(from_url.rstrip("/")), local_path(target), track)
    folder, to_folder = local_path(source), local_path(target)
    for path, other in ((folder, to_folder), (to_folder, folder)):
        if path.resolve().is_relative_to(other.resolve()):
            raise InputError(f"{path} is {other}, or inside it", hint="name another folder")
    return _to_folder(_LocalFolder(folder), to_folder, track)


class _LocalFolder:
    """The files of finished artifacts on this machine."""

    def __init__(self, folder: Path) -> None:
        require_folder(folder)
        self.folder, self.name = folder, str(folder)
        self.sizes = {name: (folder / name).stat().st_size for name in _names_in(folder)}

    def check(self, track: Track) -> None:
        """StaleError for what is unfinished or damaged."""
        _require_whole(self.folder, self.name, track)

    def read(self, name: str) -> bytes:
        """A small file."""
        return (self.folder / name).read_bytes()

    def is_at(self, name: str, path: Path) -> bool:
        """Whether a file has the content of the one of that name."""
        return artifacts.sha256_of(path) == artifacts.sha256_of(self.folder / name)

    def copy(self, name: str, path: Path) -> None:
        with files.atomic_path(path) as partial:
            shutil.copyfile(self.folder / name, partial)


class _RemoteFolder:
    """The files of finished artifacts at a URL, which are compared with their checksums once they are copied."""

    def __init__(self, url: str) -> None:
        self.url, self.name = url, shown(url)
        self.sizes = data.list_folder(url)
        if outside := next(filter(files.escapes_root, self.sizes), None):
            raise InputError(f"{self.name} has a file that leads out of its folder: {outside}")
        if COPYING in self.sizes:
            raise StaleError(f"the copy in {self.name} is not finished", hint="run the command that makes it again")
        if not any(_is_seal(name) for name in self.sizes):
            raise InputError(
                f"{self.name} holds no finished artifact of dcdctl", hint="name a corpus, a cache, an index, or a run"
            )

    def check(self, track: Track) -> None:
        """Nothing: what is copied is compared then."""

    def read(self, name: str) -> bytes:
        """A small file."""
        return data.read_text(f"{self.url}/{name}").encode()

    def is_at(self, name: str, path: Path) -> bool:
        """Whether a file has the content of the one of that name."""
        return data.is_copy(f"{self.url}/{name}", path)

    def copy(self, name: str, path: Path) -> None:
        data.download_file(f"{self.url}/{name}", path)


def _to_folder(source: _LocalFolder | _RemoteFolder, target: Path, track: Track) -> Copy:
    files.check_output_folder(target)
    place = target
    if target.is_symlink():
        # A folder cannot take the place of a link, so that the copy goes where the link leads.
        place = target.resolve()
        files.check_output_folder(place)
    filled = place.with_name(f"{place.name}{COPYING_SUFFIX}")
    with locks.lock(place):
        there = set(_names_in(place)) if place.exists() else set()
        if there:
            _check_target(str(target), there, source, lambda name: (place / name).read_bytes())
            filled = place
        source.check(track)
        if filled != place:
            # What a copy that was killed left there. The lock says that no other process writes to it.
            for path in list(filled.rglob(f"*{files.PARTIAL_SUFFIX}")):
                path.unlink()
        # What an earlier copy of another source left there.
        for name in set(_names_in(filled)) - set(source.sizes):
            (filled / name).unlink()

        def bring(name: str) -> bool:
            path, size = filled / name, source.sizes[name]
            if path.exists() and path.stat().st_size == size and source.is_at(name, path):
                return False
            source.copy(name, path)
            return True

        with _tracked(track, target.name, source.sizes) as advance:
            num_copied = _run(bring, source.sizes, source.sizes, advance)
        _require_whole(filled, source.name, track)
        if filled != place:
            with files.user_errors(target):
                if place.exists():
                    place.rmdir()
                filled.rename(place)
    return _copy_of(str(target), source.sizes, num_copied)


def _upload(folder: Path, url: str, track: Track) -> Copy:
    source = _LocalFolder(folder)
    if COPYING in source.sizes:
        raise InputError(f"{folder} holds a file {COPYING}", hint="remove it: copies have a file of that name")
    data.check_writable(url)
    there = data.list_folder(url)
    if others := sorted(set(there) - set(source.sizes) - {COPYING}):
        raise _is_other(shown(url), others[0])
    # All files are read now, which may take minutes.
    source.check(track)
    seals = artifacts.list_files(folder, source.sizes)
    note = {"format": _FORMAT, "files": files.digest_of(seals)}
    _check_target(shown(url), set(there), source, lambda name: data.read_text(f"{url}/{name}").encode(), note)

    def bring(name: str) -> bool:
        place, path = f"{url}/{name}", folder / name
        if there.get(name) == source.sizes[name] and data.is_copy(place, path):
            return False
        if data.write_file(place, path) != seals[name]["sha256"]:
            raise StaleError(f"{path} has changed while it was copied", hint="run the command again")
        return True

    is_noted = False
    if any(there.get(name) != size for name, size in source.sizes.items()):
        with TemporaryDirectory() as scratch:
            artifacts.write_document(Path(scratch) / COPYING, note)
            data.write_file(f"{url}/{COPYING}", Path(scratch) / COPYING)
        is_noted = True
    with _tracked(track, folder.name, source.sizes) as advance:
        parts = [name for name in source.sizes if not _is_seal(name)]
        num_copied = _run(bring, parts, source.sizes, advance)
        # From the innermost outwards, one after the other: the last one is that of the folder itself.
        documents = sorted(source.sizes.keys() - set(parts), key=lambda name: (-name.count("/"), name))
        for document in documents:
            num_copied += _run(bring, [document], source.sizes, advance)
    if is_noted or COPYING in there:
        data.remove_file(f"{url}/{COPYING}")
    return _copy_of(shown(url), source.sizes, num_copied)


def _check_target(
    place: str,
    there: set[str],
    source: _LocalFolder | _RemoteFolder,
    read: Callable[[str], bytes],
    note: Mapping[str, Any] | None = None,
) -> None:
    """StaleError if a place holds anything but a part of these artifacts."""
    if others := sorted(there - set(source.sizes) - {COPYING}):
        raise _is_other(place, others[0])
    is_begun = note is not None and COPYING in there
    if is_begun:
        name, text = f"{place}/{COPYING}", read(COPYING).decode()
        document = files.parse_json(text, name, dict, error=StaleError, hint=_ELSEWHERE)
        document.pop(artifacts.CHECKSUM, None)
        if document != note:
            raise StaleError(f"{place} holds an unfinished copy of something else", hint=_ELSEWHERE)
        return
    seals = sorted(filter(_is_seal, there))
    if there and not seals:
        raise StaleError(f"{place} is not empty and holds no artifact (found {min(there)})", hint=_ELSEWHERE)
    if other := next((name for name in seals if read(name) != source.read(name)), None):
        raise StaleError(f"{place} holds another artifact: its {other} differs", hint=_ELSEWHERE)


def _is_other(place: str, name: str) -> StaleError:
    return StaleError(f"{place} holds something else (found {name})", hint=_ELSEWHERE)


def _require_whole(folder: Path, name: str, track: Track) -> None:
    """StaleError for artifacts that are unfinished or damaged, with each problem; they are called `name`."""
    verification = verify(folder, track)
    if verification.is_well:
        return
    problems = [problem.replace(str(folder), name) for problem in verification.problems]
    raise StaleError(
        f"{name} is not copied: {problems[0]}",
        hint="make it again, or finish it; `dcdctl verify` compares it again",
        details=problems[1:],
    )


def _names_in(folder: Path) -> list[str]:
    """The files of a folder by their paths in it, sorted, without locks and without what other processes are writing;
    InputError for a link to a folder, which `verify` does not follow."""
    names = []
    for parent, folders, found in files.walk(folder):
        folders.sort()
        if link := next((name for name in folders if (parent / name).is_symlink()), None):
            raise InputError(f"{parent / link} is a link to a folder", hint="copy what it names in its place")
        for name in found:
            if not files.PARTIAL_NAME.fullmatch(name) and not files.LOCK_NAME.fullmatch(name):
                names.append((parent / name).relative_to(folder).as_posix())
    return sorted(names)


def _is_seal(name: str) -> bool:
    return PurePosixPath(name).name in SEALS


def _run(bring: Callable[[str], bool], names: Iterable[str], sizes: Mapping[str, int], advance: Advance) -> int:
    """How many of the files were brought."""
    listed = list(names)
    num_copied = 0
    for name, is_copied in zip(listed, read_in_threads(bring, listed, COPIERS), strict=True):
        num_copied += is_copied
        advance(sizes[name])
    return num_copied


def _tracked(track: Track, name: str, sizes: Mapping[str, int]) -> AbstractContextManager[Advance]:
    return track(f"copy {name}", total=sum(sizes.values()), unit="bytes")


def _copy_of(target: str, sizes: Mapping[str, int], num_copied: int) -> Copy:
    return Copy(target=target, num_files=len(sizes), num_bytes=sum(sizes.values()), num_copied=num_copied)
