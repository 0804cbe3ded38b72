"""One process of a service: it loads the index and the models, and answers requests until it is stopped.

Importing this module imports torch, transformers and the web framework. A service of several processes imports it once,
in the process from which the others are forked.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import uvicorn

from dcdctl.core import machine
from dcdctl.core.errors import DcdError
from dcdctl.core.search import ImageIndex, IndexSearcher
from dcdctl.core.serve import logs
from dcdctl.core.serve.app import build
from dcdctl.core.serve.connections import fit_to_open_files
from dcdctl.core.serve.job import RELOAD, Job, Ready, Reloaded
from dcdctl.core.serve.keys import Keys
from dcdctl.core.serve.listener import http_server, is_loopback, listen
from dcdctl.core.serve.metrics import Shared
from dcdctl.core.serve.workers import LiveSearcher

HANGUP = getattr(signal, "SIGHUP", None)
"""The signal to open the index and the models again; Windows has none."""


def run(job: Job, index: ImageIndex, listener: socket.socket, on_ready: Callable[[int], None]) -> None:
    """Answer requests in this process until SIGINT or SIGTERM; SIGHUP reloads. `on_ready` gets the number of images."""
    searcher, server = load(job, index, listener)
    # From here on clients can connect, and wait until the server has started.
    listen(listener, job.config)
    on_ready(searcher.now().index.num_images)
    with signals_handled(server, lambda: threading.Thread(target=reload, args=(job, searcher), daemon=True).start()):
        server.run(sockets=[listener])


def run_child(number: int, job: Job, listener: socket.socket, control: Connection, shared: Shared) -> None:
    """Answer requests in a process of its own, until SIGTERM or the end of the parent at the other end of `control`."""
    # Ctrl-C reaches every process of a terminal; what it means is decided by the parent, and by the server once it
    # runs.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # What was imported before the fork stays shared: the collector would write into each page of it.
    gc.freeze()
    shared.join()
    with logs.to_stderr(job.config, number):
        try:
            searcher, server = load(
                job, job.index(), listener, lambda num_images: control.send(Ready(num_images)), shared
            )
        except DcdError as error:
            control.send(error)
            return
        threading.Thread(target=_obey, args=(job, searcher, server, control), daemon=True).start()
        with signals_handled(server, lambda: None):
            server.run(sockets=[listener])


def load(
    job: Job,
    index: ImageIndex,
    listener: socket.socket,
    on_ready: Callable[[int], None] = lambda _: None,
    shared: Shared | None = None,
) -> tuple[LiveSearcher, uvicorn.Server]:
    """The searcher of a job, and a server that answers with it; `on_ready` gets the number of images when it
    answers."""
    # One of several processes has torch from its start, so the model costs little, and no image waits for it or finds
    # that it is gone.
    searcher = LiveSearcher(_searcher_of(job, index, with_images=shared is not None))
    # The index and the libraries have opened their files by now.
    config = fit_to_open_files(job.config)
    app = build(searcher, config, is_loopback=is_loopback(listener), keys=Keys.from_environment(), shared=shared)
    return searcher, http_server(app, config, on_ready=lambda: on_ready(searcher.now().index.num_images))


def reload(job: Job, searcher: LiveSearcher) -> str | None:
    """Open the index and the models again and answer from them; the error if that fails, and nothing changes then."""
    try:
        searcher.swap(_searcher_of(job, job.index(), with_images=searcher.now().encoder.is_loaded))
    except Exception as error:  # such as too little memory for a second model: the service must continue
        logs.OWN.error("the index is not reloaded; the service continues with the previous one: %s", error)
        return str(error)
    logs.OWN.info("reloaded the index and its model")
    return None


@contextmanager
def signals_handled(server: uvicorn.Server, on_hangup: Callable[[], object]) -> Iterator[None]:
    """End at SIGINT and SIGTERM, and reload at SIGHUP.

    uvicorn raises the signals that ended it again, which is ignored: being stopped is not a failure. Before it runs,
    they end it, too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        server.should_exit = True

    handlers: dict[int, Callable[..., object]] = dict.fromkeys((signal.SIGINT, signal.SIGTERM), stop)
    if HANGUP is not None:
        handlers[HANGUP] = lambda *_: on_hangup()
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _searcher_of(job: Job, index: ImageIndex, *, with_images: bool) -> IndexSearcher:
    """The searcher of an index; unless `with_images`, a searcher whose texts need no torch loads the model for the
    first image."""
    models = job.models
    # Most of the time a service waits; the memory of a large upload belongs to other programs by then.
    machine.return_freed_memory()
    threads = models.threads or _share_of_threads(job.config.processes)
    reranking: dict[str, Any] = {"rerank": models.rerank, "depth": models.depth, "rerank_set": models.rerank_set}
    searcher = IndexSearcher.for_index(index, device=models.device, threads=threads, **reranking)
    if with_images:
        searcher.encoder.load()
    return searcher


def _share_of_threads(num_processes: int) -> int | None:
    """CPU threads for one of several processes, which would otherwise each start one per processor."""
    if num_processes == 1 or "OMP_NUM_THREADS" in os.environ:
        return None
    return max(1, machine.num_cores() // num_processes)


def _obey(job: Job, searcher: LiveSearcher, server: uvicorn.Server, control: Connection) -> None:
    """Do what the parent says; stop when it has ended."""
    try:
        while control.recv() == RELOAD:
            control.send(Reloaded(reload(job, searcher)))
    except (EOFError, OSError):
        server.should_exit = True
