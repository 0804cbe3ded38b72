"""API keys: who is answered."""

from __future__ import annotations

import logging
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import httpx2
import pytest
import served
from processes import TIMEOUT_S
from starlette.testclient import TestClient

from dcdctl.core.errors import ConfigError
from dcdctl.core.search import IndexSearcher
from dcdctl.core.serve import ServiceConfig, app, keys, logs

OLD, NEW, WRONG = "the-old-key-0123456789", "the-new-key-0123456789", "the-new-key-012345678x"
CONFIG = ServiceConfig(max_wrong_keys=10**6)
"""Tests share a client, and most of them send wrong keys."""


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


def test_health_needs_no_key_and_metrics_do(client):
    assert [client.get(path).status_code for path in ("/health", "/live", "/metrics")] == [200, 200, 401]
    assert client.get("/metrics", headers={"X-API-Key": NEW}).status_code == 200


ENCODED = "".join(f"%{ord(char):02x}" for char in NEW)
WITH_KEY = (
    *(f"/search?text=a&api_key={NEW}", f"/search?text={OLD}", f"/search?text=key:+{ENCODED}.", f"/search?{NEW}"),
    *(f"/search/{NEW}", f"/images/{NEW}.jpg", f"/images/{ENCODED}.jpg", f"/image/{ENCODED.replace('%', '%25')}"),
)
"""Addresses with a key, also percent-encoded, once and twice."""


@pytest.mark.parametrize("address", [*WITH_KEY, f"/health?key={NEW}", f"/live/{NEW}"])
def test_a_key_in_an_address_is_in_no_log_and_in_no_metric(searcher, logged, address):
    logged.set_level(logging.INFO, logger="dcdctl.access")
    config = replace(CONFIG, access_log=True)
    one, full = client_of(searcher, config), client_of(searcher, replace(config, max_header_bytes=1))
    sent = {"Authorization": f"Bearer {NEW}"}
    for headers in (sent, {**sent, "Host": "evil.example"}, {}, {"X-API-Key": WRONG}):
        one.get(address, headers=headers)
    full.get(address, headers=sent)
    written = "".join(map(logs.TextFormatter().format, logged.records))
    assert written.count(" request ") == 5
    for secret in (NEW, OLD, ENCODED, ENCODED.replace("%", "%25"), "Bearer", WRONG):
        assert secret not in written + one.get("/metrics", headers={"X-API-Key": NEW}).text


def test_an_error_in_a_request_logs_no_header(searcher, logged, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(IndexSearcher, "by_texts", fail)
    sent = {"Authorization": f"Bearer {NEW}"}
    assert client_of(searcher).get("/search?text=a", headers=sent).status_code == 500
    assert "a bug" in logged.text
    assert NEW not in logged.text


GUARDED = ServiceConfig(max_wrong_keys=3)


def test_an_address_that_sends_wrong_keys_waits_a_minute_and_others_do_not(searcher, monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(keys, "time", SimpleNamespace(monotonic=lambda: clock.now))
    service = app.build(searcher, GUARDED, keys=keys.Keys(NEW))

    def status(key: str, address: str = "192.0.2.1") -> int:
        client = TestClient(service, base_url="http://localhost", client=(address, 50_000))
        answer = client.get("/search?text=a", headers={"X-API-Key": key})
        if answer.status_code == 429:
            assert answer.headers["retry-after"] == str(math.ceil(1060 - clock.now))
            assert "too many wrong keys" in answer.json()["error"]
        assert client.get("/health", headers={"X-API-Key": key}).status_code == 200
        return answer.status_code

    # Missing keys and right ones do not count.
    sent = ("", "", "", "", WRONG, NEW, WRONG, NEW, WRONG)
    assert [status(key) for key in sent] == [200 if key == NEW else 401 for key in sent]
    assert [status(WRONG), status(NEW), status("")] == [429] * 3
    assert [status(NEW, "192.0.2.2"), status(WRONG, "192.0.2.2")] == [200, 401]
    clock.now = 1059.5
    assert status(NEW) == 429
    clock.now = 1060.5
    assert [status(NEW), status(WRONG)] == [200, 401]
    metrics = TestClient(service, base_url="http://localhost").get("/metrics", headers={"X-API-Key": NEW}).text
    assert 'dcdctl_rejected_total{reason="too many wrong keys"} 4.0' in metrics


def test_wrong_keys_of_more_than_a_minute_ago_do_not_count(monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(keys, "time", SimpleNamespace(monotonic=lambda: clock.now))
    wrong = keys.WrongKeys(2)
    for _ in range(5):
        wrong.note("192.0.2.1")
        assert wrong.wait_s("192.0.2.1") == 0
        clock.now += 61


@pytest.mark.parametrize(
    ("first", "second", "is_one"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8:0:0:ffff::2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        # IPv4 clients of a service on `::`.
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("unknown", "other", False),
    ],
)
def test_the_ipv6_addresses_of_one_network_count_as_one(first, second, is_one):
    wrong = keys.WrongKeys(1)
    wrong.note(first)
    assert (wrong.wait_s(first), wrong.wait_s(second)) == (60, 60 * is_one)


def test_remembered_addresses_are_bounded_and_the_latest_stay(monkeypatch):
    monkeypatch.setattr(keys, "MAX_ADDRESSES", 3)
    wrong = keys.WrongKeys(2)
    for address in "abcadeab":
        wrong.note(address)
    assert [wrong.wait_s(address) > 0 for address in "abcde"] == [True, *4 * [False]]


def test_behind_a_proxy_on_this_machine_wrong_keys_are_of_the_address_that_it_forwards(searcher):
    with served.serving(app.build(searcher, GUARDED, keys=keys.Keys(NEW))) as url:

        def status(key: str, address: str) -> int:
            sent = {"X-API-Key": key, "X-Forwarded-For": address}
            return httpx2.get(f"{url}/search?text=a", headers=sent, timeout=TIMEOUT_S).status_code

        assert [status(WRONG, "192.0.2.1") for _ in range(4)] == [401, 401, 401, 429]
        assert [status(NEW, "192.0.2.1"), status(NEW, "192.0.2.2")] == [429, 200]


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


def test_a_refused_key_and_an_accepted_one_are_not_shown(monkeypatch):
    monkeypatch.setenv("DCDCTL_API_KEY", f"{OLD},a secret of 20 letters")
    with pytest.raises(ConfigError) as raised:
        keys.Keys.from_environment()
    assert not {OLD, "secret"} & set(re.findall(r"[\w-]+", str(raised.value)))
    assert OLD not in repr(keys.Keys(OLD))
