"""The columns of an index for programs and for the search page: which of them the page offers, and conditions with
quoted values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dcdctl.core.search import ColumnSummary, FolderIndex, ImageIndex, quoted_name, quoted_value, value_for_json

NUM_FACETS = 2
"""Columns that the page offers: more would push the images out of a phone's screen."""
MAX_CHOICES = 50
"""Maximum number of values of a column that are offered as choices."""
MAX_CHARS = 500
"""Maximum length of a condition that is offered, and of a text in an answer."""
MOMENTS = ("date", "date and time")
Facet = Literal["values", "range"]
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
    facets = choose_facets(summaries)
    return [_response(summary, facets.get(summary.name)) for summary in summaries]


def choose_facets(summaries: Sequence[ColumnSummary]) -> dict[str, Facet]:
    """The columns that the page offers: those with the fewest values, from two on; dates and many numbers as a
    range."""
    kinds: dict[str, Facet] = {}
    for summary in sorted(summaries, key=lambda summary: summary.distinct):
        is_short = summary.distinct <= MAX_CHOICES and summary.type not in ("number", *MOMENTS)
        if (
            # A single value filters nothing.
            summary.distinct >= 2
            and (is_short or summary.type in ("whole number", "number", *MOMENTS))
            and len(kinds) < NUM_FACETS
        ):
            kinds[summary.name] = "values" if is_short else "range"
    return kinds


def shortened(value: Any) -> Any:
    """A value; of a text at most the first `MAX_CHARS` characters."""
    return f"{value[:MAX_CHARS]}..." if isinstance(value, str) and len(value) > MAX_CHARS else value


def _response(summary: ColumnSummary, facet: Facet | None) -> ColumnResponse:
    name = quoted_name(summary.name)
    values = tuple(
        Choice(value=value_for_json(value), images=count, condition=condition)
        for value, count in summary.frequent[:MAX_CHOICES]
        if len(condition := f"{name} = {quoted_value(value)}") <= MAX_CHARS
    )
    low, high = (None if end is None else shortened(value_for_json(end)) for end in (summary.low, summary.high))
    facts = summary.name, name, summary.type, summary.missing, summary.distinct
    return ColumnResponse(*facts, values=values, low=low, high=high, facet=facet)
