"""`dcdctl eval`: measure how well a model retrieves, alone or in a cascade."""

from __future__ import annotations

from typing import Annotated

from dcdctl.cli.options import Json
from dcdctl.cli.views.scoring import show_workload
from dcdctl.cli.views.terminal import bar, note, show_json, show_tables
from dcdctl.core.arguments import configures
from dcdctl.core.evaluation import EvalJob


def evaluate(
    job: EvalJob,
    vector_table: Annotated[
        bool,
        configures("--vector-table", "Only what shorter, int8 and binary vectors cost."),
    ] = False,
    json: Json = False,
) -> None:
    """Measure the retrieval of a model or a cascade. It prints recalls with intervals, mAP@R, and the ranks of the
    positives."""
    from dcdctl.core.config import to_table
    from dcdctl.core.evaluation import evaluation_tables, run_evaluation, run_vector_table
    from dcdctl.core.evaluation import vector_table as vector_costs

    if vector_table:
        costs = run_vector_table(job, track=bar, say=note)
        return show_json(costs) if json else show_tables([vector_costs(costs)])
    evaluation = run_evaluation(job, track=bar, on_workload=show_workload, say=note)
    if json:
        found = evaluation.published
        return show_json({**evaluation.document, **to_table({"published": found} if found else {})})
    show_tables(evaluation_tables(evaluation))
    if evaluation.folder is not None:
        note(f"results -> {evaluation.folder}")
