"""The service as an ASGI app: the routes of images, health and metrics, the pages, and the answers to errors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Header, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse

from dcdctl import __version__
from dcdctl.core.data import ImageError
from dcdctl.core.errors import ConfigError, DcdError, InputError
from dcdctl.core.search import IndexSearcher
from dcdctl.core.serve import images, logs, pages
from dcdctl.core.serve.batch import in_words
from dcdctl.core.serve.facets import ColumnResponse, columns_of
from dcdctl.core.serve.keys import Keys
from dcdctl.core.serve.metrics import CONTENT_TYPE, Shared
from dcdctl.core.serve.middleware import KeyMiddleware, LimitsMiddleware, refusal
from dcdctl.core.serve.search_routes import MAX_ROW, ErrorResponse, add_bodies, add_browse, add_search
from dcdctl.core.serve.service_config import ServiceConfig
from dcdctl.core.serve.workers import BusyError, LiveSearcher, ServiceState
from dcdctl.core.stores import UnavailableError


@dataclass(frozen=True)
class HealthResponse:
    """The state of the service, and what it searches."""

    status: str
    images: int
    kind: str
    model: str
    reranker: str | None
    version: str


def build(
    searcher: IndexSearcher | LiveSearcher,
    config: ServiceConfig,
    *,
    is_loopback: bool = True,
    keys: Keys | None = None,
    shared: Shared | None = None,
) -> LimitsMiddleware:
    """The service as an ASGI app. Its threads stop at the end of its lifespan.

    With `keys`, requests need one of them. `shared` is for one of several processes.
    """
    service = ServiceState(searcher, config, shared)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for workers in (service.searching, service.reading):
            workers.close()

    errors: dict[int | str, dict[str, Any]] = {
        400: {"model": ErrorResponse, "description": "The query cannot be answered."},
        422: {"model": ErrorResponse, "description": "The request is not valid."},
        503: {"model": ErrorResponse, "description": "Busy, or the store does not answer: see Retry-After."},
    }
    app = FastAPI(
        title="dcdctl serve",
        version=__version__,
        description="Searches the images of an index by a text or by an image.",
        # FastAPI's pages load scripts from another host.
        docs_url=None,
        redoc_url=None,
        # Its spans and logs would send the texts of searches, and keys in addresses, to a collector that the
        # environment may name.
        telemetry={"tracing": False, "logs": False},
        lifespan=lifespan,
        responses=errors,
    )
    for add_routes in (add_search, add_browse, add_bodies, _add_images, _add_state):
        add_routes(app, service)
    pages.add_pages(app, lambda: service.index, config)
    _add_error_handlers(app, service)
    if keys is not None:
        app.add_middleware(KeyMiddleware, keys=keys, config=config, metrics=service.metrics)
    # Another machine may use any name of this one, unless the settings list the names.
    if is_loopback or config.allowed_hosts:
        hosts = ["localhost", "127.0.0.1", "::1", "[::1]", *config.allowed_hosts]
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
    # The outermost layer, so that requests with a wrong host are counted and get the headers too.
    return LimitsMiddleware(app, config, service.metrics, service.is_stopping)


def _add_images(app: FastAPI, service: ServiceState) -> None:
    @app.get(
        "/image/{row}",
        summary="An image of the index, as a thumbnail, a preview or the original file.",
        response_class=Response,
        responses={
            200: {"content": {"image/*": {}}},
            304: {"description": "The image has not changed."},
            404: {"model": ErrorResponse},
        },
    )
    async def image(
        row: int = Path(ge=0, le=MAX_ROW),
        size: images.Size = "thumbnail",
        if_none_match: str = Header("", include_in_schema=False),
    ) -> Response:
        def read() -> Response:
            return images.respond(service.index, row, size, if_none_match, config=service.config)

        return await service.reading.run(read)

    @app.get("/columns", summary="The columns of the images, for conditions: their types and most frequent values.")
    async def columns() -> list[ColumnResponse]:
        return await service.reading.run(lambda: columns_of(service.index))


def _add_state(app: FastAPI, service: ServiceState) -> None:
    @app.get(
        "/health",
        summary="Whether the service takes requests, and what it searches.",
        responses={503: {"model": HealthResponse, "description": "It is stopped, or the store does not answer."}},
    )
    async def health(response: Response) -> HealthResponse:
        searcher = service.searcher.now()
        index, reranker = searcher.index, searcher.reranker
        status = "ok" if await service.is_ready() else "store unavailable"
        if service.is_stopping.is_set():
            status = "stopping"
        response.status_code = 200 if status == "ok" else 503
        return HealthResponse(
            status=status,
            images=index.num_images,
            kind=index.kind,
            model=index.fingerprint[:12],
            reranker=None if reranker is None else reranker.ref,
            version=__version__,
        )

    # A balancer must not restart a service whose store does not answer.
    @app.get("/live", summary="Whether the service answers at all.")
    async def live() -> dict[str, str]:
        return {"status": "alive"}

    @app.get(
        "/metrics",
        summary="Metrics for Prometheus.",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}},
    )
    async def metrics() -> Response:
        return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


def _add_error_handlers(app: FastAPI, service: ServiceState) -> None:
    """Answer every error with one line of JSON. Bugs, and errors that name files of this machine, are logged to stderr
    only."""

    async def respond(_: Request, error: Exception) -> Response:
        status, message, headers = 400, str(error), None
        match error:
            case BusyError():
                return refusal(message, service.config, service.metrics)
            case UnavailableError():
                logs.SERVICE.error("a request failed: %s", error)
                return refusal("the store does not answer", service.config, service.metrics)
            case RequestValidationError():
                status, message = 422, in_words(error.errors())
            case HTTPException():
                status, message, headers = error.status_code, error.detail, error.headers
            case InputError() | ConfigError() | ImageError():
                pass
            case _:
                logs.SERVICE.error("a request failed: %s", error)
                status, message = 500, "the search failed; the service's log says why"
        return JSONResponse({"error": message}, status_code=status, headers=headers)

    # FastAPI has handlers of its own for the first two.
    for kind in (RequestValidationError, HTTPException, BusyError, DcdError, ImageError, Exception):
        app.add_exception_handler(kind, respond)
