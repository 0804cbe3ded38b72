"""Several processes behind one port: a parent that starts them, replaces those that end, and passes on signals.

The parent binds the port, and all processes accept connections from the one socket that they inherit. The system gives
a connection to a process that is free to accept it, and connections wait in the queue of the socket while a process
starts again. Each process maps the same files of the index, which the system holds once in memory, and has a model of
its own.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from dcdctl.core import machine
from dcdctl.core.errors import DcdError
from dcdctl.core.serve import logs
from dcdctl.core.serve.job import Job
from dcdctl.core.serve.listener import handled
from dcdctl.core.serve.metrics import Shared

PRELOADED = (
    "dcdctl.core.serve.child",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.generation.utils",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.auto.image_processing_auto",
)
"""Modules that are imported once for all processes. Loading a model imports most of transformers, which takes
seconds."""
# A start takes seconds of a core; a mended index is picked up within this time.
RESTART_S = 30.0
"""Wait before a process starts again that ended before it answered; one that has answered is replaced at once."""
GRACE_S = 5.0
"""Time beyond `drain_s` and `shutdown_s` after which a process that does not end is killed."""


@dataclass
class _Child:
    """A process of the service, or its place while it waits to start again."""

    number: int
    process: BaseProcess
    control: connection.Connection
    """It sends its number of images when it answers, or the `DcdError` that ends it, and is told to `reload`."""
    is_ready: bool = False
    """Whether it answers."""
    starts_at: float | None = None
    """When it starts again; None while it runs."""
    error: DcdError | None = None


def supervise(job: Job, listener: socket.socket, on_ready: Callable[[int], None]) -> None:
    """Answer requests by `job.config.processes` processes until SIGINT or SIGTERM; SIGHUP reloads all of them.

    `on_ready` gets the number of images once all answer. The error of a process that cannot start.
    """
    # torch would start a thread per core in each of the processes, which inherit this.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, machine.num_cores() // job.config.processes)))
    # Signals arrive as messages, so that one call waits for them and for the processes.
    signals, arrived = multiprocessing.Pipe(duplex=False)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    with (
        tempfile.TemporaryDirectory(prefix="dcdctl-metrics-") as folder,
        signals,
        arrived,
        handled(dict.fromkeys(numbers, lambda number, _: arrived.send(number))),
    ):
        supervisor = _Supervisor(job, listener, Path(folder), on_ready)
        try:
            supervisor.run(signals)
        finally:
            supervisor.stop(signals)


class _Supervisor:
    """The processes of a service."""

    def __init__(self, job: Job, listener: socket.socket, folder: Path, on_ready: Callable[[int], None]) -> None:
        # Forked from one process that has imported the libraries and started no thread, so they start in a second and
        # share that memory. macOS libraries do not survive a fork.
        self._context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        if sys.platform == "linux":
            self._context.set_forkserver_preload(list(PRELOADED))
        self._job, self._listener, self._folder = job, listener, folder
        self._on_ready: Callable[[int], None] | None = on_ready
        self._children: list[_Child] = []

    def run(self, signals: connection.Connection) -> None:
        """Start all processes, and do what follows from a message, the end of a process or a signal, until SIGINT or
        SIGTERM."""
        for number in range(1, self._job.config.processes + 1):
            self._children.append(_Child(number, *self._started(number)))
        while True:
            running = [child for child in self._children if child.starts_at is None]
            due = [child.starts_at for child in self._children if child.starts_at is not None]
            timeout = max(0.0, min(due) - time.monotonic()) if due else None
            awaited: list[connection.Connection | int] = [signals]
            for child in running:
                awaited += [child.control, child.process.sentinel]
            happened = connection.wait(awaited, timeout)
            if signals in happened:
                if signals.recv() != signal.SIGHUP:
                    return
                # One that starts later opens the index as it is then.
                for child in running:
                    if child.is_ready:
                        with suppress(OSError):  # it has just ended
                            child.control.send("reload")
            for child in running:
                if child.control in happened:
                    self._receive(child)
                if child.process.sentinel in happened:
                    self._ended(child)
            for child in self._children:
                if child.starts_at is not None and child.starts_at <= time.monotonic():
                    child.process, child.control = self._started(child.number)
                    child.starts_at = child.error = None

    def stop(self, signals: connection.Connection) -> None:
        """End all processes: requests in progress are answered first, unless another signal comes."""
        # Otherwise connections would still be queued here when no process accepts them any more.
        self._listener.close()
        running = [child.process for child in self._children if child.starts_at is None]
        for process in running:
            process.terminate()
        # A terminal and a supervisor may both have sent the signal.
        while signals.poll():
            signals.recv()
        config = self._job.config
        ends = time.monotonic() + config.drain_s + config.shutdown_s + GRACE_S
        while running and time.monotonic() < ends and not signals.poll():
            happened = connection.wait(
                [signals, *(process.sentinel for process in running)], max(0.0, ends - time.monotonic())
            )
            running = [process for process in running if process.sentinel not in happened]
        for process in running:
            process.kill()
        for child in self._children:
            child.process.join()

    def _started(self, number: int) -> tuple[BaseProcess, connection.Connection]:
        ours, theirs = self._context.Pipe()
        arguments = (self._job, self._listener, theirs, Shared(self._folder, number))
        process = self._context.Process(target=_run, args=arguments, name=f"dcdctl serve {number}")
        process.start()
        # Only the process has this end now, so that the parent notices when it ends.
        theirs.close()
        return process, ours

    def _receive(self, child: _Child) -> None:
        try:
            message = child.control.recv()
        except (EOFError, OSError):
            return
        if isinstance(message, DcdError):
            child.error = message
        else:
            child.is_ready = True
            logs.SERVICE.info("process %d answers", child.number, extra={"facts": {"pid": child.process.pid}})
            if self._on_ready is not None and all(one.is_ready for one in self._children):
                self._on_ready(message)
                self._on_ready = None

    def _ended(self, child: _Child) -> None:
        """Let an ended process start again, at once or later; DcdError if the service has not answered yet."""
        child.process.join()
        child.control.close()
        Shared(self._folder, child.number).leave()
        code = child.process.exitcode or 0
        end = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        how = f"process {child.number} of {len(self._children)} {end}"
        if self._on_ready is not None:
            raise child.error or DcdError(f"{how} while it started", hint="its messages are above")
        delay = 0.0 if child.is_ready else RESTART_S
        child.is_ready, child.starts_at = False, time.monotonic() + delay
        logs.SERVICE.error("%s; it starts again in %g s", child.error or how, delay)


def _run(job: Job, listener: socket.socket, control: connection.Connection, shared: Shared) -> None:
    # Imported in the processes only: the parent needs no torch.
    from dcdctl.core.serve.child import run_child

    run_child(job, listener, control, shared)
