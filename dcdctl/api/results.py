"""What models are worth: `evaluate`, `compare` and `bench`, and `export` for other libraries.

Results show a line as their repr and a table in a notebook.
"""

from __future__ import annotations

from dcdctl.api import arguments as api
from dcdctl.api.arguments import say
from dcdctl.cli.bench import TimedModels
from dcdctl.cli.compare import Compare
from dcdctl.cli.declare import takes
from dcdctl.cli.evaluate import Evaluate
from dcdctl.cli.export import Export
from dcdctl.core import bench as bench_room
from dcdctl.core import devices, evaluation
from dcdctl.core.bench import Bench, BenchConfig
from dcdctl.core.evaluation import Comparison, Evaluation, PoolEvaluation
from dcdctl.core.export import Exported


@takes(Evaluate)
def evaluate(arguments: Evaluate) -> Evaluation | PoolEvaluation:
    """Measure the retrieval of a model, or of a cascade with `rerank`; written into `out`, or into the run folder if
    `model` is a run.

    `model` is a name as for `load`, or a model that is loaded.

    `depth` is the number of candidates that are re-ranked per query (50), or several of them, whose times are then
    measured too. `dims`, `vectors` and `rescore` compare the vectors of a dual encoder by their first numbers or by
    codes, as an index does. `against` is a teacher whose order is compared without labels; a pool has that alone.
    """
    return evaluation.run_evaluation(arguments.job(say), track=api.track(arguments.progress), say=say)


@takes(Compare)
def compare(arguments: Compare) -> Comparison:
    """Test whether models differ, query by query. A system is a run or another folder with an evaluation; a list of
    them is its seeds.

    The others are compared with the first. `html` is a file for a page with the
    queries that differ most; `data` is the corpus of its images, if it was moved.
    """
    comparison = arguments.run()
    if arguments.html is not None:
        arguments.write_page(comparison)
    return comparison


@takes(TimedModels)
def bench(arguments: TimedModels) -> Bench:
    """Time a student and its teacher on the same pairs; `config` sets the sizes, the precision and the seconds per
    measurement."""
    return bench_room.compare_saved(
        arguments.pair(),
        arguments.config or BenchConfig(),
        device=devices.choose(arguments.device),
        track=api.track(arguments.progress),
    )


@takes(Export)
def export(arguments: Export) -> Exported:
    """Write a model for another library, with a model card; its outputs are compared with the original's."""
    return arguments.run(api.track(arguments.progress))
