"""Atomic writes of files and folders, JSON, locks and checksums."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, overload

import dcdctl
from dcdctl.core.errors import DcdError, InputError, StaleError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]
PARTIAL_SUFFIX = ".partial"
MAX_NAME_BYTES = 150
PACKAGE = Path(dcdctl.__file__).parent


def packaged(name: str) -> Path:
    """A folder that ships with dcdctl: inside an installed package, or beside the package in a checkout."""
    installed = PACKAGE / name
    return installed if installed.is_dir() else PACKAGE.parent / name


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path to write to, beside `path`; it is renamed to `path` when the block succeeds and removed when it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial_of(path)
    try:
        with _disk_full_as_input_error(path):
            yield partial
            _sync(partial)
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, beside `path`; it is renamed to `path` when the block succeeds and removed when it fails.

    A folder at `path` is replaced, and keeps its content until the new one is complete.
    """
    partial, replaced = _partial_of(path), _partial_of(path.with_name(f"{path.name}.replaced"))
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process that had this process ID
    partial.mkdir(parents=True)
    try:
        with _disk_full_as_input_error(path):
            yield partial
            for file in partial.rglob("*"):
                if file.is_file():
                    _sync(file)
            if path.is_dir():
                path.rename(replaced)  # the target of a rename must be empty
            partial.rename(path)
    finally:
        # The second rename failed: the old folder returns to its place.
        if replaced.exists() and not path.exists():
            replaced.rename(path)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _partial_of(path: Path) -> Path:
    """The name under which this process writes a file or folder until it is complete."""
    # The process ID separates two processes that write the same file.
    return path.with_name(f"{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")


def _sync(path: Path) -> None:
    """Wait until a file is on the disk: a rename may reach the disk before the content of the file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _disk_full_as_input_error(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # safetensors raises an error of its own, which has the reason in its text only.
        if not any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT)):
            raise
        hint = "make room and run the same command again: finished files are kept"
        raise InputError(f"there is no room left for {path}", hint=hint) from error


@contextmanager
def lock(folder: Path, part: int = 0) -> Iterator[None]:
    """Lock a folder, or a numbered part of the work on it, for this process; StaleError if another process holds the lock.

    The lock ends with its process, also if that is killed. It does nothing on systems without POSIX locks.
    """
    absolute = folder.absolute()  # "." has no name
    # Beside the folder, because a file inside it would make an empty folder count as occupied.
    path = absolute.with_name(f".{absolute.name}.lock-{part}")
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _locked(path)
    if file is None:
        raise StaleError(f"another run is writing to {folder}", hint="wait until it ends, or name another folder")
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _locked(path: Path) -> IO[str] | None:
    """A lock file, open and locked; None if another process has locked it."""
    if fcntl is None:
        return path.open("a")
    while True:
        file = path.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last owner may have removed the file after it was opened here: its name is free, so a lock on it excludes nobody.
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BlockingIOError:
            file.close()
            return None
        except FileNotFoundError:
            pass
        file.close()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically, with the keys in the given order."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@overload
def read_json(path: Path, *, error: type[DcdError] = InputError, hint: str = "") -> dict[str, Any]: ...
@overload
def read_json(path: Path, *, kind: type[list[Any]], error: type[DcdError] = InputError, hint: str = "") -> list[Any]: ...
def read_json(path: Path, *, kind: type[Any] = dict, error: type[DcdError] = InputError, hint: str = "") -> Any:
    """The JSON object in a file, or the JSON array for `kind=list`.

    `error` with `hint` names the file if it is missing, cannot be read, is not JSON, or holds a value of another kind.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason.strerror}", hint=hint) from reason
    except (ValueError, RecursionError) as reason:  # json gives up on deep nesting with a RecursionError
        raise error(f"{path} is not JSON: {reason}", hint=hint) from reason
    if not isinstance(value, kind):
        raise error(f"{path} holds no JSON {'array' if kind is list else 'object'}", hint=hint)
    return value


def escapes_root(name: str) -> bool:
    """Whether a file name, read as a POSIX or as a Windows path, leads out of the folder in which it is looked up."""
    windows = PureWindowsPath(name)
    return PurePosixPath(name).is_absolute() or bool(windows.drive or windows.root) or ".." in windows.parts


def is_file_name(name: str) -> bool:
    """Whether a text can name a file of any folder: no folders in it, no control characters, not too long.

    >>> [is_file_name(name) for name in ("birds.zip", "../evil", "a\\b", "..", "", "x" * 151)]
    [True, False, False, False, False, False]
    """
    # File systems allow 255 bytes; the rest is for what we add, such as ".partial".
    is_short = 0 < len(name.encode("utf-8", "surrogatepass")) <= MAX_NAME_BYTES
    has_control_characters = any(character < " " or character == "\x7f" for character in name)
    return is_short and not has_control_characters and name != "." and not escapes_root(name) and not {"/", "\\"} & set(name)


def is_vacant(folder: Path) -> bool:
    """Whether a folder is missing or empty, apart from incomplete files that killed processes left."""
    return not folder.exists() or all(path.name.endswith(PARTIAL_SUFFIX) for path in folder.iterdir())


def check_output_folder(folder: Path) -> None:
    """InputError if no folder can be created or written to at this path. Writes nothing, and ignores what the folder holds."""
    if folder.is_file():
        raise InputError(f"{folder} is a file, a folder is expected", hint="name another folder")
    _check_writable(folder)


def check_output_file(path: Path) -> None:
    """InputError if no file can be written at this path. Writes nothing; an existing file is no error."""
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
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{existing} cannot be written to: permission denied", hint="change its permissions, or name another folder")


def remove_partials(folder: Path, name: str = "") -> None:
    """Delete the incomplete files and folders that killed processes left in a folder; those of `name` only if it is given."""
    for path in sorted(folder.glob(f"{glob.escape(name)}.*{PARTIAL_SUFFIX}" if name else f"*{PARTIAL_SUFFIX}")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """The SHA-256 of a JSON-able value, in hex; it does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
