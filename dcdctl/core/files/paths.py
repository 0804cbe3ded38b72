"""Which names files may have, and which files there are: in a folder, below it, and by names and patterns."""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

import dcdctl
from dcdctl.core.errors import InputError
from dcdctl.core.files.atomic import PARTIAL_SUFFIX
from dcdctl.core.files.locks import LOCK_NAME

# File systems allow 255 bytes; suffixes of partial files and of shards come on top.
MAX_NAME_BYTES = 150
PACKAGE = Path(dcdctl.__file__).parent


def packaged(name: str) -> Path:
    """A folder that ships with dcdctl: inside an installed package, or beside the package in a checkout."""
    installed = PACKAGE / name
    return installed if installed.is_dir() else PACKAGE.parent / name


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
    # Not by Path.glob, because a pattern may be absolute.
    found = [str(path)] if path.exists() else sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
    matches = [Path(match) for match in found]
    if not matches:
        raise InputError(f"{name} does not exist", hint=f"{option} takes a file, a folder or a pattern in quotes")
    # Reading a named pipe would wait for its writer.
    if other := next((match for match in matches if match.suffix.lower() not in suffixes or not match.is_file()), None):
        reason = "name" if other.is_file() else "kind"
        raise InputError(f"{other} is no {what} by its {reason}", hint=ending)
    return matches


def names_in(folder: Path) -> list[str]:
    """The names in a folder, sorted, without incomplete files and locks: its own, and those of folders in it."""
    names = (path.name for path in folder.iterdir())
    return sorted(name for name in names if not name.endswith(PARTIAL_SUFFIX) and not LOCK_NAME.fullmatch(name))


def is_vacant(folder: Path) -> bool:
    """Whether a folder is missing or empty, apart from locks and incomplete files that killed processes left."""
    return not folder.exists() or not names_in(folder)
