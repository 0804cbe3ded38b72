"""`dcdctl report`: runs as one page, with tables, curves and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dcdctl.cli.views.terminal import bar, note, show

Runs = Annotated[list[Path], typer.Argument(help="Run folders, or folders that `dcdctl eval --out` has written.", metavar="RUN...")]
CorpusFolder = Annotated[
    Path | None,
    typer.Option("--data", help="Where the pictures are; if not given, where they were when the models were evaluated.", metavar="DIR"),
]
TeacherFolder = Annotated[Path | None, typer.Option("--teacher", help="The folder of the teacher's evaluation.", metavar="FOLDER")]
Baseline = Annotated[
    Path | None,
    typer.Option("--baseline", help="The folder that the others are compared with; if not given, the first RUN.", metavar="FOLDER"),
]
Page = Annotated[Path, typer.Option("--out", "-o", help="The page to write.", metavar="FILE", dir_okay=False)]
Markdown = Annotated[Path | None, typer.Option("--markdown", help="Write the tables as Markdown too.", metavar="FILE", dir_okay=False)]
Csv = Annotated[Path | None, typer.Option("--csv", help="Write the numbers too, one model a row.", metavar="FILE", dir_okay=False)]
Queries = Annotated[
    int | None, typer.Option("--queries", help="Queries with pictures, of each direction; 60 if not given.", min=0, metavar="N")
]


def report(
    runs: Runs,
    data: CorpusFolder = None,
    teacher: TeacherFolder = None,
    baseline: Baseline = None,
    out: Page = Path("report.html"),
    markdown: Markdown = None,
    csv: Csv = None,
    queries: Queries = None,
) -> None:
    """Show runs on one page: what was run, recalls, speed, curves, scores, and queries with what each model finds."""
    from dcdctl.core.report import NUM_QUERIES, read_report, write_csv, write_markdown, write_report_page

    found = read_report(runs, teacher=teacher, baseline=baseline, data=data)
    num_queries = NUM_QUERIES if queries is None else queries
    write_report_page(out, found, num_queries=num_queries, track=bar)
    if markdown is not None:
        write_markdown(markdown, found)
    if csv is not None:
        write_csv(csv, found)
    for part in found.missing:
        note(f"left out: {part}")
    show(f"report -> {out}")
