"""Files and folders that are written atomically, and what killed processes leave of them."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from dcdctl.core.files.access import refuse_device, user_errors

PARTIAL_SUFFIX = ".partial"
PARTIAL_NAME = re.compile(rf".*\.(?P<host>[0-9a-f]{{8}})-(?P<process>\d+){re.escape(PARTIAL_SUFFIX)}")
KEPT_S = 24 * 3600.0
"""How long an incomplete file of another machine is kept after its last change: this one cannot see whether its process
lives."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path to write to, beside `path`; it is renamed to `path` when the block succeeds and removed when it fails."""
    partial = _partial_of(path)
    try:
        with user_errors(path):
            refuse_device(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            sync(partial)
            partial.replace(path)
    finally:
        with suppress(OSError):  # such as a name that is too long, which the block has reported
            partial.unlink()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, beside `path`; it is renamed to `path` when the block succeeds and removed when it
    fails.

    A folder at `path` is replaced, and keeps its content until the new one is complete. If two processes fill the same
    folder, the last one to complete it replaces the other's.
    """
    partial, replaced = _partial_of(path), _partial_of(path.with_name(f"{path.name}.replaced"))
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process that had this process ID
    try:
        with user_errors(path):
            refuse_device(path)
            partial.mkdir(parents=True)
            yield partial
            for file in partial.rglob("*"):
                if file.is_file():
                    sync(file)
            _replace_folder(partial, path, replaced)
    finally:
        # The second rename failed: the old folder returns to its place, unless another process has filled it. Not by
        # Path.exists, which raises for a name that is too long.
        if os.path.exists(partial) and os.path.exists(replaced):  # noqa: PTH110
            with suppress(OSError):
                replaced.rename(path)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _replace_folder(partial: Path, path: Path, replaced: Path) -> None:
    """Rename `partial` to `path`, and the folder that is there to `replaced`."""
    while True:
        if path.is_dir():  # the target of a rename must be empty
            shutil.rmtree(replaced, ignore_errors=True)
            with suppress(FileNotFoundError):  # another process has moved it away
                path.rename(replaced)
        try:
            partial.rename(path)
            return
        except OSError as error:
            if error.errno not in (
                errno.ENOTEMPTY,
                errno.EEXIST,
            ):  # else another process has completed the folder since
                raise


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _partial_of(path: Path) -> Path:
    """The name under which this process writes a file or folder until it is complete."""
    # Machine and process ID separate two processes that write the same file; containers number their processes alike.
    return path.with_name(f"{path.name}.{_host()}-{os.getpid()}{PARTIAL_SUFFIX}")


@cache
def _host() -> str:
    """Eight digits for this machine or container."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def sync(path: Path) -> None:
    """Wait until a file is on the disk: a rename may reach the disk before the content of the file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def remove_partials(folder: Path, name: str = "") -> None:
    """Delete the incomplete files and folders that killed processes left in a folder; those of `name` only if it is
    given.

    What a living process writes stays.
    """
    for path in sorted(folder.glob(f"{glob.escape(name)}.*{PARTIAL_SUFFIX}" if name else f"*{PARTIAL_SUFFIX}")):
        if _is_being_written(path):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_being_written(path: Path) -> bool:
    """Whether a partial file or folder may belong to a living process."""
    owner = PARTIAL_NAME.fullmatch(path.name)
    if owner is None:
        return False
    if owner["host"] != _host():
        return _seconds_since_change(path) < KEPT_S
    return int(owner["process"]) != os.getpid() and _is_alive(int(owner["process"]))


def _seconds_since_change(path: Path) -> float:
    """Seconds since a file, or a file of a folder, was last changed; 0 for a path that no longer exists."""
    try:
        return time.time() - max(file.stat().st_mtime for file in (path, *path.rglob("*")))
    except FileNotFoundError:
        return 0.0  # somebody is at work there


def _is_alive(process: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # of another user; a number that no process has
        return True
    return True
