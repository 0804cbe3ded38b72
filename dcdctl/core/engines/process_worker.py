"""A worker of `processes:N`, as a program: it computes the tasks that its parent sends, and ends with its parent.

Messages are pickled pairs over a socket:

    to the worker    (MAKE, what makes a worker), once per call of `map`; then (TASK, inputs), two at a time
    to the parent    (UP, None) when it listens, (READY, None) when the worker is made, (UNITS, count) while it
                     computes, (RESULT, output) or (ERROR, exception), in the order of the tasks

A thread receives and starts tasks, so that a task reads its files while the main thread computes the one before it, and
so that the end of the parent is noticed at any moment.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, NoReturn

from dcdctl.core.errors import DcdError
from dcdctl.core.progress import Advance

MAKE, TASK = "make", "task"
UP, READY, UNITS, RESULT, ERROR = "up", "ready", "units", "result", "error"
Step = Callable[[Advance], tuple[str, Any]]
"""Something for the main thread to do, which gives the answer to the parent."""


class ProcessWorker:
    """The two threads of a worker."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._steps: SimpleQueue[Step] = SimpleQueue()
        self._worker: Any = None

    def run(self) -> None:
        """Answer the parent until it ends."""
        threading.Thread(target=self._receive, daemon=True).start()
        self._send(pickle.dumps((UP, None)))
        while True:
            step = self._steps.get()
            try:
                answer = pickle.dumps(step(self._advance))
            # All: a panic of Rust is no Exception.
            except BaseException as error:
                answer = pickle.dumps((ERROR, portable(error)))
            # What a task has read is not kept while the next one is waited for.
            del step
            self._send(answer)

    def _receive(self) -> None:
        try:
            while True:
                self._steps.put(self._started(self._connection.recv_bytes()))
        except (EOFError, OSError):
            _end()

    def _started(self, message: bytes) -> Step:
        try:
            kind, value = pickle.loads(message)
            if kind == MAKE:
                return partial(self._make, value)
            finish = self._worker.start(value)
        except BaseException as reason:
            error = reason  # in its turn
            return lambda _: (ERROR, portable(error))
        return lambda advance: (RESULT, finish(advance))

    def _make(self, make_worker: Callable[[], Any], _: Advance) -> tuple[str, Any]:
        # The earlier one goes first: two models may be more than fit into the memory of a GPU.
        self._worker = None
        self._worker = make_worker()
        return READY, None

    def _advance(self, count: int) -> None:
        self._send(pickle.dumps((UNITS, count)))

    def _send(self, message: bytes) -> None:
        try:
            self._connection.send_bytes(message)
        except OSError:
            _end()


def _end() -> NoReturn:
    """End, whatever the other thread does: the parent has ended, perhaps by a signal that let it say nothing."""
    os._exit(1)


def portable(error: BaseException) -> BaseException:
    """An error as it can travel. One that is no user's has its traceback as a note, which pickling would lose."""
    text = "".join(traceback.format_exception(error))
    if not isinstance(error, DcdError):
        error.add_note(f"in a worker:\n{text}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"a worker failed:\n{text}")
    return error


if __name__ == "__main__":
    # What Ctrl-C means is decided by the parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ProcessWorker(Connection(int(sys.argv[1]))).run()
