"""The routes that answer searches: by a text, by images, by several of them, by a batch, and without a query."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import FastAPI, Query, Request, UploadFile
from PIL import Image

from dcdctl.core.errors import ConfigError, InputError
from dcdctl.core.search import (
    WEAK,
    Condition,
    FolderIndex,
    Hit,
    IndexSearcher,
    SearchAnswer,
    browse_index,
    caption_of,
    parse_all,
    parse_order,
    question_of,
)
from dcdctl.core.serve import images
from dcdctl.core.serve.batch import BatchQuery, BatchReader
from dcdctl.core.serve.facets import shortened
from dcdctl.core.serve.service_config import ServiceConfig
from dcdctl.core.serve.workers import ServiceState, WaitingText

NOT_RERANKED = "not re-ranked: the re-ranker compares images with one text only"
# Rows are int64 numbers.
MAX_ROW = 2**63 - 1


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
class ErrorResponse:
    """The body of every response that is not a success."""

    error: str


@dataclass(frozen=True)
class BatchResponse:
    """The answers to a batch in the order of its queries; a query that cannot be answered has an error."""

    answers: tuple[SearchResponse | ErrorResponse, ...]


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


def add_search(app: FastAPI, service: ServiceState) -> None:
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


def add_browse(app: FastAPI, service: ServiceState) -> None:
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


def add_bodies(app: FastAPI, service: ServiceState) -> None:
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
            hint="add them with `dcdctl change INDEX --set keywords=true`",
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
