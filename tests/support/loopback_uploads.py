"""A real HTTP server on 127.0.0.1 that plays the part of the Hugging Face Hub that is written to, and keeps what it was
given.

with loopback_uploads.serve(tokens={"hf_me"}) as hub:
    os.environ["HF_ENDPOINT"] = hub.url
    hub.repos["me/dual"].files["README.md"]    # bytes
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from loopback import running


@dataclass
class Repository:
    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = False


@dataclass
class Hub:
    tokens: set[str]
    """That may write."""
    url: str = ""
    repos: dict[str, Repository] = field(default_factory=dict)
    refused: str = ""
    """A path that is answered with 500."""
    large: dict[str, bytes] = field(default_factory=dict)
    """Files that came by themselves, by SHA-256."""


@contextmanager
def serve(tokens: set[str]) -> Iterator[Hub]:
    """A Hub for the block."""
    hub = Hub(tokens)
    with running(_Handler, hub=hub) as port:
        hub.url = f"http://127.0.0.1:{port}"
        yield hub


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, answer = self._answer(self.path.partition("?")[0], body)
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PUT = do_GET

    def _answer(self, path: str, body: bytes) -> tuple[int, Any]:
        if upload := re.fullmatch(r"/upload/(\w+)", path):
            self.hub.large[upload[1]] = body
            return 200, {}
        if self.headers.get("Authorization", "").removeprefix("Bearer ") not in self.hub.tokens:
            return 403, {"error": "this token may not write"}
        if self.hub.refused and path.endswith(self.hub.refused):
            return 500, {"error": "out of order"}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"warnings": [], "errors": []}
        if path.endswith(".git/info/lfs/objects/batch"):
            where = f"{self.hub.url}/upload"
            objects = [
                {**file, "actions": {"upload": {"href": f"{where}/{file['oid']}"}}}
                for file in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}
        if api := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(preupload|commit)/main|/revision/main)?", path):
            return self._repository(api[1], api[2], body)
        return 404, {"error": f"no {path}"}

    def _create(self, requested: dict[str, Any]) -> tuple[int, Any]:
        name = "/".join(filter(None, (requested.get("organization"), requested["name"])))
        if name in self.hub.repos:
            return 409, {"error": "it is there", "url": f"{self.hub.url}/{name}"}
        self.hub.repos[name] = Repository(
            private=requested.get("visibility") == "private" or requested.get("private", False)
        )
        return 200, {"url": f"{self.hub.url}/{name}", "name": name}

    def _repository(self, name: str, action: str | None, body: bytes) -> tuple[int, Any]:
        repo = self.hub.repos.get(name)
        if repo is None:
            return 404, {"error": "no such repository"}
        if action is None:
            return 200, {"id": name, "sha": 40 * "a", "private": repo.private, "tags": [], "siblings": []}
        if action == "preupload":
            modes = {True: "lfs", False: "regular"}
            files = [
                {
                    "path": file["path"],
                    "uploadMode": modes[file["path"].endswith((".safetensors", ".onnx"))],
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return 200, {"files": files}
        for line in map(json.loads, body.decode().splitlines()):
            if line["key"] == "file":
                repo.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                repo.files[line["value"]["path"]] = self.hub.large[line["value"]["oid"]]
        return 200, {"success": True, "commitOid": 40 * "b", "commitUrl": f"{self.hub.url}/{name}/commit/{40 * 'b'}"}
