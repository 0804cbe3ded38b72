"""Files: atomic writes of files and folders, JSON, and checksums."""

from __future__ import annotations

import errno
import glob
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, Literal, overload

import dcdctl
from dcdctl.core.errors import DcdError, InputError, as_user_error, first_line
from dcdctl.core.places import refuse_url

if TYPE_CHECKING:
    from numpy.typing import NDArray

WRITE_HINT = "name a place on this machine, and copy what is written there"
PARTIAL_SUFFIX = ".partial"
# File systems allow 255 bytes; suffixes of partial files and of shards come on top.
MAX_NAME_BYTES = 150
PARTIAL_NAME = re.compile(rf".*\.(?P<host>[0-9a-f]{{8}})-(?P<process>\d+){re.escape(PARTIAL_SUFFIX)}")
LOCK_NAME = re.compile(r"\..+\.lock-\d+")
"""The name of a folder's lock file (`lock_prefix`), which a killed process leaves."""
KEPT_S = 24 * 3600.0
"""How long an incomplete file of another machine is kept after its last change: this one cannot see whether its process
lives."""
PACKAGE = Path(dcdctl.__file__).parent


def packaged(name: str) -> Path:
    """A folder that ships with dcdctl: inside an installed package, or beside the package in a checkout."""
    installed = PACKAGE / name
    return installed if installed.is_dir() else PACKAGE.parent / name


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
        # The second rename failed: the old folder returns to its place, unless another process has filled it.
        if os.path.exists(partial) and os.path.exists(replaced):  # noqa: PTH110 - Path.exists raises for a name that is too long
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
def read_json(
    path: Path, *, kind: type[list[Any]], error: type[DcdError] = InputError, hint: str = ""
) -> list[Any]: ...
def read_json(path: Path, *, kind: type[Any] = dict, error: type[DcdError] = InputError, hint: str = "") -> Any:
    """The JSON object in a file, or the JSON array for `kind=list`.

    `error` with `hint` names the file if it is missing, cannot be read, is not JSON, or holds a value of another kind.
    """
    try:
        text = path.read_bytes()
    except OSError as reason:
        raise unreadable(path, reason, error=error, hint=hint) from reason
    return parse_json(text, str(path), kind, error=error, hint=hint)


