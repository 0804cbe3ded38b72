"""The columns of an index for programs and for the search page: how the page offers each, and conditions with quoted
values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from dcdctl.core.search import ColumnSummary, FolderIndex, ImageIndex, quoted_name, quoted_value, value_for_json

MAX_CHOICES = 50
"""Maximum number of values of a column that are offered as choices."""
MAX_CHARS = 500
"""Maximum length of a condition that is offered, and of a text in an answer."""
MOMENTS = ("date", "date and time")
Facet = Literal["values", "range", "part"]
"""How the search page offers a column."""


@dataclass(frozen=True)
class Choice:
    """A value of a column."""

    value: str | bool | int | float
    images: int
    condition: str
    """The condition that images with the value meet."""


@dataclass(frozen=True)
class ColumnResponse:
    """A column of the index."""

    name: str
    quoted: str
    """The name as a condition writes it."""
    type: str
    missing: int
    """Images without a value."""
    distinct: int
    """Number of different values."""
    values: tuple[Choice, ...]
    """The most frequent values."""
    low: str | bool | int | float | None
    high: str | bool | int | float | None
    facet: Facet | None


def columns_of(index: ImageIndex) -> list[ColumnResponse]:
    """The columns of an index; none for a store, whose columns are not summarized."""
    summaries = index.summarize_columns() if isinstance(index, FolderIndex) else []
    return [_response(summary) for summary in summaries]


def facet_of(summary: ColumnSummary) -> Facet | None:
    """How the page offers a column; None for one with a single value, which filters nothing.

    Few values are a list, dates and many numbers a range, and many texts are found by a part of them.
    """
    if summary.distinct < 2:
        return None
    if summary.distinct <= MAX_CHOICES and summary.type not in ("number", *MOMENTS):
        return "values"
    return "part" if summary.type == "text" else "range"


def shortened(value: Any) -> Any:
    """A value; of a text at most the first `MAX_CHARS` characters."""
    return f"{value[:MAX_CHARS]}..." if isinstance(value, str) and len(value) > MAX_CHARS else value


def _response(summary: ColumnSummary) -> ColumnResponse:
    name = quoted_name(summary.name)
    choices = []
    for value, count in summary.frequent[:MAX_CHOICES]:
        condition = f"{name} = {quoted_value(value)}"
        if len(condition) <= MAX_CHARS:
            choices.append(Choice(value=value_for_json(value), images=count, condition=condition))
    return ColumnResponse(
        name=summary.name,
        quoted=name,
        type=summary.type,
        missing=summary.missing,
        distinct=summary.distinct,
        values=tuple(choices),
        low=shortened(value_for_json(summary.low)),
        high=shortened(value_for_json(summary.high)),
        facet=facet_of(summary),
    )
