"""The tables of a report as text, for the page and for Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dcdctl.core.config import flatten
from dcdctl.core.data import Direction
from dcdctl.core.evaluation import KS, LEVEL, Estimate, Figure
from dcdctl.core.report.report import ModelResults, Report, Training, teachers_of

NOTHING = "\N{EN DASH}"
"""Shown for values that were not measured."""
RECALLS = [(direction, f"R@{k}") for direction in Direction for k in KS]
FINGERPRINT_DIGITS = 12


@dataclass(frozen=True)
class Table:
    """Cells of text; text after a line break is small print. The first column names the rows."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    is_about_runs: bool = False
    """About the runs, not about their results."""


def report_tables(report: Report) -> list[Table]:
    """The tables that have rows, results first."""
    return [table for table in (_quality(report), _differences(report), _speed(report), _runs(report), _recipes(report)) if table.rows]


def _quality(report: Report) -> Table:
    rows = []
    for model in report.models:
        if (result := model.result) is None:
            continue
        both = [result.retrieval[direction] for direction in Direction]
        recalls = [_figure(result.retrieval[direction].recalls[name]) for direction, name in RECALLS]
        precisions = [NOTHING if retrieval.map_at_r is None else f"{retrieval.map_at_r:.1f}" for retrieval in both]
        medians = [NOTHING if retrieval.median_rank is None else f"{retrieval.median_rank:g}" for retrieval in both]
        rows.append((_name(model), *recalls, _figure(result.rsum), *precisions, *medians))
    caption = (
        f"Retrieval in percent; small print: {LEVEL:.0%} bootstrap interval over images. "
        "Text: captions retrieved for an image; image: images retrieved for a caption"
    )
    others = ("RSUM", "text mAP@R", "image mAP@R", "text median rank", "image median rank")
    return Table(caption, ("model", *(f"{direction} {name}" for direction, name in RECALLS), *others), tuple(rows))


def _differences(report: Report) -> Table:
    rows = []
    for model in report.models:
        if model.comparison is None:
            continue
        difference = model.comparison.difference
        recalls = {Direction.TEXT: difference.text_retrieval, Direction.IMAGE: difference.image_retrieval}
        cells = [_difference(recalls[direction][name]) for direction, name in RECALLS]
        rows.append((_name(model), *cells, _difference(difference.rsum), _p_value(model.comparison.p_value)))
    baseline = report.of_role("baseline")
    label = NOTHING if baseline is None else baseline.label
    caption = (
        f"Difference to {label} in percentage points; small print: {LEVEL:.0%} paired bootstrap interval; "
        "p: two-sided, for no difference in RSUM"
    )
    return Table(caption, ("model", *(f"{direction} {name}" for direction, name in RECALLS), "RSUM", "p"), tuple(rows))


def _speed(report: Report) -> Table:
    """Times of bench.json; for a cascade, of cascade.json."""
    rows = []
    for model in report.models:
        times, result = model.times, model.result
        if times is not None:
            mark = "~" if times.is_extrapolated else ""
            speed_up = NOTHING if times.speed_up is None else f"{mark}{times.speed_up:,.1f}\N{MULTIPLICATION SIGN}"
            query_ms = f"{mark}{times.query_ms:,.2f}\namong {times.num_images:,} images"
            rows.append((_name(model), f"{times.num_parameters / 1e6:,.2f} M", query_ms, speed_up))
        elif result is not None and result.depths:
            query_ms = f"{result.depths[-1].query_ms:,.2f}\namong {result.gallery_size:,} images"
            rows.append((_name(model), NOTHING, query_ms, NOTHING))
    machines = dict.fromkeys(model.times.machine for model in report.models if model.times is not None)
    caption = "; ".join(
        ["Size and speed: a query is one caption, images encoded before; ~: extrapolated, measured rate times count", *machines]
    )
    return Table(caption, ("model", "parameters", "ms per query", "speed-up over its teacher"), tuple(rows))


def _runs(report: Report) -> Table:
    """Command, seed, inputs, different negatives and versions of each training."""
    trainings = report.trainings
    facts = {
        "trained by": [training.facts["what"] for training in trainings],
        "seed": [str(training.facts["seed"]) for training in trainings],
        **_transposed([_inputs(training) for training in trainings]),
        **_transposed([_negatives(training) for training in trainings]),
        **_transposed([{f"version: {name}": text for name, text in training.facts["versions"].items()} for training in trainings]),
    }
    rows = tuple((name, *values) for name, values in facts.items() if any(value != NOTHING for value in values))
    return Table(
        "Runs; the first digits of fingerprints",
        ("fact", *(training.label for training in trainings)),
        rows if trainings else (),
        is_about_runs=True,
    )


def _inputs(training: Training) -> dict[str, str]:
    """The inputs of a training; for scores, the teachers. Their corpus and candidates are those of the training and its recipe."""
    inputs = training.facts["inputs"]
    teachers = [_value(fingerprint) for fingerprint in teachers_of(inputs)]
    others = {f"input: {name}": _value(value) for name, value in flatten(inputs).items() if not name.startswith(("cache", "teachers"))}
    return {**others, "input: scores of teacher": ", ".join(teachers) or NOTHING}


def _negatives(training: Training) -> dict[str, str]:
    """How many different negatives an image and a caption met, if they were counted."""
    counts = training.facts.get("different_negatives", {})
    return {
        f"different negatives {name.replace('_', ' ')}": f"{count['different']:g} in {count['lists']:g} lists"
        for name, count in counts.items()
    }


def _recipes(report: Report) -> Table:
    """The fields in which the recipes differ; all fields of a single recipe."""
    table = _transposed([{name: _value(value) for name, value in training.recipe.items()} for training in report.trainings])
    rows = tuple((name, *table[name]) for name in sorted(table) if len(set(table[name])) > 1 or len(report.trainings) == 1)
    same = len(table) - len(rows)
    return Table(
        f"Recipes: the fields that differ; {same} fields are equal in all recipes",
        ("field", *(training.label for training in report.trainings)),
        rows,
        is_about_runs=True,
    )


def _transposed(columns: Iterable[dict[str, str]]) -> dict[str, list[str]]:
    """For each name in any column, its values by column."""
    columns = list(columns)
    names = dict.fromkeys(name for column in columns for name in column)
    return {name: [column.get(name, NOTHING) for column in columns] for name in names}


def _value(value: Any) -> str:
    """A value as in a recipe; the first digits of a fingerprint."""
    if isinstance(value, str):
        # A SHA-256 in hexadecimal.
        is_digest = len(value) == 64 and set(value) <= set("0123456789abcdef")
        return value[:FINGERPRINT_DIGITS] if is_digest else value or '""'
    return NOTHING if value is None else json.dumps(value, ensure_ascii=False)


def _name(model: ModelResults) -> str:
    return model.label if model.role == "student" else f"{model.label}\n{model.role}"


def _figure(figure: Figure) -> str:
    """A number with its interval.

    >>> from dcdctl.core.evaluation import Interval
    >>> _figure(Figure(63.25, Interval(58.0, 68.04)))
    '63.2\\n58.0 to 68.0'
    """
    return f"{figure.value:.1f}" + ("" if figure.interval is None else f"\n{figure.interval.low:.1f} to {figure.interval.high:.1f}")


def _difference(estimate: Estimate) -> str:
    return f"{estimate.value:+.1f}\n{estimate.interval.low:+.1f} to {estimate.interval.high:+.1f}"


def _p_value(p_value: float) -> str:
    return "<\N{NO-BREAK SPACE}0.001" if p_value < 0.001 else f"{p_value:.3f}"
