"""`dcdctl compare`: whether one model retrieves better than another, or the difference could be chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dcdctl.cli.declare import Ref, Refs, many, optional_path, path
from dcdctl.cli.options import Json, Page, argument, configures, reads, refuse
from dcdctl.cli.views.terminal import note, show, show_facts, show_json, show_tables

if TYPE_CHECKING:
    from dcdctl.core.evaluation import Comparison


@dataclass(frozen=True)
class Compare:
    """Systems, and how to compare them."""

    systems: Annotated[
        Sequence[Refs],
        argument(
            "Two or more systems: a run or another folder with an evaluation, FOLDER:cascade, or FOLDER:agreement; "
            "A,B,C are seeds of one system. The others are compared with the first.",
            "SYSTEM",
        ),
        list[str],
    ]
    _: KW_ONLY
    data: Annotated[
        Ref | None, reads("--data", "Corpus of the images on the page; by default that of the evaluation.", "DIR"), Path
    ] = None
    html: Page = None
    draw_seeds: Annotated[
        bool,
        configures(
            "--draw-seeds",
            "Cover other seeds in intervals and p-values too; needs two or more per system.",
        ),
    ] = False

    def run(self) -> Comparison:
        """Compare the systems."""
        from dcdctl.core.evaluation import compare_systems

        return compare_systems([",".join(many(system)) for system in self.systems], draw_seeds=self.draw_seeds)

    def write_page(self, comparison: Comparison) -> bool:
        """Write the page that was asked for; whether it has the images of its queries."""
        from dcdctl.core import report

        assert self.html is not None
        needs_images = comparison.lists_queries
        corpus = report.open_corpus(comparison.evaluation, optional_path(self.data)) if needs_images else None
        report.write_comparison_page(path(self.html), comparison, corpus)
        return corpus is not None or not needs_images


def compare(arguments: Compare, json: Json = False) -> None:
    """Test whether models differ, query by query. It prints differences with intervals and p-values, and the queries
    that differ most."""
    from dcdctl.core import evaluation

    if arguments.html is None:
        # The corpus has no other use: ranks are in the evaluations.
        refuse({"--data": optional_path(arguments.data)}, "is the corpus of the page: name a file with --html")
    comparison = arguments.run()
    if arguments.html is not None:
        if arguments.write_page(comparison):
            note(f"page -> {arguments.html}")
        else:
            note(f"page without images -> {arguments.html}; their corpus was not found, --data DIR names it")
    if json:
        return show_json(evaluation.comparison_document(comparison))
    show("\n".join(comparison.verdicts))
    show_facts(evaluation.comparison_facts(comparison))
    show_tables(evaluation.comparison_tables(comparison))
    for line in evaluation.how_to_read(comparison):
        show(line)
