"""API keys: who may search and see images.

The session of a browser has its end, and the HMAC of it under the key. Each process of a service accepts it, and
removing a key ends its sessions.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from dcdctl.core.errors import ConfigError

VARIABLE = "DCDCTL_API_KEY"
"""The environment variable with the key, or with several, separated by commas."""
MIN_CHARS = 16


@dataclass(frozen=True)
class Keys:
    """The keys of a service, by their SHA-256, which gives all comparisons the same length."""

    _digests: tuple[bytes, ...] = field(repr=False)

    @staticmethod
    def of(text: str) -> Keys:
        """Keys separated by commas; ConfigError for an empty or short one, and for characters that no header can
        hold."""
        keys = [key.strip() for key in text.split(",")]
        hint = "make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        for place, key in enumerate(keys, start=1):
            if len(key) < MIN_CHARS:
                raise ConfigError(
                    f"key {place} of {VARIABLE} has {len(key)} characters, at least {MIN_CHARS} are required", hint=hint
                )
            if not re.fullmatch(r"[!-~]+", key):
                raise ConfigError(f"key {place} of {VARIABLE} has spaces or characters outside ASCII", hint=hint)
        return Keys(tuple(map(_digest, keys)))

    @staticmethod
    def from_environment(environment: Mapping[str, str] = os.environ) -> Keys | None:
        """The keys of the environment; None if the variable is not set. ConfigError as `of`."""
        return Keys.of(environment[VARIABLE]) if VARIABLE in environment else None

    def accept(self, sent: str) -> bool:
        """Whether this is one of the keys. The time does not depend on how much of it is right, nor on which key it
        is."""
        # A list: `any` of a generator would stop at the first equal key.
        return any([hmac.compare_digest(_digest(sent), one) for one in self._digests])

    def accept_session(self, cookie: str) -> bool:
        """Whether this is a session of one of the keys that has not ended."""
        ends, _, signature = cookie.partition(".")
        is_signed = any([hmac.compare_digest(_signature(one, ends), signature.encode()) for one in self._digests])
        return is_signed and time.time() < int(ends)


def session_of(key: str, lifetime_s: int) -> str:
    """The cookie of a session that begins now, for a key that was accepted."""
    ends = str(int(time.time()) + lifetime_s)
    return f"{ends}.{_signature(_digest(key), ends).decode()}"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _signature(digest: bytes, ends: str) -> bytes:
    return hmac.new(digest, f"dcdctl session {ends}".encode(), hashlib.sha256).hexdigest().encode()
