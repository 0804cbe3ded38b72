"""How long work tells how far it is, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]
"""Called with the number of units done since the last call."""


class Track(Protocol):
    """Opens a bar: `with track("score", total=1000, unit="pairs") as advance: advance(64)`."""

    def __call__(self, label: str, *, total: int | None, unit: str) -> AbstractContextManager[Advance]: ...


@contextmanager
def silent(label: str, *, total: int | None, unit: str) -> Iterator[Advance]:
    """A track that shows nothing."""
    yield lambda count: None
