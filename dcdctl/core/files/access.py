"""Whether a file can be read or written, and the errors that say why it cannot."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dcdctl.core.errors import DcdError, InputError, as_user_error, first_line
from dcdctl.core.places import refuse_url

WRITE_HINT = "name a place on this machine, and copy what is written there"


@contextmanager
def user_errors(path: Path) -> Iterator[None]:
    """Raise what a user can put right as a DcdError that names `path`: a full disk, a permission, a path
    (`errors.as_user_error`)."""
    try:
        yield
    except Exception as error:
        if (user_error := as_user_error(error, path)) is None or user_error is error:
            raise
        raise user_error from error


def unreadable(path: Path, reason: OSError, *, error: type[DcdError] = InputError, hint: str = "") -> DcdError:
    """The error for a file that cannot be read. `hint` is for a missing file: what is there must not be deleted for a
    permission."""
    translated = as_user_error(reason, path)
    if not isinstance(reason, FileNotFoundError) and translated is not None:
        hint = translated.hint
    # Arrow raises OSError with a text alone for a damaged file.
    return error(f"{path} cannot be read: {reason.strerror or first_line(reason)}", hint=hint)


def check_exists(path: Path) -> None:
    """InputError for a file or folder that is not there."""
    try:
        path.stat()
    except OSError as error:
        raise unreadable(path, error, hint="check the path") from error


def refuse_device(path: Path) -> None:
    """InputError for a device, a pipe or a socket: a rename would replace it, also /dev/null of the whole machine."""
    try:  # one look: between two, another process can replace a folder
        mode = path.stat().st_mode
    except (OSError, ValueError):  # absent, unreadable, or no path at all: the operation that follows names it
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise InputError(f"{path} is a device or a pipe, a file is expected", hint="name another file or folder")


def check_output_folder(folder: Path) -> None:
    """InputError if no folder can be created or written to at this path. Writes nothing, and ignores what the folder
    holds."""
    refuse_url(folder, "which dcdctl does not write to", WRITE_HINT)
    refuse_device(folder)
    if folder.is_file():
        raise InputError(f"{folder} is a file, a folder is expected", hint="name another folder")
    _check_writable(folder)


def check_output_file(path: Path) -> None:
    """InputError if no file can be written at this path. Writes nothing; an existing file is no error."""
    refuse_url(path, "which dcdctl does not write to", WRITE_HINT)
    refuse_device(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder, a file is expected", hint="name a file")
    _check_writable(path.parent)


def _check_writable(folder: Path) -> None:
    """InputError if the folder, or the nearest folder above it that exists, cannot be written to."""
    folder = folder.expanduser().absolute()
    # Not Path.exists, which may raise PermissionError below a folder that cannot be entered.
    existing = next(path for path in (folder, *folder.parents) if os.access(path, os.F_OK))
    if not existing.is_dir():
        raise InputError(f"{folder} cannot be written to: {existing} is a file", hint="name another folder")
    # With the rights that this process has now, where the system can tell.
    if not os.access(existing, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        if os.statvfs(existing).f_flag & os.ST_RDONLY:
            raise InputError(f"{existing} cannot be written to: read-only file system", hint="name another folder")
        raise InputError(
            f"{existing} cannot be written to: permission denied", hint="change its permissions, or name another folder"
        )
