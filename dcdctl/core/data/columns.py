"""Columns of images, such as a year or an owner: read from tables, typed by their values, one row per image."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dcdctl.core.data.text_encoding import csv_rows, find_encoding
from dcdctl.core.errors import InputError
from dcdctl.core.progress import counted

Cells = dict[str, pa.Array | None]
"""The columns of a table, typed; None for one of values that no column can hold, such as lists."""
MOMENT = pa.timestamp("us")
"""The type of a column of moments, in UTC."""
KEYS = ("image", "image_id", "path", "filepath", "file_name", "filename")
"""The columns of a table that may name the image of a row; the first one that a table has is used."""
RESERVED = ("row", "image_id", "path", "source", "corpus_row", "vector", "score", "name")
"""Names of an index and of its answers, which columns cannot have."""
MAX_NAME_BYTES = 60
"""PostgreSQL cuts longer names off, at 63 bytes."""
_DAY = r"\d{4}-\d{2}-\d{2}"
_WHOLE = r"[+-]?(0|[1-9]\d*)"


@dataclass(frozen=True)
class ImageColumns:
    """Columns of images."""

    images: list[str]
    """The name of the image of each row; each name once."""
    table: pa.Table
    where: str
    """The name of their source in messages."""
    notes: tuple[str, ...] = ()
    """What the user should know: columns that were left out, images with several values."""


def read_columns(path: Path) -> ImageColumns:
    """The columns in a CSV or Parquet file.

    InputError if the file cannot be read, names no images, or lacks a column, and for a name that a column cannot have.
    """
    hint = "a table of metadata is a .csv or .parquet file with a column that names images"
    read = {".csv": _read_csv, ".parquet": _read_parquet}.get(path.suffix.lower())
    if read is None:
        ending = repr(path.suffix or "nothing")
        raise InputError(f"{path} is no table of metadata, its name ends with {ending}", hint=hint)
    try:
        cells = read(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read: {reason}", hint=hint) from error
    return columns_by_image(cells, str(path))


def columns_of_table(table: pa.Table, where: str) -> ImageColumns:
    """The columns of a table in memory, as for `read_columns`."""
    return columns_by_image(_typed(table), where)


def columns_by_image(cells: Cells, where: str) -> ImageColumns:
    """Columns by the images that one of them names (`KEYS`)."""
    key = next((name for name in KEYS if name in cells), None)
    names = None if key is None else cells[key]
    if names is None:
        listed = ", ".join(list(cells)[:8]) or "none"
        raise InputError(
            f"{where} names no images, its columns are {listed:.300}", hint=f"one column must: {', '.join(KEYS)}"
        )
    named = [name for name in cells if name not in KEYS]
    check_chosen(named, named, where)
    if not named:
        raise InputError(f"{where} has no columns besides the names of images", hint="add some, such as year or owner")
    return by_first_row(
        [None if name is None else str(name) for name in names.to_pylist()],
        {name: cells[name] for name in named},
        where,
    )


def by_first_row(images: Sequence[str | None], cells: Mapping[str, pa.Array | None], where: str) -> ImageColumns:
    """Columns with one row per image, the first of the image's rows; rows without an image are left out."""
    first: dict[str, int] = {}
    for row, image in enumerate(images):
        if image:
            first.setdefault(image, row)
    of_image = pa.array([first[image] if image else None for image in images], "int64")
    columns, notes = {}, []
    for name, column in cells.items():
        if column is None or column.null_count == len(column):
            reason = (
                "its values are not texts, numbers, dates, or true and false" if column is None else "it has no values"
            )
            notes.append(f"column {name} of {where} is left out: {reason}")
            continue
        columns[name] = column.take(pa.array(first.values(), "int64"))
        others = pc.indices_nonzero(pc.fill_null(pc.not_equal(column, column.take(of_image)), False))
        if count := len({images[row] for row in others.to_pylist()}):
            notes.append(
                f"column {name} of {where} has several values for {counted(count, 'images')}: the first row of an "
                "image counts"
            )
    return ImageColumns(list(first), pa.table(columns), where, tuple(notes))


def check_chosen(chosen: Sequence[str], named: Sequence[str], where: str) -> None:
    """InputError for a chosen column that is not among those that a table names, or whose name no column can have."""
    for name in chosen:
        if name not in named:
            known = ", ".join(named[:12]) or "only the names of images"
            raise InputError(f"{where} has no column {name!r}", hint=f"it has {known}")
        if problem := problem_of_name(name):
            raise InputError(f"the column {name!r:.80} of {where} {problem}", hint="rename it")


def problem_of_name(name: str) -> str:
    """Why a column cannot have a name; empty if it can."""
    if name.lower() in RESERVED:
        return "has a name that the index itself uses"
    if not name or name != name.strip() or not name.isprintable() or '"' in name:
        return "has a name with quotation marks, or with blanks at an end, or without letters"
    is_long = len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES
    return f"has a name of more than {MAX_NAME_BYTES} bytes" if is_long else ""


