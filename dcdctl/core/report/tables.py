"""The tables of a report, as text: the same for its page and for Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dcdctl.core.config import flatten
from dcdctl.core.data import Direction
from dcdctl.core.evaluation import KS, LEVEL, Estimate, Figure
from dcdctl.core.report.report import ModelResults, Report, Training

NOTHING = "\N{EN DASH}"
"""What was not measured."""
RECALLS = [(way, f"R@{k}") for way in Direction for k in KS]
FINGERPRINT_DIGITS = 12


@dataclass(frozen=True)
class Table:
    """Cells of text; what comes after a line break in one is small print. The first column names the rows."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    is_about_runs: bool = False
    """What was run, not what came of it."""


def report_tables(report: Report) -> list[Table]:
    """All tables that there is something to write into, results first."""
    return [table for table in (_quality(report), _differences(report), _speed(report), _runs(report), _recipes(report)) if table.rows]


def _quality(report: Report) -> Table:
    measured = [(one, one.result) for one in report.models if one.result is not None]
    rows = []
    for model, result in measured:
        ways = [result.retrieval[way] for way in Direction]
        recalls = [_figure(result.retrieval[way].recalls[name]) for way, name in RECALLS]
        rest = [(f"{way.map_at_r:.1f}" if way.map_at_r is not None else NOTHING) for way in ways]
        medians = [(f"{way.median_rank:g}" if way.median_rank is not None else NOTHING) for way in ways]
        rows.append((_name(model), *recalls, _figure(result.rsum), *rest, *medians))
    caption = (
        f"Retrieval, in percent; small: the middle {LEVEL:.0%} of a bootstrap over images. "
        "Text: captions are found for an image; image: images for a caption"
    )
    others = ("RSUM", "text mAP@R", "image mAP@R", "text median rank", "image median rank")
    return Table(caption, ("model", *(f"{way} {name}" for way, name in RECALLS), *others), tuple(rows))


def _differences(report: Report) -> Table:
    rows = []
    for model in report.models:
        if model.comparison is None:
            continue
        found = model.comparison.difference
        ways = {Direction.TEXT: found.text_retrieval, Direction.IMAGE: found.image_retrieval}
        differences = [*(ways[way][name] for way, name in RECALLS), found.rsum]
        rows.append((_name(model), *map(_difference, differences), _chance(model.comparison.p_value)))
    baseline = report.of_role("baseline")
    label = NOTHING if baseline is None else baseline.label
    caption = f"Difference to {label}, in percentage points; small: paired bootstrap, {LEVEL:.0%}; p: two-sided, of no difference in RSUM"
    return Table(caption, ("model", *(f"{way} {name}" for way, name in RECALLS), "RSUM", "p"), tuple(rows))


def _speed(report: Report) -> Table:
    """Times by bench.json, a cascade's by cascade.json."""
    rows = []
    for model in report.models:
        times, result = model.times, model.result
        if times is not None:
            mark = "~" if times.is_extrapolated else ""
            speed_up = NOTHING if times.speed_up is None else f"{mark}{times.speed_up:,.1f}\N{MULTIPLICATION SIGN}"
            took = f"{mark}{times.query_ms:,.2f}\namong {times.num_images:,} images"
            rows.append((_name(model), f"{times.num_parameters / 1e6:,.2f} M", took, speed_up))
        elif result is not None and result.depths:
            took = f"{result.depths[-1].query_ms:,.2f}\namong {result.gallery_size:,} images"
            rows.append((_name(model), NOTHING, took, NOTHING))
    machines = dict.fromkeys(one.times.machine for one in report.models if one.times is not None)
    caption = "; ".join(["Size and speed: one caption, images encoded before; ~: measured rate times count", *machines])
    return Table(caption, ("model", "parameters", "ms per query", "speed-up over its teacher"), tuple(rows))


def _runs(report: Report) -> Table:
    """What each training was, and from what."""
    trainings = report.trainings
    facts = {
        "trained by": [one.facts["what"] for one in trainings],
        "seed": [str(one.facts["seed"]) for one in trainings],
        **_transposed([_inputs(one) for one in trainings]),
        **_transposed([{f"version: {name}": text for name, text in one.facts["versions"].items()} for one in trainings]),
    }
    rows = tuple((name, *values) for name, values in facts.items() if any(value != NOTHING for value in values))
    return Table(
        "Runs; fingerprints by their first digits",
        ("fact", *(one.label for one in trainings)),
        rows if trainings else (),
        is_about_runs=True,
    )


def _inputs(training: Training) -> dict[str, str]:
    """What went in. Of teacher caches it is whose they are: their corpus is the training's, their candidates stand in the recipe."""
    inputs = training.facts["inputs"]
    caches = inputs.get("cache") or []
    teachers = [_value(cache["teacher"]) for cache in (caches if isinstance(caches, list) else [caches])]
    found = {f"input: {name}": _value(value) for name, value in flatten(inputs).items() if not name.startswith("cache")}
    return {**found, "input: scores of teacher": ", ".join(teachers) or NOTHING}


def _recipes(report: Report) -> Table:
    """The fields in which the recipes differ; all where there is only one."""
    table = _transposed([{name: _value(value) for name, value in one.recipe.items()} for one in report.trainings])
    rows = tuple((name, *table[name]) for name in sorted(table) if len(set(table[name])) > 1 or len(report.trainings) == 1)
    same = len(table) - len(rows)
    return Table(
        f"Recipes: the fields that differ; {same} are the same in all",
        ("field", *(one.label for one in report.trainings)),
        rows,
        is_about_runs=True,
    )


def _transposed(columns: Iterable[dict[str, str]]) -> dict[str, list[str]]:
    """A list of values, one a column, for every name that any of the columns has."""
    columns = list(columns)
    names = dict.fromkeys(name for column in columns for name in column)
    return {name: [column.get(name, NOTHING) for column in columns] for name in names}


def _value(value: Any) -> str:
    """A value as it would be written in a recipe; of a fingerprint its first digits."""
    if isinstance(value, str):
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


def _chance(p_value: float) -> str:
    return "<\N{NO-BREAK SPACE}0.001" if p_value < 0.001 else f"{p_value:.3f}"
