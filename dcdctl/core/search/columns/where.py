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
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dcdctl.core.data import MOMENT, PLACE_COLUMNS, moment_of
from dcdctl.core.errors import InputError

if TYPE_CHECKING:
    from sqlglot import exp

Value = str | bool | int | float | date | datetime
Comparison = Literal["=", "!=", "<", "<=", ">", ">="]
Operator = Comparison | Literal["in", "not in", "like", "not like", "ilike", "not ilike", "is null", "is not null"]
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
_SPAN = re.compile(r"([12]\d{3})(?:-(0[1-9]|1[0-2]))?")
"""A year, or a year and a month."""
PLACE_NAMES = ("city", "country")
"""Columns that are named after the coordinates of a photo."""
EXAMPLE = "for example year >= 2020 and owner = 'x', or year in (2021, 2022)"
MAX_SHOWN = 100
"""Characters of a condition, and of a part of it, that a message shows."""
_PAIRS: tuple[tuple[Operator, Operator], ...] = (
    ("=", "!="),
    ("<", ">="),
    (">", "<="),
    ("in", "not in"),
    ("like", "not like"),
    ("ilike", "not ilike"),
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
    """A value of the column's type; several for `in`, a pattern of SQL for `like` and `ilike` (% stands for any
    characters, _ for one), None for `is null`."""


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
        where = None if highlight is None else short(highlight) or "its end"
        place = "" if where is None else f" near {where!r}"
        raise InputError(
            f"the condition {short(text)!r} cannot be read{place}", hint=f"comparisons are = != < <= > >=, {EXAMPLE}"
        ) from error
    except UnicodeEncodeError as error:
        raise InputError(f"the condition {short(text)!r} is not Unicode text", hint="use UTF-8") from error
    # sqlglot and `_read` call themselves for each parenthesis.
    except RecursionError as error:
        raise InputError(f"the condition {short(text)!r} is nested too deeply", hint=EXAMPLE) from error
    except InputError as error:
        raise InputError(f"the condition {short(text)!r} {error.args[0]}", hint=error.hint) from error


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
    """(R,): which rows of a table meet a condition, for a store that filters in Python, and as an oracle for one that
    does not. The table has the columns that `columns_of` lists.

    A missing value meets no comparison and no `not`, as in SQL; `is null` finds it.

    >>> table = pa.table({"year": [2019, None, 2024], "owner": ["ann", "ann", "bob"]})
    >>> matches(parse_where("year > 2018 and owner = 'ann'", table.schema), table)
    array([ True, False, False])
    """
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
    elif test in ("like", "ilike"):
        assert isinstance(value, str)
        # Not `pc.match_like`, which takes some backslashes for letters.
        held = pc.match_substring_regex(column, like_regex(value, ignores_case=test == "ilike"))
    else:
        held = pc.is_null(column) if test == "is null" else pc.is_valid(column)
    if test != condition.operator:
        held = pc.invert(held)
    return np.asarray(pc.fill_null(held, False))


def like_regex(pattern: str, *, ignores_case: bool = False) -> str:
    """A pattern of LIKE, or of ILIKE, as a regular expression that RE2, Rust and PostgreSQL read alike.

    >>> like_regex("5\\\\%_k%"), like_regex("k1", ignores_case=True) == "(?s)^[Kk\u212a]1$"
    ('(?s)^5%.k.*$', True)
    """
    wildcards = {"%": ".*", "_": "."}
    parts = []
    for part in re.findall(r"%+|\\.|.", pattern, re.DOTALL):
        # Any number of % is one; an escaped letter is two characters, and itself.
        wildcard = wildcards.get(part[0])
        letters = _same_letters().get(_folded(part[-1]), part[-1]) if ignores_case else part[-1]
        parts.append(wildcard or (re.escape(letters) if len(letters) == 1 else f"[{letters}]"))
    return f"(?s)^{''.join(parts)}$"


def _folded(letter: str) -> str:
    """The letter that stands for all that differ from it by case only.

    The engines of stores know case in different ways, some of ASCII alone; a list of letters is the same for all.
    """
    folded = letter.casefold()
    return folded if len(folded) == 1 else letter.lower() if len(letter.lower()) == 1 else letter


@lru_cache(maxsize=1)
def _same_letters() -> dict[str, str]:
    """For each folded letter all that differ by case only, if there are several: k, K and the sign of kelvin."""
    groups: dict[str, list[str]] = {}
    # No letter with case has a higher number.
    for number in range(0x1E944):
        letter = chr(number)
        if (folded := _folded(letter)) != letter:
            groups.setdefault(folded, [folded]).append(letter)
    return {folded: "".join(sorted(letters)) for folded, letters in groups.items()}


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
    is_pattern = isinstance(node.args.get("expression"), exp.Literal) and node.expression.is_string
    if isinstance(node, exp.Like | exp.ILike) and is_pattern:
        operator = "ilike" if isinstance(node, exp.ILike) else "like"
        like = Compare(_column(node.this, columns, pa.string()), operator, node.expression.name)
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
        hint = f"the columns are {', '.join(columns.names)}"
        if node.name in (*PLACE_COLUMNS, *PLACE_NAMES):
            hint += f"; `dcdctl change INDEX --set exif=place` adds {', '.join((*PLACE_COLUMNS, *PLACE_NAMES))}"
        elif len(columns) == len(BUILT_IN):
            hint += "; `dcdctl change INDEX --metadata FILE` adds others"
        raise InputError(f"has the unknown column {short(node.name)}", hint=hint)
    if type_ is not None and (actual := columns.field(node.name).type) != type_:
        hint = (
            f"for example {as_written(node.name)} is not null"
            if type_ == pa.bool_()
            else "like and ilike compare texts"
        )
        raise InputError(f"takes {node.name} for {TYPES[type_]}, and it is {TYPES[actual]}", hint=hint)
    return str(node.name)


def _value(node: exp.Expr, column: str, columns: pa.Schema) -> Value:
    """The value of a literal, as the type of its column; InputError if it is none."""
    type_ = columns.field(column).type
    try:
        return _as_type(_literal(node), type_)
    # OverflowError: a number above all floats, or a moment that is before year 1 or after 9999 in UTC.
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"compares {column}, which is {TYPES[type_]}, with {_sql(node)}", hint=_right_form(column, node, columns)
        ) from error


