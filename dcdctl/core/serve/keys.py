"""API keys: who may search and see images, and addresses that guess them."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import os
import re
import time

from dcdctl.core.errors import ConfigError

VARIABLE = "DCDCTL_API_KEY"
"""The environment variable with the key, or with several, separated by commas."""
# 16 characters of the suggested command are 96 bits, too many to guess over a network.
MIN_CHARS = 16
WINDOW_S = 60.0
"""Time in which the wrong keys of an address are counted, and for which it is then refused."""
# A megabyte or two; who has as many addresses can guess from new ones anyway.
MAX_ADDRESSES = 10_000
"""Addresses whose wrong keys are remembered; beyond it, the one of the oldest wrong key is forgotten."""


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


class WrongKeys:
    """The wrong keys of each address, of which at most `limit` are compared within `WINDOW_S`; used from one event
    loop."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: dict[str, tuple[int, float]] = {}
        """For each address the number of wrong keys, and since when: from the first, or from the one that reached the
        limit."""

    def wait_s(self, address: str) -> int:
        """Seconds until the next key of an address is compared; 0 for now."""
        count, since = self._counts.get(_network(address), (0, 0.0))
        return max(0, math.ceil(since + WINDOW_S - time.monotonic())) if count >= self._limit else 0

    def note(self, address: str) -> None:
        """Count a wrong key."""
        network, now = _network(address), time.monotonic()
        count, since = self._counts.pop(network, (0, now))
        if now - since > WINDOW_S:
            count, since = 0, now
        self._counts[network] = count + 1, now if count + 1 >= self._limit else since
        if len(self._counts) > MAX_ADDRESSES:
            del self._counts[next(iter(self._counts))]


def _network(address: str) -> str:
    """The first half of an IPv6 address, of which one client may have any second half; otherwise the address."""
    try:
        ip = ipaddress.IPv6Address(address)
    except ValueError:  # IPv4, or any word that a proxy forwards
        return address
    return address if ip.ipv4_mapped else str(int(ip) >> 64)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
