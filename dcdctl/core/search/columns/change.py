"""Columns of an existing index: set from a table of metadata, from corpora and from EXIF data, or dropped. Nothing is
embedded."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence, Set
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dcdctl.core.data import (
    CAMERA_COLUMNS,
    Corpus,
    ImageColumns,
    columns_of_table,
    nearest_place,
    read_columns,
    read_exif,
)
from dcdctl.core.errors import CorpusError, InputError, MissingError, StaleError
from dcdctl.core.machine import read_in_threads
from dcdctl.core.progress import Track, counted
from dcdctl.core.search.columns.where import PLACE_NAMES, TYPES
from dcdctl.core.search.exact import Rows
from dcdctl.core.search.image_files import EXIF_TYPES
from dcdctl.core.search.index import FolderIndex

EXIF_COLUMNS = {"none": {}, "camera": CAMERA_COLUMNS, "place": EXIF_TYPES}
EXIF_THREADS = 4
"""Threads that read EXIF data: most of the time they wait for the disk."""


def read_metadata(metadata: Path | pa.Table | None) -> ImageColumns | None:
    """The columns of a file or a table of metadata; InputError if it is not as it must be."""
    if metadata is None:
        return None
    if isinstance(metadata, Path):
        return read_columns(metadata.expanduser())
    return columns_of_table(metadata, "the table of metadata")


def changed_table(
    index: FolderIndex,
    dropped: Sequence[str],
    metadata: ImageColumns | None,
    *,
    first_row: int,
    notes: list[str],
    track: Track,
) -> tuple[pa.Table, pa.Table | None]:
    """The columns of all rows after the changes; `metadata` is what `read_metadata` gave. And the facts of all image
    files, if more was read of them, from `first_row` on. Adds to the notes for the user.

    InputError if a column to drop is unknown, if the metadata names no image of the index, or if a column gets values
    of another type.
    """
    columns = {name: index.values(name) for name in index.columns.names}
    for name in dropped:
        if name not in columns:
            known = ", ".join(columns) or "none"
            raise InputError(f"the index {index.folder} has no column {name!r} to drop", hint=f"its columns: {known}")
        del columns[name]
    _set_from_corpora(columns, index)
    _set_from_earlier_rows(columns, index)
    if metadata is not None:
        _set_from_metadata(columns, index, metadata, notes)
    facts = _with_exif(index, first_row, track)
    _set_from_exif(columns, index, index.image_files.table if facts is None else facts, dropped, notes)
    return pa.table(columns), facts


def drops_all_of_files(index: FolderIndex, dropped: Sequence[str], table: pa.Table) -> bool:
    """Whether the last of the columns that the image files gave is dropped."""
    given = EXIF_COLUMNS[index.config.exif].keys()
    was_read = index.image_files.table.column("exif_read").null_count < index.num_rows
    return was_read and bool(given & {*dropped}) and not given & {*table.column_names}


def has_columns_to_fill(index: FolderIndex, *, first_row: int) -> bool:
    """Whether rows have not had a chance to get values from their corpus or from what is known of their file, or from
    `first_row` on from the file itself."""
    is_new_R = np.arange(index.num_rows) >= index.stored_columns.num_covered
    if (is_new_R & _knows_exif(index, index.image_files.table)).any() or _has_new_corpora(index):
        return True
    return len(_rows_without_exif(index, first_row)) > 0


def _has_new_corpora(index: FolderIndex) -> bool:
    try:
        return any(table.column_names for _, _, table in _new_corpora(index))
    except CorpusError:  # it is gone: the index is searched and changed without it
        return False


def _gives_exif(index: FolderIndex) -> NDArray[np.bool_]:
    """(R,): the rows whose file gives columns: those of folders, unless the setting is none."""
    is_folder = np.array([not source.is_corpus for source in index.document.sources], np.bool_)
    return is_folder[index.source_R] & index.is_live & (index.config.exif != "none")


def _knows_exif(index: FolderIndex, facts: pa.Table) -> NDArray[np.bool_]:
    """(R,): the rows whose file gives columns and was read for them."""
    return _gives_exif(index) & facts.column("exif_read").is_valid().to_numpy()


def _rows_without_exif(index: FolderIndex, first_row: int) -> Rows:
    """The rows, from one on, whose file was not read for the columns of the setting."""
    read_R = index.image_files.table.column("exif_read")
    wanted = pa.array(["camera", "place"] if index.config.exif == "camera" else ["place"])
    is_read_R = pc.is_in(read_R, value_set=wanted).to_numpy()
    return np.flatnonzero(_gives_exif(index) & ~is_read_R & (np.arange(index.num_rows) >= first_row))


def _new_corpora(index: FolderIndex) -> Iterator[tuple[range, Corpus, pa.Table]]:
    """The rows that have not had a chance to get values, with their corpus and its columns."""
    first = 0
    for part in index.parts:
        source = index.document.sources[part.source]
        rows, first = range(max(first, index.stored_columns.num_covered), first + part.rows), first + part.rows
        if source.is_corpus and rows:
            corpus = Corpus.open(Path(source.path), str(source.split))
            if corpus.columns is not None:
                yield rows, corpus, corpus.columns


def _set_from_corpora(columns: dict[str, pa.Array], index: FolderIndex) -> None:
    """The columns of corpora, for rows that have not had a chance to get values."""
    ids = index.values("image_id")
    for rows, corpus, table in _new_corpora(index):
        is_set = np.zeros(index.num_rows, np.bool_)
        is_set[rows.start : rows.stop] = True
        places = pc.index_in(ids, value_set=pa.array(corpus.image_ids, pa.string()))
        for name in table.column_names:
            new = table.column(name).combine_chunks().take(places)
            _set(index, columns, name, new, is_set=is_set, where=str(corpus.folder))


def _set_from_metadata(columns: dict[str, pa.Array], index: FolderIndex, read: ImageColumns, notes: list[str]) -> None:
    """The values of a table of metadata; adds images that one of both sides lacks to the notes."""
    rows_of_table = _rows_by_name(index, read.images)
    is_named = rows_of_table >= 0
    live = index.is_live
    used = np.unique(rows_of_table[is_named])
    if not (is_named & live).any():
        example = index.image_id(int(np.flatnonzero(live)[0])) if live.any() else ""
        message = (
            f"none of the {len(read.images):,} images of {read.where} is in the index {index.folder}, such as "
            f"{read.images[0]!r}"
        )
        raise InputError(message, hint=f"name images as the index does, such as {example!r}")
    notes += read.notes
    if unknown := len(read.images) - len(used):
        known = set(used.tolist())
        example = next(name for row, name in enumerate(read.images) if row not in known)
        notes.append(f"not in the index: {counted(unknown, 'images')} of {read.where}, such as {example!r}")
    if unnamed := int((live & ~is_named).sum()):
        notes.append(f"not in {read.where}: {counted(unnamed, 'images')} of the index")
    places = pa.array(rows_of_table, mask=~is_named)
    for name in read.table.column_names:
        new = read.table.column(name).combine_chunks().take(places)
        _set(index, columns, name, new, is_set=is_named, where=read.where)


def _set_from_earlier_rows(columns: dict[str, pa.Array], index: FolderIndex) -> None:
    """The columns of rows that are gone, for new rows of the same images.

    A file of the same bytes has all of them. A file of the same name has other bytes now, and the columns that the user
    gave; what the file says is read from it again.
    """
    is_new_R = np.arange(index.num_rows) >= index.stored_columns.num_covered
    if not (columns and is_new_R.any()):
        return
    facts = index.image_files.table
    origin_R = facts.column("copied_from").fill_null(-1).to_numpy()
    is_same_file_R = is_new_R & (origin_R >= 0) & index.is_removed[np.maximum(origin_R, 0)]
    earlier_R = _earlier_rows(index, set(origin_R[is_new_R].tolist()))
    is_same_name_R = is_new_R & ~is_same_file_R & (earlier_R >= 0)
    from_R = np.where(is_same_file_R, origin_R, np.where(is_same_name_R, earlier_R, np.arange(index.num_rows)))
    places = pa.array(from_R)
    for name in columns:
        values = columns[name].take(places)
        if name in EXIF_TYPES and values.type == EXIF_TYPES[name]:
            is_of_file = pc.equal(values, facts.column(name).combine_chunks().take(places)).fill_null(False)
            values = pc.if_else(pc.and_(pa.array(is_same_name_R), is_of_file), None, values)
        elif name in PLACE_NAMES and index.config.exif == "place":
            values = pc.if_else(pa.array(is_same_name_R), None, values)
        columns[name] = values


def _earlier_rows(index: FolderIndex, moved: Set[int]) -> Rows:
    """(R,): the last removed row that each new row has the name of; -1 without one, and if its file has another name
    now."""
    ids, source_R = index.values("image_id").to_pylist(), index.source_R.tolist()
    found = np.full(index.num_rows, -1, np.int64)
    last: dict[tuple[int, str], int] = {}
    for row, name in enumerate(ids):
        image = source_R[row], name
        if row >= index.stored_columns.num_covered:
            found[row] = last.get(image, -1)
        elif index.is_removed[row] and row not in moved:
            last[image] = row
        else:
            last.pop(image, None)
    return found


def _with_exif(index: FolderIndex, first_row: int, track: Track) -> pa.Table | None:
    """The facts of all image files, with the EXIF data of rows that were not read for them; None if there are none."""
    rows, setting, facts = _rows_without_exif(index, first_row), index.config.exif, index.image_files.table
    if not len(rows):
        return None
    read_row = partial(_read_row, index, place=setting == "place")
    read: list[dict[str, Any]] = []
    with track("read EXIF", total=len(rows), unit="images") as advance:
        for values in read_in_threads(read_row, rows.tolist(), EXIF_THREADS):
            read.append({**values, "exif_read": setting})
            advance(1)
    for name in ("exif_read", *EXIF_COLUMNS[setting]):
        values = facts.column(name).to_pylist()
        for row, found in zip(rows.tolist(), read, strict=True):
            values[row] = found[name]
        field = facts.schema.field(name)
        facts = facts.set_column(facts.schema.get_field_index(name), field, pa.array(values, field.type))
    return facts


def _set_from_exif(
    columns: dict[str, pa.Array], index: FolderIndex, facts: pa.Table, dropped: Sequence[str], notes: list[str]
) -> None:
    """What the image files say, where a column has no value yet. A column that was dropped stays so, and one with
    values of another type, which the user gave, stays as it is."""
    reads_R = _knows_exif(index, facts)
    if not reads_R.any():
        return
    # Removed rows count: the column may have been dropped when they were there.
    read_before = index.image_files.table.column("exif_read")[: index.stored_columns.num_covered].unique().to_pylist()
    found = {name: facts.column(name).combine_chunks() for name in EXIF_COLUMNS[index.config.exif]}
    if index.config.exif == "place":
        found |= _names_of_places(found["latitude"], found["longitude"], notes)
    for name, new in found.items():
        was_made = "place" in read_before or (name in CAMERA_COLUMNS and "camera" in read_before)
        if name in dropped or (was_made and name not in columns):
            continue
        is_set = reads_R
        if name in columns:
            if columns[name].type != new.type and columns[name].null_count < index.num_rows:
                notes.append(f"column {name} is {TYPES[columns[name].type]} of yours, and not filled from the files")
                continue
            is_set = reads_R & columns[name].is_null().to_numpy(zero_copy_only=False)
        _set(index, columns, name, new, is_set=is_set, where="the image files")


def _names_of_places(latitudes: pa.Array, longitudes: pa.Array, notes: list[str]) -> dict[str, pa.Array]:
    """The columns city and country of coordinates; none without the package that has the table of cities."""
    try:
        cities, countries = nearest_place(_degrees(latitudes), _degrees(longitudes))
    except MissingError as error:
        notes.append(f"places have no names: {error}")
        return {}
    return dict(zip(PLACE_NAMES, (pa.array(names, pa.string()) for names in (cities, countries)), strict=True))


def _degrees(coordinates: pa.Array) -> NDArray[np.float64]:
    """Coordinates as numbers, NaN where there are none."""
    return coordinates.to_numpy(zero_copy_only=False).astype(np.float64)


def _set(
    index: FolderIndex,
    columns: dict[str, pa.Array],
    name: str,
    new: pa.Array,
    *,
    is_set: NDArray[np.bool_],
    where: str,
) -> None:
    """Give the rows that are set their new values of a column, missing ones too; InputError, with `where` the values
    are from, if a value of another type stays."""
    old = columns.get(name)
    if old is None or not pc.any(pc.and_(pc.is_valid(old), pa.array(~is_set))).as_py():
        old = pa.nulls(len(new), new.type)  # no value stays, so the type may be another
    if old.type != new.type:
        raise InputError(
            f"column {name} of {index.folder} is {TYPES[old.type]}, and in {where} it is {TYPES[new.type]}",
            hint=f"rename it, or remove the old one with `dcdctl change {index.folder} --drop-column {name}`",
        )
    columns[name] = pc.if_else(pa.array(is_set), new, old)


def _read_row(index: FolderIndex, row: int, *, place: bool) -> dict[str, Any]:
    """The EXIF data of a row; of a file that is gone, those of an empty one."""
    try:
        file = index.images.open(*index.source_image(row))
    except (MissingError, StaleError):
        file = io.BytesIO()
    with file:
        return read_exif(file, place=place)


def _rows_by_name(index: FolderIndex, names: Sequence[str]) -> Rows:
    """For each row of the index, the position of its image among names; -1 if it is not among them.

    A name is an image id, or the path of a file in an image folder: relative to the folder, with the name of the folder
    before it, or absolute.
    """
    ids, rows = index.values("image_id"), np.full(index.num_rows, -1, np.int64)
    for number, source in enumerate(index.document.sources):
        here = np.flatnonzero(index.source_R == number)
        ids_here = ids.take(pa.array(here))
        for given in name_forms(names, None if source.is_corpus else PurePosixPath(source.path)):
            rows[here] = np.where(rows[here] < 0, position_in(ids_here, pa.array(given, pa.string())), rows[here])
    return rows


def position_in(values: pa.Array, names: pa.Array) -> Rows:
    """The position of each value among names; -1 if it is not among them."""
    return pc.index_in(values, value_set=names).fill_null(-1).to_numpy().astype(np.int64)


def name_forms(names: Sequence[str], root: PurePosixPath | None) -> list[list[str | None]]:
    """The names as image ids of a source, the most literal form first; None for a name without that form.

    >>> name_forms(["a.jpg", "./b.jpg", "/data/photos/c.jpg", "photos/d.jpg"], PurePosixPath("/data/photos"))[1:]
    [['a.jpg', 'b.jpg', 'c.jpg', 'photos/d.jpg'], [None, None, None, 'd.jpg']]
    """
    if root is None:
        return [list(names)]
    paths = [PurePosixPath(name) for name in names]
    relative = [str(path.relative_to(root)) if path.is_relative_to(root) else str(path) for path in paths]
    return [
        list(names),
        list(relative),
        [str(path.relative_to(root.name)) if path.is_relative_to(root.name) else None for path in paths],
    ]
