"""`dcdctl compare`: whether one model retrieves better than another, or the difference could be chance."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dcdctl.cli.declare import path
from dcdctl.cli.options import Json, Page, configures, reads, writes
from dcdctl.cli.views.terminal import note, show, show_json, show_tables

Systems = Annotated[
    list[str],
    typer.Argument(
        help="Two or more systems: a run or another folder with an evaluation, FOLDER:cascade, or a table of ranks; "
        "A,B,C are seeds of one system.",
        metavar="SYSTEM",
    ),
]
Base = Annotated[
    str | None,
    reads("--base", help="System that the others are compared with; by default the first.", metavar="SYSTEM"),
]
Corpus = Annotated[
    Path | None,
    reads("--data", help="Corpus of the images on the page; by default that of the evaluation.", metavar="DIR"),
]
NumQueries = Annotated[
    int,
    writes("--queries", help="Queries to show with images, per direction.", min=0, max=30, metavar="N"),
]
Resamples = Annotated[
    int,
    configures(
        "--resamples", help="Resamples of the bootstrap and of the sign-flip test.", min=100, max=1_000_000, metavar="N"
    ),
]
DrawSeeds = Annotated[
    bool,
    configures(
        "--draw-seeds",
        help="Draw the seeds of each system too, so that intervals cover them; needs two or more per system.",
    ),
]
Seed = Annotated[int, configures("--seed", help="Seed of the resamples.", min=0, metavar="N")]


def compare(
    systems: Systems,
    base: Base = None,
    data: Corpus = None,
    html: Page = None,
    queries: NumQueries = 6,
    resamples: Resamples = 10_000,
    seed: Seed = 0,
    draw_seeds: DrawSeeds = False,
    json: Json = False,
) -> None:
    """Test whether models differ, query by query. It prints differences with intervals and p-values, and the queries
    that differ most."""
    from dcdctl.core import evaluation, report
    from dcdctl.core.data import read_corpus_json

    if data is not None and html is None:
        raise typer.BadParameter("is the corpus of the page: name a file with --html", param_hint="--data")
    if data is not None:
        read_corpus_json(data)
    comparison = evaluation.compare_systems(
        systems, base, resamples=resamples, seed=seed, draw_seeds=draw_seeds, num_queries=queries
    )
    if html is not None:
        corpus = report.open_corpus(comparison, data)
        report.write_comparison_page(path(html), comparison, corpus)
        note(
            f"page -> {html}"
            if corpus
            else f"page without images -> {html}; their corpus was not found, --data DIR names it"
        )
    if json:
        return show_json(evaluation.comparison_document(comparison))
    for name, value in evaluation.comparison_facts(comparison):
        show(f"  {name}: {value}")
    show_tables(evaluation.comparison_tables(comparison))
    for line in evaluation.how_to_read(comparison):
        show(line)
