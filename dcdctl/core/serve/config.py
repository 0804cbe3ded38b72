"""What `dcdctl serve` binds to, and the limits that keep one client from taking the service from the others."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from dcdctl.core.data import MAX_PIXELS
from dcdctl.core.errors import ConfigError

MiB = 2**20


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    host: str = "127.0.0.1"
    """Address to listen on; a loopback address is reached from this machine alone."""
    port: int = 8000
    """0 takes any that is free."""
    allowed_hosts: tuple[str, ...] = ()
    """Names by which the service may be asked, besides loopback's; needed behind a proxy that hands on its own. A service on
    loopback answers to no others, so that no web page can reach it by a name that its owner points here."""
    default_k: int = 24
    """Pictures of an answer where a request does not say."""
    max_k: int = 200
    """Most pictures of an answer."""
    max_text_chars: int = 500
    """Longest text that is searched for; models read some 40 tokens of it."""
    max_upload_bytes: int = 16 * MiB
    """Largest body of a request; refused as soon as so much has come."""
    max_upload_s: float = 30.0
    """How long a body may take to arrive."""
    max_pixels: int = 50_000_000
    """Largest uploaded picture, compared before it is decoded; decoding takes up to 12 bytes a pixel."""
    max_scans: int = 100
    """Most passes of an uploaded progressive JPEG; cameras and programs make about 10, and each costs as much as a whole picture."""
    search_workers: int = 1
    """Threads that run the model."""
    max_batch: int = 32
    """Most texts that waited for a thread and are encoded together."""
    max_waiting: int = 64
    """Most searches that wait for a thread, or share one with another; one more is answered 503."""
    max_wait_s: float = 10.0
    """A search or a picture that has waited so long is answered 503, not begun."""
    picture_workers: int = 2
    """Threads that read pictures and make them smaller."""
    max_waiting_pictures: int = 256
    """Most pictures that wait for a thread: the pages of some ten users at once."""
    max_requests: int = 512
    """Most requests under way at once, uploads that are still coming included; /healthz and /metrics are always answered."""
    retry_after_s: int = 1
    """What a client that was answered 503 is told to wait."""
    thumbnail_px: int = 320
    """Longer side of the small pictures."""
    shutdown_s: float = 10.0
    """How long requests under way may take once the service is told to end."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("host", "port", "allowed_hosts", "max_waiting", "max_waiting_pictures") and value <= 0:
                raise ConfigError(f"{field.name} must be more than 0, got {value:g}")
        for name in ("max_waiting", "max_waiting_pictures"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in self.allowed_hosts:
            if not re.fullmatch(r"(\*\.)?[\w.-]+", name):
                raise ConfigError(f"an allowed host is a name without a port, such as search.example.org or *.example.org, got {name!r}")
        if not self.host:
            raise ConfigError("host must not be empty", hint="127.0.0.1 is this machine alone, 0.0.0.0 any address it has")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port must lie in 0 to 65535, got {self.port}")
        if self.default_k > self.max_k:
            raise ConfigError(f"default_k must be at most max_k {self.max_k}, got {self.default_k}")
        if self.max_pixels > MAX_PIXELS:
            raise ConfigError(f"max_pixels must be at most {MAX_PIXELS:,}, got {self.max_pixels:,}")
