"""Middleware: counts and limits requests before they are read, adds headers to responses, and asks for a key."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from threading import Event

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dcdctl.core.serve import logs
from dcdctl.core.serve.keys import Keys, WrongKeys
from dcdctl.core.serve.metrics import Metrics
from dcdctl.core.serve.service_config import MiB, ServiceConfig

ALWAYS_ANSWERED = ("/health", "/live", "/metrics")
"""Paths that no limit applies to."""
OPEN_PATHS = ("/health", "/live")
"""Paths that need no key: balancers and containers ask them without one."""
NO_KEY = "a key is required: send the header Authorization: Bearer KEY; a key in an address is not read"
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="dcdctl"'}
HEADERS = {
    # No other site may embed or read a response; responses other than our pages may run and load nothing.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""Default headers of every response."""


@dataclass(eq=False)
class LimitsMiddleware:
    """An ASGI app around another: counts and limits its requests, and adds headers to its responses."""

    app: ASGIApp
    config: ServiceConfig
    metrics: Metrics
    is_stopping: Event = field(default_factory=Event)
    """While it is set, each connection ends with its answer, so that its client connects elsewhere."""
    _in_flight: int = 0
    _arriving: set[_LimitedBody] = field(default_factory=set)
    """Bodies that have not arrived yet."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        # What the client gets if the app fails before it responds.
        status = 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if self.is_stopping.is_set():
                    headers["Connection"] = "close"
            await send(message)

        self._count(1)
        body = _LimitedBody(scope, receive, config=self.config, metrics=self.metrics, arriving=self._arriving)
        try:
            answer = self._answer(scope, body)
            await answer(scope, body, send_with_headers)
        finally:
            self._count(-1)
            self._arriving.discard(body)
            seconds = time.perf_counter() - started
            # The route, never the path or the query: they say who looked for what, and a client may put a key there.
            route = getattr(scope.get("route"), "path", "other")
            # A client may send any word as a method, and each would become a series of its own.
            method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST") else "other"
            self.metrics.answered(route, method, status, seconds)
            if self.config.access_log:
                client, _ = scope.get("client") or (None, None)
                milliseconds = round(1000 * seconds, 1)
                facts = {"method": method, "route": route, "status": status, "ms": milliseconds, "client": client}
                logs.ACCESS.info("request", extra={"facts": facts})

    def _answer(self, scope: Scope, body: _LimitedBody) -> ASGIApp:
        """What answers a request: the app, or a refusal."""
        headers = Headers(scope=scope)
        if "content-length" in headers and "transfer-encoding" in headers:
            # RFC 9112, 6.1: a proxy may believe the other length, and what follows would be another client's request.
            error = "a request has Content-Length or Transfer-Encoding, and not both"
            return _rejected(self.metrics, "two lengths", error, status=400, headers={"Connection": "close"})
        # The HTTP parser applies its limit only to headers that arrive in pieces. A long address may arrive whole.
        if len(scope["raw_path"]) + len(scope["query_string"]) >= self.config.max_header_bytes:
            return _rejected(self.metrics, "address too long", "the address is too long", status=414)
        if self._in_flight > self.config.max_requests and scope["path"] not in ALWAYS_ANSWERED:
            return refusal("too many requests", self.config, self.metrics)
        # Slow uploads must leave room for searches.
        if body in self._arriving and len(self._arriving) > (self.config.max_requests + 1) // 2:
            return refusal("too many uploads", self.config, self.metrics)
        return self.app

    def _count(self, change: int) -> None:
        self._in_flight += change
        self.metrics.in_flight.set(self._in_flight)


@dataclass(eq=False)
class KeyMiddleware:
    """An ASGI app around another: passes on requests with an accepted key or to an open path, and refuses the rest."""

    app: ASGIApp
    keys: Keys
    config: ServiceConfig
    metrics: Metrics

    def __post_init__(self) -> None:
        self._wrong = WrongKeys(self.config.max_wrong_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = self._refusal(scope) if scope["type"] == "http" else None
        answer = self.app if refused is None else refused
        await answer(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        if scope["path"] in OPEN_PATHS:
            return None
        client, _ = scope.get("client") or ("", None)
        # Before any key is compared, right ones too: the answer must not say that a guess is right.
        if seconds := self._wrong.wait_s(client):
            error = f"too many wrong keys came from this address; ask again in {seconds} s"
            return _rejected(
                self.metrics, "too many wrong keys", error, status=429, headers={"Retry-After": str(seconds)}
            )
        headers = Headers(scope=scope)
        scheme, _, value = headers.get("authorization", "").partition(" ")
        # A proxy that checks passwords may pass `Authorization: Basic` on, and adds the key as X-API-Key.
        sent = value.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not sent:
            return _rejected(self.metrics, "no key", NO_KEY, status=401, headers=CHALLENGE)
        if not self.keys.accept(sent):
            self._wrong.note(client)
            return _rejected(self.metrics, "wrong key", "this key is not accepted", status=401, headers=CHALLENGE)
        return None


def refusal(reason: str, config: ServiceConfig, metrics: Metrics) -> JSONResponse:
    """The 503 response to a request beyond a limit."""
    seconds = config.retry_after_s
    error = f"the service is busy ({reason}); ask again in {seconds} s"
    return _rejected(metrics, reason, error, status=503, headers={"Retry-After": str(seconds)})


def _rejected(
    metrics: Metrics, reason: str, error: str, *, status: int, headers: dict[str, str] | None = None
) -> JSONResponse:
    """A response that is counted as refused because of `reason`."""
    metrics.rejected(reason)
    return JSONResponse({"error": error}, status_code=status, headers=headers)


class _LimitedBody:
    """The body of a request as it arrives; refused when it is too large or too slow."""

    def __init__(
        self, scope: Scope, receive: Receive, *, config: ServiceConfig, metrics: Metrics, arriving: set[_LimitedBody]
    ) -> None:
        """The body is in `arriving` until it is complete."""
        self._receive = receive
        self._config = config
        self._metrics = metrics
        self._arriving = arriving
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        self._announced_size = int(length) if length.isdecimal() else 0
        self._deadline = time.monotonic() + config.max_upload_s
        self._read_size = 0
        self._is_complete = False
        if self._announced_size or "transfer-encoding" in headers:
            arriving.add(self)

    async def __call__(self) -> Message:
        # After the body only a disconnect can arrive, at any time.
        if self._is_complete:
            return await self._receive()
        # If the announced size is too large, nothing is read.
        self._check(self._announced_size)
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()):
                message = await self._receive()
        except TimeoutError as error:
            self._metrics.rejected("upload too slow")
            raise HTTPException(408, f"the upload has not arrived within {self._config.max_upload_s:g} s") from error
        self._read_size += len(message.get("body", b""))
        self._is_complete = not message.get("more_body", False)
        if self._is_complete:
            self._arriving.discard(self)
        self._check(self._read_size)
        return message

    def _check(self, size: int) -> None:
        if size > self._config.max_upload_bytes:
            self._metrics.rejected("upload too large")
            raise HTTPException(
                413, f"the upload is too large, at most {self._config.max_upload_bytes / MiB:g} MiB are accepted"
            )
