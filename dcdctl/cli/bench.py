"""`dcdctl bench`: how much faster the student is."""

from __future__ import annotations

from dcdctl.cli.options import Json
from dcdctl.cli.views.bench import show_bench
from dcdctl.cli.views.terminal import bar, note, show_json
from dcdctl.core.bench import BenchJob


def bench(job: BenchJob, json: Json = False) -> None:
    """Time a student and its teacher on the same pairs. It prints the time of a query, the throughput and the size of
    both."""
    from dcdctl.core.bench import run_bench

    result = run_bench(job, track=bar, say=note)
    if json:
        return show_json(result.to_json())
    show_bench(result)
