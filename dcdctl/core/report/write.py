"""A report as an HTML page, as Markdown and as CSV."""

from __future__ import annotations

import shlex
from pathlib import Path

from dcdctl.core import files, templates
from dcdctl.core.data import Direction
from dcdctl.core.evaluation import Figure
from dcdctl.core.progress import Track, silent
from dcdctl.core.report import charts, gallery, html, tables
from dcdctl.core.report.gallery import NUM_QUERIES, TITLES
from dcdctl.core.report.report import ModelResults, Report
from dcdctl.core.report.tables import RECALLS, Table, report_tables

MAX_RSUM = 600
"""Six recalls of 100%."""


def write_report_page(path: Path, report: Report, *, num_queries: int = NUM_QUERIES, track: Track = silent) -> None:
    """Write the page of a report, with at most `num_queries` queries of each direction."""
    all_tables, score_charts = report_tables(report), charts.scores(report)
    html.write(
        path,
        "report.html",
        title=f"Report: {', '.join(model.label for model in report.models)}",
        headline=headline(report),
        facts=facts_of(report),
        missing=report.missing,
        results=[table for table in all_tables if not table.is_about_runs],
        speed_chart=charts.speed_against_recall(report),
        not_drawn=charts.not_drawn(report),
        score_charts=[score_charts[direction] for direction, _ in TITLES if score_charts[direction]],
        training_charts=charts.training_curves(report),
        commands=[(training.label, shlex.join(training.command)) for training in report.trainings],
        runs=[table for table in all_tables if table.is_about_runs],
        gallery=gallery.make_gallery(report, charts.colors(report), num_queries, track),
    )


def headline(report: Report) -> list[str]:
    """What the first student won and lost, then its cascade, in a sentence each; a last line says what was measured.

    Empty without a student that was evaluated.
    """
    students = [model for model in report.models if model.role == "student" and model.result is not None]
    students = students or [model for model in report.models if model.role == "baseline" and model.result is not None]
    if not students:
        return []
    first = next((model for model in students if not model.is_cascade), students[0])
    shown = [first, *(model for model in students if model.is_cascade and model is not first)][:2]
    teacher = report.of_role("teacher")
    notes = [f"{MAX_RSUM} is the highest sum of recalls (RSUM)"]
    if teacher is not None and teacher.result is not None:
        notes.append(f"the teacher has {teacher.result.rsum.value:.0f}")
    sizes = dict.fromkeys(model.gallery_size for model in shown if model.gallery_size is not None)
    if sizes:
        notes.append(f"time: one caption among {' or '.join(f'{size:,}' for size in sizes)} encoded images")
    return [*(_sentence(model, teacher) for model in shown), f"{'; '.join(notes)}."]


def _sentence(model: ModelResults, teacher: ModelResults | None) -> str:
    assert model.result is not None
    subject = f"The cascade {model.label}," if model.is_cascade else f"The {model.label} {model.role}"
    rsum = f"{model.result.rsum.value:.0f} of {MAX_RSUM}"
    loses = teacher is not None and teacher.result is not None and model.result.rsum.value < teacher.result.rsum.value
    outcome = f"keeps {rsum}" if loses else f"reaches {rsum}"
    if not model.query_ms:
        return f"{subject} {outcome}."
    speed_up = None if model.times is None else model.times.speed_up
    if speed_up is None:
        return f"{subject} answers in {tables.shown_ms(model.query_ms[-1])} ms and {outcome}."
    mark = "about " if model.times is not None and model.times.is_extrapolated else ""
    ratio = (
        f"{mark}{tables.shown_ratio(max(speed_up, 1 / speed_up))} times "
        f"{'faster' if speed_up >= 1 else 'slower'} than the teacher"
    )
    return f"{subject} answers in {tables.shown_ms(model.query_ms[-1])} ms, {ratio}, and {outcome}."


def facts_of(report: Report) -> list[tuple[str, str]]:
    """The models and what they were measured on, in words."""
    facts = [("models", "; ".join(f"{model.label} ({model.role})" for model in report.models))]
    if (result := report.result) is None:
        return facts
    folds = f", the mean of {result.num_folds} folds" if result.num_folds > 1 else ""
    # The last two parts of the folder: data/flickr30k. Its place on this machine tells a reader nothing.
    corpus = "/".join(Path(result.data).parts[-2:]) if result.data else result.fingerprint[: tables.FINGERPRINT_DIGITS]
    return [
        *facts,
        (
            "measured on",
            f"{corpus}, split {result.split}: {result.num_images:,} images, {result.num_captions:,} captions",
        ),
        ("protocol", f"{result.protocol or tables.NOTHING}{folds}; a tie counts against the positive"),
    ]


