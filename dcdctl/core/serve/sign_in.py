"""Requests without a key are answered here: by an error for programs, and by a sign-in page for browsers.

A program sends its key with each request. A browser signs in once: a form sends the key, and a cookie keeps the
session. The page and its images then need no script for it, and no script, no address and no history ever holds the
key.
"""

from __future__ import annotations

import re
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode

from fastapi import APIRouter
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from dcdctl.core import templates
from dcdctl.core.serve.config import ServiceConfig
from dcdctl.core.serve.keys import Keys, session_of
from dcdctl.core.serve.metrics import Metrics
from dcdctl.core.serve.pages import POLICY

COOKIE = "dcdctl_session"
OPEN_PATHS = ("/health", "/healthz", "/live", "/login", "/search.css", "/search.svg")
"""Paths that need no key: health checks, and what the sign-in page needs."""
PAGES = ("/", "/docs")
"""Paths where a browser without a session gets the sign-in page."""
NAMES_IN_URLS = (
    "key",
    "apikey",
    "xapikey",
    "accesskey",
    "accesstoken",
    "authtoken",
    "token",
    "bearer",
    "authorization",
    "password",
)
"""Names of parameters, in small letters without hyphens, by which programs send keys in addresses."""
MAX_NEXT_CHARS = 2000
REALM = {"WWW-Authenticate": 'Bearer realm="dcdctl"'}
KEY_IN_URL = (
    "addresses are logged and shared, so a key must not be in one: send the header Authorization: Bearer "
    "KEY, and replace this key"
)
NO_KEY = "a key is required: send the header Authorization: Bearer KEY, or sign in on the search page"


class KeyMiddleware:
    """An ASGI app around another that answers requests without a key itself."""

    def __init__(self, app: ASGIApp, keys: Keys, config: ServiceConfig, metrics: Metrics) -> None:
        self._app, self._keys, self._config, self._metrics = app, keys, config, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._refusal(scope) if scope["type"] == "http" else None
        await (answer or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        if self._has_key_in_url(scope):
            self._metrics.rejected("key in the address")
            return JSONResponse({"error": KEY_IN_URL}, status_code=400)
        path = scope["path"]
        if path in OPEN_PATHS or (path == "/metrics" and self._config.metrics_without_key):
            return None
        headers = Headers(scope=scope)
        sent = _key_of(headers)
        if self._keys.accept(sent) if sent else self._keys.accept_session(_session_of(headers)):
            return None
        self._metrics.rejected("wrong key" if sent else "no key")
        if path in PAGES and not sent:
            return sign_in_page(scope["query_string"].decode("latin-1") if path == "/" else "")
        error = "this key is not accepted" if sent else NO_KEY
        return JSONResponse({"error": error}, status_code=401, headers=REALM)

    def _has_key_in_url(self, scope: Scope) -> bool:
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=None)
        return any(
            re.sub("[-_]", "", name.lower()) in NAMES_IN_URLS or self._keys.accept(value) for name, value in query
        )


def _key_of(headers: Headers) -> str:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def _session_of(headers: Headers) -> str:
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel is not None and re.fullmatch(r"\d{1,12}\.[0-9a-f]{64}", morsel.value) else ""


def sign_in_page(following: str = "", error: str = "") -> Response:
    """The page that asks for a key; `following` is the query of the page that opens then."""
    html = templates.render("search-login.html", following=following[:MAX_NEXT_CHARS], error=error)
    return HTMLResponse(html, status_code=401, headers={**REALM, "Content-Security-Policy": POLICY})


def sign_in_routes(keys: Keys, config: ServiceConfig, metrics: Metrics) -> APIRouter:
    """The sign-in page, and where its form goes."""
    router = APIRouter(include_in_schema=False)

    @router.get("/login")
    async def page() -> Response:
        return sign_in_page()

    @router.post("/login")
    async def sign_in(request: Request) -> Response:
        async with request.form(max_files=0, max_fields=2) as form:
            key, following = (str(form.get(name, ""))[:MAX_NEXT_CHARS] for name in ("key", "next"))
        if not keys.accept(key.strip()):
            metrics.rejected("wrong key")
            return sign_in_page(following, "This key is not accepted.")
        # Relative, so that the service can be below a path, and never to another host.
        query = urlencode(parse_qsl(following))
        response = RedirectResponse(f"./?{query}" if query else "./", status_code=303)
        response.set_cookie(
            COOKIE,
            session_of(key.strip(), config.session_s),
            max_age=config.session_s,
            # The folder of this address: other programs on the host do not get the cookie.
            path=None,
            secure=request.url.scheme == "https",
            httponly=True,
            # Links from elsewhere open the page; other sites can neither read responses nor send searches.
            samesite="lax",
        )
        return response

    return router
