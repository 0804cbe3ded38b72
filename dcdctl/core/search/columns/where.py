"""Conditions on the columns of images, such as `year >= 2020 and owner = 'x'`: read as SQL, checked against the
columns, never executed.

A condition has no NOT: it is moved into the comparisons, so that every engine gives the same rows. As in SQL, a
comparison with a missing value does not hold, and neither does its opposite; only `IS NULL` finds missing values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dcdctl.core.data import MOMENT, moment_of
from dcdctl.core.errors import InputError

if TYPE_CHECKING:
    from sqlglot import exp

Value = str | bool | int | float | date | datetime
Operator = Literal["=", "!=", "<", "<=", ">", ">=", "in", "not in", "like", "not like", "is null", "is not null"]
TYPES: dict[pa.DataType, str] = {
    pa.string(): "a text",
    pa.bool_(): "true or false",
    pa.int64(): "a whole number",
    pa.float64(): "a number",
    pa.date32(): "a date",
    MOMENT: "a date and time",
}
"""The types of columns, with what their values are called."""
COLUMN_TYPES = {str(type_): type_ for type_ in TYPES}
"""The types of columns by the names that files give them."""
BUILT_IN = pa.schema([("image_id", pa.string()), ("path", pa.string())])
"""Columns that every index has: the id of an image, and its path in the image folder, which images of a corpus lack."""
EXAMPLE = "for example year >= 2020 and owner = 'x'"
MAX_SHOWN = 100
"""Characters of a condition, and of a part of it, that a message shows."""
_PAIRS: tuple[tuple[Operator, Operator], ...] = (
    ("=", "!="),
    ("<", ">="),
    (">", "<="),
    ("in", "not in"),
    ("like", "not like"),
    ("is null", "is not null"),
)
_OPPOSITE: dict[Operator, Operator] = {**dict(_PAIRS), **{second: first for first, second in _PAIRS}}
_READ_AS: dict[str, Operator] = {"eq": "=", "neq": "!=", "lt": "<", "lte": "<=", "gt": ">", "gte": ">="}
"""The comparisons by the keys of sqlglot's expressions."""
_COMPARE: dict[str, Callable[..., pa.ChunkedArray]] = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


@dataclass(frozen=True)
class Compare:
    """A test of a column."""

    column: str
    operator: Operator
    value: Value | tuple[Value, ...] | None = None
    """A value of the column's type; several for `in`, a pattern of SQL for `like` (% stands for any characters, _ for
    one), None for `is null`."""


@dataclass(frozen=True)
class Joined:
    """All parts hold, or at least one does."""

    word: Literal["and", "or"]
    parts: tuple[Condition, ...]


Condition = Compare | Joined


def _opposite(condition: Condition) -> Condition:
    if isinstance(condition, Joined):
        # De Morgan: not (a and b) is (not a) or (not b).
        return Joined("or" if condition.word == "and" else "and", tuple(map(_opposite, condition.parts)))
    return replace(condition, operator=_OPPOSITE[condition.operator])


def parse_where(text: str, columns: pa.Schema) -> Condition:
    """The condition of a text in SQL, with values of the types of the columns, which `BUILT_IN` ones join.

    InputError if the text is not a condition, or has an unknown column, a function, or a value of another type than its
    column.
    """
    # Imported only for a search with a condition.
    import sqlglot
    from sqlglot import errors, exp

    try:
        # Bytes of a command line that are not UTF-8, and half of a surrogate pair in JSON, do not encode.
        text.encode()
        # This dialect quotes names by double quotes, as PostgreSQL does.
        parsed = sqlglot.parse_one(text, into=exp.Condition, dialect="duckdb")
        return _read(parsed, pa.schema([*columns, *BUILT_IN]))
    except errors.SqlglotError as error:
        first_error = error.errors[0] if isinstance(error, errors.ParseError) and error.errors else {}
        highlight = first_error.get("highlight")
        where = None if highlight is None else _short(highlight) or "its end"
        place = "" if where is None else f" near {where!r}"
        raise InputError(
            f"the condition {_short(text)!r} cannot be read{place}", hint=f"comparisons are = != < <= > >=, {EXAMPLE}"
        ) from error
    except UnicodeEncodeError as error:
        raise InputError(f"the condition {_short(text)!r} is not Unicode text", hint="use UTF-8") from error
    # sqlglot and `_read` call themselves for each parenthesis.
    except RecursionError as error:
        raise InputError(f"the condition {_short(text)!r} is nested too deeply", hint=EXAMPLE) from error
    except InputError as error:
        raise InputError(f"the condition {_short(text)!r} {error.args[0]}", hint=error.hint) from error


