"""API keys: who is answered."""

from __future__ import annotations

from dataclasses import replace

import pytest
import served
from starlette.testclient import TestClient

from dcdctl.core.errors import ConfigError
from dcdctl.core.search import IndexSearcher
from dcdctl.core.serve import ServiceConfig, keys

OLD, NEW, WRONG = "the-old-key-0123456789", "the-new-key-0123456789", "the-new-key-012345678x"
CONFIG = ServiceConfig()


@pytest.fixture(scope="module")
def client(searcher) -> TestClient:
    """A client of a service whose counts no test reads."""
    return client_of(searcher)


def client_of(searcher: IndexSearcher, config: ServiceConfig = CONFIG) -> TestClient:
    return served.client_of(searcher, config, keys=keys.Keys(f"{OLD},{NEW}"))


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
    assert [client.get(path).status_code for path in ("/health", "/live", "/metrics")] == [200, 200, 401]
    assert client_of(searcher, replace(CONFIG, metrics_without_key=True)).get("/metrics").status_code == 200
    assert client.get("/metrics", headers={"X-API-Key": NEW}).status_code == 200


@pytest.mark.parametrize("address", [f"/search?text=a&api_key={NEW}", f"/health?key={OLD}", f"/search?text={NEW}"])
def test_a_key_in_an_address_is_refused_even_beside_a_right_one(client, address):
    answer = client.get(address, headers={"X-API-Key": NEW})
    assert answer.status_code == 400
    assert "a key must not be in one" in answer.json()["error"]
    assert NEW not in answer.text


def test_refused_keys_are_counted_by_reason(searcher):
    client = client_of(searcher)
    for headers in ({}, {"X-API-Key": WRONG}):
        answer = client.get("/", headers=headers)
        assert (answer.status_code, WRONG in answer.text) == (401, False)
    metrics = client.get("/metrics", headers={"X-API-Key": OLD}).text
    for reason in ("wrong key", "no key"):
        assert f'dcdctl_rejected_total{{reason="{reason}"}} 1.0' in metrics


def test_a_proxy_adds_the_key_of_a_browser(client):
    """It may pass on the password that it has checked."""
    headers = {"Authorization": "Basic YWxpY2U6c2VjcmV0", "X-API-Key": NEW}
    for address in ("/", "/search.js", "/search?text=a", "/image/0", "/docs"):
        assert client.get(address, headers=headers).status_code == 200


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
def test_weak_keys_are_refused_and_not_shown(text, message, monkeypatch):
    monkeypatch.setenv("DCDCTL_API_KEY", text)
    with pytest.raises(ConfigError, match=message) as raised:
        keys.Keys.from_environment()
    assert not text or text not in str(raised.value)
    assert OLD not in repr(keys.Keys(OLD))
