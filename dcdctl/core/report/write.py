"""A report as an HTML page, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from dcdctl.core import files, templates
from dcdctl.core.data import Direction
from dcdctl.core.evaluation import AGREEMENT, ESTIMATED, Agreement, Estimate, Evaluation, outcome
from dcdctl.core.progress import Track, digits, silent
from dcdctl.core.report import charts, gallery, html, tables
from dcdctl.core.report.gallery import TITLES
from dcdctl.core.report.report import ModelResults, Report
from dcdctl.core.report.tables import SHOWN


def write_report_page(path: Path, report: Report, track: Track = silent) -> None:
    """Write the page of a report."""
    score_charts = charts.scores(report)
    html.write(
        path,
        "report.html",
        title="Report: " + ", ".join(model.label for model in report.models),
        headline=headline(report),
        facts=facts_of(report),
        results=tables.result_tables(report),
        speed_chart=charts.speed_against_recall(report),
        score_charts=[score_charts[direction] for direction, _ in TITLES if score_charts[direction]],
        training_charts=charts.training_curves(report),
        commands=[(training.label, shlex.join(training.command)) for training in report.trainings],
        gallery=gallery.make_gallery(report, charts.colors(report), track),
    )


def headline(report: Report) -> list[str]:
    """Whether the first student and its cascade differ from the baseline; what they won and lost; and in a last line
    what was measured. A sentence each.

    Empty without a student that was evaluated.
    """
    evaluated = [model for model in report.models if model.result is not None]
    students = [model for model in evaluated if model.role == "student"]
    if not students:
        students = [model for model in evaluated if model.role == "baseline"]
    if not students:
        return []
    first = next((model for model in students if not model.is_cascade), students[0])
    shown = [first, *(model for model in students if model.is_cascade and model is not first)][:2]
    teacher = report.of_role("teacher")
    kind = report.result
    assert kind is not None  # a student was evaluated
    notes = [f"{kind.max_total} is {kind.about_total}"]
    if teacher is not None and teacher.result is not None:
        notes.append(f"the teacher has {teacher.result.total:.0f}")
    sizes = dict.fromkeys(model.gallery_size for model in shown if model.gallery_size is not None)
    if sizes:
        among = " or ".join(f"{size:,}" for size in sizes)
        notes.append(f"time: one caption among {among} encoded images")
    # First, because a high count says nothing where the baseline has it too.
    verdicts, base = [], report.of_role("baseline")
    for model in shown:
        if model.comparison is not None and base is not None:
            difference = model.comparison.difference
            about = f"{model.label} against {base.label}, {difference.total_in_words}"
            verdicts.append(outcome(about, difference.total, model.comparison.trainings_p_value))
    return [*verdicts, *(_sentence(model, teacher) for model in shown), "; ".join(notes) + "."]


def _sentence(model: ModelResults, teacher: ModelResults | None) -> str:
    assert model.result is not None
    subject = f"The cascade {model.label}," if model.is_cascade else f"The {model.label} {model.role}"
    total = f"{model.result.total:.0f} of {model.result.max_total}"
    loses = teacher is not None and teacher.result is not None and model.result.total < teacher.result.total
    outcome = f"keeps {total}" if loses else f"reaches {total}"
    if not model.query_ms:
        return f"{subject} {outcome}."
    answers, times = f"answers in {digits(model.query_ms[-1])} ms", model.times
    if times is None or times.speed_up is None:
        return f"{subject} {answers} and {outcome}."
    mark, ratio = "about " if times.is_extrapolated else "", digits(max(times.speed_up, 1 / times.speed_up))
    than = "faster" if times.speed_up >= 1 else "slower"
    return f"{subject} {answers}, {mark}{ratio} times {than} than the teacher, and {outcome}."


def facts_of(report: Report) -> list[tuple[str, str]]:
    """The models and what they were measured on, in words."""
    labels = "; ".join(f"{model.label} ({model.role})" for model in report.models)
    facts = [("models", labels), *report.lacks.items()]
    if (result := report.result) is None:
        return facts
    # The last two parts of the folder: data/flickr30k. Its place on this machine tells a reader nothing.
    corpus = "/".join(Path(result.data).parts[-2:])
    return [
        *facts,
        (
            "measured on",
            f"{corpus}, split {result.split}: {result.images:,} images, {result.captions:,} {result.texts}",
        ),
        result.how_measured,
    ]


def write_markdown(path: Path, report: Report) -> None:
    """Write the facts, the tables and the commands as Markdown."""
    facts = [f"- {name}: {_plain(value)}" for name, value in facts_of(report)]
    commands = [f"- {_plain(training.label)}: `{shlex.join(training.command)}`" for training in report.trainings]
    if commands:
        commands = ["## Commands", "", *commands, ""]
    lines = ["# Report", "", *map(_plain, headline(report)), "", *facts, ""]
    for table in tables.result_tables(report):
        is_number = templates.numeric_columns(table.rows)
        # Numbers are aligned to the right.
        rule = ["---:" if number in is_number else "---" for number in range(len(table.columns))]
        lines += [f"{_plain(table.title)}.", ""]
        lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in (table.names, rule, *table.rows)]
        lines.append("")
    lines += commands
    files.write_text(path, "\n".join(lines).rstrip("\n") + "\n")


def write_csv(path: Path, report: Report) -> None:
    """Write the numbers of `report_document`, unrounded, as CSV: a row per model; what was not measured is empty."""
    files.write_text(path, csv_text([_row(model) for model in report.models]))


def csv_text(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as CSV, without formulas; a value that a row lacks is empty."""
    stream = io.StringIO()
    # Lines end with \r\n, the csv module's default: with another end it would not quote a \r in a folder's name.
    writer = csv.DictWriter(stream, dict.fromkeys(name for row in rows for name in row))
    writer.writeheader()
    writer.writerows({name: _csv_cell(value) for name, value in row.items()} for row in rows)
    return stream.getvalue()


