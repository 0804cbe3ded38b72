"""Doing tasks that `--engine files:DIR` wrote: each asks for scores of pairs or for vectors of images.

This is in `search` because it is the last room whose commands write tasks; `data.do_tasks` reads and writes the files.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from dcdctl.core import data, devices, scoring
from dcdctl.core.arguments import CODE, many
from dcdctl.core.data import TaskWorker, WorkDone
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ConfigError, StaleError
from dcdctl.core.progress import Say, Track, silent, unsaid
from dcdctl.core.search.embed import VECTORS
from dcdctl.core.search.image_tasks import EmbedTasks
from dcdctl.core.search.job import WorkJob

KINDS: dict[str, type[scoring.ScoreTasks | EmbedTasks]] = {
    scoring.SCORES: scoring.ScoreTasks,
    VECTORS: EmbedTasks,
}
"""What a task may ask for."""


def do_work(job: WorkJob, *, track: Track = silent, say: Say = unsaid) -> WorkDone:
    """Do the tasks that are not done yet. What `do_tasks` raises; StaleError for tasks of a newer dcdctl, ConfigError
    for tasks whose model is code that the job does not name."""

    def make(task: Mapping[str, Any]) -> TaskWorker:
        if task["work"] not in KINDS:
            raise StaleError(f"the tasks are {task['work']!r}, which this dcdctl cannot do", hint="use a newer one")
        if job.model is None and CODE.fullmatch(task["model"]):
            raise ConfigError(
                f"the model of the tasks is code, {task['model']}, which a task does not run by itself",
                hint=f"if you trust it: --model {task['model']}",
            )
        compute = Compute(
            device=devices.choose(job.device),
            precision=task["precision"],
            batch_size=task["batch_size"],
            workers=job.workers,
        )
        return KINDS[task["work"]].make(task, os.fspath(job.model or task["model"]), compute)

    return data.do_tasks(many(job.files), make, say=say, track=track)
