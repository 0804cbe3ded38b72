"""Connections of clients: a cap on their number, and deadlines for requests to arrive and for answers to be read.

uvicorn parses and answers requests; the classes here only watch its connections. A client that is slow on purpose
occupies a socket, which is an open file, so without a cap some hundred such clients would keep everyone out.
"""

from __future__ import annotations

import asyncio
import resource
from dataclasses import dataclass, field, replace
from pathlib import Path

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from dcdctl.core.errors import ConfigError
from dcdctl.core.serve.metrics import Metrics
from dcdctl.core.serve.service_config import ServiceConfig

RESERVED_CONNECTIONS = 8
"""Connections beyond `max_requests`, so that /health, /live and /metrics are answered while all requests are in
progress."""
MAX_ACCEPTED_AT_ONCE = 8
"""Connections that are accepted before those already accepted are counted. asyncio would accept 2,048, each of which is
an open file."""
RESERVED_FILES = 64
"""Files that may be open besides connections and uploads: connections about to be closed, images that are read, an
index opened again."""
FILES_PER_CONNECTION = 2
"""A socket, and the temporary file of an upload of more than 1 MiB."""
# The middleware answers a slow upload with 408 first; the connection is closed if nothing reads the upload.
UPLOAD_GRACE_S = 1.0
OPEN_FILES = Path("/dev/fd")


def fit_to_open_files(config: ServiceConfig) -> ServiceConfig:
    """The settings with as many connections as the process may open files; ConfigError if that leaves hardly any."""
    limit, max_connections = open_file_limit(), config.max_connections
    if limit is not None:
        num_free = limit - len(list(OPEN_FILES.iterdir())) - RESERVED_FILES
        max_connections = min(max_connections, num_free // FILES_PER_CONNECTION)
    if max_connections <= RESERVED_CONNECTIONS:
        raise ConfigError(
            f"this process may open {limit} files only, too few for connections", hint="raise the limit: ulimit -n 1024"
        )
    return replace(
        config,
        max_connections=max_connections,
        max_requests=min(config.max_requests, max_connections - RESERVED_CONNECTIONS),
    )


def open_file_limit() -> int | None:
    """How many files the process may open; None if the system has no limit, or does not list the open files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY or not OPEN_FILES.is_dir() else soft


@dataclass
class ConnectionPool:
    """The open connections of a service, at most `max_connections`; used from one event loop."""

    config: ServiceConfig
    metrics: Metrics
    _answering: dict[Connection, bool] = field(default_factory=dict)
    """Whether each connection is being answered, the longest unchanged first."""

    def set(self, connection: Connection, *, is_answering: bool) -> None:
        """Note what a connection does now. A connection that starts something else becomes the youngest."""
        if self._answering.get(connection) is not is_answering:
            self._answering.pop(connection, None)
            self._answering[connection] = is_answering
            self.metrics.connections.set(len(self._answering))

    def add(self, connection: Connection) -> None:
        """Add a new connection. If there are too many, the one that has waited longest, for a request or for its client
        to read the answer, is closed, which may be the new one."""
        self.set(connection, is_answering=False)
        if len(self._answering) > self.config.max_connections:
            # A connection that is being answered is never closed for another one. The new connection comes last: its
            # request may be on its way, and may be answered in no time.
            victim = next(one for one, is_answering in self._answering.items() if not is_answering)
            victim.drop("too many connections")

    def remove(self, connection: Connection) -> None:
        """Forget a closed connection."""
        self._answering.pop(connection, None)
        self.metrics.connections.set(len(self._answering))


class Connection(H11Protocol):
    """A connection of uvicorn that is closed when its request does not arrive, or its answer is not read, in time."""

    pool: ConnectionPool
    """Set by a subclass for each service, because uvicorn makes the objects."""
    _awaited: str | None = None
    _request_timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # By default asyncio reports unsent bytes from 64 KiB on, and a client that reads nothing could hold a smaller
        # answer for ever.
        transport.set_write_buffer_limits(high=0)
        self.pool.add(self)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._cancel_timers()
        self.pool.remove(self)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._send_timer = self.loop.call_later(self.pool.config.max_send_s, self.drop, "answer read too slowly")
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._send_timer is not None:
            self._send_timer.cancel()
        self._send_timer = None
        self._watch()

    def send_400_response(self, msg: str) -> None:
        if self._is_answering():
            # Half of an answer cannot be followed by another one.
            self.drop("not HTTP")
        else:
            self.pool.metrics.rejected("not HTTP")
            super().send_400_response(msg)

    def drop(self, reason: str) -> None:
        """Close the connection at once, whatever it has still to read or to send."""
        self.pool.metrics.rejected(reason)
        self._cancel_timers()
        # It counts no longer, although asyncio closes the socket a little later.
        self.pool.remove(self)
        self.transport.abort()

    def _watch(self) -> None:
        """Note what the connection does, and start the deadline of what it waits for."""
        if self.transport.is_closing() and self._send_timer is None:
            return
        self.pool.set(self, is_answering=self._is_answering())
        # The part of a request that has yet to arrive; none while it is complete, or if none has begun after an answer.
        awaited = "body" if self.conn.their_state is h11.SEND_BODY else None
        # Between requests uvicorn's timer runs until the first byte arrives.
        if self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None:
            awaited = "headers"
        if awaited != self._awaited:
            self._awaited = awaited
            if self._request_timer is not None:
                self._request_timer.cancel()
            config = self.pool.config
            seconds = {"headers": config.max_header_s, "body": config.max_upload_s + UPLOAD_GRACE_S}
            self._request_timer = (
                self.loop.call_later(seconds[awaited], self.drop, "request too slow") if awaited else None
            )

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _cancel_timers(self) -> None:
        for timer in (self._request_timer, self._send_timer):
            if timer is not None:
                timer.cancel()