def parse_all(texts: Sequence[str], columns: pa.Schema) -> Condition | None:
    """The condition that all of several conditions hold; None for no text. InputError as for `parse_where`."""
    parts = tuple(parse_where(text, columns) for text in texts)
    return Joined("and", parts) if parts else None


def quoted_name(column: str) -> str:
    """The name of a column as a condition writes it, whatever its letters are.

    >>> quoted_name("owner name")
    '"owner name"'
    """
    return '"{}"'.format(column.replace('"', '""'))


def quoted_value(value: Value) -> str:
    """A value as a condition writes it.

    >>> quoted_value("o'neil"), quoted_value(True), quoted_value(date(2024, 5, 1))
    ("'o''neil'", 'true', "'2024-05-01'")
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    return "'{}'".format((value if isinstance(value, str) else value.isoformat()).replace("'", "''"))


def matches(condition: Condition, table: pa.Table) -> NDArray[np.bool_]:
    """Which rows of a table meet a condition; the table has the columns that `columns_of` lists."""
    if isinstance(condition, Joined):
        combine = np.logical_and if condition.word == "and" else np.logical_or
        return np.asarray(combine.reduce([matches(part, table) for part in condition.parts]))
    column, value = table.column(condition.column), condition.value
    test = condition.operator.removeprefix("not ")
    if test in _COMPARE:
        held = _COMPARE[test](column, pa.scalar(value, column.type))
    elif test == "in":
        # A missing value is in no list, and its opposite must not hold either.
        values = pa.array(value, column.type)
        if column.type == pa.float64():
            # `is_in` distinguishes -0.0 from 0.0, and a sum with 0.0 is never -0.0.
            values, column = pc.add(values, 0.0), pc.add(column, 0.0)
        held = pc.if_else(pc.is_valid(column), pc.is_in(column, values), None)
    elif test == "like":
        assert isinstance(value, str)
        # Not `pc.match_like`, which takes some backslashes for letters.
        held = pc.match_substring_regex(column, _like_regex(value))
    else:
        held = pc.is_null(column) if test == "is null" else pc.is_valid(column)
    if test != condition.operator:
        held = pc.invert(held)
    return np.asarray(pc.fill_null(held, False))


def _like_regex(pattern: str) -> str:
    """A pattern of LIKE as a regular expression.

    >>> _like_regex("5\\\\%_k%")
    '(?s)^5%.k.*$'
    """
    wildcards = {"%": ".*", "_": "."}
    parts = []
    for part in re.findall(r"%+|\\.|.", pattern, re.DOTALL):
        # Any number of % is one; an escaped letter is two characters, and itself.
        parts.append(wildcards.get(part[0]) or re.escape(part[-1]))
    return f"(?s)^{''.join(parts)}$"


def columns_of(condition: Condition) -> set[str]:
    """The columns that a condition reads."""
    if isinstance(condition, Joined):
        return set().union(*map(columns_of, condition.parts))
    return {condition.column}


def _read(node: exp.Expr, columns: pa.Schema) -> Condition:
    """The condition of a syntax tree; the InputErrors of these functions are completed by `parse_where`."""
    from sqlglot import exp

    if isinstance(node, exp.Paren):
        return _read(node.this, columns)
    if isinstance(node, exp.Not):
        return _opposite(_read(node.this, columns))
    if isinstance(node, exp.And | exp.Or):
        word: Literal["and", "or"] = "and" if isinstance(node, exp.And) else "or"
        return Joined(word, (_read(node.this, columns), _read(node.expression, columns)))
    if isinstance(node, exp.Column):
        return Compare(_column(node, columns, pa.bool_()), "=", True)
    if (operator := _READ_AS.get(node.key)) is not None:
        column = _column(node.this, columns)
        return Compare(column, operator, _value(node.expression, column, columns))
    if isinstance(node, exp.Between) and not node.args.get("symmetric"):
        column = _column(node.this, columns)
        low, high = (_value(node.args[end], column, columns) for end in ("low", "high"))
        return Joined("and", (Compare(column, ">=", low), Compare(column, "<=", high)))
    if isinstance(node, exp.In) and node.expressions:
        column = _column(node.this, columns)
        return Compare(column, "in", tuple(_value(value, column, columns) for value in node.expressions))
    if isinstance(node, exp.Like) and isinstance(node.expression, exp.Literal) and node.expression.is_string:
        like = Compare(_column(node.this, columns, pa.string()), "like", node.expression.name)
        if (len(node.expression.name) - len(node.expression.name.rstrip("\\"))) % 2:
            raise InputError(
                f"has the pattern {_sql(node.expression)}, which ends in a backslash", hint="double it to find one"
            )
        # sqlglot reads `not like` as an argument of the node, and every other NOT as a node.
        return _opposite(like) if node.args.get("negate") else like
    if isinstance(node, exp.Is) and isinstance(node.expression, exp.Null):
        return Compare(_column(node.this, columns), "is null")
    raise InputError(f"has {_sql(node)}, which is not a test of a column", hint=EXAMPLE)


def _column(node: exp.Expr, columns: pa.Schema, type_: pa.DataType | None = None) -> str:
    """The name of a column of the index; InputError if it has no such column, or none of this type."""
    from sqlglot import exp

    if not isinstance(node, exp.Column) or node.table:
        raise InputError(f"has {_sql(node)} where a column is expected", hint=EXAMPLE)
    if node.name not in columns.names:
        more = "" if len(columns) > len(BUILT_IN) else "; `dcdctl index INDEX --metadata FILE` adds others"
        hint = f"the columns are {', '.join(columns.names)}{more}"
        raise InputError(f"has the unknown column {_short(node.name)}", hint=hint)
    if type_ is not None and (actual := columns.field(node.name).type) != type_:
        raise InputError(f"takes {node.name} for {TYPES[type_]}, and it is {TYPES[actual]}", hint=EXAMPLE)
    return str(node.name)


def _value(node: exp.Expr, column: str, columns: pa.Schema) -> Value:
    """The value of a literal, as the type of its column; InputError if it is none."""
    type_ = columns.field(column).type
    try:
        return _as_type(_literal(node), type_)
    # OverflowError: a number above all floats, or a moment that is before year 1 or after 9999 in UTC.
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"compares {column}, which is {TYPES[type_]}, with {_sql(node)}",
            hint=f"a text has single quotes, {EXAMPLE}",
        ) from error


def _sql(node: exp.Expr) -> str:
    return _short(node.sql(dialect="duckdb"))


def _short(text: str) -> str:
    """A text as messages of one line show it."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_SHOWN else f"{line[:MAX_SHOWN]}..."


