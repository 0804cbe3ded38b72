"""`dcdctl serve`: opens an index, binds a port and runs the server until it is stopped.

Errors of both are raised before torch is imported, which takes seconds.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcdctl.core.errors import InputError, require_extra
from dcdctl.core.search import Index
from dcdctl.core.serve.config import ServiceConfig

if TYPE_CHECKING:
    import uvicorn

    from dcdctl.core.serve.middleware import LimitsMiddleware

# The default of uvicorn.
BACKLOG = 2048
MAX_RECORD_CHARS = 8_000
"""Maximum length of a log record: a traceback through the web framework has about 6,000 characters."""
PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
"""Import names of the packages of the extra `serve`."""


@dataclass(frozen=True)
class Started:
    """The service once it answers."""

    url: str
    num_images: int
    is_loopback: bool
    """Whether it is reachable from this machine only."""


@dataclass(frozen=True, kw_only=True)
class Models:
    """The models of a service, and where they run."""

    device: str
    threads: int | None = None
    """CPU threads of torch; None keeps torch's default."""
    rerank: str | None = None
    """The model that re-ranks, besides the index's own."""
    depth: int | None = None
    """Candidates per query to re-rank."""
    rerank_set: Sequence[str] = ()
    """Settings that the files of `rerank` lack: dtype=bfloat16."""


def serve(folder: Path, config: ServiceConfig, models: Models, *, on_start: Callable[[Started], None]) -> None:
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
        from dcdctl.core import devices
        from dcdctl.core.search import Searcher
        from dcdctl.core.serve.app import build
        from dcdctl.core.serve.connections import fit_to_open_files

        # Most of the time a service waits; the memory of a large upload belongs to other programs by then.
        chosen = devices.choose(models.device, keep_memory=False)
        devices.use_threads(models.threads)
        searcher = Searcher.for_index(index, device=chosen, rerank=models.rerank, depth=models.depth, rerank_set=models.rerank_set)
        # The index and the libraries have opened their files by now.
        config = fit_to_open_files(config)
        # A link-local IPv6 address ends with its interface: fe80::1%eth0.
        is_loopback = ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback
        server = http_server(build(searcher, config, is_loopback=is_loopback), config)
        # From here on clients can connect, and wait until the server has started.
        with _bind_errors(config.host, config.port):
            listener.listen(BACKLOG)
        on_start(Started(url_of(listener), searcher.index.num_images, is_loopback))
        with _bounded_log(), _ended_by_signals():
            server.run(sockets=[listener])


def http_server(app: LimitsMiddleware, config: ServiceConfig) -> uvicorn.Server:
    """uvicorn with the limits of the settings, for an app of `app.build`; it runs on a socket that listens."""
    import uvicorn

    from dcdctl.core.serve.connections import MAX_ACCEPTED_AT_ONCE, protocol_of

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            # asyncio uses `backlog` as the number of connections accepted at once, too; the system's queue may be longer.
            for listener in sockets or ():
                listener.listen(BACKLOG)

    settings = uvicorn.Config(
        app,
        log_config=None,
        # Requests are not logged, for privacy. Malformed ones are counted in the metrics, so that a flood of them cannot fill a disk.
        log_level="error",
        access_log=False,
        server_header=False,
        ws="none",
        # uvicorn would choose the installed HTTP parser and event loop; with these it runs the same everywhere.
        http=protocol_of(config, app.metrics),
        loop="asyncio",
        backlog=MAX_ACCEPTED_AT_ONCE,
        h11_max_incomplete_event_size=config.max_header_bytes,
        # uvicorn takes whole seconds.
        timeout_keep_alive=math.ceil(config.max_idle_s),
        timeout_graceful_shutdown=math.ceil(config.shutdown_s),
    )
    return Server(settings)


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
        # Without it, a restart would have to wait until closed connections time out. On Windows it lets two programs share a port.
        if os.name == "posix":
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


class _BoundedFormatter(logging.Formatter):
    """Log records of bounded length without control characters, because an error may quote what a client has sent."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if len(text) <= MAX_RECORD_CHARS:
            return text
        # A traceback names the request at its beginning, and the error at its end.
        return f"{text[: MAX_RECORD_CHARS // 2]} ... {text[-MAX_RECORD_CHARS // 2 :]}"

    def formatMessage(self, record: logging.LogRecord) -> str:
        # uvicorn's messages end with a line break before the traceback.
        return _printable(super().formatMessage(record).rstrip("\n"))

    def formatException(self, ei: Any) -> str:
        return "\n".join(map(_printable, super().formatException(ei).split("\n")))


def _printable(line: str) -> str:
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)


@contextmanager
def _bounded_log() -> Iterator[None]:
    """The handler that Python uses for warnings and errors if a program has set up no other writes bounded records."""
    handler = logging.lastResort
    if handler is None:
        yield
        return
    before = handler.formatter
    handler.setFormatter(_BoundedFormatter())
    try:
        yield
    finally:
        handler.setFormatter(before)


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
