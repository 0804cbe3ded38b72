"""Signals of a service: which one reloads, and handlers that last as long as a block."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

HANGUP = getattr(signal, "SIGHUP", None)
"""The signal to open the index and the models again; Windows has none."""


@contextmanager
def handled(handlers: Mapping[int, Callable[..., object]]) -> Iterator[None]:
    """These handlers of signals while the block runs. Python accepts handlers in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
