"""A real HTTP server on 127.0.0.1 that plays a file server and the Hugging Face Hub, faults included, and records the
requests.

with loopback.serve(files={"a.zip": b"..."}, datasets={"me/birds": {"data/0.parquet": b"..."}}) as server:
    server.url + "/a.zip"                                  # ETag, Last-Modified, ranges, If-Range
    server.faults["/a.zip"] = loopback.Fault(cut_after=10)  # the next answer for that path; times=None: every answer
    os.environ["HF_ENDPOINT"] = server.url                 # in a subprocess: read when huggingface_hub is imported
    server.requests                                        # Request(method, path, headers, status, sent)
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LFS_BYTES = 1024
"""Minimum size of a large file of the Hub: named by its SHA-256, and sent from another host. Git's digest names smaller
files."""
LAST_MODIFIED = "Mon, 01 Jan 2024 00:00:00 GMT"

Files = Mapping[str, bytes] | Path
Repositories = Mapping[str, Files]
NONE: Mapping[str, Any] = {}


@dataclass(kw_only=True)
class Fault:
    """What goes wrong at a path, for the next `times` requests; None: for all."""

    status: int = 0
    """Status sent in place of the file; 0 sends the file."""
    headers: dict[str, str] = field(default_factory=dict)
    """Headers added to the answer; they replace its own headers of the same name."""
    cut_after: int | None = None
    """Bytes of the body that are sent before the connection is dropped."""
    body: bytes | None = None
    """Sent in place of the file."""
    hold: threading.Event | None = None
    """Waited for before the answer begins, or after the `cut_after` bytes; set at the latest when the server ends."""
    times: int | None = 1


@dataclass(kw_only=True)
class Request:
    """A request, and what was made of it."""

    method: str
    path: str
    """As requested, with the query and with %-escapes."""
    headers: dict[str, str]
    """By lower-case name."""
    status: int = 0
    sent: int = 0
    """Bytes of the body."""


class Loopback:
    """The server; what it serves and how it fails may be changed while it runs."""

    def __init__(self, files: Files, datasets: Repositories, models: Repositories, gated: Mapping[str, str]) -> None:
        self.files = _read(files)
        trees = {"datasets": datasets, "models": models}
        self.repos = {kind: {repo: _read(tree) for repo, tree in repos.items()} for kind, repos in trees.items()}
        self.gated = dict(gated)
        """The token each gated repository wants."""
        self.redirects: dict[str, str] = {}
        """Path to path or URL."""
        self.faults: dict[str, Fault] = {}
        """By path, without the query."""
        self.branches: dict[str, dict[str, dict[str, bytes]]] = {}
        """Files of a repository by branch or tag, besides those of main."""
        self.commit = ""
        """Commit of every repository; empty for the commit that follows from its files."""
        self.etags = self.ranges = True
        """Whether files have an ETag and a date; whether byte ranges are served."""
        self.if_range = True
        """Whether If-Range is honored."""
        self.requests, self.held = list[Request](), list[threading.Event]()
        self.url = self.cdn_url = ""

    def gets(self, path: str) -> list[Request]:
        """The GETs of a path."""
        return [
            request for request in self.requests if request.method == "GET" and request.path.partition("?")[0] == path
        ]

    def take_fault(self, path: str) -> Fault:
        """The fault of this request; a limited fault counts down."""
        fault = self.faults.get(path, Fault())
        if fault.times is not None:
            fault.times -= 1
            if fault.times <= 0:
                self.faults.pop(path, None)
        return fault


@contextmanager
def serve(
    files: Files = NONE, datasets: Repositories = NONE, models: Repositories = NONE, gated: Mapping[str, str] = NONE
) -> Iterator[Loopback]:
    """A server for the block. A tree of files is a dict or a folder; `gated` names the token that a repository
    wants."""
    loopback = Loopback(files, datasets, models, gated)
    with running(_Handler, loopback=loopback) as port:
        loopback.url, loopback.cdn_url = (f"http://{host}:{port}" for host in ("127.0.0.1", "localhost"))
        try:
            yield loopback
        finally:
            for event in loopback.held:
                event.set()


@contextmanager
def running(handler: type[BaseHTTPRequestHandler], **members: object) -> Iterator[int]:
    """The port of a server whose handlers have these members."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (handler,), members))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def git_sha1(body: bytes) -> str:
    """How git names a file of this content."""
    return hashlib.sha1(f"blob {len(body)}\0".encode() + body).hexdigest()


def commit_of(files: Mapping[str, bytes]) -> str:
    """The commit a repository of these files is at: 40 hex digits."""
    return hashlib.sha1(json.dumps({path: git_sha1(body) for path, body in sorted(files.items())}).encode()).hexdigest()


def _read(files: Files) -> dict[str, bytes]:
    if isinstance(files, Path):
        return {
            path.relative_to(files).as_posix(): path.read_bytes() for path in sorted(files.rglob("*")) if path.is_file()
        }
    return dict(files)


@dataclass(kw_only=True)
class _Answer:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def _file(body: bytes, name: str) -> _Answer:
    headers = {"ETag": f'"{name}"', "Last-Modified": LAST_MODIFIED, "Content-Type": "application/octet-stream"}
    return _Answer(headers=headers, body=body)


