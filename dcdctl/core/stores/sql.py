"""Conditions as SQL, for engines that read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from dcdctl.core.search import Compare, Condition, IsNull, Joined, Like, OneOf, Value


@dataclass(frozen=True)
class Dialect:
    """How an engine writes columns and values. Each must be quoted: a name or a text may hold any characters."""

    column: Callable[[str], str]
    value: Callable[[Value, pa.DataType], str]
    collation: str = ""
    """Follows the column of a test that ignores upper and lower case."""


def condition_sql(condition: Condition, columns: pa.Schema, dialect: Dialect) -> str:
    """A condition as an expression that holds for the rows of `search.columns.where.matches`."""
    if isinstance(condition, Joined):
        # Always in parentheses, because AND binds more strongly than OR.
        return (
            f"({f' {condition.word.upper()} '.join(condition_sql(part, columns, dialect) for part in condition.parts)})"
        )
    column = dialect.column(condition.column)
    if isinstance(condition, IsNull):
        return f"{column} IS {'NOT ' if condition.negated else ''}NULL"
    return f"({_test(condition, column, columns.field(condition.column).type, dialect)})"


def _test(condition: Compare | OneOf | Like, column: str, type_: pa.DataType, dialect: Dialect) -> str:
    if isinstance(condition, Compare):
        operator = "<>" if condition.operator == "!=" else condition.operator
        return f"{column} {operator} {dialect.value(condition.value, type_)}"
    word = "NOT " if condition.negated else ""
    if isinstance(condition, Like):
        column, like = (f"{column}{dialect.collation}", "ILIKE") if condition.ignore_case else (column, "LIKE")
        return f"{word}{column} {like} {dialect.value(condition.pattern, type_)}"
    return f"{column} {word}IN ({', '.join(dialect.value(value, type_) for value in condition.values)})"
