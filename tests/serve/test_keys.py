"""API keys: who is answered, and what a browser needs for it."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from urllib.parse import quote

import pytest
import served
from html_page import Page
from starlette.testclient import TestClient

from dcdctl.core.errors import ConfigError
from dcdctl.core.search import IndexSearcher
from dcdctl.core.serve import ServiceConfig, app, keys
from dcdctl.core.serve.middleware import LimitsMiddleware

OLD, NEW, WRONG = "the-old-key-0123456789", "the-new-key-0123456789", "the-new-key-012345678x"
CONFIG = ServiceConfig(session_s=60)


@pytest.fixture(scope="module")
def searcher(tmp_path_factory) -> IndexSearcher:
    return served.make(tmp_path_factory.mktemp("keys") / "all").searcher


@pytest.fixture(scope="module")
def service(searcher) -> LimitsMiddleware:
    """A service whose counts no test reads."""
    return app.build(searcher, CONFIG, keys=keys.Keys.of(f"{OLD},{NEW}"))


@pytest.fixture
def client(service) -> TestClient:
    """A browser without cookies."""
    return browser_of(service)


def browser_of(service: LimitsMiddleware, base_url: str = "http://localhost") -> TestClient:
    return TestClient(service, base_url=base_url, raise_server_exceptions=False, follow_redirects=False)


def client_of(searcher: IndexSearcher, config: ServiceConfig = CONFIG, text: str = f"{OLD},{NEW}") -> TestClient:
    return browser_of(app.build(searcher, config, keys=keys.Keys.of(text)))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        *(({"Authorization": f"Bearer {key}"}, 200) for key in (OLD, NEW)),
        *(({"X-API-Key": key}, 200) for key in (OLD, NEW)),
        ({"Authorization": f"bearer {NEW}"}, 200),
        *(({"X-API-Key": key}, 401) for key in (WRONG, NEW[:-1], NEW + "9", "", f"{OLD},{NEW}")),
        ({"Authorization": f"Basic {NEW}"}, 401),
        ({"Authorization": NEW}, 401),
        ({"Cookie": f"dcdctl_session={NEW}"}, 401),
    ],
)
def test_a_search_needs_one_of_the_keys_in_a_header(client, headers, status):
    for address in ("/search?text=a+bus", "/image/0", "/openapi.json"):
        answer = client.get(address, headers=headers)
        assert answer.status_code == status
        if status == 401:
            assert list(answer.json()) == ["error"]
            assert answer.headers["www-authenticate"].startswith("Bearer")


def test_health_needs_no_key_and_metrics_only_if_the_settings_say_so(client, searcher):
    assert [client.get(path).status_code for path in ("/health", "/healthz", "/live", "/metrics")] == [
        200,
        200,
        200,
        401,
    ]
    assert client_of(searcher, replace(CONFIG, metrics_without_key=True)).get("/metrics").status_code == 200
    assert client.get("/metrics", headers={"X-API-Key": NEW}).status_code == 200


@pytest.mark.parametrize(
    "address", [f"/search?text=a&api_key={NEW}", "/search?text=a&key=", "/health?X-Api-Key=a", f"/search?text={NEW}"]
)
def test_a_key_in_an_address_is_refused_even_beside_a_right_one(client, address):
    answer = client.get(address, headers={"X-API-Key": NEW})
    assert answer.status_code == 400
    assert "a key must not be in one" in answer.json()["error"]
    assert NEW not in answer.text


def sign_in(client: TestClient, key: str, following: str = "", **headers: str):
    return client.post("/login", data={"key": key, "next": following}, headers=headers)


def test_a_browser_signs_in_once_and_then_sees_the_page_it_asked_for(client):
    first = client.get("/?q=a+red+bus&where=year+%3E+3")
    form = Page(first.text)
    assert (first.status_code, form.all("form")[0]["action"]) == (401, "login")
    assert {one["name"]: one.get("value") for one in form.all("input")} == {
        "key": None,
        "next": "q=a+red+bus&where=year+%3E+3",
    }
    assert client.get("/search.css").status_code == 200
    answer = sign_in(client, f" {NEW} ", "q=a+red+bus&where=year+%3E+3")
    assert (answer.status_code, answer.headers["location"]) == (303, "./?q=a+red+bus&where=year+%3E+3")
    cookie = answer.headers["set-cookie"]
    assert re.fullmatch(r"dcdctl_session=\d+\.[0-9a-f]{64}; HttpOnly; Max-Age=60; SameSite=lax", cookie)
    assert NEW not in cookie
    for address in ("/", "/search.js", "/search?text=a", "/image/0", "/docs"):
        assert client.get(address).status_code == 200


def test_a_cookie_over_https_is_sent_over_https_only(service):
    assert "; Secure" in sign_in(browser_of(service, "https://localhost"), OLD).headers["set-cookie"]


@pytest.mark.parametrize(
    "following", ["//evil.example", "https://evil.example/", "q=a\r\nX-Injected: 1", "q=" + 3000 * "a"]
)
def test_signing_in_never_leads_elsewhere(client, following):
    answer = sign_in(client, OLD, following)
    assert answer.headers["location"].startswith("./")
    assert "x-injected" not in answer.headers
    assert quote("q=a\r\nX-Injected") not in answer.headers["location"]


def test_a_wrong_key_is_refused_and_what_it_was_is_not_shown(searcher):
    client = client_of(searcher)
    answer = sign_in(client, WRONG, 'q="><script>')
    assert (answer.status_code, answer.headers.get("set-cookie")) == (401, None)
    assert "This key is not accepted." in answer.text
    assert WRONG not in answer.text
    assert "<script>" not in answer.text
    assert client.get("/search?text=a").status_code == 401
    metrics = client.get("/metrics", headers={"X-API-Key": OLD}).text
    assert 'dcdctl_rejected_total{reason="wrong key"} 1.0' in metrics
    assert 'dcdctl_rejected_total{reason="no key"} 1.0' in metrics


def test_a_session_ends_with_its_time_with_its_key_and_by_any_change(searcher, monkeypatch):
    def status(cookie: str, accepted: str = f"{OLD},{NEW}") -> int:
        return (
            client_of(searcher, text=accepted)
            .get("/search?text=a", headers={"Cookie": f"dcdctl_session={cookie}"})
            .status_code
        )

    cookie = keys.session_of(NEW, 60)
    ends, signature = cookie.split(".")
    assert (status(cookie), status(cookie, NEW), status(cookie, OLD)) == (200, 200, 401)
    assert status(f"{int(ends) + 1}.{signature}") == 401
    assert status(f"{ends}.{signature[:-1]}{'0' if signature[-1] != '0' else '1'}") == 401
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert status(cookie) == 401


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "key 1 of DCDCTL_API_KEY has 0 characters, at least 16"),
        ("short", "key 1 of DCDCTL_API_KEY has 5 characters"),
        (f"{OLD},", "key 2 of DCDCTL_API_KEY has 0 characters"),
        ("sixteen letters and more", "has spaces or characters outside ASCII"),
        (16 * "\N{LATIN SMALL LETTER E WITH ACUTE}", "has spaces or characters outside ASCII"),
    ],
)
def test_weak_keys_are_refused_and_not_shown(text, message):
    with pytest.raises(ConfigError, match=message) as raised:
        keys.Keys.from_environment({"DCDCTL_API_KEY": text})
    assert not text or text not in str(raised.value)
    assert keys.Keys.from_environment({}) is None
    assert OLD not in repr(keys.Keys.of(OLD))
