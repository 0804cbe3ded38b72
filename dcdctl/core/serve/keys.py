"""API keys: who may search and see images."""

from __future__ import annotations

import hashlib
import hmac
import os
import re

from dcdctl.core.errors import ConfigError

VARIABLE = "DCDCTL_API_KEY"
"""The environment variable with the key, or with several, separated by commas."""
# 16 characters of the suggested command are 96 bits, too many to guess over a network.
MIN_CHARS = 16


class Keys:
    """The keys of a service, by their SHA-256, which gives all comparisons the same length."""

    def __init__(self, text: str) -> None:
        """Keys separated by commas; ConfigError for an empty or short one, and for characters that no header can
        hold."""
        keys = [key.strip() for key in text.split(",")]
        hint = "make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        for place, key in enumerate(keys, start=1):
            if len(key) < MIN_CHARS:
                raise ConfigError(
                    f"key {place} of {VARIABLE} has {len(key)} characters, at least {MIN_CHARS} are required", hint=hint
                )
            # Proxies change or refuse header values with other characters.
            if not re.fullmatch(r"[!-~]+", key):
                raise ConfigError(f"key {place} of {VARIABLE} has spaces or characters outside ASCII", hint=hint)
        self._digests = tuple(map(_digest, keys))

    @staticmethod
    def from_environment() -> Keys | None:
        """The keys of the environment; None if the variable is not set."""
        return Keys(os.environ[VARIABLE]) if VARIABLE in os.environ else None

    def accept(self, sent: str) -> bool:
        """Whether this is one of the keys. The time does not depend on how much of it is right, nor on which key it
        is."""
        # A list: `any` of a generator would stop at the first equal key.
        return any([hmac.compare_digest(_digest(sent), one) for one in self._digests])


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
