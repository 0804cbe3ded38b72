"""What a service refuses: settings, keys, addresses and places before it starts, and requests, each by a status and one
line of JSON."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest
import refusals
import served
from made_index import build
from PIL import Image
from refusals import Refusal
from starlette.testclient import TestClient

from dcdctl.core.data import MAX_PIXELS
from dcdctl.core.errors import ConfigError, InputError
from dcdctl.core.serve import ServiceConfig, connections, following, keys
from dcdctl.core.serve import listener as sockets

SETTINGS = [
    ({"max_k": 0}, r"max_k must lie in \[1, .*, got 0"),
    ({"default_k": 30, "max_k": 20}, "default_k must be at most max_k 20, got 30"),
    ({"max_waiting": -1}, r"max_waiting must lie in \[0, .*, got -1"),
    ({"port": 70000}, r"port must lie in \[0, 65535\], got 70000"),
    ({"host": ""}, "host must not be empty"),
    ({"max_upload_s": 0.0}, r"max_upload_s must lie in \(0, .*, got 0"),
    ({"max_pixels": MAX_PIXELS + 1}, r"max_pixels must lie in \[1, "),
    ({"allowed_hosts": ("a.org:80",)}, "an allowed host must be a name without a port, .*, got 'a.org:80'"),
]
KEYS = [
    ("short", "key 1 of DCDCTL_API_KEY has 5 characters, at least 16 are required; make one: python"),
    ("the-old-key-0123456789,", "key 2 of DCDCTL_API_KEY has 0 characters"),
    ("sixteen letters and more", "key 1 of DCDCTL_API_KEY has spaces or characters outside ASCII; make one"),
    (16 * "\N{LATIN SMALL LETTER E WITH ACUTE}", "has spaces or characters outside ASCII"),
]


def listening(host: str):
    """Listen on the port of another program."""

    def listen():
        with ExitStack() as stack:
            other = stack.enter_context(sockets.bound("127.0.0.1", 0))
            other.listen()
            stack.enter_context(sockets.bound(host, other.getsockname()[1]))

    return listen


def with_few_files(monkeypatch):
    limit = len(list(connections.OPEN_FILES.iterdir())) + connections.RESERVED_FILES + 10
    monkeypatch.setattr(connections, "open_file_limit", lambda: limit)
    connections.fit_to_open_files(ServiceConfig())


def watch_a_corpus(made, scenes_corpus_dir, tmp_path):
    build(made.run, scenes_corpus_dir, tmp_path / "index", split="val")
    following.check_watch(str(tmp_path / "index"))


ROWS = [
    *(Refusal(f"{wrong}", lambda wrong=wrong: ServiceConfig(**wrong), ConfigError, says) for wrong, says in SETTINGS),
    *(Refusal(f"key {text}", lambda text=text: keys.Keys(text), ConfigError, says) for text, says in KEYS),
    Refusal("few open files", with_few_files, ConfigError, "files only, too few .*; raise the limit: ulimit -n 1024"),
    *(
        Refusal(f"host {host}", listening(host), InputError, rf"cannot listen on {host}, port \d+ \({says}\); --host ")
        for host, says in (
            ("127.0.0.1", "Address already in use"),
            ("no such host", "Name or service not known"),
            ("192.0.2.1", "Cannot assign requested address"),
        )
    ),
    Refusal(
        "--watch of a store",
        lambda: following.check_watch("lancedb:folder?table=photos"),
        InputError,
        "a store does not say where its image folders are; follow .*dcdctl sync INDEX",
    ),
    Refusal("--watch of a corpus", watch_a_corpus, InputError, "is of a corpus, .*; leave --watch out"),
]


@pytest.mark.parametrize("refusal", ROWS, ids=lambda row: row.what)
def test_a_refusal_names_what_is_wrong_and_what_would_be_right(refusal, request):
    refusals.check(refusal, request)


CONFIG = ServiceConfig(
    default_k=5,
    max_k=50,
    max_queries=5,
    max_text_chars=40,
    max_where_chars=60,
    max_pixels=300_000,
    thumbnail_px=100,
)


class Answer(NamedTuple):
    """A request that is refused, its status, and a pattern of what the message names."""

    what: str
    ask: Callable[[TestClient], Any]
    status: int
    names: str


def got(address: str, status: int, names: str) -> Answer:
    return Answer(address[:60], lambda client: client.get(address), status, names)


def sent(what: str, data: bytes, names: str) -> Answer:
    return Answer(what, lambda client: client.post("/search", files={"image": ("a.jpg", data)}), 400, names)


def batch(body: str, status: int, names: str) -> Answer:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    return Answer(body[:40], lambda client: client.post("/search", content=body, headers=headers), status, names)


def picture(form: str, size: tuple[int, int] = (40, 40), **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.new("L", size).save(stream, form, **options)
    return stream.getvalue()


def jpeg_of_scans(number: int) -> bytes:
    head, scan, rest = picture("JPEG", progressive=True).partition(b"\xff\xda")
    return head + scan * number + rest


TOO_LONG = "the conditions have 61 characters, at most 60 are read"
ANSWERS = [
    got("/search?q=dogs", 400, r"has no text and no row; for example /search\?text="),
    got("/search?text=dogs&not=Dogs", 400, "'Dogs' is both searched for and excluded"),
    got("/search?text=dogs&also=", 400, "the query is empty"),
    got(f"/search?text=a&also={'x' * 41}", 400, "a text has 41 characters, at most 40 are read"),
    got(f"/search?text=a{'&not=b' * 8}", 400, "has 9 texts, at most 8 are combined"),
    got("/search?text=dogs&also=cats&hybrid=true", 400, "hybrid search is for a text alone"),
    got("/search?row=0&hybrid=true", 400, "; add them with `dcdctl change INDEX --set keywords=true`$"),
    got("/search?row=99&also=cats", 404, "image 99 is not in this index"),
    got("/search?text=", 400, "the query is empty"),
    got(f"/search?text={'x' * 41}", 422, "text: String should have at most 40 characters"),
    got("/search?text=a&k=0", 422, "k: Input should be greater than or equal to 1"),
    got("/search?text=a&k=1000000000", 422, "k: Input should be less than or equal to 50"),
    got("/search?row=-1", 422, "row: Input should be greater"),
    got("/search?row=12", 404, "image 12 is not in this index, or not where it was"),
    got(f"/image/{2**63 - 1}", 404, "is not in this index, or not where it was"),
    got("/image/0?size=huge", 422, "size: Input should be 'thumbnail', 'preview' or 'original'"),
    got("/image/..%2f..%2fetc%2fpasswd", 404, "^Not Found$"),
    got("/../../etc/passwd", 404, "^Not Found$"),
    got("/search?text=a&where=yaer = 1", 400, "the condition 'yaer = 1' has the unknown column yaer; the columns are "),
    got("/search?row=0&where=1; drop table x", 400, "cannot be read near 'drop'"),
    got(f"/search?text=a&where={'x' * 61}", 400, TOO_LONG),
    got(f"/search?text=a&where={'x' * 30}&where={'x' * 31}", 400, TOO_LONG),
    got("/browse?order=year; drop table x", 400, "there is no column .* to order by: the columns are "),
    got(f"/browse?order={61 * 'x'}", 422, "order: String should have at most 60"),
    got("/browse?k=1000000000", 422, "k: Input should be less than or equal to 50"),
    got("/browse?offset=-1", 422, "offset: Input should be greater than or equal to 0"),
    got(f"/browse?offset={2**63}", 422, "offset: Input should be less than or equal to"),
    got("/browse?where=yaer = 1", 400, "unknown column yaer"),
    sent("an empty file", b"", "the image file is empty"),
    sent("a page", b"<html>", "not an image file"),
    sent("a large image", picture("PNG", (600, 501)), r"too many pixels, .* \(the limit is 300,000\)"),
    sent("half an image", picture("PNG")[:-30], "truncated"),
    sent("an image of many scans", jpeg_of_scans(101), "a JPEG of 1.. scans, at most 100 are decoded"),
    Answer(
        "an image under a condition",
        lambda client: client.post("/search", files={"image": ("a.png", picture("PNG"))}, params={"where": "yaer = 1"}),
        400,
        "unknown column yaer",
    ),
    Answer("a word as an image", lambda client: client.post("/search", data={"image": "words"}), 422, "^image: "),
    Answer(
        "another field",
        lambda client: client.post("/search", files={"other": b"x"}),
        400,
        "image: Field required; or send a batch of texts as application/json",
    ),
    Answer(
        "parts beside a batch",
        lambda client: client.post("/search", params={"also": "x"}, json={"queries": [{"text": "a"}]}),
        400,
        "belong to an uploaded image here; send the image in its field",
    ),
    batch("{", 400, "the body is not JSON; for example"),
    batch("[" * 100_000, 400, "the body is not JSON"),
    batch("[]", 400, "must have a list of queries, and nothing else"),
    batch('{"queries": [{"text": "a"}], "k": 3}', 400, "must have a list of queries, and nothing else"),
    batch('{"queries": []}', 400, "a batch must have 1 to 5 queries, got 0"),
    batch(json.dumps({"queries": 6 * [{"text": "a"}]}), 400, "a batch must have 1 to 5 queries, got 6"),
    batch(json.dumps({"queries": [{"text": 2**20 * "a"}]}), 413, "the batch is too large, at most 1024 KiB are"),
]


@pytest.fixture(scope="module")
def client(searcher):
    return served.client_of(searcher, CONFIG)


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda row: row.what)
def test_a_refused_request_is_answered_by_a_status_and_one_line(answer, client):
    response = answer.ask(client)
    assert response.status_code == answer.status
    assert list(response.json()) == ["error"]
    message = response.json()["error"]
    assert re.search(answer.names, message), message
    assert message == message.strip()
    assert not re.search(r"\n|\.$", message)
