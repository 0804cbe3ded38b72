"""`dcdctl serve`: opens an index, binds a port and runs the server until it is stopped.

Errors of both are raised before torch is imported, which takes seconds.
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

# The default of uvicorn.
BACKLOG = 2048
PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
"""Import names of the packages of the extra `serve`."""


@dataclass(frozen=True)
class Started:
    """The service once it answers."""

    url: str
    num_images: int
    is_loopback: bool
    """Whether it is reachable from this machine only."""


def serve(
    folder: Path,
    config: ServiceConfig,
    *,
    device: str,
    rerank: str | None = None,
    depth: int | None = None,
    on_start: Callable[[Started], None],
) -> None:
    """Answer searches of an index until SIGINT or SIGTERM; requests in progress are answered first.

    `on_start` is called when the service accepts requests. InputError if the port is not available, MissingError without the packages of
    the extra, and the errors of `devices.choose` and `Searcher.for_index`.
    """
    require()
    # Malformed uploads are reported to the client, not logged.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    with bound(config.host, config.port) as listener:
        index = Index.open(folder)
        index.check()  # a damaged file is an error now, and no query waits for the comparison
        import uvicorn

        from dcdctl.core import devices
        from dcdctl.core.search import DEPTH, Searcher
        from dcdctl.core.serve.app import build

        searcher = Searcher.for_index(index, device=devices.choose(device), rerank=rerank, depth=DEPTH if depth is None else depth)
        # A link-local IPv6 address ends with its interface: fe80::1%eth0.
        is_loopback = ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback
        app = build(searcher, config, is_loopback=is_loopback)
        settings = uvicorn.Config(
            app,
            # Logs failures only; requests are not logged, for privacy.
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            # uvicorn would choose the installed HTTP parser and event loop; with these it runs the same everywhere.
            http="h11",
            loop="asyncio",
            # uvicorn takes whole seconds.
            timeout_graceful_shutdown=math.ceil(config.shutdown_s),
        )
        # From here on clients can connect, and wait until the server has started.
        with _bind_errors(config.host, config.port):
            listener.listen(BACKLOG)
        on_start(Started(url_of(listener), searcher.index.num_images, is_loopback))
        with _ended_by_signals():
            uvicorn.Server(settings).run(sockets=[listener])


def require() -> None:
    """MissingError if a package of the extra is not installed."""
    require_extra("serve", *PACKAGES, needed_by="serving")


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket bound to the address that does not listen yet; InputError if the address is not available."""
    with _bind_errors(host, port):
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
    with listener:
        # Without it, a restart would have to wait until closed connections time out.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with _bind_errors(host, port):
            listener.bind(address)
        yield listener


def url_of(listener: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


@contextmanager
def _bind_errors(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except socket.gaierror as error:
        raise InputError(f"host {host} is not known here ({error.strerror})", hint="--host 127.0.0.1 is this machine only") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            hint = f"name another with --port {port + 1}, or any free port with --port 0"
            raise InputError(f"port {port} of {host} is used by another program", hint=hint) from error
        if error.errno == errno.EACCES:
            raise InputError(f"this user may not use port {port}", hint="use a port from 1024: --port 8000") from error
        raise InputError(
            f"cannot listen on {host}, port {port} ({error.strerror})", hint="--host must be an address of this machine"
        ) from error


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """uvicorn stops cleanly at these signals and then raises them again, which is ignored: being stopped is not a failure."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
