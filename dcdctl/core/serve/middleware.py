"""What stands before the service: it counts every request, refuses what is too much before it is read, and adds headers to every answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dcdctl.core.serve.config import MiB, ServiceConfig
from dcdctl.core.serve.metrics import Metrics

ALWAYS = ("/healthz", "/metrics")
"""Answered however much else there is to do."""
HEADERS = {
    # No other page may show or read what is here; what is no page of ours may run and load nothing.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""Of every answer that does not say otherwise."""


class Front:
    """An ASGI app around another."""

    def __init__(self, app: ASGIApp, config: ServiceConfig, metrics: Metrics) -> None:
        self._app, self._config, self._metrics = app, config, metrics
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(message)
            await send(message)

        self._count(1)
        try:
            is_too_much = self._under_way > self._config.max_requests and scope["path"] not in ALWAYS
            await (self._refuse if is_too_much else self._app)(scope, _Body(scope, receive, self._config, self._metrics), send_on)
        finally:
            self._count(-1)
            self._metrics.answered(_route(scope), _method(scope), status, time.perf_counter() - started)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        await refusal("too many requests", self._config, self._metrics)(scope, receive, send)

    def _count(self, change: int) -> None:
        self._under_way += change
        self._metrics.in_flight.set(self._under_way)


def refusal(reason: str, config: ServiceConfig, metrics: Metrics) -> JSONResponse:
    """The answer to a request for which there is no room now."""
    metrics.rejected(reason)
    seconds = config.retry_after_s
    error = f"the service is busy ({reason}); ask again in {seconds} s"
    return JSONResponse({"error": error}, status_code=503, headers={"Retry-After": str(seconds)})


class _Body:
    """A request's body as it comes, refused once it is too large or too slow."""

    def __init__(self, scope: Scope, receive: Receive, config: ServiceConfig, metrics: Metrics) -> None:
        self._receive, self._config, self._metrics = receive, config, metrics
        told = Headers(scope=scope).get("content-length", "")
        # Of a body that says its size nothing is read if that is too much.
        self._size = int(told) if told.isdecimal() else 0
        self._deadline = time.monotonic() + config.max_upload_s
        self._read, self._is_whole = 0, False

    async def __call__(self) -> Message:
        if self._is_whole:
            return await self._receive()
        self._check(self._size)
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()):
                message = await self._receive()
        except TimeoutError as error:
            self._metrics.rejected("upload too slow")
            raise HTTPException(408, f"the upload has not come within {self._config.max_upload_s:g} s") from error
        self._read += len(message.get("body", b""))
        self._is_whole = not message.get("more_body", False)
        self._check(self._read)
        return message

    def _check(self, size: int) -> None:
        if size > self._config.max_upload_bytes:
            self._metrics.rejected("upload too large")
            raise HTTPException(413, f"the upload is too large, at most {self._config.max_upload_bytes / MiB:g} MiB are taken")


def _add_headers(message: MutableMapping[str, Any]) -> None:
    headers = MutableHeaders(scope=message)
    for name, value in HEADERS.items():
        headers.setdefault(name, value)


def _route(scope: Scope) -> str:
    """The route, never the path: what is asked for is not counted one by one."""
    return getattr(scope.get("route"), "path", "other")


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in ("GET", "HEAD", "POST") else "other"
