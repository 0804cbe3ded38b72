"""One `dcdctl serve`: an index that is opened, a port that is bound, and a server until it is told to end.

What is wrong with either is said before torch is imported, which takes seconds.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import math
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dcdctl.core.errors import InputError, require_extra
from dcdctl.core.search import Index
from dcdctl.core.serve.config import ServiceConfig

BACKLOG = 2048
PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
"""Import names of the packages of the extra `serve`."""


@dataclass(frozen=True)
class Started:
    """What is known once the service answers."""

    url: str
    num_images: int
    is_loopback: bool
    """Whether it is reached from this machine alone."""


def serve(
    folder: Path,
    config: ServiceConfig,
    *,
    device: str,
    rerank: str | None = None,
    depth: int | None = None,
    tell: Callable[[Started], None],
) -> None:
    """Answer searches of an index until SIGINT or SIGTERM; requests under way are answered first.

    `tell` is called once the service can be asked. InputError if the port cannot be had, MissingError without the packages of the extra,
    and
    what `devices.choose` and `Searcher.open` raise.
    """
    require()
    # What a client sends in a wrong form is told to the client.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    with bound(config.host, config.port) as listener:
        Index.open(folder).check()  # a damaged file is an error now, and no query waits for the comparison
        import uvicorn

        from dcdctl.core import devices
        from dcdctl.core.search import DEPTH, Searcher
        from dcdctl.core.serve.app import build

        searcher = Searcher.open(folder, device=devices.choose(device), rerank=rerank, depth=DEPTH if depth is None else depth)
        is_loopback = ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback
        app = build(searcher, config, is_loopback=is_loopback)
        settings = uvicorn.Config(
            app,
            # What is logged are failures; who asks for what is nobody's business.
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            http="h11",
            loop="asyncio",
            timeout_graceful_shutdown=math.ceil(config.shutdown_s),
        )
        # From here on who connects waits for an answer, however long the server takes to begin.
        with _bind_errors(config.host, config.port):
            listener.listen(BACKLOG)
        tell(Started(url_of(listener), searcher.index.num_images, is_loopback))
        with _ended_by_signals():
            uvicorn.Server(settings).run(sockets=[listener])


def require() -> None:
    """MissingError if a package of the extra is not installed."""
    require_extra("serve", *PACKAGES, needed_by="serving")


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that has the address, and does not listen yet; InputError if it cannot be had."""
    with _bind_errors(host, port):
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with _bind_errors(host, port):
            listener.bind(address)
        yield listener


def url_of(listener: socket.socket) -> str:
    """Where a socket is asked."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


@contextmanager
def _bind_errors(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except socket.gaierror as error:
        raise InputError(f"host {host} is not known here ({error.strerror})", hint="--host 127.0.0.1 is this machine alone") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            hint = f"name another with --port {port + 1}, or --port 0 takes any that is free"
            raise InputError(f"port {port} of {host} is taken by another program", hint=hint) from error
        if error.errno == errno.EACCES:
            raise InputError(f"port {port} may not be used by this user", hint="ports from 1024 on may: --port 8000") from error
        raise InputError(f"{host}, port {port}, cannot be listened on ({error.strerror})", hint="--host wants an own address") from error


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """The server ends itself in order at these signals, and then raises them again: to end by one is no failure."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.signal(one, lambda *_: None) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
