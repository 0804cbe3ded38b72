"""The socket of a service, uvicorn on it, and its signals: bound first, so that an address that is taken is told before
anything loads.

Importing this module imports no web framework.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dcdctl.core.errors import InputError
from dcdctl.core.serve.service_config import ServiceConfig

if TYPE_CHECKING:
    import uvicorn

    from dcdctl.core.serve.middleware import LimitsMiddleware

# The default of uvicorn.
BACKLOG = 2048


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket bound to the address that does not listen yet; InputError if the address is not available."""
    with _bind_errors(host, port):
        # The first address: a name such as localhost may have one for IPv4 and one for IPv6.
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    with listener:
        # Without it, a restart would have to wait until closed connections time out.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with _bind_errors(host, port):
            listener.bind(address)
        yield listener


def is_loopback(listener: socket.socket) -> bool:
    """Whether a socket can be reached from this machine only."""
    # A link-local IPv6 address ends with its interface: fe80::1%eth0.
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def url_of(listener: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


@contextmanager
def handled(handlers: Mapping[int, Callable[..., object]]) -> Iterator[None]:
    """These handlers of signals while the block runs. Python accepts handlers in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _bind_errors(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "--host must be an address of this machine, and --port a free port from 1024; 0 is any"
        raise InputError(f"cannot listen on {host}, port {port} ({error.strerror})", hint=hint) from error


def http_server(
    app: LimitsMiddleware, config: ServiceConfig, on_ready: Callable[[], None] = lambda: None
) -> uvicorn.Server:
    """uvicorn with the limits of the settings, for an app of `app.build`; it runs on a bound socket. `on_ready`: it
    answers."""
    import uvicorn

    from dcdctl.core.serve.connections import MAX_ACCEPTED_AT_ONCE, Connection, ConnectionPool

    class PooledConnection(Connection):
        pool = ConnectionPool(config, app.metrics)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            with _bind_errors(config.host, config.port):
                await super().startup(sockets)
                # asyncio uses `backlog` as the number of connections accepted at once, too; the system's queue may be
                # longer.
                for listener in sockets or ():
                    listener.listen(BACKLOG)
            on_ready()

        async def main_loop(self) -> None:
            await super().main_loop()
            app.is_stopping.set()
            ends = time.monotonic() + config.drain_s
            while time.monotonic() < ends and not self.force_exit:
                await asyncio.sleep(0.05)

    settings = uvicorn.Config(
        app,
        log_config=None,
        # Requests are not logged, for privacy. Malformed ones are counted in the metrics, so that a flood of them
        # cannot fill a disk.
        log_level="error",
        access_log=False,
        server_header=False,
        ws="none",
        # uvicorn would choose the installed HTTP parser and event loop; with these it runs the same everywhere.
        http=PooledConnection,
        loop="asyncio",
        backlog=MAX_ACCEPTED_AT_ONCE,
        h11_max_incomplete_event_size=config.max_header_bytes,
        # uvicorn takes whole seconds.
        timeout_keep_alive=math.ceil(config.max_idle_s),
        timeout_graceful_shutdown=math.ceil(config.shutdown_s),
    )
    return Server(settings)
