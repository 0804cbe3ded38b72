"""Locks on folders, so that two processes do not write to one."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dcdctl.core.errors import StaleError
from dcdctl.core.files.access import user_errors
from dcdctl.core.progress import Track

LOCK_NAME = re.compile(r"\..+\.lock-\d+")
"""The name of a folder's lock file (`lock_prefix`), which a killed process leaves."""
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
"""What `flock` raises on a file system without locks."""


@contextmanager
def lock(folder: Path, part: int = 0, *, wait: Track | None = None) -> Iterator[None]:
    """Lock a folder, or a numbered part of the work on it, for this process.

    StaleError if another process holds the lock; with `wait` the block starts when the other process ends, and `wait`
    shows that. Part 0 is also refused while another process holds any other part. The lock ends with its process, also
    if that is killed.

    Over NFS the lock holds between machines if the server supports locks. It does nothing on file systems without
    locks.
    """
    with user_errors(folder):
        path = _lock_path(folder, part)
        file = _locked(path, is_waiting=False)
    if file is None and wait is not None:
        with wait(f"wait for another run that is writing to {folder}", total=None, unit=""):
            file = _locked(path, is_waiting=True)
    if file is None:
        raise _is_busy(folder)
    with file:
        try:
            if part == 0:
                _check_other_parts(folder, path)
            yield
        finally:
            _unlink_own(path, file)


def lock_prefix(folder: Path) -> str:
    """How the names of a folder's lock files begin, which are beside it or in it; the same for all names of
    the folder."""
    # Unlike Path.resolve, realpath accepts loops of links.
    return f".{Path(os.path.realpath(folder)).name}.lock-"


def _lock_path(folder: Path, part: int) -> Path:
    """The lock file of a folder: beside it, because a file inside would make an empty folder count as occupied.

    It is inside the folder if the folder above cannot be written to, as where a volume is mounted.
    """
    real = Path(os.path.realpath(folder))  # one path for all names of the folder
    real.parent.mkdir(parents=True, exist_ok=True)
    is_inside = real.is_dir() and not os.access(real.parent, os.W_OK | os.X_OK)
    return (real if is_inside else real.parent) / f"{lock_prefix(real)}{part}"


def _is_busy(folder: Path) -> StaleError:
    return StaleError(f"another run is writing to {folder}", hint="wait until it ends, or name another folder")


def _check_other_parts(folder: Path, held: Path) -> None:
    """StaleError if a process of an earlier run, whose first process has ended, still holds another part."""
    for path in held.parent.glob(f"{glob.escape(held.name.removesuffix('0'))}*"):
        if path != held:
            file = _locked(path, is_waiting=False)
            if file is None:
                raise _is_busy(folder)
            with file:
                _unlink_own(path, file)


def _locked(path: Path, *, is_waiting: bool) -> IO[str] | None:
    """A lock file, open and locked; None if another process has locked it and this one is not to wait."""
    while True:
        file = path.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if is_waiting else fcntl.LOCK_NB))
        except BlockingIOError:
            file.close()
            return None
        except OSError as error:
            # Working without a lock is better than not at all; docs/architecture.md says so.
            if error.errno in NO_LOCKS:
                return file
            file.close()
            if error.errno != errno.ESTALE:
                raise
            continue
        # The last owner may have removed the file after it was opened here: its name is free, so a lock on it excludes
        # nobody.
        if _is_at(path, file):
            return file
        file.close()


def _is_at(path: Path, file: IO[str]) -> bool:
    """Whether an open file is the one that has this path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError as error:
        # ESTALE: removed by another client of an NFS server.
        if error.errno not in (errno.ENOENT, errno.ESTALE):
            raise
        return False


def _unlink_own(path: Path, file: IO[str]) -> None:
    """Remove a lock file that this process has locked, unless somebody removed it and another process has made its own
    since."""
    if _is_at(path, file):
        path.unlink(missing_ok=True)
