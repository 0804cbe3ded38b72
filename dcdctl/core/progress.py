"""How long work tells how far it is, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]
"""Called with the number of units done since the last call."""
Tell = Callable[[int, Mapping[str, float]], None]
"""Called with the number of steps done so far, and what the last of them gave: `loss`, its parts, `lr`, and `val_rsum` and `val_best_rsum`
where the model was measured."""


class Track(Protocol):
    """Opens a bar: `with track("score", total=1000, unit="pairs") as advance: advance(64)`."""

    def __call__(self, label: str, *, total: int | None, unit: str) -> AbstractContextManager[Advance]: ...


class Watch(Protocol):
    """Opens a view of a training: `with watch(total=1000, done=0) as tell: tell(1, {"loss": 0.7})`."""

    def __call__(self, *, total: int, done: int, unit: str = "steps", per_step: int = 1) -> AbstractContextManager[Tell]:
        """`done` steps were done before; a step is `per_step` of `unit`, such as 448 pairs."""
        ...


@contextmanager
def silent(label: str, *, total: int | None, unit: str) -> Iterator[Advance]:
    """A track that shows nothing."""
    yield lambda count: None


def watched_by(track: Track) -> Watch:
    """The view of a training that only a bar gives: how many steps are done."""

    @contextmanager
    def watch(*, total: int, done: int, unit: str = "steps", per_step: int = 1) -> Iterator[Tell]:
        with track("train", total=total, unit="steps") as advance:
            advance(done)
            yield lambda steps, values: advance(1)

    return watch
