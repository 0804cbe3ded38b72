"""A process beside a service that keeps its index at one with the image folders. The service opens an index again that
has changed on disk."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING

from dcdctl.core.errors import DcdError, InputError, require_extra
from dcdctl.core.search import IndexChange, open_to_change, watch_index
from dcdctl.core.serve import logs
from dcdctl.core.serve.job import Job
from dcdctl.core.stores import is_store

if TYPE_CHECKING:
    from dcdctl.core.engines import Compute

PARENT_CHECK_S = 1.0
"""Seconds between looks whether the service is still there."""


def check_watch(place: str) -> None:
    """The error of an index whose folders cannot be followed while it is served, before anything is loaded."""
    if is_store(place):
        raise InputError(
            "a store does not say where its image folders are",
            hint="follow the folders of its index: dcdctl sync INDEX, then dcdctl upload INDEX URL",
        )
    require_extra("watch", "watchfiles", needed_by="--watch")
    if all(source.is_corpus for source in open_to_change(place).document.sources):
        raise InputError(f"{place} is of a corpus, and no image folder can be watched", hint="leave --watch out")


@contextmanager
def followed(job: Job) -> Iterator[None]:
    """A block in which another process follows the image folders of the index. It has a memory of its own, in which the
    model is loaded only while images are embedded."""
    # Started fresh, because a fork would take over the threads and the sockets of the service.
    process = multiprocessing.get_context("spawn").Process(
        target=_follow, args=(job, os.getpid()), name="dcdctl serve --watch", daemon=True
    )
    with _without_interrupts():
        process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """A block whose processes are started deaf to Ctrl-C, which goes to all processes of a terminal: the service ends
    them."""
    # The process of multiprocessing itself comes first: its start would let the signal through again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _follow(job: Job, service: int) -> None:
    stop = threading.Event()

    def wait_for_the_end() -> None:
        # A service that was killed could not end this process.
        while os.getppid() == service:
            time.sleep(PARENT_CHECK_S)
        stop.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()

    def on_change(change: IndexChange) -> None:
        if not change.is_nothing:
            logs.SERVICE.info("%d images after a change of the folders", change.index.num_images)

    def on_error(error: DcdError) -> None:
        logs.SERVICE.error("%s does not follow its folders: %s", Path(job.place).name, error)

    def compute() -> Compute:
        from dcdctl.core import devices
        from dcdctl.core.engines import Compute

        return Compute(device=devices.choose(job.device))

    with logs.to_stderr(job.config):
        watch_index(job.place, on_change, on_error, stop=stop, compute=compute)
