"""The protocol of an engine: one call, which gives tasks to workers.

A task is a shard, or a part of one. A worker is made once in each process of the engine, with the model on its device.
A result is arrays, which the caller writes: only the process that calls `map` touches the artifact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from dcdctl.core.errors import ModelError, first_line
from dcdctl.core.progress import Advance

if TYPE_CHECKING:
    import pyarrow as pa

Input = TypeVar("Input")
Output = TypeVar("Output")
InputOfWorker = TypeVar("InputOfWorker", contravariant=True)
OutputOfWorker = TypeVar("OutputOfWorker", covariant=True)


@dataclass(frozen=True)
class TaskRows(Generic[Output]):
    """A task as a file, and how its results are read."""

    job: Mapping[str, Any]
    """What is done in all tasks of a call, as JSON; `work` is its kind."""
    rows: pa.Table
    """All columns but the bytes of images."""
    images: Callable[[], pa.Array] | None
    """The image file of each row; rows may share one. None if the rows have paths."""
    result: Callable[[pa.Table], Output]
    """What a worker in this process would have returned, from the table of results."""


@dataclass(frozen=True, eq=False)
class Task(Generic[Input]):
    """A shard to compute. What it reads is read when its turn comes."""

    shard: int
    """The number of the shard."""
    name: str
    """For messages."""
    inputs: Callable[[], Input]
    """What the worker gets in this process."""
    packed: Callable[[], Input]
    """What a worker elsewhere gets, in another process or on another machine: the same, without a path of this one."""
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
        """The result of each task, in any order.

        `make_worker` travels to where workers are, and is called once in each of them. An error of a task is raised
        here, at the latest when the other tasks are done.
        """
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


def cannot_travel(error: Exception) -> ModelError:
    """The error for a model that cannot be pickled."""
    return ModelError(f"the model cannot travel to workers: {first_line(error)}", hint="leave --engine out")
