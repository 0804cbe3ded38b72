"""The protocol of an engine: one call, which gives tasks to workers.

A task is a shard, or a part of one. A worker is made once in each process of the engine, with the model on its device.
A result is arrays, which the caller writes: only the process that calls `map` touches the artifact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from dcdctl.core.progress import Advance

if TYPE_CHECKING:
    from dcdctl.core.engines.task_files import TaskRows

Input = TypeVar("Input")
Output = TypeVar("Output")
InputOfWorker = TypeVar("InputOfWorker", contravariant=True)
OutputOfWorker = TypeVar("OutputOfWorker", covariant=True)


@dataclass(frozen=True, eq=False)
class Task(Generic[Input]):
    """A shard to compute. What it reads is read when its turn comes."""

    shard: int
    """The number of the shard; all tasks of a shard are done by one process of torchrun."""
    name: str
    """For messages."""
    inputs: Callable[[], Input]
    """What the worker gets in this process."""
    packed: Callable[[], Input]
    """What a worker on another machine gets: the same, without a path of this one."""
    part: int = 0
    """Which part of the shard it is, from 0."""
    num_parts: int = 1
    in_file: Callable[[], TaskRows[Any]] | None = None
    """The task as a file; None if it cannot be one."""


TaskOf = TypeVar("TaskOf", bound=Task[Any])


class Worker(Protocol[InputOfWorker, OutputOfWorker]):
    """Does one task after the other."""

    def start(self, inputs: InputOfWorker) -> Callable[[Advance], OutputOfWorker]:
        """Begin to read what a task needs, and return the rest of the task, which reports the units that it has done.

        A task is started while the one before it is computed, so that the model does not wait for files.
        """
        ...


class Engine(Protocol):
    """Gives tasks to workers."""

    sends_tasks: bool
    """Whether tasks are sent to other processes, packed: many small ones are better then than a few large ones."""

    def map(
        self, tasks: Iterable[TaskOf], make_worker: Callable[[], Worker[Any, Output]], advance: Advance
    ) -> Iterator[tuple[TaskOf, Output]]:
        """The result of each task that is for this process to write, in any order.

        `make_worker` travels to where workers are, and is called once in each of them. An error of a task is raised
        here, at the latest when the other tasks are done.
        """
        ...

    def alone(self) -> Engine:
        """The engine for work that one process of torchrun does while the others wait, or that each does for itself."""
        ...


def whole_shards(results: Iterable[tuple[Task[Any], Output]]) -> Iterator[tuple[int, list[Output]]]:
    """The number of each shard and the results of its parts in order, when the last of them is there."""
    begun: dict[int, dict[int, Output]] = {}
    for task, output in results:
        parts = begun.setdefault(task.shard, {})
        parts[task.part] = output
        if len(parts) == task.num_parts:
            del begun[task.shard]
            yield task.shard, [parts[part] for part in range(task.num_parts)]
