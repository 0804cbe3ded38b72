"""`dcdctl work`: the tasks of `--engine files:DIR`, done by this process, beside any number of other ones.

A task is locked while it is done, so two calls with the same files share them. Where files cannot be locked, such as at
a URL, a task may be done twice; both results are equal. Results are written atomically: after a kill, the same call
does what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import pyarrow as pa

from dcdctl.core import files
from dcdctl.core.data import urls
from dcdctl.core.engines import (
    RESULTS,
    Task,
    ThisProcess,
    read_results,
    read_task,
    read_task_facts,
    result_path,
    write_table,
)
from dcdctl.core.errors import NUM_EXAMPLES, DcdError, InputError, StaleError
from dcdctl.core.places import shown, url_of
from dcdctl.core.progress import Advance, Say, Track, silent

Finish = Callable[[Advance], pa.Table]


class TaskWorker(Protocol):
    """Does tasks of one job."""

    def start(self, rows: pa.Table, name: str) -> Finish:
        """Begin to read what a task needs, and return what gives its results."""
        ...


@dataclass(frozen=True, kw_only=True)
class WorkDone:
    """Tasks that were done."""

    num_tasks: int
    num_there: int
    """Tasks that were done before."""
    num_busy: int
    """Tasks that other processes do."""


@dataclass(eq=False)
class _TaskFile:
    """A file of tasks, here or at a URL."""

    path: Path
    facts: dict[str, Any]
    num_rows: int
    held: ExitStack = field(default_factory=ExitStack)
    """The lock."""

    def is_done(self, say: Say) -> bool:
        """Whether the results are there. Damaged ones, and those of another task, are replaced."""
        if not urls.exists(result_path(self.path)):
            return False
        try:
            read_results(self.path, self.facts, self.num_rows, urls.readable)
        except StaleError as error:
            say(f"{error.args[0]}: it is done again")
            return False
        return True

    def lock(self) -> bool:
        """Whether no other process does it."""
        if url_of(self.path) is None:
            try:
                self.held.enter_context(files.lock(self.path))
            except StaleError:
                return False
        return True

    def write(self, results: pa.Table) -> None:
        """Write the results atomically."""
        target, facts = result_path(self.path), {**self.facts, "is_result": True}
        if url_of(target) is None:
            with files.atomic_path(target) as partial_file:
                write_table(partial_file, results, facts)
            return
        with TemporaryDirectory() as scratch:
            local = Path(scratch) / target.name
            write_table(local, results, facts)
            urls.write_file(target, local)


@dataclass
class _Worker:
    """A worker for the job of each task, whose errors are results: one task keeps no other from being done."""

    make: Callable[[Mapping[str, Any]], TaskWorker]
    job: Mapping[str, Any] | None = None
    worker: TaskWorker | None = None

    def start(self, task: _TaskFile) -> Callable[[Advance], pa.Table | DcdError]:
        """The rest of a task. An error of a model is raised: it would be that of all tasks."""
        if self.worker is None or self.job != task.facts["job"]:
            self.worker = None  # one model in memory at a time
            self.job, self.worker = task.facts["job"], self.make(task.facts["job"])
        name = shown(task.path)
        try:
            finish = self.worker.start(read_task(urls.readable(task.path), name, task.facts), name)
        except DcdError as error:
            return partial(_failed, error)
        return partial(_finished, finish)


def _failed(error: DcdError, advance: Advance) -> DcdError:
    return error


def _finished(finish: Finish, advance: Advance) -> pa.Table | DcdError:
    try:
        return finish(advance)
    except DcdError as error:
        return error


def do_tasks(
    names: Sequence[str], make: Callable[[Mapping[str, Any]], TaskWorker], *, say: Say, track: Track = silent
) -> WorkDone:
    """Do the tasks that files, folders and patterns name, unless they are done; `make` gives the worker of a job.

    InputError for a file that is no task: then nothing is done. InputError at the end for tasks that failed; the
    results of all others are written.
    """
    tasks = _found(names)
    missing = [task for task in tasks if not task.is_done(say)]
    num_busy = 0
    failed: dict[_TaskFile, DcdError] = {}

    def begun() -> Iterator[Task[_TaskFile]]:
        nonlocal num_busy
        for number, task in enumerate(missing):
            if not task.lock():
                num_busy += 1
            elif not urls.exists(task.path) or task.is_done(say):  # by another process, or taken, meanwhile
                task.held.close()
            else:
                yield Task(number, task.path.name, inputs=partial(_same, task), packed=partial(_same, task))

    with track("work", total=sum(task.num_rows for task in missing), unit="rows") as advance, ExitStack() as held:
        for task in missing:
            held.callback(task.held.close)
        for done, results in ThisProcess().map(begun(), partial(_Worker, make), advance):
            task = missing[done.shard]
            if isinstance(results, DcdError):
                failed[task] = results
            else:
                task.write(results)
            task.held.close()
    if failed:
        raise _failures(failed, len(tasks))
    return WorkDone(num_tasks=len(tasks), num_there=len(tasks) - len(missing), num_busy=num_busy)


def _same(task: _TaskFile) -> _TaskFile:
    return task


def _found(names: Sequence[str]) -> list[_TaskFile]:
    """The files of tasks, in order. A folder, and a pattern, may name results too."""
    found = []
    for path in urls.find_named(names, (".parquet",), what="task", option="FILE"):
        if path.name.startswith(RESULTS):
            continue
        facts, num_rows = read_task_facts(urls.readable(path), shown(path))
        if "digest" not in facts["job"]:
            raise InputError(
                f"{shown(path)} names no model",
                hint="write the tasks with --teacher REF, or give the scores of another program with --scores",
            )
        found.append(_TaskFile(path, facts, num_rows))
    if not found:
        raise InputError(f"there is no task in {', '.join(names)}", hint="name the files tasks-*.parquet")
    urls.check_writable(found[0].path.parent)
    return found


def _failures(failed: Mapping[_TaskFile, DcdError], num_tasks: int) -> DcdError:
    if num_tasks == 1:
        return next(iter(failed.values()))
    reasons = [f"{task.path.name}: {error}" for task, error in failed.items()]
    return InputError(
        f"{len(failed):,} of {num_tasks:,} tasks failed",
        details=[*reasons[:NUM_EXAMPLES], *(["..."] if len(reasons) > NUM_EXAMPLES else [])],
        hint="the results of the others are kept; correct these and repeat the command",
    )
