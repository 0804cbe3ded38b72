"""What significance tests give: measures with intervals, p-values, and a comparison in one sentence; `significance`
computes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from dcdctl.core.data import Direction
from dcdctl.core.evaluation.bootstrap import ALPHA, MIN_RUNS, welch_test
from dcdctl.core.evaluation.measures import MRR, NDCG


class Interval(NamedTuple):
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.1f} to {self.high:.1f}"


@dataclass(frozen=True)
class Estimate:
    value: float
    """On all images, each once."""
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class Estimates:
    """Measures in percent, or differences in percentage points: of each direction those that are COMPARED."""

    total_title: ClassVar = "RSUM"
    total_in_words: ClassVar = "RSUM"
    per_query: ClassVar = "ranks"
    """By what queries are better or worse."""
    note: ClassVar = f"{MRR.name}: mean of 100 / rank."
    rsum: Estimate
    text_retrieval: dict[str, Estimate]
    image_retrieval: dict[str, Estimate]

    @property
    def total(self) -> Estimate:
        """The number that sums both directions up."""
        return self.rsum

    def of(self, direction: Direction) -> dict[str, Estimate]:
        return self.text_retrieval if direction == Direction.TEXT else self.image_retrieval

    def with_ndcg(self, direction: Direction, estimate: Estimate) -> Estimates:
        """These estimates, with nDCG@10 among the measures of a direction."""
        changed: dict[str, Any] = {direction.key: {**self.of(direction), NDCG.name: estimate}}
        return replace(self, **changed)


@dataclass(frozen=True, kw_only=True)
class AgreementEstimates:
    """The agreement with a teacher in both directions, with intervals: the measures in AGREEMENT, correlations as they
    are."""

    total_title: ClassVar = NDCG.name
    total_in_words: ClassVar = f"{NDCG.name} of agreement with the teacher"
    per_query: ClassVar = NDCG.name
    note: ClassVar = "Agreement favors models that learned from that teacher."
    ndcg: Estimate
    text_retrieval: dict[str, Estimate]
    """Empty if no query of the direction has two candidates."""
    image_retrieval: dict[str, Estimate]

    @property
    def total(self) -> Estimate:
        return self.ndcg

    def of(self, direction: Direction) -> dict[str, Estimate]:
        return self.text_retrieval if direction == Direction.TEXT else self.image_retrieval


Measured = TypeVar("Measured", Estimates, AgreementEstimates)


@dataclass(frozen=True, kw_only=True)
class MeanTest:
    """Two-sided p-values for no difference in a mean over queries, or in RSUM."""

    p_value: float
    """Of the bootstrap: twice the share of draws on the rarer side of zero.

    Draws at zero count on both sides, and each side counts one draw more, so it is at least 2 / (R + 1)."""
    sign_flip_p_value: float
    """With a sign for each unit: an image and its captions, or a text of a pool (`bootstrap.sign_flip_test`)."""
    sign_flip_is_exact: bool


@dataclass(frozen=True, kw_only=True)
class RunTest(MeanTest):
    """A test over queries, and over the runs of both systems."""

    runs: tuple[tuple[float, ...], tuple[float, ...]]
    """What is tested, of each run, ours and the base's."""

    @property
    def num_runs(self) -> int:
        """Of the system that has fewer."""
        return min(map(len, self.runs))

    @property
    def t_test_p_value(self) -> float | None:
        """Two-sided p-value of the t-test over runs (`bootstrap.welch_test`); None for a system with one run."""
        return welch_test(*self.runs) if self.num_runs > 1 else None

    @property
    def method_p_value(self) -> float | None:
        """The larger one of bootstrap and t-test: a difference has to show over images, and over runs. None for a
        system with one run, which says nothing about other runs."""
        over_runs = self.t_test_p_value
        return None if over_runs is None else max(self.p_value, over_runs)

    @property
    def seed_warning(self) -> str:
        """How many seeds a claim about methods needs; empty with MIN_RUNS runs or more."""
        few = f"Fewer than {MIN_RUNS} seeds per system: a claim about methods needs at least {MIN_RUNS}."
        return few if self.num_runs < MIN_RUNS else ""


@dataclass(frozen=True, kw_only=True)
class SystemComparison(RunTest, Generic[Measured]):
    """A system against the base; the tests are of the total of the measures."""

    difference: Measured
    """Ours minus the base's."""
    ours: Measured
    base: Measured

    @property
    def trainings_p_value(self) -> float:
        """The larger one of bootstrap and sign-flip test: a difference between these trainings has to show in both."""
        return max(self.p_value, self.sign_flip_p_value)


@dataclass(frozen=True, kw_only=True)
class RankComparison(SystemComparison[Estimates]):
    """The ranks of a system against the base's; the tests are of RSUM."""

    ndcg_tests: dict[str, MeanTest] = field(default_factory=dict)
    """By direction, if both systems were evaluated with relevance."""


@dataclass(frozen=True, kw_only=True)
class AgreementComparison(SystemComparison[AgreementEstimates]):
    """How much better a system agrees with a teacher than the base does; the tests are of nDCG@10 in percent, the mean
    of both directions."""


def outcome(about: str, change: Estimate, p_value: float | None, words: Sequence[str] = ("Better", "Worse")) -> str:
    """Whether a difference was shown, in one sentence: the answer, the difference with its interval, and the p-value;
    without a p-value, that it was not tested. `words` are the answers for a gain and a loss.

    >>> outcome("a against b, RSUM", Estimate(6.3, Interval(-7.4, 20.3)), 0.39)
    'Not shown to differ: a against b, RSUM +6.3 (-7.4 to 20.3), p 0.39.'
    """
    size = f"{about} {change.value:+.1f} ({change.interval})"
    if p_value is None:
        return f"Not tested: {size}."
    word = words[change.value < 0] if p_value <= ALPHA else "Not shown to differ"
    return f"{word}: {size}, p {p_value:.2g}."
