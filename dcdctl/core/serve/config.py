"""What `dcdctl serve` binds to, and the limits that keep one client from taking the service from the others."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from dcdctl.core.config import AtLeast, Between, Count, NotEmpty, Positive, check_fields
from dcdctl.core.data import MAX_PIXELS
from dcdctl.core.errors import ConfigError

MiB = 2**20


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    host: Annotated[str, NotEmpty()] = "127.0.0.1"
    """Address to listen on; a loopback address is reached from this machine alone."""
    port: Annotated[int, Between(0, 65_535)] = 8000
    """0 takes any that is free."""
    allowed_hosts: tuple[str, ...] = ()
    """Names by which the service may be asked, besides loopback's; needed behind a proxy that hands on its own. A service on
    loopback answers to no others, so that no web page can reach it by a name that its owner points here."""
    default_k: Count = 24
    """Pictures of an answer where a request does not say."""
    max_k: Count = 200
    """Most pictures of an answer."""
    max_text_chars: Count = 500
    """Longest text that is searched for; models read some 40 tokens of it."""
    max_upload_bytes: Count = 16 * MiB
    """Largest body of a request; refused as soon as so much has come."""
    max_upload_s: Positive = 30.0
    """How long a body may take to arrive."""
    max_pixels: Annotated[int, Between(1, MAX_PIXELS)] = 50_000_000
    """Largest uploaded picture, compared before it is decoded; decoding takes up to 12 bytes a pixel."""
    max_scans: Count = 100
    """Most passes of an uploaded progressive JPEG; cameras and programs make about 10, and each costs as much as a whole picture."""
    search_workers: Count = 1
    """Threads that run the model."""
    max_batch: Count = 32
    """Most texts that waited for a thread and are encoded together."""
    max_waiting: Annotated[int, AtLeast(0)] = 64
    """Most searches that wait for a thread, or share one with another; one more is answered 503."""
    max_wait_s: Positive = 10.0
    """A search or a picture that has waited so long is answered 503, not begun."""
    picture_workers: Count = 2
    """Threads that read pictures and make them smaller."""
    max_waiting_pictures: Annotated[int, AtLeast(0)] = 256
    """Most pictures that wait for a thread: the pages of some ten users at once."""
    max_requests: Count = 512
    """Most requests under way at once, uploads that are still coming included; /healthz and /metrics are always answered."""
    retry_after_s: Count = 1
    """What a client that was answered 503 is told to wait."""
    thumbnail_px: Count = 320
    """Longer side of the small pictures."""
    shutdown_s: Positive = 10.0
    """How long requests under way may take once the service is told to end."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in self.allowed_hosts:
            if not re.fullmatch(r"(\*\.)?[\w.-]+", name):
                raise ConfigError(f"an allowed host is a name without a port, such as search.example.org or *.example.org, got {name!r}")
        if self.default_k > self.max_k:
            raise ConfigError(f"default_k must be at most max_k {self.max_k}, got {self.default_k}")