def parse_json(text: str | bytes, name: str, kind: type[Any], *, error: type[DcdError], hint: str) -> Any:
    """The JSON value in a text; `error`, in which it is called `name`, if it is not JSON, or not of the kind."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as reason:  # json gives up on deep nesting with a RecursionError
        raise error(f"{name} is not JSON: {reason}", hint=hint) from reason
    if not isinstance(value, kind):
        expected = "array" if kind is list else "object"
        raise error(f"{name} holds no JSON {expected}", hint=hint)
    return value


def find_named(names: Sequence[str], suffixes: Sequence[str], *, what: str, option: str) -> list[Path]:
    """The files that are named, each once: files, folders with such files however deep, and patterns such as
    `out/*.csv`.

    InputError for a name without a file, and for a file of another kind. Names in a folder that begin with `_` or `.`
    are left out, since engines write markers and checksums under such names.
    """
    return list(dict.fromkeys(path for name in names for path in _expand(name, suffixes, what, option)))


def _expand(name: str, suffixes: Sequence[str], what: str, option: str) -> list[Path]:
    path, ending = Path(name).expanduser(), f"a {what} ends with {', '.join(suffixes)}"
    if path.is_dir():
        paths = []
        for file in files_below(path):
            is_marker = any(part.startswith(("_", ".")) for part in file.relative_to(path).parts)
            if file.is_file() and file.suffix.lower() in suffixes and not is_marker:
                paths.append(file)
        if not paths:
            raise InputError(f"{path} holds no {what}", hint=ending)
        return paths
    matches = [path] if path.exists() else [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207  # a pattern may be absolute
    if not matches:
        raise InputError(f"{name} does not exist", hint=f"{option} takes a file, a folder or a pattern in quotes")
    # Reading a named pipe would wait for its writer.
    if other := next((match for match in matches if match.suffix.lower() not in suffixes or not match.is_file()), None):
        reason = "name" if other.is_file() else "kind"
        raise InputError(f"{other} is no {what} by its {reason}", hint=ending)
    return matches


def walk(
    root: Path, on_error: Callable[[OSError], object] | None = None
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Each folder below `root`, itself first, with the names of its folders and of its other files: `os.walk`, without
    its limit of some 1,000 levels in Python 3.11.

    A caller may sort the list of folders or take some out, and decides so which ones follow. Links to folders are in
    the list, and are not followed.
    """
    waiting = [root]
    while waiting:
        # The first step of os.walk alone; there is none for a folder that cannot be read.
        for parent, folders, names in itertools.islice(os.walk(waiting.pop(), onerror=on_error), 1):
            folder = Path(parent)
            yield folder, folders, names
            # Not Path.is_symlink, which raises for a folder that cannot be entered.
            followed = [name for name in reversed(folders) if not os.path.islink(folder / name)]  # noqa: PTH114
            waiting += [folder / name for name in followed]


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, sorted, because the order of a file system differs between machines."""
    return sorted(parent / name for parent, _, names in walk(folder) for name in names)


def escapes_root(name: str) -> bool:
    """Whether a file name, read as a POSIX or as a Windows path, leads out of the folder in which it is looked up, or
    holds a NUL, which no file name can."""
    # Of all but a few names in a million, because parsing paths takes a third of the time to find an image.
    if name[:1] not in ("/", "\\") and ".." not in name and ":" not in name and "\0" not in name:
        return False
    windows = PureWindowsPath(name)
    return (
        PurePosixPath(name).is_absolute()
        or bool(windows.drive or windows.root)
        or ".." in windows.parts
        or "\0" in name
    )


def is_file_name(name: str) -> bool:
    """Whether a text can name a file of any folder: no folders in it, no control characters, not too long.

    >>> [is_file_name(name) for name in ("birds.zip", "../evil", "a\\b", "..", "", "x" * 151)]
    [True, False, False, False, False, False]
    """
    # File systems allow 255 bytes; the rest is for what we add, such as ".partial".
    is_short = 0 < len(name.encode("utf-8", "surrogatepass")) <= MAX_NAME_BYTES
    has_control_characters = any(character < " " or character == "\x7f" for character in name)
    return (
        is_short
        and not has_control_characters
        and name != "."
        and not escapes_root(name)
        and not {"/", "\\"} & set(name)
    )


def to_file_name(text: str) -> str:
    """A text as `is_file_name` accepts it: other characters become hyphens, and what is too long is cut off; empty if
    nothing is left.

    >>> to_file_name("a/b: c"), to_file_name("..")
    ('a-b: c', '')
    """
    cleaned = "".join("-" if character in "/\\" or not character.isprintable() else character for character in text)
    cut = cleaned.encode("utf-8", "replace")[:MAX_NAME_BYTES].decode("utf-8", "ignore").strip()
    return cut if is_file_name(cut) else ""


def is_vacant(folder: Path) -> bool:
    """Whether a folder is missing or empty, apart from locks and incomplete files that killed processes left."""
    return not folder.exists() or not names_in(folder)


def names_in(folder: Path) -> list[str]:
    """The names in a folder, sorted, without incomplete files and locks: its own, and those of folders in it."""
    names = (path.name for path in folder.iterdir())
    return sorted(name for name in names if not name.endswith(PARTIAL_SUFFIX) and not LOCK_NAME.fullmatch(name))


def lock_prefix(folder: Path) -> str:
    """How the names of a folder's lock files begin, which `locks` makes beside it or in it; the same for all names of
    the folder."""
    # Unlike Path.resolve, realpath accepts loops of links.
    return f".{Path(os.path.realpath(folder)).name}.lock-"


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
    return int(owner["process"]) != os.getpid() and is_alive(int(owner["process"]))


def _seconds_since_change(path: Path) -> float:
    """Seconds since a file, or a file of a folder, was last changed; 0 for a path that no longer exists."""
    try:
        return time.time() - max(file.stat().st_mtime for file in (path, *path.rglob("*")))
    except FileNotFoundError:
        return 0.0  # somebody is at work there


def is_alive(process: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # of another user; a number that no process has
        return True
    return True


def map_arrays(path: Path, *expected: tuple[Any, tuple[int | None, ...]]) -> list[NDArray[Any]]:
    """The arrays of a .npy file, one after another, memory-mapped; `expected` are their types and shapes, None for any
    length. ValueError if the file holds anything else: it may come from a stranger, and ask for any memory."""
    import numpy as np  # which `dcdctl --help` does not need

    num_bytes = path.stat().st_size
    arrays: list[NDArray[Any]] = []
    with path.open("rb") as file:
        for type_, lengths in expected:
            element = np.dtype(type_)
            try:
                if np.lib.format.read_magic(file) != (1, 0):
                    raise ValueError("its version is not 1.0")
                shape, is_by_columns, found = np.lib.format.read_array_header_1_0(file)
            # A header is an expression of Python, which may be nested too deeply to be read.
            except (ValueError, TypeError, RecursionError, MemoryError) as error:
                raise ValueError(f"it is no array of numbers: {first_line(error)[:200]}") from error
            is_shape = len(shape) == len(lengths) and min(shape, default=0) >= 0
            is_shape = is_shape and all(length in (None, axis) for length, axis in zip(lengths, shape, strict=True))
            if found != element or not is_shape:
                wanted = tuple("any" if length is None else length for length in lengths)
                raise ValueError(f"it has {found} of shape {shape}, expected {element} of shape {wanted}")
            offset = file.tell()
            stop = offset + element.itemsize * math.prod(shape)
            if stop > num_bytes:
                raise ValueError(f"it ends before its {math.prod(shape):,} numbers")
            file.seek(stop)
            if stop == offset:  # an empty array cannot be mapped
                arrays.append(np.empty(shape, element))
                continue
            order: Literal["C", "F"] = "F" if is_by_columns else "C"
            # Plain arrays, because indexing a np.memmap takes longer.
            arrays.append(np.asarray(np.memmap(path, element, "r", offset, shape, order)))
        if file.tell() != num_bytes:
            raise ValueError("it has bytes behind its numbers")
    return arrays


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """The SHA-256 of a JSON-able value, in hex; it does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
