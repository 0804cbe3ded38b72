"""Tasks done here, by this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dcdctl.core.engines.engine import Output, TaskOf, Worker
from dcdctl.core.progress import Advance


class ThisProcess:
    """This process does all tasks, in order."""

    sends_tasks = False

    def map(
        self, tasks: Iterable[TaskOf], make_worker: Callable[[], Worker[Any, Output]], advance: Advance
    ) -> Iterator[tuple[TaskOf, Output]]:
        """The result of each task, in order.

        Each task is started before the one ahead of it is computed, as `Worker.start` says.
        """
        worker: Worker[Any, Output] | None = None
        before: tuple[TaskOf, Callable[[Advance], Output]] | None = None
        started: tuple[TaskOf, Callable[[Advance], Output]] | None = None
        error: Exception | None = None
        remaining = iter(tasks)
        try:
            while True:
                try:
                    task = next(remaining, None)
                    if task is None:
                        break
                    worker = worker or make_worker()
                    started = task, worker.start(task.inputs())
                except Exception as reason:  # raised when the task before it is done and written
                    error = reason
                    break
                if before is not None:
                    yield before[0], before[1](advance)
                before = started
            if before is not None:
                yield before[0], before[1](advance)
            if error is not None:
                raise error
        finally:
            # The traceback of an error would keep what was begun, and with it the threads that read.
            worker = before = started = None
