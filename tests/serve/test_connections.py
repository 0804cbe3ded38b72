"""Clients that are slow, silent or not HTTP, and a real server on loopback that keeps answering the others."""

from __future__ import annotations

import json
import logging
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from urllib.parse import urlsplit

import httpx2
import pytest
import served
from processes import TIMEOUT_S
from starlette.types import Receive, Scope, Send

from dcdctl.core.search import IndexSearcher
from dcdctl.core.serve import Job, ServiceConfig, child, connections, logs, serve
from dcdctl.core.serve import app as serve_app
from dcdctl.core.serve import listener as sockets
from dcdctl.core.serve.metrics import Metrics
from dcdctl.core.serve.middleware import LimitsMiddleware

HASTY_S = 0.2
PATIENT = ServiceConfig(max_header_s=TIMEOUT_S, max_idle_s=TIMEOUT_S, max_send_s=TIMEOUT_S, max_upload_s=TIMEOUT_S)
"""All deadlines are longer than a test, also on a busy machine."""
UPLOAD = (
    b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; "
    b"boundary=x\r\nContent-Length: 1000\r\n\r\n--x\r\n"
)


@contextmanager
def serving(searcher: IndexSearcher, config: ServiceConfig) -> Iterator[tuple[str, int]]:
    """The address of a real server for the searcher."""
    with served.serving(serve_app.build(searcher, config), config) as url:
        yield urlsplit(url).hostname, urlsplit(url).port


def get(address: tuple[str, int], path: str) -> httpx2.Response:
    return httpx2.get(f"http://{address[0]}:{address[1]}{path}", timeout=TIMEOUT_S, verify=False)


def rejected(address: tuple[str, int], reason: str) -> int:
    lines = [
        line for line in get(address, "/metrics").text.splitlines() if f'rejected_total{{reason="{reason}"}}' in line
    ]
    return int(float(lines[0].split()[-1])) if lines else 0


def is_closed(client: socket.socket) -> bool:
    """Whether the server closes the connection before the test gives up."""
    client.settimeout(TIMEOUT_S)
    try:
        while client.recv(2**16):
            pass
    except ConnectionError:
        pass
    return True


@contextmanager
def sending(client: socket.socket, data: bytes, every_s: float = HASTY_S / 20) -> Iterator[None]:
    """Send one byte after the other while the block runs, until the server closes the connection."""
    ends = threading.Event()

    def send() -> None:
        for number in range(10**6):
            if ends.wait(every_s):
                return
            try:
                client.sendall(data[number % len(data) :][:1])
            except OSError:
                return

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()


def test_more_slow_clients_than_connections_do_not_keep_others_out(searcher, made):
    config = replace(PATIENT, max_connections=12, max_requests=4)
    with ExitStack() as stack:
        address = stack.enter_context(serving(searcher, config))
        attackers = [stack.enter_context(socket.create_connection(address)) for _ in range(40)]
        for attacker in attackers:
            attacker.sendall(b"GET /search?text=a HTTP/1.1\r\nHost: localhost\r\nX-")
        photo = (made.photos / "07.png").read_bytes()
        for _ in range(3):
            assert get(address, "/health").status_code == 200
            assert get(address, "/search?text=a+bus").status_code == 200
            url = f"http://{address[0]}:{address[1]}/search"
            assert (
                httpx2.post(url, files={"image": ("a.png", photo)}, timeout=TIMEOUT_S, verify=False).status_code == 200
            )
        assert rejected(address, "too many connections") >= 40 - config.max_connections
        open_now = next(
            line for line in get(address, "/metrics").text.splitlines() if line.startswith("dcdctl_connections")
        )
        assert 1 <= float(open_now.split()[-1]) <= config.max_connections
        # The oldest were closed, without an answer.
        assert all(map(is_closed, attackers[:20]))


