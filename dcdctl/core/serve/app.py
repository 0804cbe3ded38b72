"""The routes of the service: search, pictures, health, metrics, and the pages."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, FastAPI, Header, Path, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from dcdctl import __version__
from dcdctl.core.data import ImageError
from dcdctl.core.errors import ConfigError, DcdError, InputError
from dcdctl.core.search import Answer, Hit, Searcher
from dcdctl.core.serve import images, pages
from dcdctl.core.serve.config import ServiceConfig
from dcdctl.core.serve.metrics import CONTENT_TYPE, Metrics
from dcdctl.core.serve.middleware import Front, refusal
from dcdctl.core.serve.workers import BusyError, LiveSearcher, Texts, Workers

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1", "[::1]")
NOT_RERANKED = "not re-ranked: the second model compares pictures with texts alone"
MAX_ROW = 2**63 - 1


@dataclass(frozen=True)
class Found:
    """What a search answers."""

    results: tuple[Hit, ...]
    encode_ms: float
    find_ms: float
    rerank_ms: float
    notes: tuple[str, ...]

    @staticmethod
    def of(answer: Answer) -> Found:
        stages = (answer.encode_seconds, answer.find_seconds, answer.rerank_seconds)
        encode_ms, find_ms, rerank_ms = (round(1000 * seconds, 3) for seconds in stages)
        return Found(answer.hits, encode_ms, find_ms, rerank_ms, answer.notes)


@dataclass(frozen=True)
class Health:
    """That the service answers, and from what."""

    status: str
    images: int
    kind: str
    model: str
    reranker: str | None
    version: str


@dataclass(frozen=True)
class Problem:
    """What every answer that is no success says."""

    error: str


@dataclass(frozen=True)
class Service:
    """What the routes share."""

    searcher: LiveSearcher
    config: ServiceConfig
    metrics: Metrics
    searching: Workers
    reading: Workers
    texts: Texts

    @staticmethod
    def of(searcher: Searcher, config: ServiceConfig) -> Service:
        live = LiveSearcher(searcher)
        metrics = Metrics(lambda: live.now().index)
        searching = Workers("search", config.search_workers, config.max_waiting, config.max_wait_s, metrics)
        reading = Workers("picture", config.picture_workers, config.max_waiting_pictures, config.max_wait_s, metrics)
        return Service(live, config, metrics, searching, reading, Texts(live, searching, config, metrics))


def build(searcher: Searcher, config: ServiceConfig, *, is_loopback: bool = True) -> ASGIApp:
    """The service as an ASGI app; its threads end with its lifespan."""
    service = Service.of(searcher, config)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for workers in (service.searching, service.reading):
            workers.close()

    problems: dict[int | str, dict[str, Any]] = {
        422: {"model": Problem, "description": "The request cannot be answered as it is."},
        503: {"model": Problem, "description": "There is no room now; Retry-After says when to ask again."},
    }
    app = FastAPI(
        title="dcdctl serve",
        version=__version__,
        description="Pictures of an index, found by a text or by a picture.",
        # Both of FastAPI's pages load scripts from another host; ours is made of the same document.
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses=problems,
    )
    for router in (_search_routes(service), _other_routes(service)):
        app.include_router(router)
    pages.add_pages(app, lambda: service.searcher.now().index, config)
    _tell_problems(app, service)
    if hosts := _hosts(config, is_loopback):
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
    return Front(app, config, service.metrics)


def _hosts(config: ServiceConfig, is_loopback: bool) -> list[str]:
    """The names by which the service may be asked; none where any will do."""
    return [*LOOPBACK_NAMES, *config.allowed_hosts] if is_loopback or config.allowed_hosts else []


def _search_routes(service: Service) -> APIRouter:
    router, config = APIRouter(), service.config
    number = Query(config.default_k, ge=1, le=config.max_k, description="Most pictures wanted.")

    @router.get("/search", summary="Find pictures by a text, or by a picture of the index.")
    async def by_text(
        text: str | None = Query(None, max_length=config.max_text_chars, description="What is in the picture."),
        row: int | None = Query(None, ge=0, le=MAX_ROW, description="In place of a text: the row of a picture of the index."),
        k: int = number,
    ) -> Found:
        if text is not None and row is None:
            return Found.of(await service.texts.answer(text, k))
        if row is None or text is not None:
            raise InputError("a text or a row is wanted, and not both", hint="for example /search?text=a+red+bus")
        return Found.of(await _by_picture(service, lambda searcher: images.picture_of(searcher.index, row), k))

    @router.post("/search", summary="Find pictures by an uploaded picture.", responses={408: {"model": Problem}, 413: {"model": Problem}})
    async def by_picture(image: UploadFile, k: int = number) -> Found:
        data = await image.read()
        return Found.of(await _by_picture(service, lambda _: images.uploaded(data, config), k))

    return router


async def _by_picture(service: Service, read: Callable[[Searcher], Image.Image], k: int) -> Answer:
    def work() -> Answer:
        searcher = service.searcher.now()
        # A second model compares pictures with texts alone.
        answer = replace(searcher, reranker=None).by_picture(read(searcher), k)
        return answer if searcher.reranker is None else replace(answer, notes=(*answer.notes, NOT_RERANKED))

    answer = await service.searching.run(work)
    service.metrics.searched(answer)
    return answer


def _other_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get(
        "/image/{row}",
        summary="A picture of the index, small or as it is.",
        response_class=Response,
        responses={200: {"content": {"image/*": {}}}, 304: {"description": "It is the one you have."}, 404: {"model": Problem}},
    )
    async def image(
        row: int = Path(ge=0, le=MAX_ROW),
        size: images.Size = "thumbnail",
        if_none_match: str = Header("", include_in_schema=False),
    ) -> Response:
        def work() -> Response:
            return images.answer(service.searcher.now().index, row, size, if_none_match, service.config)

        return await service.reading.run(work)

    @router.get("/healthz", summary="Whether the service answers.")
    async def healthz() -> Health:
        searcher = service.searcher.now()
        index, reranker = searcher.index, searcher.reranker
        return Health("ok", index.num_images, index.kind, index.fingerprint[:12], reranker.ref if reranker else None, __version__)

    @router.get("/metrics", summary="Counters for Prometheus.", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    return router


def _tell_problems(app: FastAPI, service: Service) -> None:
    """Every problem as one line of JSON; what is our bug, or names files of this machine, is told on stderr alone."""

    def problem(status: int, error: str, headers: Any = None) -> JSONResponse:
        return JSONResponse({"error": error}, status_code=status, headers=headers)

    async def invalid(_: Request, error: Any) -> Response:
        return problem(422, "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in error.errors()))

    async def http(_: Request, error: Any) -> Response:
        return problem(error.status_code, error.detail, error.headers)

    async def asked_wrongly(_: Request, error: Exception) -> Response:
        return problem(422, str(error))

    async def busy(_: Request, error: Exception) -> Response:
        return refusal(str(error), service.config, service.metrics)

    async def failed(_: Request, error: Exception) -> Response:
        logging.getLogger("dcdctl").error("a request failed: %s", error)
        return problem(500, "the search failed; the service's log says why")

    handlers: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
        RequestValidationError: invalid,
        HTTPException: http,
        InputError: asked_wrongly,
        ConfigError: asked_wrongly,
        ImageError: asked_wrongly,
        BusyError: busy,
        DcdError: failed,
        Exception: failed,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
