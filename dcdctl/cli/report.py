"""`dcdctl report`: runs on one page, with tables, curves and images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dcdctl.cli.options import Json, check_output_file, reads, writes
from dcdctl.cli.views.terminal import bar, note, show, show_json

Runs = Annotated[
    list[Path], typer.Argument(help="Run folders, or folders that `dcdctl eval --out` has written.", metavar="RUN")
]
CorpusFolder = Annotated[
    Path | None,
    reads("--data", help="Corpus of the images on the page; by default that of the evaluation.", metavar="DIR"),
]
TeacherFolder = Annotated[
    Path | None,
    reads("--teacher-eval", help="Run or other folder with the teacher's evaluation.", metavar="FOLDER"),
]
Baseline = Annotated[
    Path | None,
    reads("--baseline", help="Folder that the others are compared with; by default the first RUN.", metavar="FOLDER"),
]
Page = Annotated[Path, writes("--out", "-o", help="Page to write.", callback=check_output_file, metavar="FILE")]
Markdown = Annotated[
    Path | None,
    writes("--to-markdown", help="Also write the tables as Markdown.", callback=check_output_file, metavar="FILE"),
]
Csv = Annotated[
    Path | None,
    writes("--to-csv", help="Also write the numbers, one model per row.", callback=check_output_file, metavar="FILE"),
]
NumQueries = Annotated[
    int | None,
    writes("--queries", help="Queries to show with images, per direction.", show_default="60", min=0, metavar="N"),
]


def report(
    runs: Runs,
    data: CorpusFolder = None,
    teacher_eval: TeacherFolder = None,
    baseline: Baseline = None,
    out: Page = Path("report.html"),
    markdown: Markdown = None,
    csv: Csv = None,
    queries: NumQueries = None,
    json: Json = False,
) -> None:
    """Show runs on one page. It has commands, recalls, speed, curves, scores, and queries with what each model
    retrieves."""
    from dcdctl.core.report import (
        NUM_QUERIES,
        read_report,
        report_document,
        write_csv,
        write_markdown,
        write_report_page,
    )

    result = read_report(runs, teacher=teacher_eval, baseline=baseline, data=data)
    write_report_page(out, result, num_queries=NUM_QUERIES if queries is None else queries, track=bar)
    if markdown is not None:
        write_markdown(markdown, result)
    if csv is not None:
        write_csv(csv, result)
    for part in result.missing:
        note(f"left out: {part}")
    if json:
        files = {"page": out, "markdown": markdown, "csv": csv}
        return show_json(
            {name: str(path) for name, path in files.items() if path is not None} | report_document(result)
        )
    show(f"report -> {out}")
