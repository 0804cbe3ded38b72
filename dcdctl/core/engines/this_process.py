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

        The next task is started before the current one is computed, as `Worker.start` says.
        """
        worker: Worker[Any, Output] | None = None
        current: tuple[TaskOf, Callable[[Advance], Output]] | None = None
        following: tuple[TaskOf, Callable[[Advance], Output]] | None = None
        error: Exception | None = None
        remaining = iter(tasks)
        try:
            while True:
                following = None
                try:
                    task = next(remaining, None)
                    if task is not None:
                        worker = worker or make_worker()
                        following = task, worker.start(task.inputs())
                except Exception as reason:
                    error = reason
                if current is not None:
                    yield current[0], current[1](advance)
                # Only now, so that the current task is done and written.
                if error is not None:
                    raise error
                if following is None:
                    return
                current = following
        finally:
            # The traceback of an error would keep what was begun, and with it the threads that read.
            worker = current = following = None
