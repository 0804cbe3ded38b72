"""An engine whose tasks, worker and results travel as bytes, and whose results come in another order than the tasks."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def sent(value: Any) -> Any:
    """What another process gets of a value."""
    return pickle.loads(pickle.dumps(value))


class SendingEngine:
    """Two workers, as processes of other machines would have them; the last tasks come first as often as not."""

    sends_tasks = True

    def __init__(
        self,
        hidden: Path | None = None,
        *,
        fails: str = "",
        error: BaseException | None = None,
        dies_after: int | None = None,
    ) -> None:
        """Workers do not have the `hidden` folder or file. Tasks whose name ends with `fails` are left out, and the
        `error` is raised for them at the end. The driver is killed after `dies_after` results."""
        self.hidden, self.fails, self.error, self.dies_after = hidden, fails, error, dies_after
        self.names: list[str] = []
        self.num_bytes_sent = self.num_bytes_received = 0

    def map(self, tasks: Any, make_worker: Any, advance: Any) -> Iterator[tuple[Any, Any]]:
        tasks = list(tasks)
        workers = [sent(make_worker)() for _ in range(2)] if tasks else []
        random.Random(len(tasks)).shuffle(tasks)
        for number, task in enumerate(tasks):
            self.names.append(task.name)
            if self.fails and task.name.endswith(self.fails):
                continue
            if number == self.dies_after:
                raise KeyboardInterrupt
            inputs = pickle.dumps(task.packed())
            with self._hiding():
                result = pickle.dumps(workers[number % 2].start(pickle.loads(inputs))(advance))
            self.num_bytes_sent += len(inputs)
            self.num_bytes_received += len(result)
            yield task, pickle.loads(result)
        if self.error is not None:
            raise self.error

    @contextmanager
    def _hiding(self) -> Iterator[None]:
        if self.hidden is None:
            yield
            return
        elsewhere = self.hidden.rename(self.hidden.with_name("hidden"))
        yield
        elsewhere.rename(self.hidden)
