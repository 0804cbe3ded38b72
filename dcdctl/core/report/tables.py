"""The tables of a report as text, for the page and for Markdown."""

from __future__ import annotations

from collections.abc import Callable

from dcdctl.core.data import Direction
from dcdctl.core.evaluation import AGREEMENT, LEVEL, MEASURES, Estimate
from dcdctl.core.progress import digits
from dcdctl.core.report.report import ModelResults, Report
from dcdctl.core.templates import Table

NOTHING = "\N{EN DASH}"
"""Shown for values that were not measured."""
SHOWN = [row for row in MEASURES if row.of is not None and row.in_report]
"""The measures of a report."""
BRIEF = "{:.1f}".format


def result_tables(report: Report) -> list[Table]:
    """The tables of the results that have rows."""
    tables = (_quality(report), *_agreements(report), _by_label(report), _differences(report), _speed(report))
    return [table for table in tables if table.rows]


def _quality(report: Report) -> Table:
    rows = []
    for model in report.ranked:
        result, cells = model.ranked.evaluation, []
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


def _agreements(report: Report) -> list[Table]:
    """The agreement with each teacher that models were compared with, over the same candidates."""
    by_teacher: dict[tuple[object, ...], list[ModelResults]] = {}
    for model in report.models:
        if model.agreement is not None:
            by_teacher.setdefault(tuple(model.agreement.basis.values()), []).append(model)
    tables = []
    for models in by_teacher.values():
        rows = []
        for model in models:
            assert model.agreement is not None
            cells = []
            for direction in Direction:
                for measure in AGREEMENT:
                    estimate = model.agreement.estimate(direction, measure.name)
                    cells.append(NOTHING if estimate is None else _with_interval(estimate, measure.brief))
            rows.append((_name(model), BRIEF(model.agreement.ndcg), *cells))
        first = models[0].agreement
        assert first is not None
        caption = (
            f"Agreement with {first.teacher} over {first.candidates_in_words}: nDCG@10 and same first in percent; "
            f"small print: {LEVEL:.0%} bootstrap interval. nDCG@10: the mean of both directions"
        )
        heads = [f"{direction}\n{measure.title}" for direction in Direction for measure in AGREEMENT]
        tables.append(Table(caption, ("model", "nDCG@10", *heads), rows))
    return tables


def _by_label(report: Report) -> Table:
    """Image R@1 of each model, in a row per source and language."""
    measured = [(_name(model), model.ranked.evaluation) for model in report.ranked]
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
    rows, kind = [], report.result
    if kind is None:
        return Table("", (), [])
    compared = [(direction, measure) for direction in Direction for measure in kind.shown]
    for model in report.models:
        if model.comparison is None:
            continue
        difference, cells = model.comparison.difference, []
        for direction, measure in compared:
            # No query of a direction may have two candidates whose order agrees or not.
            estimate = difference.of(direction).get(measure.name)
            cells.append(NOTHING if estimate is None else _with_interval(estimate, measure.brief, is_signed=True))
        p_value = f"{model.comparison.trainings_p_value:.2g}"
        rows.append((_name(model), _with_interval(difference.total, is_signed=True), p_value, *cells))
    baseline = report.of_role("baseline")
    label = NOTHING if baseline is None else baseline.label
    caption = (
        f"Difference to {label} in {kind.unit}; small print: {LEVEL:.0%} paired bootstrap interval; "
        f"p: two-sided, for no difference in {kind.total_title}; the larger one of bootstrap and sign-flip test"
    )
    heads = [f"{direction}\n{measure.title}" for direction, measure in compared]
    return Table(caption, ("model", kind.total_title, "p", *heads), rows)


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


def _with_interval(estimate: Estimate, brief: Callable[[float], str] = BRIEF, *, is_signed: bool = False) -> str:
    """A number and, as small print, its interval; `is_signed` if positive numbers have their sign."""
    texts = []
    for value in (estimate.value, *estimate.interval):
        text = brief(value)
        texts.append(f"+{text}" if is_signed and not text.startswith("-") else text)
    number, low, high = texts
    return f"{number}\n{low} to {high}"
