"""Several processes behind one port: a parent that starts them, replaces those that end, and passes on signals.

The parent binds the port, and all processes accept connections from the one socket that they inherit. The system gives
a connection to a process that is free to accept it, and connections wait in the queue of the socket while a process
starts again. Each process maps the same files of the index, which the system holds once in memory, and has a model of
its own.
"""

from __future__ import annotations

import multiprocessing
import signal
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from dcdctl.core.errors import ConfigError, DcdError
from dcdctl.core.serve import logs
from dcdctl.core.serve.job import RELOAD, Job
from dcdctl.core.serve.metrics import Shared
from dcdctl.core.serve.signals import handled

PRELOADED = (
    "dcdctl.core.serve.child",
    *("transformers.modeling_utils", "transformers.models.auto.modeling_auto", "transformers.generation.utils"),
    *("transformers.models.auto.tokenization_auto", "transformers.models.auto.image_processing_auto"),
)
"""Modules that are imported once for all processes. Loading a model imports most of transformers, which takes
seconds."""
# Starting and loading a model take seconds, so a process that ends within a minute probably ends at each start.
STABLE_S = 60.0
"""A process that has answered this long is replaced at once when it ends; one that ends earlier waits longer each
time."""
# A mended index is picked up within it; a broken one costs a start per half minute.
MAX_DELAY_S = 30.0
MAX_FAILED_STARTS = 3
"""Failed starts in a row after which the service ends, if no other process answers."""
GRACE_S = 5.0
"""Time beyond `shutdown_s` after which a process that does not end is killed."""


@dataclass
class _Child:
    """A process of the service, or its place while it waits to start again."""

    number: int
    process: BaseProcess
    control: connection.Connection
    ready_since: float | None = None
    num_failed: int = 0
    """Ends in a row, each soon after its start."""
    starts_at: float | None = None
    """When it starts again; None while it runs."""
    error: DcdError | None = None


def supervise(job: Job, listener: socket.socket, on_ready: Callable[[int], None]) -> None:
    """Answer requests by `job.config.processes` processes until SIGINT or SIGTERM; SIGHUP reloads them one by one.

    `on_ready` gets the number of images once all answer. The error of a process that cannot start.
    """
    if sys.platform == "win32":
        raise ConfigError(
            "several processes need a system that shares sockets between them, which Windows does not",
            hint="--processes 1",
        )
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
        self._to_reload: deque[_Child] = deque()
        """The first one is reloading; the others wait, so that only one needs memory for two models."""

    def run(self, signals: connection.Connection) -> None:
        """Start all processes, and do what follows from a message, the end of a process or a signal, until SIGINT or
        SIGTERM."""
        for number in range(1, self._job.config.processes + 1):
            self._children.append(_Child(number, *self._started(number)))
        while True:
            running = [child for child in self._children if child.starts_at is None]
            due = [child.starts_at for child in self._children if child.starts_at is not None]
            timeout = max(0.0, min(due) - time.monotonic()) if due else None
            happened = connection.wait(
                [signals, *(one for child in running for one in (child.control, child.process.sentinel))], timeout
            )
            if signals in happened:
                if signals.recv() != signal.SIGHUP:
                    return
                is_reloading = bool(self._to_reload)
                self._to_reload = deque([*list(self._to_reload)[:1], *self._children])
                if not is_reloading:
                    self._reload_next()
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
        ends = time.monotonic() + self._job.config.shutdown_s + GRACE_S
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
        arguments = (number, self._job, self._listener, theirs, Shared(self._folder, number))
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
        elif child.ready_since is None:
            child.ready_since = time.monotonic()
            logs.OWN.info("process %d answers", child.number, extra={"facts": {"pid": child.process.pid}})
            if self._on_ready is not None and all(one.ready_since is not None for one in self._children):
                self._on_ready(message)
                self._on_ready = None
        elif message:
            self._to_reload.popleft()
            self._reload_next()
        else:
            # The others would fail, too, and all answer from the same index now.
            self._to_reload.clear()

    def _reload_next(self) -> None:
        # One that starts later opens the index as it is then.
        while self._to_reload and self._to_reload[0].ready_since is None:
            self._to_reload.popleft()
        if self._to_reload:
            # If it has just ended, its end is what happens next.
            with suppress(OSError):
                self._to_reload[0].control.send(RELOAD)

    def _ended(self, child: _Child) -> None:
        """Let an ended process start again, at once or later; DcdError if the service cannot continue."""
        child.process.join()
        child.control.close()
        Shared(self._folder, child.number).leave()
        now, is_first_start = time.monotonic(), self._on_ready is not None
        if child.ready_since is not None and now - child.ready_since > STABLE_S:
            child.num_failed = 0
        code = child.process.exitcode or 0
        end = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        how = f"process {child.number} of {len(self._children)} {end}"
        error = child.error or DcdError(f"{how} while it started", hint="its messages are above")
        if is_first_start:
            raise error
        if child.num_failed >= MAX_FAILED_STARTS and all(one.ready_since is None for one in self._children):
            raise error
        # The first end may be chance; a process that ends again and again must not use all the time for starts.
        delay = min(MAX_DELAY_S, 2.0**child.num_failed - 1)
        child.num_failed += 1
        child.ready_since, child.starts_at = None, now + delay
        logs.OWN.error("%s; it starts again in %g s", child.error or how, delay)
        if self._to_reload and self._to_reload[0] is child:
            self._reload_next()


def _run(number: int, job: Job, listener: socket.socket, control: connection.Connection, shared: Shared) -> None:
    # Imported in the processes only: the parent needs no torch.
    from dcdctl.core.serve.child import run_child

    run_child(number, job, listener, control, shared)
