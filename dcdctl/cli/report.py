"""`dcdctl report`: runs on one page, with tables, curves and images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from dcdctl.cli.options import Json
from dcdctl.cli.views.terminal import bar, note, show, show_json
from dcdctl.core.arguments import argument, configures, reads


@dataclass(frozen=True, kw_only=True)
class Report:
    """Runs, what they are compared with, and the files to write."""

    runs: Annotated[list[Path], argument("Run folders, or folders that `dcdctl eval --out` has written.", "RUN")]
    data: Annotated[
        Path | None,
        reads("--data", "Corpus of the images on the page; by default that of the evaluation.", "DIR", "place"),
    ] = None
    teacher_eval: Annotated[
        Path | None, reads("--teacher-eval", "Run or other folder with the teacher's evaluation.", "FOLDER")
    ] = None
    baseline: Annotated[
        Path | None,
        reads("--baseline", "Folder that the others are compared with; by default the first RUN.", "FOLDER"),
    ] = None
    out: Annotated[Path, configures("--out -o", "Page to write.", "FILE", "output file")] = Path("report.html")
    markdown: Annotated[
        Path | None,
        configures("--to-markdown", "Also write the tables as Markdown.", "FILE", "output file"),
    ] = None
    csv: Annotated[
        Path | None,
        configures("--csv", "Also write the numbers as CSV, a row per model.", "FILE", "output file"),
    ] = None
    json: Json = False


def report(arguments: Report) -> None:
    """Show runs on one page. It has commands, recalls, speed, curves, scores, and queries with what each model
    retrieves."""
    from dcdctl.core.report import headline, read_report, report_document, write_csv, write_markdown, write_report_page

    result = read_report(
        arguments.runs, teacher=arguments.teacher_eval, baseline=arguments.baseline, data=arguments.data
    )
    write_report_page(arguments.out, result, bar)
    if arguments.markdown is not None:
        write_markdown(arguments.markdown, result)
    if arguments.csv is not None:
        write_csv(arguments.csv, result)
    for what, models in result.lacks.items():
        note(f"{what}: {models}")
    if arguments.json:
        files = {"page": arguments.out, "markdown": arguments.markdown, "csv": arguments.csv}
        return show_json(
            {name: str(path) for name, path in files.items() if path is not None} | report_document(result)
        )
    show("\n".join([*headline(result), f"report -> {arguments.out}"]))
