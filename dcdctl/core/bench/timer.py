"""A clock that waits for the device, contestants that take turns at it, and how sure what their repeats say is.

A measurement goes in rounds. In a round every contestant does the same work, one after the other, the fast ones several times; so a
machine that is busy for a while slows all of them. Who begins is drawn, as a short piece of work fares otherwise after a long one than
before it. Intervals are percentile bootstraps over rounds (as in `comparison`): rounds are drawn
with replacement, the same for all contestants, and what follows from their times is worked out anew. They say how much hangs on which
moments were timed, in this process, on this machine.

Shape letters: N rounds, K repeats of a round, R draws.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
"""Share of the draws that an interval holds."""
NUM_DRAWS = 1000
Work = Callable[[int], object]
"""Does the work of a round, given its number."""


@dataclass(frozen=True)
class Quantity:
    """A number that follows from timings, and the same number from each draw of their rounds."""

    value: float
    draws_R: NDArray[np.float64]

    def __add__(self, other: Quantity) -> Quantity:
        return Quantity(self.value + other.value, self.draws_R + other.draws_R)

    def __mul__(self, factor: float) -> Quantity:
        return Quantity(self.value * factor, self.draws_R * factor)

    def __truediv__(self, other: Quantity | float) -> Quantity:
        if isinstance(other, Quantity):
            return Quantity(self.value / other.value, self.draws_R / other.draws_R)
        return self * (1 / other)

    def above(self, other: Quantity) -> Quantity:
        """What this is more than the other; 0 where it is not."""
        return Quantity(max(0.0, self.value - other.value), np.maximum(0.0, self.draws_R - other.draws_R))

    def inverse(self, count: float = 1.0) -> Quantity:
        """`count` over this: a rate."""
        return Quantity(count / self.value, count / self.draws_R)

    @property
    def interval(self) -> tuple[float, float]:
        """The middle of the draws."""
        low, high = np.quantile(self.draws_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
        return low, high


@dataclass(frozen=True)
class Sample:
    """The repeats of one contestant's work."""

    seconds_NK: NDArray[np.float64]
    draws_RN: NDArray[np.int64]
    """Rounds that each draw is made of; those of all contestants of the measurement."""

    @property
    def num_repeats(self) -> int:
        return self.seconds_NK.size

    @property
    def median(self) -> Quantity:
        return self.percentile(50)

    def percentile(self, percent: float) -> Quantity:
        """Seconds that this share of the repeats takes at most, between two repeats on the line through them."""
        drawn_RX = self.seconds_NK[self.draws_RN].reshape(len(self.draws_RN), -1)
        return Quantity(float(np.percentile(self.seconds_NK, percent)), np.percentile(drawn_RX, percent, axis=1))


@dataclass(frozen=True, kw_only=True)
class Timer:
    """Seconds that work takes, by a clock that waits for the device."""

    num_warmup: int
    num_repeats: int
    budget_s: float
    """Seconds for the repeats of one contestant."""
    min_rounds: int = 1
    """Rounds there are at least, whatever the budget."""
    clock: Callable[[], float] = time.perf_counter
    synchronize: Callable[[], None] = lambda: None
    """Waits until the device has nothing left to do."""
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    """Draws the order of each round, and the rounds of bootstraps."""

    def once(self, work: Work, number: int) -> float:
        """Seconds for the work of one round."""
        self.synchronize()
        started = self.clock()
        work(number)
        self.synchronize()
        return self.clock() - started

    def turns(self, works: Mapping[str, Work]) -> dict[str, Sample]:
        """The times of each contestant after its warm-up, in rounds; as many as the budget of the slowest allows."""
        affordable = {name: self._affordable(work) for name, work in works.items()}
        num_rounds = max(min(affordable.values()), self.min_rounds)
        # A fast contestant fills the rounds of a slow one with repeats of its own, within its budget.
        per_round = {name: max(1, count // num_rounds) for name, count in affordable.items()}
        seconds: dict[str, list[list[float]]] = {name: [] for name in works}
        for number in range(num_rounds):
            for name in self.rng.permutation(sorted(works)).tolist():
                seconds[name].append([self.once(works[name], number) for _ in range(per_round[name])])
        draws_RN = self.rng.integers(num_rounds, size=(NUM_DRAWS, num_rounds))
        return {name: Sample(np.array(times), draws_RN) for name, times in seconds.items()}

    def _affordable(self, work: Work) -> int:
        """Repeats that the budget allows, by the warm-up."""
        warm = self.once(work, 0)
        if warm < self.budget_s / 10:  # slow work is warm after one run
            warm = min([warm, *(self.once(work, 0) for _ in range(self.num_warmup - 1))])
        return self.num_repeats if warm <= 0 else min(self.num_repeats, int(self.budget_s / warm))
