"""One process of a service: it loads the index and the models, and answers requests until it is stopped.

Importing this module imports torch, transformers and the web framework. A service of several processes imports it once,
in the process from which the others are forked.
"""

from __future__ import annotations

import gc
import signal
import socket
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection

import uvicorn

from dcdctl.core import machine
from dcdctl.core.errors import DcdError
from dcdctl.core.search import ImageIndex, IndexSearcher
from dcdctl.core.serve import logs
from dcdctl.core.serve.app import build
from dcdctl.core.serve.connections import fit_to_open_files
from dcdctl.core.serve.job import Job
from dcdctl.core.serve.keys import Keys
from dcdctl.core.serve.listener import handled, http_server, is_loopback
from dcdctl.core.serve.metrics import Shared
from dcdctl.core.serve.workers import LiveSearcher


def run(
    job: Job,
    index: ImageIndex,
    listener: socket.socket,
    on_ready: Callable[[int], None],
    *,
    control: Connection | None = None,
    shared: Shared | None = None,
) -> None:
    """Answer requests in this process until SIGINT or SIGTERM; `on_ready` gets the number of images when it answers.

    SIGHUP reloads, unless the process has a parent, at the other end of `control`, that says when.
    """
    # One of several processes has torch from its start, so the model costs little, and no image waits for it or finds
    # that it is gone.
    searcher = LiveSearcher(_searcher_of(job, index, with_images=shared is not None))
    # The index and the libraries have opened their files by now.
    config = fit_to_open_files(job.config)
    app = build(searcher, config, is_loopback=is_loopback(listener), keys=Keys.from_environment(), shared=shared)
    server = http_server(app, config, on_ready=lambda: on_ready(searcher.now().index.num_images))

    def stop(*_: object) -> None:
        server.should_exit = True

    # uvicorn raises the signals that ended it again, which is ignored: being stopped is not a failure. Before it runs,
    # they end it, too.
    handlers: dict[int, Callable[..., object]] = dict.fromkeys((signal.SIGINT, signal.SIGTERM), stop)
    if control is not None:
        # A daemon, because it waits for its parent until the process ends.
        threading.Thread(target=_obey, args=(job, searcher, server, control), daemon=True).start()
    else:
        # A reload takes seconds, in which requests are answered.
        handlers[signal.SIGHUP] = lambda *_: threading.Thread(target=reload, args=(job, searcher), daemon=True).start()
    with handled(handlers):
        server.run(sockets=[listener])


def run_child(job: Job, listener: socket.socket, control: Connection, shared: Shared) -> None:
    """Answer requests in a process of its own, until SIGTERM or the end of the parent at the other end of `control`."""
    # Ctrl-C reaches every process of a terminal; what it means is decided by the parent, and by the server once it
    # runs.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # What was imported before the fork stays shared: the collector would write into each page of it.
    gc.freeze()
    shared.join()
    with logs.to_stderr(job.config, shared.number):
        try:
            run(job, job.index(), listener, control.send, control=control, shared=shared)
        except DcdError as error:
            control.send(error)


def reload(job: Job, searcher: LiveSearcher) -> None:
    """Open the index and the models again and answer from them; if that fails, nothing changes."""
    try:
        searcher.swap(_searcher_of(job, job.index(), with_images=searcher.now().encoder.is_loaded))
    except Exception as error:  # such as too little memory for a second model: the service must continue
        logs.SERVICE.error("the index is not reloaded; the service continues with the previous one: %s", error)
    else:
        logs.SERVICE.info("reloaded the index and its model")


def _searcher_of(job: Job, index: ImageIndex, *, with_images: bool) -> IndexSearcher:
    """The searcher of an index; unless `with_images`, a searcher whose texts need no torch loads the model for the
    first image."""
    # Most of the time a service waits; the memory of a large upload belongs to other programs by then.
    machine.return_freed_memory()
    searcher = IndexSearcher.for_index(
        index, device=job.device, rerank=job.rerank, depth=job.depth, rerank_set=job.rerank_set
    )
    if with_images:
        searcher.encoder.load()
    return searcher


def _obey(job: Job, searcher: LiveSearcher, server: uvicorn.Server, control: Connection) -> None:
    """Do what the parent says; stop when it has ended."""
    try:
        while control.recv() == "reload":
            reload(job, searcher)
    except (EOFError, OSError):
        server.should_exit = True
