"""The tables of a report as text, for the page and for Markdown."""

from __future__ import annotations

from dcdctl.core.data import Direction
from dcdctl.core.evaluation import ESTIMATED, LEVEL, MEASURES, Estimate
from dcdctl.core.progress import digits
from dcdctl.core.report.report import ModelResults, Report
from dcdctl.core.templates import Table

NOTHING = "\N{EN DASH}"
"""Shown for values that were not measured."""
SHOWN = [row for row in MEASURES if row.of is not None and row.in_report]
"""The measures of a report."""
COMPARED = [(direction, row.name) for direction in Direction for row in ESTIMATED]
"""What is compared with the baseline."""


def result_tables(report: Report) -> list[Table]:
    """The tables of the results that have rows."""
    tables = (_quality(report), _by_label(report), _differences(report), _speed(report))
    return [table for table in tables if table.rows]


def _quality(report: Report) -> Table:
    rows = []
    for model in report.models:
        if (result := model.result) is None:
            continue
        cells = []
        for direction in Direction:
            for measure in SHOWN:
                # An older evaluation may lack it.
                value = result.measures(direction).get(measure.name)
                if value is None:
                    cells.append(NOTHING)
                elif measure.of_rank is None:
                    cells.append(measure.brief(value))
                else:
                    cells.append(_with_interval(result.recall(direction, measure.name)))
        rows.append((_name(model), _with_interval(result.rsum_estimate), *cells))
    caption = (
        f"Retrieval in percent; small print: {LEVEL:.0%} bootstrap interval over images. "
        "Text: captions retrieved for an image; image: images retrieved for a caption"
    )
    heads = [f"{direction}\n{measure.title}" for direction in Direction for measure in SHOWN]
    return Table(caption, ("model", "RSUM", *heads), rows)


def _by_label(report: Report) -> Table:
    """Image R@1 of each model, in a row per source and language."""
    measured = [(_name(model), model.result) for model in report.models if model.result is not None]
    # By row and model; rows keep the order of the first model.
    cells: dict[str, dict[str, str]] = {}
    for model, result in measured:
        for label, groups in result.image_recalls_by_label.items():
            for name, recalls in groups.items():
                cells.setdefault(f"{label}: {name}", {})[model] = f"{recalls['R@1']:.1f}"
    names = [name for name, _ in measured]
    rows = [(row, *(of_models.get(name, NOTHING) for name in names)) for row, of_models in cells.items()]
    return Table("Image R@1 by source and language of the caption", ("captions", *names), rows)


def _differences(report: Report) -> Table:
    rows = []
    for model in report.models:
        if model.comparison is None:
            continue
        difference = model.comparison.difference
        cells = [_with_interval(difference.of(direction)[name], "+") for direction, name in COMPARED]
        p_value = f"{model.comparison.trainings_p_value:.2g}"
        rows.append((_name(model), _with_interval(difference.rsum, "+"), p_value, *cells))
    baseline = report.of_role("baseline")
    label = NOTHING if baseline is None else baseline.label
    caption = (
        f"Difference to {label} in percentage points; small print: {LEVEL:.0%} paired bootstrap interval; "
        "p: two-sided, for no difference in RSUM; the larger one of bootstrap and sign-flip test"
    )
    heads = [f"{direction}\n{name}" for direction, name in COMPARED]
    return Table(caption, ("model", "RSUM", "p", *heads), rows)


def _speed(report: Report) -> Table:
    """Times of bench.json; for a cascade, with the re-ranking of cascade.json."""
    rows = []
    for model in report.models:
        if not model.query_ms:
            continue
        mark, parameters, speed_up = "", NOTHING, NOTHING
        if (times := model.times) is not None:
            mark = "~" if times.is_extrapolated else ""
            if not model.is_cascade:
                parameters = f"{times.num_parameters / 1e6:,.2f} M"
            if times.speed_up is not None:
                speed_up = f"{mark}{digits(times.speed_up)}\N{MULTIPLICATION SIGN}"
        query_ms = f"{mark}{digits(model.query_ms[-1])}\namong {model.gallery_size:,} images"
        rows.append((_name(model), parameters, query_ms, speed_up))
    machines = dict.fromkeys(model.times.machine for model in report.models if model.times is not None)
    about = "Size and speed: a query is one caption, images encoded before; ~: extrapolated, measured rate times count"
    heads = ("model", "parameters", "ms per query", "speed-up over the teacher")
    return Table("; ".join([about, *machines]), heads, rows)


def _name(model: ModelResults) -> str:
    return model.label if model.role == "student" else f"{model.label}\n{model.role}"


def _with_interval(estimate: Estimate, sign: str = "") -> str:
    """A number and, as small print, its interval; with `sign` "+", positive numbers have their sign."""
    low, high = estimate.interval
    return f"{estimate.value:{sign}.1f}\n{low:{sign}.1f} to {high:{sign}.1f}"
