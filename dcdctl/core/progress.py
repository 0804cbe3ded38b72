"""How long work reports its progress, without knowing who shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

Advance = Callable[[int], None]
"""Called with the number of units done since the last call."""
OnStep = Callable[[int, Mapping[str, float]], None]
"""Called after a training step with the number of steps done and the step's values: `loss`, its terms and `lr`, and
after a validation also those of `chosen_by`, such as `val_rsum` and `val_best_rsum`."""
CHOSEN = {"rsum": "RSUM", "ndcg": "nDCG@10", "cosine": "cosine"}
"""What a validation may choose weights by, as it is logged and in words."""


def chosen_by(values: Mapping[str, Any], when: str = "val") -> str:
    """Which of `CHOSEN` a line of the log has; empty for one without a validation.

    >>> chosen_by({"val_ndcg": 91.5}), chosen_by({"loss": 0.5})
    ('ndcg', '')
    """
    return next((name for name in CHOSEN if f"{when}_{name}" in values), "")


def counted(number: int, things: str) -> str:
    """A number of things in words.

    >>> counted(1, "images"), counted(1200, "images")
    ('1 image', '1,200 images')
    """
    noun = things.removesuffix("s") if number == 1 else things
    return f"{number:,} {noun}"


Say = Callable[[str], None]
"""Called with a line for the user that is no error."""


class Track(Protocol):
    """Opens a progress bar: `with track("score", total=1000, unit="pairs") as advance: advance(64)`.

    The unit is empty where nothing can be counted, as while another run is waited for.
    """

    def __call__(self, label: str, *, total: int | None, unit: str) -> AbstractContextManager[Advance]: ...


class Watch(Protocol):
    """Opens a view of a training run: `with watch(total=1000, done=0) as on_step: on_step(1, {"loss": 0.7})`."""

    def __call__(
        self, *, total: int, done: int, unit: str = "steps", per_step: int = 1
    ) -> AbstractContextManager[OnStep]:
        """A resumed run has `done` steps already; a step processes `per_step` of `unit`, such as 448 pairs."""
        ...


@contextmanager
def silent(label: str, *, total: int | None, unit: str) -> Iterator[Advance]:
    """A `Track` that shows nothing."""
    yield lambda count: None


def byte_size(num_bytes: float) -> str:
    """Bytes with the unit that fits.

    >>> byte_size(13_500_000_000), byte_size(56_700_000), byte_size(1234), byte_size(12)
    ('13.50 GB', '56.7 MB', '1.2 KB', '12 B')
    """
    for factor, unit, decimals in ((1e9, "GB", 2), (1e6, "MB", 1), (1e3, "KB", 1)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:,.{decimals}f} {unit}"
    return f"{num_bytes:,.0f} B"


def digits(value: float) -> str:
    """Three significant digits, or all digits before the point.

    >>> digits(0.01234), digits(1.5), digits(9.996), digits(99.96), digits(12345.6)
    ('0.0123', '1.50', '10.0', '100', '12,346')
    """
    # 99.95 rounds up to 100, which has no digit after the point.
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"


def unsaid(line: str) -> None:
    """A `Say` that shows nothing."""


def step_bar(track: Track) -> Watch:
    """A `Watch` that shows only the number of steps, as a bar of `track`."""

    @contextmanager
    def watch(*, total: int, done: int, unit: str = "steps", per_step: int = 1) -> Iterator[OnStep]:
        with track("train", total=total, unit="steps") as advance:
            advance(done)  # of a resumed run
            yield lambda steps, values: advance(1)

    return watch
