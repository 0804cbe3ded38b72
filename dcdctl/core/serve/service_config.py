"""The address of `dcdctl serve`, and the limits that protect clients from each other."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from dcdctl.core.config import MOST, NOT_EMPTY, Count, Natural, NotNegative, Positive, between, settle_fields
from dcdctl.core.data import MAX_PIXELS
from dcdctl.core.errors import ConfigError

# Limits are powers of two, as the tools that report memory have them.
MiB, KiB = 2**20, 2**10


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    host: Annotated[str, NOT_EMPTY] = "127.0.0.1"
    """Address to listen on; a loopback address is reachable from this machine only."""
    port: Annotated[int, between(0, 65_535)] = 8000
    """0 for any free port."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names that requests may use, besides the loopback names; needed behind a proxy that forwards its own name. A
    service on loopback accepts no others, so that no web page can reach it by a name that points to this machine (DNS
    rebinding)."""
    processes: Annotated[int, between(1, 256)] = 1
    """Processes behind the port, each with its own model; the index is mapped from disk once for all. Every limit holds
    per process."""
    log_format: Literal["text", "json"] = "text"
    """Form of what is logged to stderr; json is one object per line."""
    access_log: bool = False
    """Whether each request is logged. For privacy it is not, unless this is set."""
    # Who types a key, or forgot to replace it in one program, needs fewer; 10 a minute find no key of 16 characters.
    max_wrong_keys: Count = 10
    """Wrong keys from an address within a minute, after which it is answered 429 for a minute."""
    default_k: Count = 24
    """Images in an answer, if the request gives no number."""
    max_k: Count = 200
    """Maximum number of images in an answer."""
    max_queries: Count = 32
    """Maximum number of texts in a batch (POST /search with JSON); each counts as a waiting search."""
    max_text_chars: Count = 500
    """Maximum length of a text; models read about 40 tokens of it."""
    max_where_chars: Count = 1000
    """Maximum length of the conditions of a search together."""
    max_upload_bytes: Count = 16 * MiB
    """Maximum size of a request body; refused as soon as the limit is reached."""
    max_upload_s: Positive = 30.0
    """Maximum time for a body to arrive."""
    max_pixels: Annotated[int, between(1, MAX_PIXELS)] = 50_000_000
    """Maximum size of an uploaded image, checked before it is decoded; decoding takes up to 12 bytes per pixel."""
    max_scans: Count = 100
    """Maximum number of scans in an uploaded progressive JPEG. Cameras write about 10; each costs as much as the whole
    image."""
    search_workers: Count = 1
    """Threads that run the model."""
    max_batch: Count = 32
    """Maximum number of waiting texts that are encoded together."""
    max_waiting: Natural = 64
    """Maximum number of searches that wait for a thread, or share one; further ones are answered 503."""
    max_wait_s: Positive = 10.0
    """A search or an image request that has waited this long is answered 503 and not started."""
    image_workers: Count = 2
    """Threads that read images and make thumbnails."""
    max_waiting_images: Natural = 256
    """Maximum number of image requests that wait for a thread: the pages of about ten users at the same time."""
    max_requests: Count = 512
    """Maximum number of requests in progress, unfinished uploads included; /health, /live and /metrics are always
    answered."""
    # 8 connections are for /health, /live and /metrics (`connections.RESERVED_CONNECTIONS`).
    max_connections: Annotated[int, between(9, MOST)] = 1000
    """Maximum number of open connections; fewer where the process may open fewer files (`ulimit -n`). Beyond it, the
    connection that has waited longest for a request is closed."""
    max_header_s: Positive = 10.0
    """Maximum time for the request line and the headers to arrive, from the start of the connection or from their first
    byte."""
    max_header_bytes: Count = 16 * KiB
    """Maximum size of the request line and the headers."""
    max_idle_s: Positive = 5.0
    """Time that a connection stays open between two requests; rounded up to whole seconds."""
    max_send_s: Positive = 30.0
    """Maximum time in which a client reads an answer."""
    retry_after_s: Count = 1
    """The Retry-After of a 503 answer."""
    thumbnail_px: Count = 320
    """Longer side of the thumbnails."""
    drain_s: NotNegative = 0.0
    """Time in which a service that is stopped still answers, while /health says 503, so that a balancer sends its
    requests elsewhere."""
    shutdown_s: Positive = 10.0
    """Time that requests in progress get when the service is stopped."""

    def __post_init__(self) -> None:
        settle_fields(self)
        for name in self.allowed_hosts:
            if not re.fullmatch(r"(\*\.)?[\w.-]+", name):
                raise ConfigError(
                    "an allowed host must be a name without a port, such as search.example.org or *.example.org, got "
                    f"{name!r}"
                )
        if self.default_k > self.max_k:
            raise ConfigError(f"default_k must be at most max_k {self.max_k}, got {self.default_k}")