def _literal(node: exp.Expr) -> str | bool | int | float:
    """The value of a literal of SQL; ValueError for anything else."""
    from sqlglot import exp

    if isinstance(node, exp.Neg):
        value = _literal(node.this)
        if isinstance(value, str | bool):
            raise ValueError
        return -value
    if isinstance(node, exp.Boolean):
        return bool(node.this)
    if not isinstance(node, exp.Literal):
        raise ValueError
    if node.is_string:
        return str(node.this)
    return int(node.this) if node.is_int else float(node.this)


def _as_type(value: str | bool | int | float, type_: pa.DataType) -> Value:
    """A literal as a value of a column's type; ValueError if it is none."""
    given = type(value)
    if type_ == pa.float64() and given in (int, float) and math.isfinite(value):  # type: ignore[arg-type]
        return float(value)
    # A whole number of Arrow has 64 bits; 2020.0 is one too.
    is_whole = given is int or (given is float and float(value).is_integer())
    if type_ == pa.int64() and is_whole and -(2**63) <= int(value) < 2**63:
        return int(value)
    if (type_, given) in ((pa.string(), str), (pa.bool_(), bool)):
        return value
    if type_ == pa.date32() and isinstance(value, str):
        return date.fromisoformat(value)
    if type_ == MOMENT and isinstance(value, str):
        return moment_of(value)
    raise ValueError
