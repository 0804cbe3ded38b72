"""`dcdctl work`: do tasks that `--engine files:DIR` wrote, on any machine."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from dcdctl.cli.options import CODE, Json
from dcdctl.cli.views.terminal import bar, note, show, show_json
from dcdctl.core.arguments import Ref, Refs, argument, many, reads
from dcdctl.core.engines import Machine
from dcdctl.core.options import Workers
from dcdctl.core.progress import counted

if TYPE_CHECKING:
    from dcdctl.core.data import TaskWorker, WorkDone
    from dcdctl.core.progress import Say, Track


@dataclass(frozen=True)
class Work(Machine):
    """Files of tasks, and where this machine has their model."""

    files: Annotated[
        Refs,
        argument("Tasks that --engine files:DIR wrote: DIR/tasks-*, or the folder DIR.", "FILE", "place"),
    ]
    _: KW_ONLY
    model: Annotated[
        Ref | None,
        reads("--model", "The model of the tasks, if it has another place on this machine.", "REF", "model"),
    ] = None
    workers: Workers = None

    def run(self, say: Say, track: Track) -> WorkDone:
        """Do them."""
        from dcdctl.core import data

        return data.do_tasks(many(self.files), self.worker_of, say=say, track=track)

    def worker_of(self, job: Mapping[str, Any]) -> TaskWorker:
        """The worker of a job, with its model on the device of this machine."""
        from dcdctl.core import devices, scoring, search
        from dcdctl.core.engines import Compute
        from dcdctl.core.errors import ConfigError, StaleError

        kinds: dict[str, type[scoring.ScoreTasks | search.EmbedTasks]]
        kinds = {scoring.SCORES: scoring.ScoreTasks, search.VECTORS: search.EmbedTasks}
        if job["work"] not in kinds:
            raise StaleError(f"the tasks are {job['work']!r}, which this dcdctl cannot do", hint="use a newer one")
        if self.model is None and CODE.fullmatch(job["model"]):
            raise ConfigError(
                f"the model of the tasks is code, {job['model']}, which a task does not run by itself",
                hint=f"if you trust it: --model {job['model']}",
            )
        compute = Compute(
            device=devices.choose(self.device),
            precision=job["precision"],
            batch_size=job["batch_size"],
            workers=self.workers,
        )
        return kinds[job["work"]].make(job, os.fspath(self.model or job["model"]), compute)


def work(arguments: Work, json: Json = False) -> None:
    """Do tasks of --engine files:DIR, on any machine. The command that wrote them, run again, takes their results."""
    started = time.monotonic()
    done = arguments.run(note, bar)
    num_done = done.num_tasks - done.num_there - done.num_busy
    if json:
        counts = {"tasks": done.num_tasks, "done": num_done, "already_there": done.num_there, "busy": done.num_busy}
        return show_json(counts | {"seconds": round(time.monotonic() - started, 3)})
    there = f", {done.num_there:,} done before" if done.num_there else ""
    busy = f", {done.num_busy:,} left to other processes" if done.num_busy else ""
    show(f"{counted(num_done, 'tasks')} done{there}{busy}; next: the command that wrote them, again")
