"""Conditions as SQL, for engines that read it."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from dcdctl.core.search import Condition, Joined, Value, like_regex


def condition_sql(
    condition: Condition,
    columns: pa.Schema,
    quoted: Callable[[str], str],
    literal: Callable[[Value, pa.DataType], str],
    *,
    has_regex: bool = False,
) -> str:
    """A condition as an expression that holds for the rows of `search.columns.where.matches`.

    `quoted` and `literal` write columns and values as the engine reads them: a name or a text may hold any characters.
    With `has_regex`, a regular expression takes the place of ILIKE: PostgreSQL compares lower cases, of which the Greek
    sigma has two.
    """
    if isinstance(condition, Joined):
        parts = (condition_sql(part, columns, quoted, literal, has_regex=has_regex) for part in condition.parts)
        # Always in parentheses, because AND binds more strongly than OR.
        return f"({f' {condition.word.upper()} '.join(parts)})"
    column, operator, value = quoted(condition.column), condition.operator.upper(), condition.value
    if value is None:
        return f"{column} {operator}"
    type_ = columns.field(condition.column).type
    if isinstance(value, tuple):
        return f"({column} {operator} ({', '.join(literal(each, type_) for each in value)}))"
    if has_regex and "ILIKE" in operator and isinstance(value, str):
        operator = operator.replace("NOT ", "!").replace("ILIKE", "~")
        value = like_regex(value, ignore_case=True)
    return f"({column} {operator} {literal(value, type_)})"
