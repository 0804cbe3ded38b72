"""`dcdctl compare`: whether one model retrieves better than another, or the difference could be chance."""

from __future__ import annotations

from dcdctl.cli.options import Json, refuse
from dcdctl.cli.views.terminal import note, show, show_facts, show_json, show_tables
from dcdctl.core.arguments import optional_path
from dcdctl.core.evaluation import CompareJob


def compare(job: CompareJob, json: Json = False) -> None:
    """Test whether models differ, query by query. It prints differences with intervals and p-values, and the queries
    that differ most."""
    from dcdctl.core import evaluation, report

    if job.html is None:
        # The corpus has no other use: ranks are in the evaluations.
        refuse({"--data": optional_path(job.data)}, "is the corpus of the page: name a file with --html")
    comparison = evaluation.compare_systems(job.names, draw_seeds=job.draw_seeds)
    if job.html is not None:
        if report.write_page_of(job, comparison):
            note(f"page -> {job.html}")
        else:
            note(f"page without images -> {job.html}; their corpus was not found, --data DIR names it")
    if json:
        return show_json(evaluation.comparison_document(comparison))
    show("\n".join(comparison.verdicts))
    show_facts(evaluation.comparison_facts(comparison))
    show_tables(evaluation.comparison_tables(comparison))
    for line in evaluation.how_to_read(comparison):
        show(line)
