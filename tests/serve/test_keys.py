"""API keys: who is answered."""

from __future__ import annotations

import pytest
import served
from starlette.testclient import TestClient

from dcdctl.core.errors import ConfigError
from dcdctl.core.search import IndexSearcher
from dcdctl.core.serve import ServiceConfig, keys

OLD, NEW, WRONG = "the-old-key-0123456789", "the-new-key-0123456789", "the-new-key-012345678x"


@pytest.fixture(scope="module")
def client(searcher) -> TestClient:
    """A client of a service whose counts no test reads."""
    return client_of(searcher)


def client_of(searcher: IndexSearcher) -> TestClient:
    return served.client_of(searcher, ServiceConfig(), keys=keys.Keys(f"{OLD},{NEW}"))


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


def test_health_needs_no_key_and_metrics_do(client):
    assert [client.get(path).status_code for path in ("/health", "/live", "/metrics")] == [200, 200, 401]
    assert client.get("/metrics", headers={"X-API-Key": NEW}).status_code == 200


def test_an_error_in_a_request_logs_no_header(searcher, logged, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(IndexSearcher, "by_texts", fail)
    sent = {"Authorization": f"Bearer {NEW}"}
    assert client_of(searcher).get("/search?text=a", headers=sent).status_code == 500
    assert "a bug" in logged.text
    assert NEW not in logged.text


def test_a_key_in_an_address_is_not_read(client):
    for headers in ({}, {"X-API-Key": WRONG}):
        assert client.get(f"/search?text=a&api_key={NEW}", headers=headers).status_code == 401


@pytest.mark.parametrize("place", range(32))
def test_a_key_is_compared_by_its_whole_digest(place):
    """Keys of equal parts of digests cannot be found, so the stored digest is changed in one byte."""
    known = keys.Keys(OLD)
    (digest,) = known._digests
    assert len(digest) == 32
    changed = bytearray(digest)
    changed[place] ^= 1
    known._digests = (bytes(changed),)
    assert not known.accept(OLD)


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
    for address in ("/", "/search.js", "/search?text=a", "/image/0"):
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
