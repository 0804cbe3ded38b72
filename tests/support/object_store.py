"""An S3 server on 127.0.0.1, moto's, behind a proxy that fails as a test chooses.

def test(bucket):                                          # the fixture: an empty bucket, and the settings of its user
    bucket.put("a.tar", b"...")                             # s3://BUCKET/a.tar is bucket.url("a.tar")
    bucket.fail(method="GET", key="a.tar", cut_after=10)   # the next such answer; times=None: every answer
    bucket.requests                                        # "GET /BUCKET/a.tar", ...

The proxy knows one access key and one region, because moto takes every key in every region.
"""

from __future__ import annotations

import html
import http.client
import re
import threading
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ACCESS_KEY, SECRET_KEY, REGION = "AKIATESTSTESTSTESTS", "secret/of+the/tests/and/nobody/else/1234", "eu-west-1"
_CREDENTIAL = re.compile(r"Credential=(?P<key>[^/]+)/\d+/(?P<region>[^/]+)/")


@dataclass(kw_only=True)
class Fault:
    """What goes wrong with the next `times` requests that it fits; None: with all."""

    method: str = ""
    """Of the requests that it fits; all if empty."""
    key: str = ""
    """A part of their path and query."""
    passes: int = 0
    """So many requests that fit are answered well first."""
    times: int | None = 1
    status: int = 0
    code: str = ""
    """Status and code of the answer; 0 answers as the store does."""
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    """Bytes of the answer's body, after which the connection is closed."""
    drop_after: int | None = None
    """Bytes of the request's body, after which the connection is closed; 0 for a request without one."""
    hold: threading.Event | None = None
    """Waited for before the answer."""
    first: Callable[[], object] | None = None
    """Called before the answer, which is as if it came later."""
    then: Callable[[], object] | None = None
    """Called after the answer was made, and before it is sent."""

    def fits(self, method: str, path: str) -> bool:
        return self.method in ("", method) and self.key in path and self.times != 0


class Store:
    """A bucket of the server, and the faults of the proxy."""

    def __init__(self, moto: tuple[str, int]) -> None:
        self.moto, self.endpoint, self.bucket = moto, "", ""
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.held: list[threading.Event] = []
        self.lock = threading.Lock()
        self.names_region = True
        """Whether an answer to a request for another region names the region, as that of S3 does."""

    def begin(self, bucket: str) -> None:
        """Make a bucket, and forget earlier faults and requests."""
        self.bucket, self.faults, self.requests, self.names_region = bucket, [], [], True
        place = f"<LocationConstraint>{REGION}</LocationConstraint>"
        document = f"<CreateBucketConfiguration>{place}</CreateBucketConfiguration>"
        assert self._ask("PUT", "", document.encode())[0] == 200

    def end(self) -> None:
        """Let all requests that are held go."""
        for event in self.held:
            event.set()

    def url(self, key: str = "") -> str:
        return f"s3://{self.bucket}/{key}".rstrip("/")

    def fail(self, **facts: Any) -> Fault:
        """Add a fault."""
        fault = Fault(**facts)
        self.faults.append(fault)
        if fault.hold is not None:
            self.held.append(fault.hold)
        return fault

    def put(self, key: str, data: bytes) -> None:
        """Write an object past the proxy."""
        assert self._ask("PUT", key, data)[0] == 200

    def put_all(self, folder: Path, under: str) -> None:
        """Write the files of a folder."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{under}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def get(self, key: str) -> bytes:
        status, data = self._ask("GET", key)
        assert status == 200, (status, key)
        return data

    def keys(self, under: str = "") -> list[str]:
        """The objects below a prefix, sorted."""
        query = urllib.parse.urlencode({"list-type": "2", "prefix": under})
        listed = self._ask("GET", f"?{query}")[1].decode()
        return sorted(map(html.unescape, re.findall("<Key>(.*?)</Key>", listed)))

    def uploads(self) -> int:
        """Uploads in parts that are not complete."""
        return self._ask("GET", "?uploads")[1].count(b"<UploadId>")

    def _ask(self, method: str, key: str, data: bytes = b"") -> tuple[int, bytes]:
        # A key of moto's own account; the content is what counts here.
        headers = {"Authorization": f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20260101/{REGION}/s3/aws4_request"}
        quoted = key if key.startswith("?") else urllib.parse.quote(key)
        status, _, body = _request(self.moto, method, f"/{self.bucket}/{quoted}", headers, data)
        return status, body

    def take_fault(self, method: str, path: str) -> Fault:
        with self.lock:  # parts of an upload come at once
            for fault in self.faults:
                if fault.fits(method, path):
                    if fault.passes:
                        fault.passes -= 1
                        continue
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return Fault()


@cache
def start() -> Store:
    """The server and the proxy of this process, which end with it. One for all tests, because a client of botocore
    takes a fifth of a second to make."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").disabled = True
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    store = Store(moto.get_host_and_port())
    proxy = _Proxy(("127.0.0.1", 0), type("BoundHandler", (_Handler,), {"store": store}))
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    store.endpoint = f"http://127.0.0.1:{proxy.server_port}"
    return store