def test_while_all_requests_are_in_progress_health_answers_and_others_are_refused(searcher):
    held = served.HeldSearcher.of(searcher)
    config = replace(PATIENT, max_connections=12, max_requests=4, max_waiting=10)
    with ExitStack() as stack:
        address = stack.enter_context(serving(held, config))
        # The server's threads end when the searches do.
        stack.callback(held.may_end.set)
        busy = [stack.enter_context(socket.create_connection(address)) for _ in range(12)]
        for client in busy:
            client.sendall(b"GET /search?text=a HTTP/1.1\r\nHost: localhost\r\n\r\n")
        held.begun.wait(TIMEOUT_S)
        silent = [stack.enter_context(socket.create_connection(address)) for _ in range(20)]
        assert get(address, "/health").status_code == 200
        assert get(address, "/search?text=b").status_code == 503
        held.may_end.set()
        statuses = []
        for client in busy:
            client.settimeout(TIMEOUT_S)
            # A connection that is closed with a request unread is reset.
            with suppress(ConnectionResetError):
                statuses.append(client.recv(12)[-3:])
        assert statuses.count(b"200") == config.max_requests
        assert set(statuses) <= {b"200", b"503", b""}
        assert all(map(is_closed, silent[:8]))


WAITING: dict[str, tuple[dict[str, float], bytes, bytes]] = {
    "sends nothing": ({"max_header_s": HASTY_S}, b"", b""),
    "sends a byte of a header from time to time": ({"max_header_s": HASTY_S}, b"GET / HTTP/1.1\r\nX-Slow: ", b"a"),
    "is slow with the second request": (
        {"max_header_s": HASTY_S, "max_idle_s": TIMEOUT_S},
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2 + b"GET / HTTP/1.1\r\nX-Slow: ",
        b"a",
    ),
    "trickles a body that no route reads": (
        {"max_upload_s": HASTY_S / 2},
        b"POST /nope HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n",
        b"a",
    ),
}


@pytest.mark.parametrize("what", WAITING)
def test_a_client_is_disconnected_when_its_request_does_not_arrive_in_time(searcher, monkeypatch, what):
    monkeypatch.setattr(connections, "UPLOAD_GRACE_S", 0.0)
    settings, head, rest = WAITING[what]
    with serving(searcher, replace(PATIENT, **settings)) as address, socket.create_connection(address) as client:
        client.sendall(head)
        with sending(client, rest or b"?") if rest else ExitStack():
            assert is_closed(client)
        assert rejected(address, "request too slow") == 1


def test_an_upload_that_trickles_is_answered_408_and_disconnected(searcher):
    with (
        serving(searcher, replace(PATIENT, max_upload_s=HASTY_S)) as address,
        socket.create_connection(address) as client,
    ):
        client.sendall(UPLOAD)
        client.settimeout(TIMEOUT_S)
        with sending(client, b"-"):
            assert client.recv(12) == b"HTTP/1.1 408"
            assert is_closed(client)
        assert rejected(address, "upload too slow") == 1


def test_an_idle_connection_is_closed_after_a_while(searcher):
    with (
        serving(searcher, replace(PATIENT, max_idle_s=HASTY_S)) as address,
        socket.create_connection(address) as client,
    ):
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert is_closed(client)
        assert rejected(address, "request too slow") == 0


def large_answer(config: ServiceConfig, num_bytes: int) -> LimitsMiddleware:
    """An app whose answers are larger than what the system buffers."""

    async def answer(_: Scope, __: Receive, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(num_bytes).encode())]}
        )
        await send({"type": "http.response.body", "body": bytes(num_bytes)})

    return LimitsMiddleware(answer, config, Metrics())


@pytest.mark.parametrize("num_requests", [1, 3])
def test_a_client_that_does_not_read_the_answer_is_disconnected(num_requests):
    num_bytes, config = 32 * 2**20, replace(PATIENT, max_send_s=HASTY_S)
    app = large_answer(config, num_bytes)
    with served.serving(app, config) as url:
        address = (urlsplit(url).hostname, urlsplit(url).port)
        with socket.create_connection(address) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * num_requests)
            until(lambda: 'reason="answer read too slowly"} 1.0' in app.metrics.text().decode())
            # What the system had buffered is all that arrives.
            client.settimeout(TIMEOUT_S)
            assert sum(map(len, received(client))) < num_bytes
        until(lambda: "dcdctl_connections 0.0" in app.metrics.text().decode())
        until(
            lambda: "dcdctl_requests_in_flight 0.0" in app.metrics.text().decode()
        )  # the task ends after its connection


def test_too_many_clients_that_do_not_read_their_answers_do_not_keep_others_out():
    config = replace(PATIENT, max_connections=10, max_requests=2)
    app = large_answer(config, 16 * 2**20)
    with served.serving(app, config) as url, ExitStack() as stack:
        address = (urlsplit(url).hostname, urlsplit(url).port)
        for _ in range(12):
            client = stack.enter_context(socket.create_connection(address))
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.1 200"
        assert httpx2.get(url, timeout=TIMEOUT_S, verify=False).status_code == 200


