"""`dcdctl compare`: whether one model retrieves better than another, or chance alone would tell them apart as well."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcdctl.cli.options import Json
from dcdctl.cli.views.terminal import note, show, show_json, show_table

if TYPE_CHECKING:
    from dcdctl.core.evaluation import ComparisonReport

Sides = Annotated[
    list[str],
    typer.Argument(
        help="Two or more: a run or another folder that `dcdctl eval` wrote into, FOLDER:cascade, or a table of ranks; "
        "A,B,C are seeds of one side.",
        metavar="SIDE",
    ),
]
Base = Annotated[
    str | None, typer.Option("--base", help="The side that the others are compared with; the first if not given.", metavar="A")
]
Corpus = Annotated[
    Path | None,
    typer.Option("--data", help="Corpus whose pictures the page shows; the one of the evaluation if not given.", metavar="DIR"),
]
Page = Annotated[Path | None, typer.Option("--html", help="Write a page with the queries that differ most, with pictures.", metavar="FILE")]
Queries = Annotated[int, typer.Option("--queries", help="Queries that differ most, of each direction and way.", min=0, max=30, metavar="N")]
Resamples = Annotated[int, typer.Option("--resamples", help="Draws of images, and of signs.", min=100, max=1_000_000, metavar="N")]
Seed = Annotated[int, typer.Option("--seed", help="Of the draws.", min=0, metavar="N")]


def compare(
    sides: Sides,
    base: Base = None,
    data: Corpus = None,
    html: Page = None,
    queries: Queries = 6,
    resamples: Resamples = 10_000,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Compare evaluations query by query: differences with intervals, p-values, and the queries that differ most."""
    from dcdctl.core import evaluation, report

    if data is not None and html is None:
        raise typer.BadParameter("is for the page: name a file with --html", param_hint="--data")
    comparison = evaluation.compare_systems(sides, base, resamples=resamples, seed=seed, num_queries=queries)
    if html is not None:
        report.write_comparison_page(html, comparison, report.open_corpus(comparison, data))
        note(f"page -> {html}")
    if json:
        return show_json(report.comparison_document(comparison))
    _show(comparison)


def _show(comparison: ComparisonReport) -> None:
    from dcdctl.core import report

    for name, value in report.comparison_facts(comparison):
        show(f"  {name}: {value}")
    show_table("", *report.comparison_summary(comparison))
    for pairwise in comparison.comparisons:
        show_table("", *report.comparison_details(comparison, pairwise), caption="\n".join(report.rank_changes(comparison, pairwise)))
    for line in report.how_to_read(comparison):
        show(line)
