"""`dcdctl work`: do tasks that `--engine files:DIR` wrote, on any machine."""

from __future__ import annotations

import time

from dcdctl.cli.options import Json
from dcdctl.cli.views.terminal import bar, note, show, show_json
from dcdctl.core.progress import counted
from dcdctl.core.search import WorkJob


def work(job: WorkJob, json: Json = False) -> None:
    """Do tasks of --engine files:DIR, on any machine. The command that wrote them, run again, takes their results."""
    from dcdctl.core.search import do_work

    started = time.monotonic()
    done = do_work(job, track=bar, say=note)
    num_done = done.num_tasks - done.num_there - done.num_busy
    if json:
        counts = {"tasks": done.num_tasks, "done": num_done, "already_there": done.num_there, "busy": done.num_busy}
        return show_json(counts | {"seconds": round(time.monotonic() - started, 3)})
    there = f", {done.num_there:,} done before" if done.num_there else ""
    busy = f", {done.num_busy:,} left to other processes" if done.num_busy else ""
    show(f"{counted(num_done, 'tasks')} done{there}{busy}; next: the command that wrote them, again")
