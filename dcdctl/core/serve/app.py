"""The routes of the service: search, images, health, metrics and the pages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from threading import Event
from typing import Any

from fastapi import FastAPI, Header, Path, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse

from dcdctl import __version__
from dcdctl.core.data import ImageError
from dcdctl.core.errors import ConfigError, DcdError, InputError
from dcdctl.core.search import (
    WEAK,
    Condition,
    FolderIndex,
    Hit,
    ImageIndex,
    IndexSearcher,
    SearchAnswer,
    browse_index,
    caption_of,
    parse_all,
    parse_order,
    question_of,
)
from dcdctl.core.serve import images, logs, pages
from dcdctl.core.serve.batch import BatchQuery, BatchReader, in_words
from dcdctl.core.serve.facets import ColumnResponse, columns_of, shortened
from dcdctl.core.serve.keys import Keys
from dcdctl.core.serve.metrics import CONTENT_TYPE, Metrics, Shared
from dcdctl.core.serve.middleware import KeyMiddleware, LimitsMiddleware, refusal
from dcdctl.core.serve.service_config import ServiceConfig
from dcdctl.core.serve.workers import BusyError, LiveSearcher, TextBatcher, WaitingText, Workers
from dcdctl.core.stores import UnavailableError

NOT_RERANKED = "not re-ranked: the re-ranker compares images with one text only"
# Rows are int64 numbers.
MAX_ROW = 2**63 - 1
READY_S = 2.0
"""How long /health waits for a store; balancers and containers wait for some seconds."""


@dataclass(frozen=True)
class SearchResponse:
    """The answer to a search."""

    results: tuple[Hit, ...]
    encode_ms: float
    find_ms: float
    rerank_ms: float
    notes: tuple[str, ...]
    bars: tuple[float, ...]
    """For each result of a text, where its score lies in the index, from 0 to 1 (`Background.share`)."""
    weak: bool
    """Whether texts that no image of the index shows score as high as the best result."""
    captions: tuple[str, ...]
    """The first caption of each result, empty without one; none of a store."""


@dataclass(frozen=True)
class BrowseResponse:
    """Images that meet the conditions, without a query."""

    results: tuple[Hit, ...]
    total: int
    """How many images meet the conditions."""
    captions: tuple[str, ...]
    """The first caption of each result, empty without one."""


@dataclass(frozen=True)
class HealthResponse:
    """The state of the service, and what it searches."""

    status: str
    images: int
    kind: str
    model: str
    reranker: str | None
    version: str


@dataclass(frozen=True)
class ErrorResponse:
    """The body of every response that is not a success."""

    error: str


@dataclass(frozen=True)
class BatchResponse:
    """The answers to a batch in the order of its queries; a query that cannot be answered has an error."""

    answers: tuple[SearchResponse | ErrorResponse, ...]


class ServiceState:
    """The state that the routes share."""

    def __init__(self, searcher: IndexSearcher | LiveSearcher, config: ServiceConfig, shared: Shared | None) -> None:
        self.searcher = searcher if isinstance(searcher, LiveSearcher) else LiveSearcher(searcher)
        self.config = config
        self.metrics = Metrics(shared)
        self.searching = Workers(
            "search",
            threads=config.search_workers,
            max_waiting=config.max_waiting,
            max_wait_s=config.max_wait_s,
            metrics=self.metrics,
        )
        self.reading = Workers(
            "image",
            threads=config.image_workers,
            max_waiting=config.max_waiting_images,
            max_wait_s=config.max_wait_s,
            metrics=self.metrics,
        )
        self.texts = TextBatcher(self.searcher, self.searching, config, self.metrics)
        self.is_stopping = Event()
        """Set while it answers its last requests."""
        self._asked: asyncio.Task[bool] | None = None

    @property
    def index(self) -> ImageIndex:
        """The index that is searched now."""
        return self.searcher.now().index

    async def is_ready(self) -> bool:
        """Whether the index answers within `READY_S`; one call at a time: a silent store holds each for long."""
        if self._asked is None or self._asked.done():
            self._asked = asyncio.create_task(asyncio.to_thread(self.index.is_ready))
        done, _ = await asyncio.wait([self._asked], timeout=READY_S)
        return any(task.result() for task in done)


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
    for add_routes in (_add_search, _add_browse, _add_bodies, _add_images, _add_state):
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


def _number(config: ServiceConfig) -> Any:
    """The parameter k of a search."""
    return Query(config.default_k, ge=1, le=config.max_k, description="Maximum number of images.")


def _text(config: ServiceConfig) -> Any:
    """The parameter text of a search."""
    return Query(None, max_length=config.max_text_chars, description="What the image shows.")


ALSO: Any = Query([], description="A text that is added to the text or the image; several are possible.")
WITHOUT: Any = Query([], alias="not", description="A text that ranks images lower that show it; several are possible.")
CONDITION: Any = Query(
    [], description="Only images whose columns meet this condition: year >= 2020. Several must all hold."
)


def _add_search(app: FastAPI, service: ServiceState) -> None:
    config = service.config

    @app.get("/search", summary="Search by a text, by an image of the index, or by several of them.")
    async def by_text(
        text: str | None = _text(config),
        row: int | None = Query(
            None, ge=0, le=MAX_ROW, description="Instead of a text, or beside it: the row of an image of the index."
        ),
        also: list[str] = ALSO,
        without: list[str] = WITHOUT,
        k: int = _number(config),
        hybrid: bool = Query(False, description="Rank by the words of captions and file names too."),
        where: list[str] = CONDITION,
    ) -> SearchResponse:
        if text is None and row is None:
            raise InputError("the request has no text and no row", hint="for example /search?text=a+red+bus")
        if hybrid:
            _check_words(service, None if also or without or row is not None else text)
        met = _condition(service, where)
        if text is not None and row is None and not also and not without:
            return await _response(service, await service.texts.answer(WaitingText(text, k, met, hybrid)))
        read = None if row is None else lambda searcher: images.image_of(searcher.index, row)
        return await _response(service, await _by_parts(service, text, read, also, without, k, met))


def _add_browse(app: FastAPI, service: ServiceState) -> None:
    @app.get("/browse", summary="List images without a query, the newest first.")
    async def browse(
        k: int = _number(service.config),
        offset: int = Query(0, ge=0, le=MAX_ROW, description="Images to leave out: those of earlier pages."),
        order: str | None = Query(
            None,
            max_length=service.config.max_where_chars,
            description='A column, and desc for the greatest first, such as "year desc"; by default the newest first.',
        ),
        where: list[str] = CONDITION,
    ) -> BrowseResponse:
        # Here, because the message of the index names its place.
        if not isinstance(service.index, FolderIndex):
            raise InputError("this index is in a store, which lists no images without a query")
        met = _condition(service, where)
        by = None if order is None else parse_order(order, service.index.columns)
        answer = await service.searching.run(lambda: browse_index(service.index, k, met, by, offset=offset))
        return BrowseResponse(_served(answer.hits), answer.total or 0, await _captions(service, answer.hits))


def _add_bodies(app: FastAPI, service: ServiceState) -> None:
    """Add the route of uploaded images and batches."""
    config = service.config
    batches = BatchReader(config, service.searching.num_slots)

    # One route for both kinds of body: a route is chosen by its path and method only.
    @app.post(
        "/search",
        summary="Search by an uploaded image, or by many texts.",
        responses={408: {"model": ErrorResponse}, 413: {"model": ErrorResponse}},
    )
    async def by_body(
        request: Request,
        image: UploadFile | None = None,
        text: str | None = _text(config),
        also: list[str] = ALSO,
        without: list[str] = WITHOUT,
        k: int = _number(config),
        where: list[str] = CONDITION,
    ) -> SearchResponse | BatchResponse:
        if image is not None:
            data, met = await image.read(), _condition(service, where)
            answer = await _by_parts(service, text, lambda _: images.uploaded(data, config), also, without, k, met)
            return await _response(service, answer)
        if text is not None or also or without:
            raise InputError("text, also and not belong to an uploaded image here", hint="send the image in its field")
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
            return await _by_texts(service, await batches.read(request), where)
        raise InputError("image: Field required", hint="or send a batch of texts as application/json")


async def _by_texts(service: ServiceState, queries: Sequence[BatchQuery | str], where: Sequence[str]) -> BatchResponse:
    """The answers to a batch whose queries must all meet the conditions `where`, and each its own.

    A query that cannot be answered has an error in its place; a failure of the service fails the batch.
    """
    asked: list[WaitingText | str | InputError] = []
    for query in queries:
        try:
            if isinstance(query, str):
                asked.append(query)
                continue
            if query.hybrid:
                _check_words(service)
            conditions = where if query.where is None else [*where, query.where]
            asked.append(WaitingText(query.text, query.k, _condition(service, conditions), query.hybrid))
        except InputError as error:
            asked.append(error)
    answers = iter(await service.texts.answer_all([one for one in asked if isinstance(one, WaitingText)]))
    responses: list[SearchResponse | ErrorResponse] = []
    for one in asked:
        answer = next(answers) if isinstance(one, WaitingText) else one
        # What is wrong with one query says nothing about the others; a failure of the service does.
        if isinstance(answer, (str, InputError, ConfigError)):
            responses.append(ErrorResponse(str(answer)))
        elif isinstance(answer, BaseException):
            raise answer
        else:
            responses.append(await _response(service, answer))
    return BatchResponse(tuple(responses))


async def _response(service: ServiceState, answer: SearchAnswer) -> SearchResponse:
    bars = []
    for hit in answer.hits:
        if answer.background is not None and hit.score is not None:
            bars.append(round(answer.background.share(hit.score), 4))
    return SearchResponse(
        results=_served(answer.hits),
        encode_ms=round(1000 * answer.encode_seconds, 3),
        find_ms=round(1000 * answer.find_seconds, 3),
        rerank_ms=round(1000 * answer.rerank_seconds, 3),
        notes=answer.notes,
        bars=tuple(bars),
        weak=WEAK in answer.notes,
        captions=await _captions(service, answer.hits),
    )


def _served(hits: Sequence[Hit]) -> tuple[Hit, ...]:
    """Hits as a response has them: without paths of this machine, and without texts of books in columns."""
    served = []
    for hit in hits:
        columns = {name: shortened(value) for name, value in hit.columns.items()}
        served.append(replace(hit, columns=columns, path=None))
    return tuple(served)


async def _captions(service: ServiceState, hits: Sequence[Hit]) -> tuple[str, ...]:
    """The first caption of each hit; none of a store, which would be asked for each."""
    index = service.index
    if not isinstance(index, FolderIndex):
        return ()
    # A corpus reads all its captions for the first.
    return await asyncio.to_thread(lambda: tuple(caption_of(index, hit.row) for hit in hits))


def _check_words(service: ServiceState, text: str | None = "") -> None:
    """InputError if a hybrid search has no text, or its index no words; without the path of the index."""
    if text is None or not service.index.has_keywords:
        raise InputError(
            "hybrid search is for a text alone, and for an index with words",
            hint="add them with `dcdctl index INDEX --keywords`",
        )


def _condition(service: ServiceState, texts: Sequence[str]) -> Condition | None:
    """The condition of a request; InputError if it is too long or cannot be read."""
    if (length := sum(map(len, texts))) > service.config.max_where_chars:
        raise InputError(
            f"the conditions have {length:,} characters, at most {service.config.max_where_chars:,} are read"
        )
    return parse_all(texts, service.index.columns)


async def _by_parts(
    service: ServiceState,
    text: str | None,
    read: Callable[[IndexSearcher], Image.Image] | None,
    also: Sequence[str],
    without: Sequence[str],
    k: int,
    where: Condition | None,
) -> SearchAnswer:
    """The answer to an image, or to several parts; `read` gives the image."""
    for part in (*also, *without):
        if len(part) > service.config.max_text_chars:
            raise InputError(f"a text has {len(part):,} characters, at most {service.config.max_text_chars:,} are read")

    def work() -> SearchAnswer:
        searcher = service.searcher.now()
        # The image is decoded in the thread too: the event loop must stay free for other requests.
        question = question_of(text, None if read is None else read(searcher), also, without)
        # A re-ranker compares images with one text only.
        answer = replace(searcher, reranker=None).ask(question, k, where)
        return answer if searcher.reranker is None else replace(answer, notes=(*answer.notes, NOT_RERANKED))

    if read is not None and not service.searcher.now().encoder.is_loaded:
        # By a thread that reads images, so that searches by texts continue meanwhile.
        await service.reading.run(lambda: service.searcher.now().encoder.load())
    answer = await service.searching.run(work)
    service.metrics.searched(answer)
    return answer


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