def write_markdown(path: Path, report: Report) -> None:
    """Write the facts, the tables and the missing parts as Markdown."""
    facts = [f"- {name}: {_plain(value)}" for name, value in facts_of(report)]
    missing = (
        ["## Left out", "", *(f"- {_plain(part.what)}: {_code(part.command)}" for part in report.missing)]
        if report.missing
        else []
    )
    tables = [_markdown_table(table) for table in report_tables(report)]
    files.write_text(
        path,
        "\n".join(["# Report", "", *map(_plain, headline(report)), "", *facts, "", *tables, *missing]).rstrip("\n")
        + "\n",
    )


def write_csv(path: Path, report: Report) -> None:
    """Write a row per model, unrounded; values that were not measured are empty."""
    rows = [_numbers(model) for model in report.models]
    names = list(dict.fromkeys(name for row in rows for name in row))
    files.write_csv(path, names, [[row.get(name) for name in names] for row in rows])


def report_document(report: Report) -> dict[str, object]:
    """The numbers of a report for JSON, with the names of the CSV file, and what is left out, with the command that
    adds it."""
    left_out = [{"what": part.what, "command": part.command} for part in report.missing]
    return {"models": [_numbers(model) for model in report.models], "left_out": left_out}


def _markdown_table(table: Table) -> str:
    is_number = templates.numeric_columns(table.rows)
    # Numbers are aligned to the right.
    lines = [
        table.names,
        ["---:" if number in is_number else "---" for number in range(len(table.columns))],
        *table.rows,
    ]
    return "\n".join([f"{_plain(table.caption)}.", "", *(f"| {' | '.join(map(_cell, line))} |" for line in lines), ""])


def _cell(text: str) -> str:
    """A cell with its small print in parentheses.

    >>> _cell("63.2\\n58.0 to 68.0"), _cell("a|b")
    ('63.2 (58.0 to 68.0)', 'a\\\\|b')
    """
    first, _, rest = _plain(text.partition("\n")[0]), "", _plain(text.partition("\n")[2])
    return f"{first} ({rest})" if rest else first


def _plain(text: str) -> str:
    """Text with Markdown's special characters escaped."""
    return "".join(f"\\{character}" if character in "\\`*_{}[]<>#|~" else character for character in text)


def _code(text: str) -> str:
    """A code span, for any text."""
    # In CommonMark a code span may contain shorter runs of backticks than its fence.
    fence = "`" * (1 + max((len(run) for run in "".join(c if c == "`" else " " for c in text).split()), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _numbers(model: ModelResults) -> dict[str, object]:
    row: dict[str, object] = {"model": model.label, "role": model.role, "folder": str(model.folder)}
    if (result := model.result) is not None:
        row |= {
            "kind": result.kind,
            "depth": result.depth,
            "split": result.split,
            "images": result.num_images,
            "captions": result.num_captions,
        }
        row |= {"protocol": result.protocol, "corpus_fingerprint": result.fingerprint}
        for direction, name in RECALLS:
            row |= _figure(f"{direction}_{name}", result.retrieval[direction].recalls[name])
        row |= _figure("rsum", result.rsum)
        row |= {f"{direction}_mAP@R": result.retrieval[direction].map_at_r for direction in Direction}
        row |= {f"{direction}_median_rank": result.retrieval[direction].median_rank for direction in Direction}
    if (times := model.times) is not None:
        row |= {} if model.is_cascade else {"parameters": times.num_parameters}
        row |= {"ms_per_query": times.query_ms, "ms_extrapolated": times.is_extrapolated}
        row |= {"ms_gallery_images": times.num_images, "speed_up": times.speed_up}
    elif result is not None and result.depths:
        row |= {
            "ms_per_query": result.depths[-1].query_ms,
            "ms_extrapolated": False,
            "ms_gallery_images": result.gallery_size,
        }
    if (comparison := model.comparison) is not None:
        rsum = comparison.difference.rsum
        row |= _figure("rsum_difference", Figure(rsum.value, rsum.interval)) | {"p_value": comparison.p_value}
    return row


def _figure(name: str, figure: Figure) -> dict[str, float]:
    if figure.interval is None:
        return {name: figure.value}
    return {name: figure.value, f"{name}_low": figure.interval.low, f"{name}_high": figure.interval.high}
