"""What a user names to change an index: the index itself, images to remove, and an image folder that moved.

Importing this module imports no torch: a name that is not there is refused at once.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dcdctl.core import artifacts
from dcdctl.core.errors import ConfigError, InputError
from dcdctl.core.places import check_utf8, refuse_url
from dcdctl.core.search.entries import ImageSource
from dcdctl.core.search.exact import Rows, spread_over
from dcdctl.core.search.index import FolderIndex

SHOWN = 3
"""Unknown names in an error message."""
SAMPLED = 100
"""Images that are looked for at the new place of a folder."""


def open_to_change(target: str) -> FolderIndex:
    """The index in a folder that is to change; an error for a URL or a run."""
    refuse_url(
        Path(target),
        "and the index to change is a folder of this machine",
        "copy it to this machine, and name the copy",
    )
    folder = Path(target).expanduser()
    if artifacts.kind_of_folder(folder) == "a run":
        raise ConfigError(
            f"{folder} is a run, not an index", hint=f"make one: dcdctl index {folder} --images DIR --out INDEX"
        )
    return FolderIndex.open(folder)


def check_removable(place: str, names: Sequence[str]) -> None:
    """InputError for a name that `rows_to_remove` would refuse. Asked before torch is imported, which takes seconds."""
    rows_to_remove(open_to_change(place), names)


def rows_to_remove(index: FolderIndex, names: Sequence[str]) -> Rows | None:
    """All rows to be empty after the removal, including rows removed before; None if there is nothing to remove.

    A name is an image id, the absolute path of a file, or a pattern (`*`, `?`, `[...]`) of image ids. InputError if a
    name matches no image or stands for two.
    """
    if not names:
        return None
    roots = [None if source.is_corpus else Path(source.path) for source in index.document.sources]
    removed = set(np.flatnonzero(index.is_removed).tolist())
    image_ids, source_R = index.values("image_id").to_pylist(), index.source_R.tolist()
    live = {row: name for row, name in enumerate(image_ids) if row not in removed}
    by_name: dict[str, list[int]] = {}
    for row, name in live.items():
        by_name.setdefault(name, []).append(row)
    # Images that are removed already are no error: a command that was killed after its removal is run again.
    gone_ids = {image_ids[row] for row in removed}

    def rows_named(name: str) -> set[int]:
        # A file name may contain * or [, so a name that is an image id is not read as a pattern.
        matching = set(by_name.get(name, ()))
        if len(matching) > 1:
            places = [index.document.sources[source_R[row]].path for row in sorted(matching)]
            raise InputError(
                f"{name} stands for {len(matching)} images of {index.folder}, in {' and '.join(places[:SHOWN])}; "
                "nothing was removed",
                hint=f"give its whole path, such as {Path(places[0], name)}",
            )
        at_path = matching or _rows_at(name, roots, by_name, source_R)
        return at_path or {row for row, image_id in live.items() if fnmatch.fnmatchcase(image_id, name)}

    unknown = []
    for name in dict.fromkeys(names):
        matching = rows_named(name)
        if not matching and name not in gone_ids and not fnmatch.filter(gone_ids, name):
            unknown.append(name)
        removed |= matching
    if unknown:
        raise InputError(
            f"the index {index.folder} has no image {', '.join(map(repr, sorted(unknown)[:SHOWN]))}; nothing was "
            "removed",
            hint="name image ids, or patterns such as '2019/*'",
        )
    return np.array(sorted(removed), dtype=np.int64)


def _rows_at(
    path: str, roots: Sequence[Path | None], by_name: Mapping[str, Sequence[int]], source_R: Sequence[int]
) -> set[int]:
    """The row of the file at an absolute path in an image folder, if there is one."""
    found = set()
    for number, root in enumerate(roots):
        if root is not None and Path(path).is_relative_to(root):
            name = Path(path).relative_to(root).as_posix()
            found |= {row for row in by_name.get(name, ()) if source_R[row] == number}
    return found


def moved_sources(index: FolderIndex, old: Path, new: Path) -> tuple[ImageSource, ...]:
    """The sources of an index whose image folder, or one above it, is at another place now.

    InputError if no image folder was there, if the new place is no folder or another source, or if it lacks the images.
    """
    refuse_url(old, "and image folders are of this machine", "name the place where the images were")
    refuse_url(new, "and image folders are of this machine", "name the place where the images are now")
    # Not resolved: what was there is gone.
    was, now = Path(os.path.abspath(old.expanduser())), new.expanduser().resolve()  # noqa: PTH100
    listed = index.document.sources
    numbers = [
        number for number, source in enumerate(listed) if not source.is_corpus and Path(source.path).is_relative_to(was)
    ]
    if not now.is_dir():
        raise InputError(f"{new} is no folder", hint="name the place where the images are now")
    check_utf8(now)
    if not numbers:
        folders = ", ".join(source.path for source in listed if not source.is_corpus) or "none"
        raise InputError(
            f"{old} is no image folder of {index.folder}, and none is in it",
            hint=f"its image folders: {folders}; files that moved within one need no --moved",
        )
    moved = list(listed)
    for number in numbers:
        folder = now / Path(listed[number].path).relative_to(was)
        if any(str(folder) == source.path for source in listed):
            raise InputError(
                f"{folder} is an image folder of {index.folder} already", hint=f"follow it: dcdctl sync {index.folder}"
            )
        rows = np.flatnonzero((index.source_R == number) & index.is_live)
        names = [index.image_id(int(rows[place])) for place in spread_over(len(rows), SAMPLED)]
        there = sum((folder / name).is_file() for name in names)
        if 2 * there < len(names):
            raise InputError(
                f"{folder} has {there:,} of {len(names):,} images of {listed[number].path} that were looked for",
                hint="name the folder itself, as it was and as it is now",
            )
        moved[number] = replace(listed[number], path=str(folder))
    return tuple(moved)