def forget() -> None:
    """Let the next request read the settings again; a file system of s3fs keeps those with which it was made."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()


def settings(store: Store) -> dict[str, str]:
    """The environment variables of a user of the store."""
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_ENDPOINT_URL": store.endpoint,
        "AWS_DEFAULT_REGION": REGION,
        # Without credentials, botocore asks the machine of a cloud for them.
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _request(
    address: tuple[str, int], method: str, path: str, headers: Mapping[str, str], data: bytes
) -> tuple[int, list[tuple[str, str]], bytes]:
    connection = http.client.HTTPConnection(*address)
    try:
        connection.request(method, path, body=data or None, headers=dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.getheaders(), answer.read()
    finally:
        connection.close()


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Nothing on stderr for a client that was killed."""


class _Handler(BaseHTTPRequestHandler):
    store: Store
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else an answer in two pieces waits 40 ms

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        method, store = self.command, self.store
        fault = store.take_fault(method, self.path)
        store.requests.append(f"{method} {self.path}")
        if self.headers.get("Expect", "") == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        if fault.drop_after is not None:
            self.rfile.read(min(fault.drop_after, int(self.headers.get("Content-Length", 0))))
            self.close_connection = True
            return
        data = self._body()
        if fault.hold is not None:
            fault.hold.wait()
        if fault.first is not None:
            fault.first()
        status, headers, body = self._answer(method, data, fault)
        if fault.then is not None:
            fault.then()
        self._send(status, headers, body, fault.cut_after)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, method: str, data: bytes, fault: Fault) -> tuple[int, list[tuple[str, str]], bytes]:
        if fault.status:
            return _error(fault.status, fault.code, fault.headers)
        credential = _CREDENTIAL.search(self.headers.get("Authorization", ""))
        if credential is None:
            return _error(403, "AccessDenied", {})
        if credential["key"] != ACCESS_KEY:
            return _error(403, "InvalidAccessKeyId", {})
        if credential["region"] != REGION:
            region = {"x-amz-bucket-region": REGION} if self.store.names_region else {}
            return _error(400, "AuthorizationHeaderMalformed", region)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _OF_CONNECTION}
        return _request(self.store.moto, method, self.path, headers, data)

    def _send(self, status: int, headers: list[tuple[str, str]], body: bytes, cut_after: int | None) -> None:
        sizes = {name.lower(): value for name, value in headers}
        try:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in _OF_CONNECTION:
                    self.send_header(name, value)
            # That of the object, where only its head was requested.
            length = sizes.get("content-length", "0") if self.command == "HEAD" else str(len(body))
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[:cut_after])
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        if cut_after is not None:
            self.close_connection = True


_OF_CONNECTION = {"connection", "content-length", "transfer-encoding", "expect", "date", "server"}


def _error(status: int, code: str, headers: Mapping[str, str]) -> tuple[int, list[tuple[str, str]], bytes]:
    # With a key in its text, as of servers that quote the request.
    text = f"<Error><Code>{code}</Code><Message>refused {ACCESS_KEY} {SECRET_KEY}</Message></Error>"
    return status, [("Content-Type", "application/xml"), *headers.items()], text.encode()
