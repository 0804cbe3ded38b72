"""What a model started from, and its recalls beside those of the start: what was gained and lost, for the model card.

Every number is one that the training logged or `dcdctl eval` saved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dcdctl.core.data import Direction
from dcdctl.core.evaluation import KS
from dcdctl.core.export.history import RunHistory, is_same_model, public
from dcdctl.core.training import Run, validation_document, validation_table

_NAMES = tuple((direction, k) for direction in Direction for k in KS)
"""The six recalls, in the order of the columns."""
COLUMNS = ("", *(f"{direction.title.capitalize()} R@{k}" for direction, k in _NAMES), "RSUM")


def lineage_of(history: RunHistory) -> dict[str, Any] | None:
    """The part of the card on the start of a dual encoder, for its template; None for a model without a start.

    `tables` have the recalls of the start and of the model on one split each, and their differences; `validation` has
    that of `training.validation_table`.
    """
    if history.start is None or history.facts is None:
        return None
    validated = validation_document(Run(Path(history.ref)))
    return {
        "start": f"{public(history.start)} (fingerprint {history.facts['inputs']['start'][:12]})",
        "columns": COLUMNS,
        "tables": list(_compared(history, history.start)),
        "validation": [] if validated is None else [validation_table(validated)],
    }


def _compared(history: RunHistory, start: str) -> Iterator[dict[str, Any]]:
    """A table for each evaluation of the model with one of its start on the same basis."""
    starts = {each.basis: each for each in history.evaluations if is_same_model(each.model, start)}
    named = [each for each in history.evaluations if is_same_model(each.model, history.ref)]
    # An evaluation that the user names replaces the run's own on the same basis.
    students = {each.basis: each for each in ([] if history.result is None else [history.result]) + named}
    for basis in [basis for basis in students if basis in starts]:
        before, after = (
            [*(each.measures(way)[f"R@{k}"] for way, k in _NAMES), each.rsum]
            for each in (starts[basis], students[basis])
        )
        measured_on = f"On {history.measured_on(students[basis])}, by `dcdctl eval`"
        yield {"measured_on": measured_on, "rows": _rows(before, after)}


def _rows(start: Sequence[float], student: Sequence[float]) -> tuple[tuple[str, ...], ...]:
    """The rows of a table.

    >>> _rows([50.0, 120.0], [52.5, 119.0])
    (('start', '50.00', '120.00'), ('this model', '52.50', '119.00'), ('difference', '+2.50', '-1.00'))
    """
    differences = [f"{after - before:+.2f}" for before, after in zip(start, student, strict=True)]
    return (
        ("start", *(f"{value:.2f}" for value in start)),
        ("this model", *(f"{value:.2f}" for value in student)),
        ("difference", *differences),
    )
