"""How an index follows its image folders: what is new, changed, moved, copied or gone, and which rows to remove.

Importing this module imports no torch: a folder in which nothing happened is compared in a fraction of a second.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from dcdctl.core import artifacts
from dcdctl.core.data import FolderImageFile, RowError, is_read_now
from dcdctl.core.errors import ConfigError, InputError
from dcdctl.core.machine import read_in_threads
from dcdctl.core.places import check_utf8, refuse_url
from dcdctl.core.search import sources, storage
from dcdctl.core.search.changes import IndexChange
from dcdctl.core.search.columns import change
from dcdctl.core.search.exact import Rows, spread_over
from dcdctl.core.search.image_files import FileFacts
from dcdctl.core.search.index import FolderIndex
from dcdctl.core.search.job import Changes
from dcdctl.core.search.part_files import UNREADABLE, SkippedFile, SourceImage
from dcdctl.core.search.storage import ImageSource

SHOWN = 3
"""Unknown names in an error message."""
SAMPLED = 100
"""Images that are looked for at the new place of a folder."""
HASHING_THREADS = 4
"""Threads that hash files: most of the time they wait for the disk."""


@dataclass(frozen=True, kw_only=True)
class SourceChanges:
    """What became of a source since it was indexed.

    | a file | its row before | its row after |
    |---|---|---|
    | is new | none | in `new` |
    | has the bytes of a row | removed if its own file is gone | in `known` |
    | has other bytes | removed | in `new`, or in `known` |
    | has another time alone | stays | the same, with the facts in `touched` |
    | is gone | removed | none |
    | cannot be indexed | none | none; in `skipped` |
    """

    new: Sequence[SourceImage] = ()
    """Images to embed: new ones, and those whose file has other bytes now."""
    known: Sequence[SourceImage] = ()
    """Images whose file has the bytes of a row, `copied_from`."""
    touched: Mapping[int, FileFacts] = field(default_factory=dict)
    """Rows whose file has another time, or was never looked at, and the bytes that it had."""
    removed: Rows = field(default_factory=lambda: np.empty(0, np.int64))
    """Rows to remove: images that are gone, and those that get a row of their new bytes."""
    skipped: Sequence[SkippedFile] = ()
    """All files of the source that are not indexed."""
    notes: tuple[str, ...] = ()


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


def has_changes(index: FolderIndex, changes: Changes) -> bool:
    """Whether changes may do anything."""
    return changes != Changes() or change.has_columns_to_fill(index, first_row=index.num_rows)


def compare_source(index: FolderIndex, source: ImageSource, *, follow: bool) -> SourceChanges:
    """What is new in a source, and with `follow` also what changed, moved or is gone in a folder.

    A folder without any image that is there no longer removes nothing: its disk may not be mounted.
    """
    seen = _look_at(index, source, follow=follow)
    touched, changed = _told_apart(index, source, seen.suspects)
    known, unknown = _known_again(index, source, [*(image for _, image in changed), *seen.new], seen.gone)
    return SourceChanges(
        new=unknown,
        known=known,
        touched=touched,
        removed=np.array(sorted({*seen.outdated, *seen.gone, *(row for row, _ in changed)}), dtype=np.int64),
        skipped=seen.skipped,
        notes=seen.notes,
    )


def up_to_date(index: FolderIndex) -> IndexChange | None:
    """The index unchanged, if all its folders are as they were indexed; None if one is to be compared closely. Reads no
    file of the folders."""
    notes: list[str] = []
    skipped = storage.skipped_of(index.folder, index.document)
    for number, source in enumerate(index.document.sources):
        if source.is_corpus:
            continue
        seen = _look_at(index, source, follow=True)
        before = {entry["path"] for entry in skipped if entry["source"] == number}
        is_same = seen.notes or before == {file.path for file in seen.skipped}
        if seen.new or seen.suspects or seen.gone or seen.outdated or not is_same:
            return None
        notes += seen.notes
    if change.has_columns_to_fill(index, first_row=0):
        return None
    return IndexChange(index, skipped, unchanged=index.num_images, notes=tuple(notes))


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """The files of a source beside the rows of an index, before any file is read."""

    new: Sequence[SourceImage] = ()
    suspects: Sequence[tuple[int, SourceImage]] = ()
    """Rows whose file has another size or time, or was never read."""
    gone: Set[int] = frozenset()
    outdated: Sequence[int] = ()
    """Earlier rows of an image that has a later one: a change was killed between the two."""
    skipped: Sequence[SkippedFile] = ()
    notes: tuple[str, ...] = ()


def _look_at(index: FolderIndex, source: ImageSource, *, follow: bool) -> _Seen:
    files = list(sources.list_images(source, [index.folder, *sources.folders_in(source, index.document.sources)]))
    listed = [file for file in files if isinstance(file, SourceImage)]
    skipped = [file for file in files if isinstance(file, SkippedFile)]
    rows, outdated = _rows_by_id(index, source)
    skipped_before = _skipped_before(index, source)
    if follow and rows and not listed:
        problem = "has no images now" if Path(source.path).is_dir() else "is gone"
        note = f"{source.path} {problem}, and nothing was removed: is its disk mounted?"
        return _Seen(skipped=skipped_before, notes=(note,))
    # By name, size and time: a file that could not be read is not tried again before it changes.
    unread: dict[tuple[str, int | None, int | None], SkippedFile] = {
        (file.path, file.num_bytes, file.modified_ns): file
        for file in skipped_before
        if file.modified_ns is not None and not is_read_now(file.kind)
    }
    new, suspects = [], []
    for image in listed:
        row = rows.pop(image.image_id, None)
        if row is None:
            earlier = unread.get((image.image_id, image.num_bytes, image.modified_ns))
            # Rights change without a change of the file.
            if earlier is None or (
                earlier.kind == UNREADABLE and os.access(Path(source.path, image.image_id), os.R_OK)
            ):
                new.append(image)
            else:
                skipped.append(earlier)
        elif follow and not _is_as_indexed(index, row, image):
            suspects.append((row, image))
    return _Seen(
        new=new,
        suspects=suspects,
        gone=_gone(rows, skipped) if follow else frozenset(),
        outdated=outdated,
        skipped=skipped,
    )


def _rows_by_id(index: FolderIndex, source: ImageSource) -> tuple[dict[str, int], list[int]]:
    """The row of each image of a source that was not removed, and earlier rows of the same image."""
    if source not in index.document.sources:
        return {}, []
    ids = index.values("image_id").to_pylist()
    rows: dict[str, int] = {}
    outdated = []
    for row in np.flatnonzero((index.source_R == index.document.sources.index(source)) & index.is_live).tolist():
        if (earlier := rows.get(ids[row])) is not None:
            outdated.append(earlier)
        rows[ids[row]] = row
    return rows, outdated


def _skipped_before(index: FolderIndex, source: ImageSource) -> list[SkippedFile]:
    """The files of a source that were left out so far."""
    if source not in index.document.sources:
        return []
    number = index.document.sources.index(source)
    found = []
    for entry in storage.skipped_of(index.folder, index.document):
        if entry["source"] == number:
            found.append(SkippedFile(**{key: value for key, value in entry.items() if key != "source"}))
    return found


def _is_as_indexed(index: FolderIndex, row: int, image: SourceImage) -> bool:
    if image.corpus_row is not None:
        return True
    return index.image_files.stamps.sha256_R[row] is not None and _has_stamp(index, row, image)


def _has_stamp(index: FolderIndex, row: int, image: SourceImage) -> bool:
    """Whether a file has the size and the time that a row has noted."""
    stamps = index.image_files.stamps
    return stamps.bytes_R[row] == image.num_bytes and stamps.modified_R[row] == image.modified_ns


def _gone(rows: dict[str, int], skipped: Sequence[SkippedFile]) -> set[int]:
    """The rows of images that are not among the listed ones. Files that cannot be looked at now, and those in a folder
    that cannot be read, are not gone."""
    unreadable = {file.path for file in skipped if file.kind == UNREADABLE}
    gone = set()
    for name, row in rows.items():
        places = [name, *(parent.as_posix() for parent in Path(name).parents)]
        if unreadable.isdisjoint(places):
            gone.add(row)
    return gone


def _told_apart(
    index: FolderIndex, source: ImageSource, suspects: Sequence[tuple[int, SourceImage]]
) -> tuple[dict[int, FileFacts], list[tuple[int, SourceImage]]]:
    """Files of another size or time, by their bytes: those that are as they were, with what is known now, and those
    that changed."""
    stamps = index.image_files.stamps
    touched, changed = {}, []
    digests = _digests(source, [image for _, image in suspects])
    for (row, image), digest in zip(suspects, digests, strict=True):
        if digest is None:
            continue
        # Of given vectors, only the size and the time are known so far; of an index of an earlier dcdctl, nothing.
        is_first_look = stamps.sha256_R[row] is None and (stamps.bytes_R[row] is None or _has_stamp(index, row, image))
        if is_first_look or stamps.sha256_R[row] == digest:
            touched[row] = replace(FileFacts.listed(image), sha256=digest)
        else:
            changed.append((row, image))
    return touched, changed


def _known_again(
    index: FolderIndex, source: ImageSource, images: Sequence[SourceImage], gone: Set[int]
) -> tuple[list[SourceImage], list[SourceImage]]:
    """The images whose file has the bytes of a row, with that row, and the others.

    Of several rows one that is gone comes first: its image moved. Removed rows have their vectors still: an image that
    moved to another folder, or that came back.
    """
    stamps = index.image_files.stamps
    if source.is_corpus or not images or not len(stamps.bytes_R):
        return [], list(images)
    rows_of: dict[bytes, list[int]] = {}
    for row, digest in enumerate(stamps.sha256_R):
        if digest is not None:
            rows_of.setdefault(digest, []).append(row)
    is_removed = index.is_removed.tolist()
    for rows in rows_of.values():
        rows.sort(key=lambda row: (row not in gone, is_removed[row]))
    sizes = set(stamps.bytes_R)
    candidates = [image for image in images if image.num_bytes in sizes]
    row_of: dict[str, int] = {}
    for image, found in zip(candidates, _digests(source, candidates), strict=True):
        rows = rows_of.get(found, []) if found is not None else []
        if rows:
            row_of[image.image_id] = _take_origin(rows, gone)
    known = [replace(image, copied_from=row_of[image.image_id]) for image in images if image.image_id in row_of]
    return known, [image for image in images if image.image_id not in row_of]


def _take_origin(rows: list[int], gone: Set[int]) -> int:
    """The first of the rows with the bytes of a file. One that is gone is taken out: a file moves to one place, and a
    further file with its bytes is a copy."""
    if len(rows) > 1 and rows[0] in gone:
        return rows.pop(0)
    return rows[0]


def _digests(source: ImageSource, images: Sequence[SourceImage]) -> list[bytes | None]:
    """The SHA-256 of each file; None for one that the system does not let us read, and no bytes for one that is left
    out, such as a video."""
    root = Path(source.path)

    def digest_of(image: SourceImage) -> bytes | None:
        try:
            return hashlib.sha256(FolderImageFile(root, str(image.path)).read()).digest()
        except RowError as error:
            return None if error.kind == UNREADABLE else b""

    return list(read_in_threads(digest_of, images, HASHING_THREADS))


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
