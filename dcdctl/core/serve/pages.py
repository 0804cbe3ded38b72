"""The pages of the service: the search page, and how to ask from a program. They load nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from html import escape
from string import Template
from typing import Any

from fastapi import FastAPI, Request, Response

from dcdctl.core import files
from dcdctl.core.search import Index
from dcdctl.core.serve import images
from dcdctl.core.serve.config import MiB, ServiceConfig

ASSETS = files.packaged("assets")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""What the pages may load: their own files, and pictures the user has chosen."""
MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def add_pages(app: FastAPI, index: Callable[[], Index], config: ServiceConfig) -> None:
    """Add the pages to an app that has all its other routes; `index` gives what is searched now."""
    template = Template((ASSETS / "search.html").read_text(encoding="utf-8"))
    _add(app, "/", lambda: search_page(template, index(), config).encode(), "text/html")
    for suffix, media_type in MEDIA_TYPES.items():
        _add(app, f"/search{suffix}", partial(bytes, (ASSETS / f"search{suffix}").read_bytes()), media_type)
    _add(app, "/docs", partial(bytes, docs_page(app.openapi(), config).encode()), "text/html")


def search_page(template: Template, index: Index, config: ServiceConfig) -> str:
    """The HTML of the search page."""
    return template.substitute(
        k=config.default_k,
        max_k=config.max_k,
        max_upload_bytes=config.max_upload_bytes,
        max_text_chars=config.max_text_chars,
        num_images=f"{index.num_images:,}",
    )


def docs_page(schema: dict[str, Any], config: ServiceConfig) -> str:
    """The HTML of a page about the routes, from their OpenAPI document."""
    routes = "".join(
        f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(route['summary'])}</p>{_parameters(route)}"
        for path, methods in schema["paths"].items()
        for method, route in methods.items()
    )
    return Template((ASSETS / "search-docs.html").read_text(encoding="utf-8")).substitute(
        max_text_chars=f"{config.max_text_chars:,}",
        max_upload_mib=f"{config.max_upload_bytes / MiB:g}",
        max_pixels=f"{config.max_pixels:,}",
        routes=routes,
    )


def _parameters(route: dict[str, Any]) -> str:
    rows = [
        f"<tr><th><code>{escape(one['name'])}</code></th><td>{', '.join(_limits(one['schema']))}</td>"
        f"<td>{escape(one.get('description', ''))}</td></tr>"
        for one in route.get("parameters", [])
    ]
    if "requestBody" in route:
        rows.append("<tr><th><code>image</code></th><td>a file</td><td>In the body, as multipart/form-data.</td></tr>")
    return f"<table>{''.join(rows)}</table>" if rows else ""


def _limits(schema: dict[str, Any]) -> Iterator[str]:
    """What a value may be, in words."""
    for one in schema.get("anyOf", [schema]):
        if (kind := one.get("type")) not in (None, "null"):
            yield " or ".join(map(str, one["enum"])) if "enum" in one else str(kind)
        if "maximum" in one and one["maximum"] < 2**32:
            yield f"{one.get('minimum', 0)} to {one['maximum']}"
        if "maxLength" in one:
            yield f"at most {one['maxLength']} characters"
    if "default" in schema:
        yield f"{schema['default']} if not given"


def _add(app: FastAPI, path: str, content: Callable[[], bytes], media_type: str) -> None:
    async def page(request: Request) -> Response:
        body = content()
        tag = images.tag_of(body)
        headers = images.caching(tag) | {"Content-Security-Policy": POLICY}
        if images.is_known(tag, request.headers.get("if-none-match", "")):
            return Response(status_code=304, headers=headers)
        return Response(body, media_type=media_type, headers=headers)

    app.add_api_route(path, page, methods=["GET", "HEAD"], include_in_schema=False)