def typed_column(values: pa.Array) -> pa.Array | None:
    """Values of Arrow as one of the types of columns; NaN, infinities and empty texts are missing. None for other
    types, such as lists."""
    type_ = values.type
    if isinstance(type_, pa.DictionaryType):
        return typed_column(values.dictionary_decode())
    if pa.types.is_integer(type_):
        # uint64 has numbers that int64 lacks.
        is_wide = type_ == pa.uint64() and (pc.max(values).as_py() or 0) >= 2**63
        return values.cast("string" if is_wide else "int64")
    if pa.types.is_floating(type_) or pa.types.is_decimal(type_):
        numbers = values.cast("float64", safe=False)
        return pc.if_else(pc.is_finite(numbers), numbers, None)
    if pa.types.is_date(type_):
        return values.cast("date32", safe=False)
    if pa.types.is_timestamp(type_):
        # With a time zone or without one, the numbers count from 1970 in UTC.
        return values.cast(pa.timestamp("us", type_.tz), safe=False).cast(MOMENT)
    if pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_):
        texts = values.cast("string")
        return pc.if_else(pc.equal(texts, ""), None, texts)
    return values.cast("bool") if type_ in ("bool", "null") else None


def from_cells(texts: Sequence[str]) -> pa.Array:
    """The cells of a text file, as the type that fits all of them; empty cells are missing.

    >>> [from_cells(cells).to_pylist() for cells in (["1", "", "3"], ["007", "1"], ["1.5", "nan"], ["True", "false"])]
    [[1, None, 3], ['007', '1'], [1.5, None], [True, False]]
    """
    cells = [text.strip() or None for text in texts]
    filled = [cell for cell in cells if cell is not None]
    for type_, parse, form in _FORMS:
        if filled and all(re.fullmatch(form, cell) for cell in filled):
            try:
                # NaN counts as missing, and so does a number that is too large for a float.
                return typed_column(pa.array([None if cell is None else parse(cell) for cell in cells], type_))
            except (ValueError, OverflowError):  # 2024-02-31, or a number that needs more bits
                break
    return pa.array(cells, "string")


def moment_of(text: str) -> datetime:
    """A moment in ISO 8601, in UTC and without its zone; ValueError if the text is none."""
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


_FORMS: list[tuple[Any, Callable[[str], Any], str]] = [
    ("bool", lambda cell: cell.lower() == "true", "(?i)true|false"),
    # Not 007: such numbers are codes, whose zeros count.
    ("int64", int, _WHOLE),
    ("float64", float, rf"(?i)({_WHOLE}(\.\d*)?|[+-]?\.\d+)(e[+-]?\d+)?|nan"),
    ("date32", date.fromisoformat, _DAY),
    (MOMENT, moment_of, rf"{_DAY}[T ]\d{{2}}:\d{{2}}(:\d{{2}}(\.\d+)?)?(Z|[+-]\d{{2}}:?\d{{2}})?"),
]
"""How the cells of a text file are written and read, by the type of their column; the first type whose form all cells
have is taken."""


def from_json(values: Sequence[Any]) -> pa.Array | None:
    """Values of JSON as a column; None for lists and objects.

    Dates in texts are recognized, numbers in texts are not. A column of texts and other values is one of texts.

    >>> [from_json(values).to_pylist() for values in ([1, 2.5, None], ["2", "x"], [1, "x"])]
    [[1.0, 2.5, None], ['2', 'x'], ['1', 'x']]
    """
    kinds = {type(value) for value in values if value is not None}
    if kinds & {list, dict}:
        return None
    if kinds == {str}:
        cells = from_cells([value or "" for value in values])
        return cells if cells.type in (pa.date32(), MOMENT) else typed_column(pa.array(values, "string"))
    if kinds == {float, int} or len(kinds) <= 1:
        try:
            return typed_column(pa.array(values))
        except (OverflowError, pa.ArrowInvalid):  # a number of more than 64 bits
            pass
    return pa.array(
        [value if value is None or isinstance(value, str) else json.dumps(value) for value in values], "string"
    )


def _read_csv(path: Path) -> Cells:
    names, *rows = [cells for _, cells in csv_rows(path, find_encoding(path))] or [[]]
    columns: Cells = {}
    for number, name in enumerate(names):
        cells = [row[number] for row in rows]
        columns[name] = pa.array(cells) if name in KEYS else from_cells(cells)
    return columns


def _read_parquet(path: Path) -> Cells:
    return _typed(pq.read_table(path))


def _typed(table: pa.Table) -> Cells:
    return {name: typed_column(table.column(name).combine_chunks()) for name in table.column_names}
