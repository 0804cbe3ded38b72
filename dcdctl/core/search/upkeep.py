"""How an index follows its image folders: which files are new, changed, moved, copied or gone.

Importing this module imports no torch: a folder in which nothing happened is compared in a fraction of a second.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dcdctl.core.data import FolderImageFile, RowError, is_read_now
from dcdctl.core.machine import read_in_threads
from dcdctl.core.search import sources, storage
from dcdctl.core.search.changes import IndexChange
from dcdctl.core.search.columns import change
from dcdctl.core.search.entries import ImageSource
from dcdctl.core.search.image_files import FileFacts
from dcdctl.core.search.index import FolderIndex
from dcdctl.core.search.part_files import UNREADABLE, SkippedFile, SourceImage

HASHING_THREADS = 4
"""Threads that hash files: most of the time they wait for the disk."""


@dataclass(frozen=True, kw_only=True)
class FirstLook:
    """The files of a source beside the rows of an index by name, size and time, before any file is read."""

    new: Sequence[SourceImage] = ()
    """Files without a row."""
    suspects: Sequence[tuple[int, SourceImage]] = ()
    """Rows whose file has another size or time, or was never read."""
    gone: Set[int] = frozenset()
    """Rows whose file is no longer there."""
    outdated: Sequence[int] = ()
    """Earlier rows of an image that has a later one: a change was killed between the two."""
    skipped: Sequence[SkippedFile] = ()
    """All files of the source that are not indexed."""
    notes: tuple[str, ...] = ()

    @property
    def is_as_indexed(self) -> bool:
        """Whether no row is to be added, removed or looked at."""
        return not (self.new or self.suspects or self.gone or self.outdated)


def look_at(index: FolderIndex, source: ImageSource, *, follow: bool) -> FirstLook:
    """What is new in a source, and with `follow` also what may have changed or is gone in a folder.

    A folder without any image that is there no longer removes nothing: its disk may not be mounted.
    """
    files = list(sources.list_images(source, [index.folder, *sources.folders_in(source, index.document.sources)]))
    listed = [file for file in files if isinstance(file, SourceImage)]
    skipped = [file for file in files if isinstance(file, SkippedFile)]
    rows, outdated = _rows_by_id(index, source)
    skipped_before = _skipped_before(index, source)
    if follow and rows and not listed:
        problem = "has no images now" if Path(source.path).is_dir() else "is gone"
        note = f"{source.path} {problem}, and nothing was removed: is its disk mounted?"
        return FirstLook(skipped=skipped_before, notes=(note,))
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
    return FirstLook(
        new=new,
        suspects=suspects,
        gone=_gone(rows, skipped) if follow else frozenset(),
        outdated=outdated,
        skipped=skipped,
    )


def up_to_date(index: FolderIndex) -> IndexChange | None:
    """The index unchanged, if all its folders are as they were indexed; None if one is to be compared closely. Reads no
    file of the folders."""
    notes: list[str] = []
    skipped = storage.skipped_of(index.folder, index.document)
    for number, source in enumerate(index.document.sources):
        if source.is_corpus:
            continue
        look = look_at(index, source, follow=True)
        before = {entry["path"] for entry in skipped if entry["source"] == number}
        leaves_out_the_same = look.notes or before == {file.path for file in look.skipped}
        if not (look.is_as_indexed and leaves_out_the_same):
            return None
        notes += look.notes
    if change.has_columns_to_fill(index, first_row=0):
        return None
    return IndexChange(index, skipped, unchanged=index.num_images, notes=tuple(notes))


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


def tell_apart(
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


def find_known(
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
