"""Tasks for engines without a model: sums of numbers, by workers that can be slow, fail, or end."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dcdctl.core.engines import Engine, Task
from dcdctl.core.errors import InputError
from dcdctl.core.progress import Advance


@dataclass(frozen=True)
class Sum:
    """What a task is made of."""

    number: int
    seconds: float = 0.0
    size: int = 10
    fails: str = ""
    """`error`, `bug`, `end` or `lock`: what happens in place of a result; a lock cannot travel."""
    once: Path | None = None
    """A file that is made when it has happened: then it does not happen again."""


@dataclass(frozen=True)
class Adder:
    """A worker."""

    folder: Path
    """Where each worker leaves a file of its process and node."""

    @classmethod
    def make(cls, folder: Path) -> Adder:
        (folder / f"{os.environ.get('NODE', 'head')}-{os.getpid()}").touch()
        return cls(folder)

    def start(self, task: Sum) -> Callable[[Advance], np.ndarray[Any, Any]]:
        return partial(self._add, task)

    def _add(self, task: Sum, advance: Advance) -> np.ndarray[Any, Any]:
        for _ in range(10):
            time.sleep(task.seconds * float(os.environ.get("SLOWNESS", "1")) / 10)
            advance(1)
        if task.fails and (task.once is None or not task.once.exists()):
            if task.once is not None:
                task.once.touch()
            if task.fails == "end":
                os._exit(1)
            if task.fails == "lock":
                return threading.Lock()
            if task.fails == "error":
                raise InputError(f"{task.number} cannot be added", hint="name another")
            raise ValueError(task.number)
        return np.arange(task.size) * task.number


def tasks(works: list[Sum], name: str = "shard") -> Iterator[Task[Sum]]:
    """A task for each."""
    for number, work in enumerate(works):
        yield Task(number, f"{name}-{number}", inputs=partial(_same, work), packed=partial(_same, work))


def _same(work: Sum) -> Sum:
    return work


def expected(works: list[Sum]) -> dict[int, list[int]]:
    """The results by the numbers of tasks."""
    return {number: (np.arange(work.size) * work.number).tolist() for number, work in enumerate(works)}


class ToyJob:
    """Tasks of an engine, and what came of them. Who makes one gives it an `engine` that says its lines to `said`."""

    engine: Engine

    def __init__(self, folder: Path) -> None:
        self.folder, self.said = folder, list[str]()
        self.results: dict[int, list[int]] = {}
        self.units = 0

    def run(
        self,
        works: list[Sum],
        after: Callable[[int], None] = lambda count: None,
        make_worker: Callable[[], Any] | None = None,
    ) -> None:
        """Do the tasks; `after` is called with the number of results after each."""
        make_worker = make_worker or partial(Adder.make, self.folder)
        for task, result in self.engine.map(tasks(works), make_worker, self.advance):
            assert task.shard not in self.results
            self.results[task.shard] = result.tolist()
            after(len(self.results))

    def advance(self, count: int) -> None:
        self.units += count