def _right_form(column: str, node: exp.Expr, columns: pa.Schema) -> str:
    """How a comparison of a column is written, as near to what was given as can be."""
    type_, name, text = columns.field(column).type, as_written(column), node.name
    if type_ in (pa.int64(), pa.float64()):
        is_number = re.fullmatch(r"[+-]?\d{1,18}(\.\d{1,18})?", text.strip())
        return f"a number has no quotes: {name} = {text.strip()}" if is_number else f"for example {name} >= 2020"
    if type_ == pa.bool_():
        return f"it is a condition by itself: {name}, or not {name}"
    if type_ == pa.string():
        # Also a text in double quotes, which sqlglot reads as a column.
        return f"a text has single quotes: {name} = {quoted_value(short(text) or 'x')}"
    if span := _SPAN.fullmatch(text.strip()):
        return _span(name, int(span[1]), None if span[2] is None else int(span[2]), columns)
    return f"a date is YYYY-MM-DD in single quotes: {name} >= '2024-05-01'" + (
        "" if type_ == pa.date32() else " or '2024-05-01 12:30'"
    )


def _span(name: str, year: int, month: int | None, columns: pa.Schema) -> str:
    """The condition that a date lies in a year or a month."""
    if month is None:
        first, after = (f"{year:04}-01-01", f"{year + 1:04}-01-01")
    else:
        first, after = (f"{year:04}-{month:02}-01", f"{year + month // 12:04}-{month % 12 + 1:02}-01")
    span = f"{name} >= '{first}' and {name} < '{after}'"
    has_year = month is None and "year" in columns.names and columns.field("year").type == pa.int64()
    return f"write year = {year}, or {span}" if has_year else f"write {span}"


def as_written(column: str) -> str:
    """A column as a condition writes it: in quotes if it needs them."""
    return column if re.fullmatch(r"[A-Za-z_]\w*", column, re.ASCII) else quoted_name(column)


def _sql(node: exp.Expr) -> str:
    return short(node.sql(dialect="duckdb"))


def short(text: str) -> str:
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