def received(client: socket.socket) -> Iterator[bytes]:
    """What arrives until the connection is closed or reset."""
    try:
        while data := client.recv(2**20):
            yield data
    except ConnectionError:
        return


def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds; AssertionError if it does not soon."""
    ends = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_a_stopped_service_answers_for_its_drain_time_and_health_sends_clients_elsewhere(searcher):
    config = replace(PATIENT, drain_s=TIMEOUT_S)
    app = serve_app.build(searcher, config)
    with sockets.bound("127.0.0.1", 0) as listener:
        server = sockets.http_server(app, config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            until(lambda: server.started)
            address = listener.getsockname()
            assert (get(address, "/health").status_code, get(address, "/health").headers.get("connection")) == (
                200,
                None,
            )
            server.should_exit = True
            until(lambda: get(address, "/health").status_code == 503)
            answer = get(address, "/search?text=a+bus")
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")
            # A balancer must not restart what is about to end.
            assert (get(address, "/health").json()["status"], get(address, "/live").status_code) == ("stopping", 200)
        finally:
            server.should_exit = server.force_exit = True
            thread.join()


def test_a_stopped_service_ends_when_its_drain_time_is_over(searcher):
    config = replace(PATIENT, drain_s=3 * HASTY_S)
    with sockets.bound("127.0.0.1", 0) as listener:
        server = sockets.http_server(serve_app.build(searcher, config), config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        until(lambda: server.started)
        # An answer too, because a service that is stopped before it waits for requests ends at once.
        assert get(listener.getsockname(), "/health").status_code == 200
        begun = time.monotonic()
        server.should_exit = True
        thread.join(TIMEOUT_S)
    assert 3 * HASTY_S <= time.monotonic() - begun < TIMEOUT_S


NOT_HTTP = {
    "a request line of 1 MB": b"GET /" + b"a" * 10**6 + b" HTTP/1.1\r\n\r\n",
    "control characters": b"GET /\x1b[2J\x07 HTTP/1.1\r\nHost: \x1b]0;x\x07\r\n\r\n",
    "a length of 5000 digits": b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
    + b"9" * 5000
    + b"\r\n\r\n",
    "a wrong chunk": UPLOAD.replace(b"Content-Length: 1000", b"Transfer-Encoding: chunked") + b"nonsense\r\n",
    "another protocol": b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: \x09h2c\r\nX: "
    b"1\r\n\r\nnonsense\r\n\r\n",
}


@pytest.mark.parametrize("what", NOT_HTTP)
def test_malformed_requests_are_counted_and_not_logged(searcher, logged, capfd, what):
    logged.set_level(logging.WARNING)
    with serving(searcher, PATIENT) as address, socket.create_connection(address) as client:
        with suppress(ConnectionError):
            client.sendall(NOT_HTTP[what])
        assert is_closed(client)
        assert rejected(address, "not HTTP") == 1
    assert logged.text == ""
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("route", [b"GET /health", b"POST /search?text=a", b"GET /nope?" + 1000 * b"a"])
def test_a_request_of_two_lengths_is_refused_and_ends_its_connection(searcher, route):
    """RFC 9112, 6.1: for a proxy that believes the other length, the rest is the answer to someone else."""
    body, smuggled = b"5\r\nimage\r\n0\r\n\r\n", b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    start, chunked = route + b" HTTP/1.1\r\nHost: localhost\r\n", b"Transfer-Encoding: chunked\r\n"
    with serving(searcher, replace(PATIENT, max_header_bytes=1000)) as address:
        for length in (b"Content-Length: 15\r\n", b"Content-Length: 0\r\n", b"content-length: 99\r\n"):
            for fields in (length + chunked, chunked + length):
                with socket.create_connection(address, TIMEOUT_S) as client:
                    client.sendall(start + fields + b"\r\n" + body + smuggled)
                    answer = b"".join(iter(lambda client=client: client.recv(2**16), b""))
                assert answer.count(b"HTTP/1.1 ") == 1
                assert answer.startswith(b"HTTP/1.1 400 ")
                assert b"\r\nconnection: close\r\n" in answer.lower()
                assert b"Content-Length or Transfer-Encoding, and not both" in answer
        assert rejected(address, "two lengths") == 6
        # Either alone is answered, and the connection stays.
        with socket.create_connection(address, TIMEOUT_S) as client:
            for request in (start + chunked + b"\r\n" + body, start + b"Content-Length: 0\r\n\r\n", smuggled):
                client.sendall(request)
                assert b"connection: close" not in client.recv(2**16).lower()


def test_a_malformed_upload_is_answered_and_not_logged(made, searcher, logged, monkeypatch):
    logged.set_level(logging.NOTSET, logger="python_multipart")
    client, answers = served.client_of(searcher, PATIENT), []
    sent = {"Content-Type": "multipart/form-data; boundary=x"}
    monkeypatch.setattr(
        child, "run", lambda *_: answers.append(client.post("/search", content=b"--y\r\n", headers=sent))
    )
    serve(Job(str(made.index), ServiceConfig(port=0), device="cpu"), on_start=print)
    assert [answer.status_code for answer in answers] == [400]
    assert logged.text == ""


def test_an_address_that_arrives_at_once_and_is_too_long_is_refused(searcher):
    with serving(searcher, replace(PATIENT, max_header_bytes=1000)) as address:
        answer = get(address, f"/search?text={1000 * 'a'}")
        assert (answer.status_code, answer.json()["error"]) == (414, "the address is too long")
        assert rejected(address, "address too long") == 1


def test_log_records_are_bounded_and_have_no_control_characters():
    try:
        raise ValueError("\x1b[2J" + "a" * 10**6)
    except ValueError:
        error = sys.exc_info()
    record = logging.LogRecord(
        "uvicorn.error", logging.ERROR, "x.py", 1, "failed: %s\n", ("one\ntwo\x07\u202e",), error
    )
    text = logs.TextFormatter().format(record)
    assert text.startswith("failed: one\\ntwo\\x07\\u202e\nTraceback")
    assert len(text) < logs.MAX_RECORD_CHARS + 10
    assert text.endswith("aaa")
    assert all(char.isprintable() or char == "\n" for char in text)


def test_a_log_of_requests_has_neither_their_queries_nor_their_paths(searcher, logged):
    logged.set_level(logging.INFO, logger="dcdctl.access")
    with serving(searcher, replace(PATIENT, access_log=True)) as address:
        get(address, "/search?text=secret&k=2")
        get(address, "/%0a%1b[2Jx" + 1000 * "y")
        until(lambda: len(logged.records) == 2)
    first, second = (logs.TextFormatter().format(record) for record in logged.records)
    assert re.fullmatch(r"\S+Z request method=GET route=/search status=200 ms=[\d.]+ client=127.0.0.1", first)
    assert "route=other status=404" in second
    assert "y" not in second


@pytest.mark.parametrize("access_log", [True, False])
def test_requests_are_written_to_stderr_on_request(searcher, capsys, monkeypatch, access_log):
    config = replace(PATIENT, access_log=access_log)
    client = served.client_of(searcher, config)
    with monkeypatch.context() as patch:
        patch.setattr(logging.root, "handlers", [])
        with logs.to_stderr(config):
            client.get("/search?text=a+bus")
    assert capsys.readouterr().err.count("route=/search status=200") == access_log


def test_a_log_of_requests_in_json_names_the_process(searcher, logged):
    logged.set_level(logging.INFO, logger="dcdctl.access")
    with serving(searcher, replace(PATIENT, access_log=True)) as address:
        get(address, "/search?text=a+bus")
        until(lambda: logged.records)
    (found,) = (json.loads(logs.JsonFormatter(3).format(record)) for record in logged.records)
    assert (found["status"], found["route"], found["process"]) == (200, "/search", 3)


def test_the_open_files_of_the_process_limit_connections_and_requests(monkeypatch):
    num_open = len(list(connections.OPEN_FILES.iterdir()))
    free = num_open + connections.RESERVED_FILES
    monkeypatch.setattr(connections, "open_file_limit", lambda: limit)
    limit = free + 100
    fitted = connections.fit_to_open_files(PATIENT)
    assert abs(fitted.max_connections - 50) <= 2
    assert fitted.max_requests == fitted.max_connections - connections.RESERVED_CONNECTIONS
    limit = 10**6
    assert connections.fit_to_open_files(PATIENT) == PATIENT
