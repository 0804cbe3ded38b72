"""Middleware: counts and limits requests before they are read, adds headers to responses, and asks for a key."""

from __future__ import annotations

import asyncio
import time
from threading import Event
from urllib.parse import parse_qsl

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dcdctl.core.serve import logs
from dcdctl.core.serve.config import KiB, MiB, ServiceConfig
from dcdctl.core.serve.keys import Keys
from dcdctl.core.serve.metrics import Metrics

ALWAYS_ANSWERED = ("/health", "/live", "/metrics")
"""Paths that no limit applies to."""
OPEN_PATHS = ("/health", "/live")
"""Paths that need no key: balancers and containers ask them without one."""
KEY_IN_URL = (
    "addresses are logged and shared, so a key must not be in one: send the header Authorization: Bearer "
    "KEY, and replace this key"
)
NO_KEY = "a key is required: send the header Authorization: Bearer KEY"
HEADERS = {
    # No other site may embed or read a response; responses other than our pages may run and load nothing.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""Default headers of every response."""


class LimitsMiddleware:
    """An ASGI app around another.

    While `ending` is set, it answers the requests that arrive, says so in /health, and ends each connection with its
    answer.
    """

    def __init__(self, app: ASGIApp, config: ServiceConfig, metrics: Metrics, ending: Event) -> None:
        self._app, self._config, self.metrics, self.ending = app, config, metrics, ending
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # 500 is what the client gets if the app fails before it responds.
        started, status = time.perf_counter(), 500
        notes = logs.RequestNotes(logs.request_id(Headers(scope=scope).get("x-request-id", "")))
        # Not reset: the server logs an error of this request after this function has ended.
        logs.CURRENT.set(notes)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = notes.id
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if self.ending.is_set():
                    headers["Connection"] = "close"
            await send(message)

        self._count(1)
        try:
            await self._answer(scope)(
                scope, _LimitedBody(scope, receive, self._config, self.metrics), send_with_headers
            )
        finally:
            self._count(-1)
            seconds = time.perf_counter() - started
            # The route, never the path: single images are not counted, for privacy.
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.answered(route, _method(scope), status, seconds)
            if self._config.access_log:
                _log(scope, notes, status, seconds, with_query=self._config.log_queries)

    def _answer(self, scope: Scope) -> ASGIApp:
        """What answers a request: the app, or a refusal."""
        # Of the request line and the headers. The parser compares it only while they are incomplete.
        num_bytes = len(scope["raw_path"]) + len(scope["query_string"])
        num_bytes += sum(len(name) + len(value) for name, value in scope["headers"])
        if num_bytes > self._config.max_header_bytes:
            self.metrics.rejected("headers too large")
            error = (
                f"the request line and headers are too large, at most {self._config.max_header_bytes / KiB:g} "
                "KiB are accepted"
            )
            return JSONResponse({"error": error}, status_code=431, headers={"Connection": "close"})
        if self._in_flight > self._config.max_requests and scope["path"] not in ALWAYS_ANSWERED:
            return refusal("too many requests", self._config, self.metrics)
        return self._app

    def _count(self, change: int) -> None:
        self._in_flight += change
        self.metrics.in_flight.set(self._in_flight)


class KeyMiddleware:
    """An ASGI app around another that answers requests without a key itself."""

    def __init__(self, app: ASGIApp, keys: Keys, config: ServiceConfig, metrics: Metrics) -> None:
        self._app, self._keys, self._config, self._metrics = app, keys, config, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._refusal(scope) if scope["type"] == "http" else None
        await (answer or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        # Before the key is read: an address with a key is refused even if a header has the right one.
        # latin-1 decodes any byte, and keys are ASCII.
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if any(self._keys.accept(value) for _, value in query):
            self._metrics.rejected("key in the address")
            return JSONResponse({"error": KEY_IN_URL}, status_code=400)
        path = scope["path"]
        if path in OPEN_PATHS or (path == "/metrics" and self._config.metrics_without_key):
            return None
        headers = Headers(scope=scope)
        scheme, _, value = headers.get("authorization", "").partition(" ")
        # A proxy that checks passwords may pass `Authorization: Basic` on, and adds the key as X-API-Key.
        sent = value.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if sent and self._keys.accept(sent):
            return None
        self._metrics.rejected("wrong key" if sent else "no key")
        error = "this key is not accepted" if sent else NO_KEY
        return JSONResponse({"error": error}, status_code=401, headers={"WWW-Authenticate": 'Bearer realm="dcdctl"'})


def refusal(reason: str, config: ServiceConfig, metrics: Metrics) -> JSONResponse:
    """The 503 response to a request beyond a limit."""
    metrics.rejected(reason)
    seconds = config.retry_after_s
    error = f"the service is busy ({reason}); ask again in {seconds} s"
    return JSONResponse({"error": error}, status_code=503, headers={"Retry-After": str(seconds)})


class _LimitedBody:
    """The body of a request as it arrives; refused when it is too large or too slow."""

    def __init__(self, scope: Scope, receive: Receive, config: ServiceConfig, metrics: Metrics) -> None:
        self._receive, self._config, self._metrics = receive, config, metrics
        length = Headers(scope=scope).get("content-length", "")
        # If the announced size is too large, nothing is read.
        self._size = int(length) if length.isdecimal() else 0
        self._deadline = time.monotonic() + config.max_upload_s
        self._read, self._is_complete = 0, False

    async def __call__(self) -> Message:
        # After the body only a disconnect can arrive, at any time.
        if self._is_complete:
            return await self._receive()
        self._check(self._size)
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()):
                message = await self._receive()
        except TimeoutError as error:
            self._metrics.rejected("upload too slow")
            raise HTTPException(408, f"the upload has not arrived within {self._config.max_upload_s:g} s") from error
        self._read += len(message.get("body", b""))
        self._is_complete = not message.get("more_body", False)
        self._check(self._read)
        return message

    def _check(self, size: int) -> None:
        if size > self._config.max_upload_bytes:
            self._metrics.rejected("upload too large")
            raise HTTPException(
                413, f"the upload is too large, at most {self._config.max_upload_bytes / MiB:g} MiB are accepted"
            )


def _log(scope: Scope, notes: logs.RequestNotes, status: int, seconds: float, *, with_query: bool) -> None:
    client = scope.get("client")
    facts = {
        "request_id": notes.id,
        "method": _method(scope),
        "path": logs.printable(scope["path"])[: logs.MAX_PATH_CHARS],
        "status": status,
        "ms": round(1000 * seconds, 1),
        "hits": notes.hits,
        "client": client[0] if client else None,
    }
    # A query that is refused may hold a key.
    if with_query and status not in (400, 401):
        facts["query"] = logs.printable(scope["query_string"].decode("latin-1"))
    logs.ACCESS.info("request", extra={"facts": facts})


def _method(scope: Scope) -> str:
    # A client may send any word as a method, and each would become a series of its own.
    return scope["method"] if scope["method"] in ("GET", "HEAD", "POST") else "other"
