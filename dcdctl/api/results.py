"""What models are worth: `evaluate`, `compare` and `bench`, and `export` for other libraries.

Results show a line as their repr and a table in a notebook.
"""

from __future__ import annotations

from dcdctl.api import arguments as api
from dcdctl.api.arguments import say, takes
from dcdctl.core import evaluation, report
from dcdctl.core.bench import Bench, BenchJob, run_bench
from dcdctl.core.evaluation import CompareJob, Comparison, EvalJob, Evaluation, PoolEvaluation
from dcdctl.core.export import Exported, ExportJob, export_model


@takes(EvalJob)
def evaluate(job: EvalJob) -> Evaluation | PoolEvaluation:
    """Measure the retrieval of a model, or of a cascade with `rerank`; written into `out`, or into the run folder if
    `model` is a run.

    `model` is a name as for `load`, or a model that is loaded.

    `depth` is the number of candidates that are re-ranked per query (50), or several of them, whose times are then
    measured too. `dims`, `vectors` and `rescore` compare the vectors of a dual encoder by their first numbers or by
    codes, as an index does. `against` is a teacher whose order is compared without labels; a pool has that alone.
    """
    return evaluation.run_evaluation(job, track=api.track(job.progress), say=say)


@takes(CompareJob)
def compare(job: CompareJob) -> Comparison:
    """Test whether models differ, query by query. A system is a run or another folder with an evaluation; a list of
    them is its seeds.

    The others are compared with the first. `html` is a file for a page with the
    queries that differ most; `data` is the corpus of its images, if it was moved.
    """
    comparison = evaluation.compare_systems(job.names, draw_seeds=job.draw_seeds)
    if job.html is not None:
        report.write_page_of(job, comparison)
    return comparison


@takes(BenchJob)
def bench(job: BenchJob) -> Bench:
    """Time a student and its teacher on the same pairs; `config` sets the sizes, the precision and the seconds per
    measurement."""
    return run_bench(job, track=api.track(job.progress), say=say)


@takes(ExportJob)
def export(job: ExportJob) -> Exported:
    """Write a model for another library, with a model card; its outputs are compared with the original's."""
    return export_model(job, api.track(job.progress))
