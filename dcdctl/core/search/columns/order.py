"""The order in which images are listed without a query: by a column, such as the newest first."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dcdctl.core.errors import InputError
from dcdctl.core.search.columns.where import BUILT_IN
from dcdctl.core.search.exact import Rows

EXAMPLE = 'for example year, "taken desc" for the newest first, or \'"owner name"\' for a name with a blank'
MAX_SHOWN = 100
"""Characters of an order that a message shows."""
_DIRECTION = re.compile(r"\s+(asc|desc)$", re.IGNORECASE)


@dataclass(frozen=True)
class Order:
    """By the values of a column; images without a value come last in both directions, equal values by row."""

    column: str
    is_descending: bool = False

    def __str__(self) -> str:
        return f"{self.column} desc" if self.is_descending else self.column


NEWEST = Order("taken", is_descending=True)
"""The order without another one, if the index has this column."""


def parse_order(text: str, columns: pa.Schema) -> Order:
    """The order of a text: the name of a column, then `desc` for the greatest first. As in a condition, double quotes
    stand around a name that ends in such a word.

    InputError for an unknown column; the text is never executed.

    >>> parse_order("taken desc", pa.schema([("taken", pa.date32())]))
    Order(column='taken', is_descending=True)
    """
    known = [*columns.names, *BUILT_IN.names]
    name = text.strip()
    direction = _DIRECTION.search(name)
    if direction is not None:
        name = name[: direction.start()].rstrip()
    if len(name) > 2 and name[0] == name[-1] == '"':
        name = name[1:-1].replace('""', '"')
    if name not in known:
        shown = name if len(name) <= MAX_SHOWN else f"{name[:MAX_SHOWN]}..."
        raise InputError(f"there is no column {shown!r} to order by: the columns are {', '.join(known)}", hint=EXAMPLE)
    return Order(name, is_descending=direction is not None and direction[1].lower() == "desc")


def default_order(columns: pa.Schema) -> Order | None:
    """The newest first if the index knows when its images were taken; None for the order of rows."""
    return NEWEST if NEWEST.column in columns.names else None


def in_order(rows: Rows, values: pa.Array, order: Order) -> Rows:
    """Ascending rows in an order by their values; `values` are those of all rows.

    >>> in_order(np.array([0, 1, 2, 3]), pa.array([2020, None, 2022, 2020]), Order("year", is_descending=True)).tolist()
    [2, 0, 3, 1]
    """
    # Not `pa.array`, which imports pandas.
    row = pa.Array.from_buffers(pa.int64(), len(rows), [None, pa.py_buffer(rows)])
    # Names of our own: a name of a column may be an expression to Arrow.
    table = pa.Table.from_arrays([values.take(row), row], ["value", "row"])
    direction = "descending" if order.is_descending else "ascending"
    # Missing values come last by default.
    places = pc.sort_indices(table, sort_keys=[("value", direction), ("row", "ascending")])
    return np.asarray(rows[np.from_dlpack(places)])
