"""Why no image meets a condition: what the columns hold in place of what was asked for."""

from __future__ import annotations

import difflib
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from dcdctl.core.search.columns.where import Compare, Condition, Joined, as_written, matches, quoted_value, short

NO_IMAGE = "no image meets the condition"
NUM_NEAR = 3
"""Values that a note names."""
MOST_COMPARED = 1000
"""Different values of a column that are compared letter by letter."""


def why_none(condition: Condition, values: Callable[[str], pa.Array]) -> str:
    """The note for a condition that no image meets, with what the columns of its tests hold where one of these fails on
    every image by itself; `values` gives a column of the images."""
    told: list[str] = []
    parts = [condition]
    while parts:
        part = parts.pop(0)
        if isinstance(part, Joined):
            parts += part.parts
        elif part.value is not None and (what := _held_instead(part, values(part.column))):
            told.append(what)
    return ": ".join([NO_IMAGE, "; ".join(dict.fromkeys(told))]) if told else NO_IMAGE


def _held_instead(test: Compare, column: pa.Array) -> str:
    """What a column holds whose values fail a test; empty if one passes it, or if there is nothing to say."""
    filled = column.drop_null()
    if not len(filled):
        return f"no image has a value for {as_written(test.column)}"
    if matches(test, pa.table({test.column: column})).any() or pa.types.is_boolean(column.type):
        return ""
    if column.type != pa.string():
        ends = pc.min_max(filled).as_py()
        return f"{test.column} is from {quoted_value(ends['min'])} to {quoted_value(ends['max'])}"
    if test.operator not in ("=", "in", "like"):
        return ""
    wanted = test.value if isinstance(test.value, tuple) else (test.value,)
    for text in (str(each).strip("%") for each in wanted):
        if near := _near_texts(text, filled):
            found = ", ".join(quoted_value(short(each)) for each in near)
            pattern = quoted_value(f"%{text}%")
            more = f"; {as_written(test.column)} ilike {pattern} finds it" if text.lower() in near[0].lower() else ""
            return f"{test.column} has {found}{more}"
    return ""


def _near_texts(text: str, column: pa.Array) -> list[str]:
    """A few values of a column that have a text in them, in small or capital letters, or else are spelled nearly as
    it."""
    different = column.unique()
    inside = different.filter(pc.match_substring(different, text, ignore_case=True)) if text else different[:0]
    if len(inside) or len(different) > MOST_COMPARED:
        return list(map(str, inside[:NUM_NEAR].to_pylist()))
    by_small_letters = {value.lower(): value for value in different.to_pylist()}
    return [by_small_letters[near] for near in difflib.get_close_matches(text.lower(), by_small_letters, n=NUM_NEAR)]
