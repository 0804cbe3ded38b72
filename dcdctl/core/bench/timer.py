"""A timer that waits for the device, models that are timed in turn, and bootstrap intervals of their times.

A measurement consists of rounds. In each round every model does the same work, one after the other, fast ones several
times. So a machine that is busy for a while slows all of them. The order in a round is random, because a short piece of
work takes another time after a long one than before it.

Intervals are percentile bootstraps over rounds: rounds are resampled with replacement, the same for all models, and
everything computed from the times is recomputed. They show how much a result depends on the moments that were timed, in
this process, on this machine.

Shape letters: N rounds, K repeats in a round, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dcdctl.core.bench.config import BenchConfig

LEVEL = 0.95
"""Share of the resamples in an interval."""
# The bounds of a 95% interval are then 25 draws from each end.
NUM_DRAWS = 1000
Work = Callable[[int], object]
"""Does the work of a round, given the number of the round."""


@dataclass(frozen=True)
class Quantity:
    """A number computed from times, and the same number for each bootstrap resample."""

    value: float
    draws_R: NDArray[np.float64]

    def __add__(self, other: Quantity) -> Quantity:
        return Quantity(self.value + other.value, self.draws_R + other.draws_R)

    def __mul__(self, factor: float) -> Quantity:
        return Quantity(self.value * factor, self.draws_R * factor)

    def __truediv__(self, other: Quantity | float) -> Quantity:
        # Draw by draw: what slows both models in a round cancels in their ratio.
        if isinstance(other, Quantity):
            return Quantity(self.value / other.value, self.draws_R / other.draws_R)
        return self * (1 / other)

    def excess_over(self, other: Quantity) -> Quantity:
        """max(self - other, 0)."""
        return Quantity(max(0.0, self.value - other.value), np.maximum(0.0, self.draws_R - other.draws_R))

    @property
    def interval(self) -> tuple[float, float]:
        """The middle `LEVEL` of the resamples."""
        low, high = np.quantile(self.draws_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
        return low, high


@dataclass(frozen=True)
class Repeats:
    """The times of one model for repeats of the same work."""

    seconds_NK: NDArray[np.float64]
    draws_RN: NDArray[np.int64]
    """Rounds of each resample, the same for all models of a measurement."""

    @property
    def num_repeats(self) -> int:
        return self.seconds_NK.size

    @property
    def median(self) -> Quantity:
        return self.percentile(50)

    def percentile(self, percent: float) -> Quantity:
        """A percentile of the seconds, linearly interpolated."""
        drawn_RX = self.seconds_NK[self.draws_RN].reshape(len(self.draws_RN), -1)
        return Quantity(float(np.percentile(self.seconds_NK, percent)), np.percentile(drawn_RX, percent, axis=1))


@dataclass(frozen=True, kw_only=True)
class Timer:
    """Measures seconds with a clock that waits for the device."""

    config: BenchConfig
    """Warm-up, repeats, budget and minimum number of rounds."""
    clock: Callable[[], float]
    synchronize: Callable[[], None] = lambda: None
    """Waits until the device has finished all work."""
    # Seeded, so that equal times give equal intervals.
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    """Draws the order in each round, and the bootstrap resamples."""

    def once(self, work: Work, number: int) -> float:
        """Seconds for the work of one round."""
        # Work that an earlier step left on the device must not count.
        self.synchronize()
        started = self.clock()
        work(number)
        self.synchronize()
        return self.clock() - started

    def time_in_turn(self, works: Mapping[str, Work]) -> dict[str, Repeats]:
        """The times of each model after its warm-up, in as many rounds as the budget of the slowest model allows."""
        affordable = {name: self._affordable(work) for name, work in works.items()}
        num_rounds = max(min(affordable.values()), min(self.config.min_rounds, self.config.num_repeats))
        # A fast model repeats its work in each round, within its own budget.
        per_round = {name: max(1, count // num_rounds) for name, count in affordable.items()}
        seconds: dict[str, list[list[float]]] = {name: [] for name in works}
        for number in range(num_rounds):
            # Sorted first, so that the order depends only on the seed.
            for name in self.rng.permutation(sorted(works)).tolist():
                seconds[name].append([self.once(works[name], number) for _ in range(per_round[name])])
        draws_RN = self.rng.integers(num_rounds, size=(NUM_DRAWS, num_rounds))
        return {name: Repeats(np.array(times), draws_RN) for name, times in seconds.items()}

    def _affordable(self, work: Work) -> int:
        """The number of repeats that fit into the budget, by the time of the warm-up."""
        budget_s, num_repeats, warm = self.config.budget_s, self.config.num_repeats, self.once(work, 0)
        if warm < budget_s / 10:  # slow work is warm after one run
            warm = min([warm, *(self.once(work, 0) for _ in range(self.config.num_warmup - 1))])
        # A coarse clock may show the same time twice, so the warm-up may last 0 seconds.
        return num_repeats if warm <= 0 else min(num_repeats, int(budget_s / warm))