class _Handler(BaseHTTPRequestHandler):
    loopback: Loopback
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        headers, path = {name.lower(): value for name, value in self.headers.items()}, urlsplit(self.path).path
        request = Request(method=self.command, path=self.path, headers=headers)
        self.loopback.requests.append(request)
        fault = self.loopback.take_fault(path)
        answer = _Answer(status=fault.status) if fault.status else self._answer(path)
        answer.body = answer.body if fault.body is None else fault.body
        if answer.status == 200 and "ETag" in answer.headers:
            self._cut_to_range(answer, headers)
        self._send(request, answer, fault)

    do_HEAD = do_GET

    def _send(self, request: Request, answer: _Answer, fault: Fault) -> None:
        body = b"" if request.method == "HEAD" else answer.body
        headers = answer.headers | {"Connection": "close", "Content-Length": str(len(answer.body))} | fault.headers
        if not self.loopback.etags:
            headers = {name: value for name, value in headers.items() if name not in ("ETag", "Last-Modified")}
        sent = body[: fault.cut_after]
        request.status, request.sent = answer.status, len(sent)
        self.close_connection = True
        self.loopback.held += [fault.hold] if fault.hold else []
        try:
            if fault.hold and fault.cut_after is None:
                fault.hold.wait()
            self.send_response(answer.status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(sent)
            if fault.hold:
                fault.hold.wait()
        except OSError:
            """The client has gone, which is its right."""

    def _cut_to_range(self, answer: _Answer, headers: Mapping[str, str]) -> None:
        requested = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
        is_same = not self.loopback.if_range or headers.get("if-range", answer.headers["ETag"]) in (
            answer.headers["ETag"],
            LAST_MODIFIED,
        )
        if requested is not None and is_same and self.loopback.ranges:
            total, start = len(answer.body), int(requested[1])
            end = min(int(requested[2] or total), total - 1)
            part = f"{start}-{end}" if start < total else "*"
            answer.status, answer.body = 206 if start < total else 416, answer.body[start : end + 1]
            answer.headers["Content-Range"] = f"bytes {part}/{total}"

    def _answer(self, path: str) -> _Answer:
        path = unquote(path)
        if path in self.loopback.redirects:
            return _Answer(status=302, headers={"Location": self.loopback.redirects[path]})
        if (body := self.loopback.files.get(path.removeprefix("/"))) is not None:
            return _file(body, hashlib.md5(body).hexdigest())
        if path.startswith("/cdn/"):
            return self._from_cdn(path.removeprefix("/cdn/"))
        if api := re.fullmatch(r"/api/(datasets|models)/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path):
            revision, _, folder = (api[4] or "main").partition("/")
            return self._within(
                api[1], api[2], revision, lambda files: self._listing(api[2], files, folder, api[3] == "tree")
            )
        if resolve := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            kind = "datasets" if resolve[1] else "models"
            return self._within(kind, resolve[2], resolve[3], lambda files: self._hub_file(files, resolve[4]))
        return _Answer(status=404)

    def _within(self, kind: str, repo: str, revision: str, answer: Any) -> _Answer:
        files = self.loopback.repos[kind].get(repo)
        if files is None:
            return _Answer(status=401, headers={"X-Error-Code": "RepoNotFound"})
        token = self.loopback.gated.get(repo)
        if token is not None and self.headers.get("Authorization") != f"Bearer {token}":
            return _Answer(
                status=403 if "Authorization" in self.headers else 401, headers={"X-Error-Code": "GatedRepo"}
            )
        # A commit, or another name of one.
        others = {
            name: tree
            for branch, tree in self.loopback.branches.get(repo, {}).items()
            for name in (branch, commit_of(tree))
        }
        if revision in others:
            return answer(others[revision])
        if revision not in ("main", self._commit(files)):
            return _Answer(status=404, headers={"X-Error-Code": "RevisionNotFound"})
        return answer(files)

    def _commit(self, files: Mapping[str, bytes]) -> str:
        return self.loopback.commit or commit_of(files)

    def _hub_file(self, files: Mapping[str, bytes], path: str) -> _Answer:
        if path not in files:
            return _Answer(status=404, headers={"X-Error-Code": "EntryNotFound"})
        body = files[path]
        answer = _file(body, git_sha1(body))
        if len(body) >= LFS_BYTES:
            name = hashlib.sha256(body).hexdigest()
            linked = {"X-Linked-Etag": f'"{name}"', "X-Linked-Size": str(len(body))}
            answer = _Answer(status=302, headers=linked | {"Location": f"{self.loopback.cdn_url}/cdn/{name}"})
        answer.headers["X-Repo-Commit"] = self._commit(files)
        return answer

    def _from_cdn(self, name: str) -> _Answer:
        trees = [tree for repos in self.loopback.repos.values() for tree in repos.values()]
        trees += [tree for branches in self.loopback.branches.values() for tree in branches.values()]
        bodies = {hashlib.sha256(body).hexdigest(): body for tree in trees for body in tree.values()}
        return _file(bodies[name], name) if name in bodies else _Answer(status=404)

    def _listing(self, repo: str, files: Mapping[str, bytes], folder: str, is_tree: bool) -> _Answer:
        # Folders are not listed, and all files below are: what `recursive` asks for.
        entries: list[dict[str, Any]] = []
        for path, body in sorted(files.items()):
            if not folder or path.startswith(f"{folder}/"):
                entries.append({"type": "file", "path": path, "size": len(body), "oid": git_sha1(body)})
                if len(body) >= LFS_BYTES:
                    entries[-1]["lfs"] = {
                        "oid": hashlib.sha256(body).hexdigest(),
                        "size": len(body),
                        "pointerSize": 134,
                    }
        siblings = [{"rfilename": entry["path"], "size": entry["size"]} for entry in entries]
        document = {
            "id": repo,
            "sha": self._commit(files),
            "private": False,
            "gated": False,
            "tags": [],
            "siblings": siblings,
        }
        return _Answer(
            headers={"Content-Type": "application/json"}, body=json.dumps(entries if is_tree else document).encode()
        )