# https://owasp.org/www-community/attacks/CSV_Injection; the second half are the same signs in full width.
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""A spreadsheet computes a cell that begins with one of them, and may so run a command."""


def _csv_cell(value: object) -> object:
    """A value as a cell of a CSV: a text that a spreadsheet would compute, such as a folder's name, gets an apostrophe.
    Numbers stay numbers.

    >>> _csv_cell("=1+1"), _csv_cell("runs/a"), _csv_cell(-1.5)
    ("'=1+1", 'runs/a', -1.5)
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_SIGNS) else value


def report_document(report: Report) -> dict[str, object]:
    """The numbers of a report for JSON, with the names of the CSV file, and what is left out."""
    return {"headline": headline(report), "models": [_row(model) for model in report.models], "left_out": report.lacks}


def _cell(text: str) -> str:
    """A cell with its small print in parentheses.

    >>> _cell("63.2\\n58.0 to 68.0"), _cell("a|b")
    ('63.2 (58.0 to 68.0)', 'a\\\\|b')
    """
    first, _, rest = map(_plain, text.partition("\n"))
    return f"{first} ({rest})" if rest else first


def _plain(text: str) -> str:
    """Text with Markdown's special characters escaped."""
    return re.sub(r"[\\`*_{}\[\]<>#|~]", r"\\\g<0>", text)


def _row(model: ModelResults) -> dict[str, object]:
    row: dict[str, object] = {"model": model.label, "role": model.role, "folder": str(model.folder)}
    if (result := model.result) is not None:
        row |= {
            "kind": result.protocol.kind,
            "depth": result.protocol.depth,
            "split": result.split,
            "images": result.images,
            "captions": result.captions,
            "protocol": result.protocol.name,
            "corpus_fingerprint": result.corpus_fingerprint,
        }
        if isinstance(result, Evaluation):
            row |= _recalls(result)
        if result.agreement is not None:
            row |= _agreement(result.agreement)
    if (times := model.times) is not None:
        if not model.is_cascade:
            row["parameters"] = times.num_parameters
        row |= {"ms_per_query": times.query_ms, "ms_extrapolated": times.is_extrapolated}
        row |= {"ms_gallery_images": times.num_images, "speed_up": times.speed_up}
    elif result is not None and result.reranked:
        row |= {
            "ms_per_query": result.reranked[-1].ms_per_query,
            "ms_extrapolated": False,
            "ms_gallery_images": model.gallery_size,
        }
    if (comparison := model.comparison) is not None:
        assert result is not None  # it was compared
        row |= _with_ends(f"{result.total_key}_difference", comparison.difference.total)
        row["p_value"] = comparison.trainings_p_value
    return row


def _recalls(result: Evaluation) -> dict[str, object]:
    row: dict[str, object] = {}
    for direction in Direction:
        for measure in ESTIMATED:
            if measure.name in result.measures(direction):
                row |= _with_ends(f"{direction}_{measure.name}", result.recall(direction, measure.name))
    row |= _with_ends("rsum", result.rsum_estimate)
    for measure in SHOWN:
        if measure.of_rank is None:
            row |= {f"{each}_{measure.name}": result.measures(each).get(measure.name) for each in Direction}
    return row


def _agreement(agreement: Agreement) -> dict[str, object]:
    row: dict[str, object] = {"agreement_with": agreement.teacher, "agreement_over": agreement.over}
    row["ndcg"] = agreement.ndcg
    for direction in Direction:
        for measure in AGREEMENT:
            if (estimate := agreement.estimate(direction, measure.name)) is not None:
                row |= _with_ends(f"{direction}_{measure.name}", estimate)
    return row


def _with_ends(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.interval.low, f"{name}_high": estimate.interval.high}
