"""The tables of a report as text, for the page and for Markdown."""

from __future__ import annotations

from dcdctl.core.data import Direction
from dcdctl.core.evaluation import LEVEL, RECALL_NAMES, Estimate
from dcdctl.core.progress import digits
from dcdctl.core.report.report import ModelResults, Report
from dcdctl.core.templates import Table

NOTHING = "\N{EN DASH}"
"""Shown for values that were not measured."""
RECALLS = [(direction, name) for direction in Direction for name in RECALL_NAMES]


def result_tables(report: Report) -> list[Table]:
    """The tables of the results that have rows."""
    return [
        table for table in (_quality(report), _by_label(report), _differences(report), _speed(report)) if table.rows
    ]


def _quality(report: Report) -> Table:
    rows = []
    for model in report.models:
        if (result := model.result) is None:
            continue
        cells = []
        for direction in Direction:
            measures = result.measures(direction)
            cells += [_with_interval(result.recall(direction, name)) for name in RECALL_NAMES]
            cells += [f"{measures['mAP@R']:.1f}", f"{measures['median_rank']:g}"]
        rows.append((_name(model), _with_interval(result.rsum_estimate), *cells))
    caption = (
        f"Retrieval in percent; small print: {LEVEL:.0%} bootstrap interval over images. "
        "Text: captions retrieved for an image; image: images retrieved for a caption"
    )
    names = (*RECALL_NAMES, "mAP@R", "median rank")
    return Table(
        caption, ("model", "RSUM", *(f"{direction}\n{name}" for direction in Direction for name in names)), tuple(rows)
    )


def _by_label(report: Report) -> Table:
    measured = [(_name(model), model.result) for model in report.models if model.result is not None]
    columns = [
        {
            f"{label}: {name}": f"{recalls['R@1']:.1f}"
            for label, groups in result.image_recalls_by_label.items()
            for name, recalls in groups.items()
        }
        for _, result in measured
    ]
    # Not a set: rows keep the order of the first model.
    names = dict.fromkeys(name for column in columns for name in column)
    return Table(
        "Image R@1 by source and language of the caption",
        ("captions", *(name for name, _ in measured)),
        tuple((name, *(column.get(name, NOTHING) for column in columns)) for name in names),
    )


def _differences(report: Report) -> Table:
    rows = []
    for model in report.models:
        if model.comparison is None:
            continue
        difference = model.comparison.difference
        cells = [_with_interval(difference.of(direction)[name], "+") for direction, name in RECALLS]
        p_value = f"{model.comparison.trainings_p_value:.2g}"
        rows.append((_name(model), _with_interval(difference.rsum, "+"), p_value, *cells))
    baseline = report.of_role("baseline")
    label = NOTHING if baseline is None else baseline.label
    caption = (
        f"Difference to {label} in percentage points; small print: {LEVEL:.0%} paired bootstrap interval; "
        "p: two-sided, for no difference in RSUM; the larger one of bootstrap and sign-flip test"
    )
    return Table(caption, ("model", "RSUM", "p", *(f"{direction}\n{name}" for direction, name in RECALLS)), tuple(rows))


def _speed(report: Report) -> Table:
    """Times of bench.json; for a cascade, with the re-ranking of cascade.json."""
    rows = []
    for model in report.models:
        if not model.query_ms:
            continue
        times = model.times
        mark = "~" if times is not None and times.is_extrapolated else ""
        speed_up = (
            NOTHING
            if times is None or times.speed_up is None
            else f"{mark}{digits(times.speed_up)}\N{MULTIPLICATION SIGN}"
        )
        parameters = NOTHING if times is None or model.is_cascade else f"{times.num_parameters / 1e6:,.2f} M"
        query_ms = f"{mark}{digits(model.query_ms[-1])}\namong {model.gallery_size:,} images"
        rows.append((_name(model), parameters, query_ms, speed_up))
    machines = dict.fromkeys(model.times.machine for model in report.models if model.times is not None)
    caption = "; ".join(
        [
            "Size and speed: a query is one caption, images encoded before; ~: extrapolated, measured rate times count",
            *machines,
        ]
    )
    return Table(caption, ("model", "parameters", "ms per query", "speed-up over the teacher"), tuple(rows))


def _name(model: ModelResults) -> str:
    return model.label if model.role == "student" else f"{model.label}\n{model.role}"


def _with_interval(estimate: Estimate, sign: str = "") -> str:
    """A number and, as small print, its interval; with `sign` "+", positive numbers have their sign."""
    low, high = estimate.interval
    return f"{estimate.value:{sign}.1f}\n{low:{sign}.1f} to {high:{sign}.1f}"
