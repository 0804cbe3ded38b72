"""Columns of an existing index are set: from a table of metadata, from the corpora that were indexed, and dropped. Nothing is embedded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dcdctl.core import distributed
from dcdctl.core.data import MOMENT, ImageColumns, columns_of_table, read_columns
from dcdctl.core.errors import InputError
from dcdctl.core.progress import Track, silent
from dcdctl.core.search import commit, storage
from dcdctl.core.search.exact import Rows
from dcdctl.core.search.index import Index
from dcdctl.core.search.where import TYPES

WIDER = {frozenset((pa.int64(), pa.float64())): pa.float64(), frozenset((pa.date32(), MOMENT)): MOMENT}
"""The type that has the values of two types."""


@dataclass(frozen=True, kw_only=True)
class ColumnChanges:
    """How the columns of an index change, in this order."""

    drop: tuple[str, ...] = ()
    """Columns to remove."""
    metadata: Path | pa.Table | None = None
    """A CSV, JSON lines or Parquet file, or a table, that names an image in each row. Its values replace those of the images it names."""
    chosen: tuple[str, ...] | None = None
    """The columns that are taken of it; None for all."""

    def read(self) -> ImageColumns | None:
        """The columns of the metadata; InputError if it is not as it must be."""
        if isinstance(self.metadata, pa.Table):
            return columns_of_table(self.metadata, "the table of metadata", self.chosen)
        return None if self.metadata is None else read_columns(self.metadata.expanduser(), self.chosen)


@dataclass(frozen=True)
class _Values:
    """New values of a column for some rows."""

    name: str
    values: pa.Array
    """For all rows of the index."""
    is_set: NDArray[np.bool_]
    """The rows whose values count, missing ones too."""
    where: str


def change_columns(folder: Path, changes: ColumnChanges, read: ImageColumns | None = None, track: Track = silent) -> list[str]:
    """Change the columns of an index; `read` is what `changes.read` gave. Returns notes for the user.

    InputError if a column to drop is unknown, if the metadata names no image of the index, or if a column gets values of another type.
    """
    with distributed.lock(folder):
        notes: list[str] = []
        with distributed.main_first():
            if distributed.is_main():
                index = Index(folder, storage.read_document(folder))
                table = _changed(index, changes, read, notes)
                if not (index.num_covered == index.num_rows and table.equals(index.column_table())):
                    commit.commit_columns(folder, index.document, table)
    return notes


def _changed(index: Index, changes: ColumnChanges, read: ImageColumns | None, notes: list[str]) -> pa.Table:
    """The columns of all rows after the changes; adds to the notes."""
    columns = {name: index.values(name) for name in index.columns.names}
    for name in changes.drop:
        if name not in columns:
            known = ", ".join(columns) or "none"
            raise InputError(f"the index {index.folder} has no column {name!r} to drop", hint=f"its columns: {known}")
        del columns[name]
    if read is not None:
        notes += read.notes
        for new in _of_metadata(index, read, notes):
            _set(columns, new, index)
    return pa.table(columns) if columns else pa.table({})


def _set(columns: dict[str, pa.Array], new: _Values, index: Index) -> None:
    """Give some rows new values, in place."""
    old = columns.get(new.name, pa.nulls(index.num_rows, new.values.type))
    if not pc.any(pc.and_(pc.is_valid(old), pa.array(~new.is_set))).as_py():
        old = pa.nulls(index.num_rows, new.values.type)  # no value stays, so the type may be another
    try:
        type_ = WIDER.get(frozenset((old.type, new.values.type)), new.values.type)
        old, values = (each if each.type == type_ else _widened(each, type_) for each in (old, new.values))
    except pa.ArrowInvalid as error:
        found = f"column {new.name} of {index.folder} is {TYPES[old.type]}, and in {new.where} it is {TYPES[new.values.type]}"
        raise InputError(found, hint=f"rename it, or remove the old one with --drop-column {new.name}") from error
    columns[new.name] = pc.if_else(pa.array(new.is_set), values, old)


def _widened(values: pa.Array, type_: pa.DataType) -> pa.Array:
    """Values as a wider type; pa.ArrowInvalid if that has not all of them."""
    if type_ not in WIDER.values():
        raise pa.ArrowInvalid("of another type")
    return values.cast(type_)


def _of_metadata(index: Index, read: ImageColumns, notes: list[str]) -> Iterator[_Values]:
    """The values of a table of metadata; adds images that one of both sides lacks to the notes."""
    rows_of_table = _rows_by_name(index, read.images)
    is_named = rows_of_table >= 0
    live = np.ones(index.num_rows, np.bool_) if index.is_removed is None else ~index.is_removed
    used = np.unique(rows_of_table[is_named])
    if not (is_named & live).any():
        example = index.image_id(int(np.flatnonzero(live)[0])) if live.any() else ""
        found = f"none of the {len(read.images):,} images of {read.where} is in the index {index.folder}, such as {read.images[0]!r}"
        raise InputError(found, hint=f"name images as the index does, such as {example!r}")
    if unknown := len(read.images) - len(used):
        known = set(used.tolist())
        example = next(name for row, name in enumerate(read.images) if row not in known)
        notes.append(f"{unknown:,} images of {read.where} are not in the index, such as {example!r}")
    if unnamed := int((live & ~is_named).sum()):
        notes.append(f"{unnamed:,} images of the index are not in {read.where}")
    places = pa.array(rows_of_table, mask=~is_named)
    for name in read.table.column_names:
        yield _Values(name, read.table.column(name).combine_chunks().take(places), is_named, read.where)


def _rows_by_name(index: Index, names: Sequence[str]) -> Rows:
    """For each row of the index, the position of its image among names; -1 if it is not among them.

    A name is an image id, or the path of a file in an image folder: relative to the folder, with the name of the folder before it, or
    absolute.
    """
    ids, rows = index.values("image_id"), np.full(index.num_rows, -1, np.int64)
    first = 0
    for part in index.parts:
        here, source = slice(first, first + part.rows), index.document["sources"][part.source]
        root = PurePosixPath(source["path"]) if source["kind"] == "folder" else None
        for given in _forms(names, root):
            found = pc.index_in(ids.slice(first, part.rows), value_set=pa.array(given, pa.string())).fill_null(-1).to_numpy()
            rows[here] = np.where(rows[here] < 0, found, rows[here])
        first += part.rows
    return rows


def _forms(names: Sequence[str], root: PurePosixPath | None) -> list[list[str | None]]:
    """The names as image ids of a source, the most literal form first; None for a name without that form.

    >>> _forms(["a.jpg", "./b.jpg", "/data/photos/c.jpg", "photos/d.jpg"], PurePosixPath("/data/photos"))[1:]
    [['a.jpg', 'b.jpg', 'c.jpg', 'photos/d.jpg'], [None, None, None, 'd.jpg']]
    """
    if root is None:
        return [list(names)]
    paths = [PurePosixPath(name) for name in names]
    relative = [str(path.relative_to(root)) if path.is_relative_to(root) else str(path) for path in paths]
    return [list(names), list(relative), [str(path.relative_to(root.name)) if path.is_relative_to(root.name) else None for path in paths]]
