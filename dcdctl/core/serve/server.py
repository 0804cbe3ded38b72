"""`dcdctl serve`: opens an index, binds a port and runs the server until it is stopped.

Errors of both are raised before torch is imported, which takes seconds.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from dcdctl.core.errors import require_extra
from dcdctl.core.serve import logs
from dcdctl.core.serve.following import check_watch, followed
from dcdctl.core.serve.job import Job
from dcdctl.core.serve.keys import Keys
from dcdctl.core.serve.listener import bound, is_loopback, url_of
from dcdctl.core.stores import open_index

PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
"""Import names of the packages of the extra `serve`."""


@dataclass(frozen=True)
class Started:
    """The service once it answers."""

    url: str
    index: str
    """The folder of the index, or the URL of the store without a password."""
    num_images: int
    is_loopback: bool
    """Whether it is reachable from this machine only."""
    has_keys: bool
    """Whether requests need a key."""


def serve(job: Job, *, on_start: Callable[[Started], None], watch: bool = False) -> None:
    """Answer searches of an index, in a folder or a store, until SIGINT or SIGTERM; requests in progress are answered
    first.

    SIGHUP reloads the index and its model; with `watch` a process follows its image folders.

    `on_start` is called when the service accepts requests. InputError if the port is not available, MissingError
    without the packages of the extra, ConfigError for a weak key, and the errors of `devices.choose` and
    `Searcher.for_index`.
    """
    require_extra("serve", *PACKAGES, needed_by="serving")
    # Malformed uploads are reported to the client, not logged.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    keys, config = Keys.from_environment(), job.config
    if watch:
        check_watch(job.place)
    with bound(config.host, config.port) as listener, logs.to_stderr(config), ExitStack() as beside:
        # Errors of the index come now, before anything is imported; several processes check its files themselves.
        index = job.index() if config.processes == 1 else open_index(job.place, job.model_folder)

        def on_ready(num_images: int) -> None:
            started = Started(
                url=url_of(listener),
                index=index.location,
                num_images=num_images,
                is_loopback=is_loopback(listener),
                has_keys=keys is not None,
            )
            logs.SERVICE.info("listening", extra={"facts": asdict(started) | {"pid": os.getpid()}})
            on_start(started)
            if watch:
                beside.enter_context(followed(job))

        if config.processes > 1:
            from dcdctl.core.serve.processes import supervise

            supervise(job, listener, on_ready)
        else:
            from dcdctl.core.serve.child import run

            run(job, index, listener, on_ready)
