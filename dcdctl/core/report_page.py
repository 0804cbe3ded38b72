"""The page of a report: one HTML file that needs nothing else."""

from __future__ import annotations

import shlex
from html import escape
from pathlib import Path

from dcdctl.core import pages, report_charts, report_gallery, report_tables
from dcdctl.core.progress import Track, silent
from dcdctl.core.report import Gap, Report
from dcdctl.core.report_gallery import NUM_QUERIES, WAYS
from dcdctl.core.report_tables import Table

ASSETS = Path(__file__).parent.parent / "assets"


def write(path: Path, report: Report, *, num_queries: int = NUM_QUERIES, track: Track = silent) -> None:
    """Write the page, with at most so many queries of each direction."""
    tables = report_tables.tables(report)
    scores = report_charts.scores(report)
    sections = [
        ("Results", "".join(_table(table) for table in tables if not table.is_about_runs)),
        ("Speed and recall", _speed(report)),
        ("Scores", _scores({what: scores[way] for way, what in WAYS})),
        ("Training", _charts(report_charts.training_curves(report))),
        ("What was run", _commands(report) + "".join(_table(table) for table in tables if table.is_about_runs)),
        ("Queries", report_gallery.gallery(report, report_charts.colours(report), num_queries, track)),
    ]
    there = [(name, html) for name, html in sections if html]
    links = "".join(f'<li><a href="#{_anchor(name)}">{name}</a></li>' for name, _ in there)
    pages.write(
        path,
        f"Report: {', '.join(one.label for one in report.systems)}",
        pages.facts(facts_of(report)),
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>',
        _gaps(report.gaps),
        *(f'<section id="{_anchor(name)}">{pages.heading(name)}{html}</section>' for name, html in there),
        style=(ASSETS / "report.css").read_text(encoding="utf-8"),
        script=(ASSETS / "report.js").read_text(encoding="utf-8"),
    )


def facts_of(report: Report) -> list[tuple[str, str]]:
    """What the models were measured on, in words."""
    facts = [("models", "; ".join(f"{one.label} ({one.role})" for one in report.systems))]
    if (result := report.result) is None:
        return facts
    folds = f", the mean of {result.num_folds} folds" if result.num_folds > 1 else ""
    return [
        *facts,
        ("measured on", f"{result.split}: {result.num_images:,} images, {result.num_captions:,} captions"),
        ("protocol", f"{result.protocol or report_tables.NOTHING}{folds}; a tie counts against the positive"),
        ("corpus", result.fingerprint[: report_tables.FINGERPRINT_DIGITS]),
    ]


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _table(table: Table) -> str:
    return pages.table(table.columns, table.rows, table.caption)


def _charts(charts: list[str]) -> str:
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def _speed(report: Report) -> str:
    chart = report_charts.speed_against_recall(report)
    galleries = [one.times.num_images for one in report.systems if one.times is not None]
    galleries += [one.result.gallery_size for one in report.systems if one.result is not None and one.result.depths]
    told = f"<p>Not all are timed among as many images: {', '.join(f'{size:,}' for size in sorted(set(galleries)))}; see the table.</p>"
    return chart + (told if chart and len(set(galleries)) > 1 else "")


def _scores(by_way: dict[str, list[str]]) -> str:
    """Every model's, those of a direction side by side."""
    rows = "".join(_charts(charts) for charts in by_way.values())
    told = (
        "Of every query the score of its best own answer, upwards, and of the best that is not its own, downwards. "
        "A model has a scale of its own: what counts is how far the two are apart."
    )
    return f"<p>{told}</p>{rows}" if rows else ""


def _gaps(gaps: tuple[Gap, ...]) -> str:
    if not gaps:
        return ""
    lines = "".join(f"<li>{escape(gap.what)}: <code>{escape(gap.command)}</code></li>" for gap in gaps)
    return f'<details class="gaps"><summary>Left out, and the command that brings it: {len(gaps)}</summary><ul>{lines}</ul></details>'


def _commands(report: Report) -> str:
    lines = "".join(
        f"<dt>{escape(one.label)}</dt><dd><code>{escape(shlex.join(one.facts['command']))}</code></dd>" for one in report.trainings
    )
    return f'<dl class="commands">{lines}</dl>' if lines else ""
