"""Tasks done by several processes of this machine, each with a GPU or a share of the cores.

They are programs of their own, connected by sockets: a fork would copy the threads and the CUDA context of this
process, and `multiprocessing` would run the user's script again in each of them.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from multiprocessing.connection import Connection, wait
from typing import Any

from dcdctl.core.engines.engine import Output, TaskOf, Worker, cannot_travel
from dcdctl.core.engines.open_tasks import IN_FLIGHT, TRIES, Begun, OpenTasks
from dcdctl.core.engines.process_worker import ERROR, MAKE, READY, RESULT, TASK, UNITS, UP
from dcdctl.core.errors import DcdError
from dcdctl.core.progress import Advance, Say

_FEWER_HINT = "it may have run out of memory: take fewer processes, or a smaller --batch-size"


@dataclass(eq=False)
class _Process:
    """A worker as this process sees it."""

    place: int
    """From 0. The process that replaces a lost one has its place, and with it its GPU."""
    popen: subprocess.Popen[bytes]
    connection: Connection
    is_up: bool = False
    """Whether it reads messages; its imports take seconds."""
    is_ready: bool = False
    """Whether it has made its worker."""
    tasks: list[Begun] = field(default_factory=list)
    """In the order in which they were sent: the first one is computed."""
    units: int = 0
    """Units done of the first task."""

    def send(self, message: bytes) -> None:
        """Send a message; one that has ended gets none, and is found to have ended when it is read from."""
        with suppress(OSError):
            self.connection.send_bytes(message)

    def end(self) -> str:
        """Let it end, if it runs; how it ended, in words."""
        self.connection.close()
        self.popen.kill()
        status = self.popen.wait()
        return f"exit status {status}" if status >= 0 else signal.Signals(-status).name


class Processes:
    """Several processes of this machine, which are started for the first task and kept for the next call."""

    sends_tasks = True

    def __init__(self, num_processes: int, threads: int, say: Say) -> None:
        """So many processes, with so many threads each."""
        self.num_processes, self.threads, self.say = num_processes, threads, say
        self.running: list[_Process] = []
        # Also when this process ends; one that is killed leaves it to the workers, which notice.
        weakref.finalize(self, _end_all, self.running)

    def map(
        self, tasks: Iterable[TaskOf], make_worker: Callable[[], Worker[Any, Output]], advance: Advance
    ) -> Iterator[tuple[TaskOf, Output]]:
        """The result of each task, in the order in which they come.

        An error of a task is raised as it is, when the tasks that other workers have are done. A task whose worker is
        lost goes to another one; one that loses `TRIES` of them is left out, and named by a DcdError when the others
        are done. ModelError for a worker that cannot travel.
        """
        remaining = iter(tasks)
        # No more workers than there are tasks.
        some = list(islice(remaining, self.num_processes))
        if not some:
            return
        job = _Job(self, OpenTasks(chain(some, remaining)), make_worker, len(some), advance)
        try:
            yield from job.results()
        finally:
            job.end()
        job.tasks.raise_failures(_FEWER_HINT)

    def start(self, place: int) -> None:
        """Start the process of a place."""
        ours, theirs = socket.socketpair()
        environment = {
            **os.environ,
            # Also of modules that this program alone finds, such as those of the current folder.
            "PYTHONPATH": os.pathsep.join(map(str, sys.path)),
            "OMP_NUM_THREADS": str(self.threads),
            "LOCAL_RANK": str(place),  # the GPU (`devices.own_gpu`)
        }
        with theirs:
            popen = subprocess.Popen(
                [sys.executable, "-P", "-m", "dcdctl.core.engines.process_worker", str(theirs.fileno())],
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # stdout is for results
                process_group=0,  # Ctrl-C is for this process, which ends its workers
            )
        self.running.append(_Process(place, popen, Connection(ours.detach())))


def _end_all(running: list[_Process]) -> None:
    while running:
        running.pop().end()


class _Job:
    """One call of `map`."""

    def __init__(
        self, engine: Processes, tasks: OpenTasks, make_worker: Callable[[], Any], num_workers: int, advance: Advance
    ) -> None:
        self.engine, self.tasks, self.num_workers, self.advance = engine, tasks, num_workers, advance
        self.make_worker = make_worker
        self.pickled: bytes | None = None
        """What makes a worker, as long as one is to be made: it may be as large as the model."""
        self.error: BaseException | None = None
        """What is raised when the tasks in flight are done."""
        self.failed_starts = [0] * num_workers
        """By place: processes in a row that ended before they were ready."""

    @property
    def workers(self) -> list[_Process]:
        """Those of this call; an earlier one may have had more."""
        return [worker for worker in self.engine.running if worker.place < self.num_workers]

    def results(self) -> Iterator[tuple[Any, Any]]:
        """The results as they come."""
        for worker in self.workers:  # of an earlier call
            worker.is_ready = False
            if worker.is_up:
                worker.send(self._maker())
        while self._give():
            happened = wait([worker.connection for worker in self.workers])
            for worker in self.workers:
                if worker.connection not in happened:
                    continue
                try:
                    kind, value = pickle.loads(worker.connection.recv_bytes())
                except (EOFError, OSError):
                    self._lose(worker)
                    continue
                if kind == RESULT:
                    begun = self._leave(worker)
                    self.tasks.finish(begun)
                    yield begun.task, value
                elif kind == ERROR:
                    self._fail(worker, value)
                else:
                    self._hear(worker, kind, value)
        if self.error is not None:
            raise self.error

    def _give(self) -> bool:
        """Start processes that are missing, and give tasks to workers that have time; whether a result is still to
        come."""
        if self.error is None and (self.tasks.again or not self.tasks.all_begun):
            taken = {worker.place for worker in self.workers}
            for place in range(self.num_workers):
                if place not in taken:
                    self.engine.start(place)
        try:
            for num_tasks in range(IN_FLIGHT):  # a first task for each before a second one for any
                for worker in self.workers:
                    if self.error is None and worker.is_ready and len(worker.tasks) == num_tasks:
                        self._send(worker)
        except Exception as error:  # what cannot be read is raised when the tasks before it are done
            self.error = error
        if self.error is not None:
            return any(worker.tasks for worker in self.workers)
        # Without a worker that is ready, no task is begun.
        return not self.tasks.is_done

    def _send(self, worker: _Process) -> None:
        """Give a worker a task, if one is left for it."""
        # The last ones are for workers that have nothing to do: nobody waits for a task that another one has not begun.
        if worker.tasks and not self.tasks.has_more_than(self.num_workers):
            return
        begun = self.tasks.next()
        if begun is None:
            return
        message = pickle.dumps((TASK, begun.task.packed()))
        worker.tasks.append(begun)
        begun.num_in_flight += 1
        worker.send(message)

    def _maker(self) -> bytes:
        if self.pickled is None:
            try:
                self.pickled = pickle.dumps((MAKE, self.make_worker))
            except Exception as error:
                raise cannot_travel(error) from error
        return self.pickled

    def _hear(self, worker: _Process, kind: str, value: Any) -> None:
        """Take what a worker says of itself."""
        if kind == UNITS:
            worker.units += value
            self.advance(value)
        elif kind == UP:
            worker.is_up = True
            worker.send(self._maker())
        elif kind == READY:
            worker.is_ready, self.failed_starts[worker.place] = True, 0
            if all(other.is_ready for other in self.workers):
                self.pickled = None

    def _leave(self, worker: _Process) -> Begun:
        """The first task of a worker, which no longer has it."""
        begun = worker.tasks.pop(0)
        begun.num_in_flight -= 1
        worker.units = 0
        return begun

    def _fail(self, worker: _Process, error: BaseException) -> None:
        """Note an error of a task, or of the making of a worker, which fails in every process."""
        self.advance(-worker.units)
        if worker.tasks:
            self._leave(worker)
        if self.error is None:
            self.error = error

    def _lose(self, worker: _Process) -> None:
        """Forget a process that has ended; its tasks go to others, and another process takes its place."""
        self.engine.running.remove(worker)
        how = worker.end()
        self.advance(-worker.units)
        reason = DcdError(f"its process ended with {how}")
        for position in range(len(worker.tasks)):
            # The one that was computed may be what ended the process.
            self.tasks.try_again(self._leave(worker), reason if position == 0 else None)
        self.failed_starts[worker.place] += not worker.is_ready
        if self.failed_starts[worker.place] < TRIES:
            self.engine.say(f"1 of {self.engine.num_processes} processes ended with {how}: its tasks go to others")
        elif self.error is None:
            message = f"{TRIES} processes in a row ended before they were ready, the last one with {how}"
            self.error = DcdError(message, hint=_FEWER_HINT)

    def end(self) -> None:
        """End the processes that still do something; the others are kept for the next call, also while they start."""
        for worker in list(self.engine.running):
            if worker.tasks or (worker.is_up and not worker.is_ready):
                self.engine.running.remove(worker)
                worker.end()
