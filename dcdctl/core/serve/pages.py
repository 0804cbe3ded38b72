"""The page of the service: image search. It loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from fastapi import FastAPI, Response

from dcdctl.core import files, templates
from dcdctl.core.search import FolderIndex, ImageIndex, caption_of, default_order, name_of_index
from dcdctl.core.serve.service_config import ServiceConfig

ASSETS = files.packaged("assets")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""What the page may load: their own files, and images that the user has selected."""
MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def add_pages(app: FastAPI, index: Callable[[], ImageIndex], config: ServiceConfig) -> None:
    """Add the page and its files to an app; `index` returns the index that is searched now."""
    _add(app, "/", lambda: search_page(index(), config).encode(), "text/html")
    for suffix, media_type in MEDIA_TYPES.items():
        _add(app, f"/search{suffix}", partial(bytes, (ASSETS / f"search{suffix}").read_bytes()), media_type)


NUM_SAMPLE, NUM_EXAMPLES = 12, 4
"""Images and queries that an empty page shows."""
EXAMPLES = ("a person", "an animal", "food on a table", "a street with cars")
"""Queries for images without captions."""


def search_page(index: ImageIndex, config: ServiceConfig) -> str:
    """The HTML of the search page: it names the index and, until there is a query, shows its images by date and example
    queries. An index in a store lists no images, and shows a sample of them."""
    rows = index.spread_rows(NUM_SAMPLE)
    is_listed = isinstance(index, FolderIndex)
    # An image that comes from a corpus has captions.
    captions = [caption_of(index, row) for row in rows]
    sample = []
    for row, caption in zip(rows, captions, strict=True):
        sample.append({"row": row, "name": index.name(row), "caption": caption})
    return templates.render(
        "search.html",
        config=config,
        index_name=name_of_index(index.location),
        num_images=index.num_images,
        sample=[] if is_listed else sample,
        is_listed=is_listed,
        has_dates=isinstance(index, FolderIndex) and _has_dates(index),
        examples=list(dict.fromkeys(filter(None, captions)))[:NUM_EXAMPLES] or EXAMPLES,
        max_chars=config.max_text_chars,
        has_keywords=index.has_keywords,
        score_name=index.stored_type.score_name,
    )


def _has_dates(index: FolderIndex) -> bool:
    """Whether any image has a date; its column may be empty."""
    order = default_order(index.columns)
    if order is None:
        return False
    # Images without a value come last.
    return any(hit.columns[order.column] is not None for hit in index.browse(None, order, k=1).hits)


def _add(app: FastAPI, path: str, content: Callable[[], bytes], media_type: str) -> None:
    async def page() -> Response:
        return Response(content(), media_type=media_type, headers={"Content-Security-Policy": POLICY})

    app.add_api_route(path, page, methods=["GET", "HEAD"], include_in_schema=False)
