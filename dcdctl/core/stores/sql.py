"""Conditions as SQL, for engines that read it."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from dcdctl.core.search import Condition, Joined, Value, like_regex


def condition_sql(
    condition: Condition, columns: pa.Schema, quoted: Callable[[str], str], literal: Callable[[Value, pa.DataType], str]
) -> str:
    """A condition as an expression that holds for the rows of `search.columns.where.matches`.

    `quoted` and `literal` write columns and values as the engine reads them: a name or a text may hold any letters.
    """
    if isinstance(condition, Joined):
        parts = [condition_sql(part, columns, quoted, literal) for part in condition.parts]
        # Always in parentheses, because AND binds more strongly than OR.
        return "({})".format(f" {condition.word.upper()} ".join(parts))
    column, operator, value = quoted(condition.column), condition.operator.upper(), condition.value
    if value is None:
        return f"{column} {operator}"
    type_ = columns.field(condition.column).type
    if operator.endswith("ILIKE"):
        assert isinstance(value, str)
        # Not ILIKE, which knows the case of ASCII letters only, or depends on the language of the database.
        test = f"regexp_like({column}, {literal(like_regex(value, ignores_case=True), type_)})"
        return f"({test})" if operator == "ILIKE" else f"(NOT {test})"
    if isinstance(value, tuple):
        values = ", ".join(literal(each, type_) for each in value)
        return f"({column} {operator} ({values}))"
    return f"({column} {operator} {literal(value, type_)})"
