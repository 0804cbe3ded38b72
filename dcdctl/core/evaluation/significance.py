"""Significance of recalls: intervals from the bootstrap over images, and tests of whether one system retrieves better than another.

Bootstrap: images are drawn with replacement, as many as there are, each with its captions, and the recalls of the draw are computed. The
middle 95 % of many draws is the interval (the percentile interval; Efron & Tibshirani 1993, chapter 13). Systems are compared on the same
draws, so that images that are hard for all of them do not hide their difference. The gallery is not drawn: ranks do not change. An interval
shows how much a result depends on which images are in the split. Runs that differ in the seed are averaged query by query, not drawn: how
much a result depends on the seed is not in the interval.

Sign-flip test: how often would a difference in RSUM be as large if, image by image, it were chance which of two systems has which hits?

Shape letters: I images, T texts (captions); R draws, the first of them every image once; S systems, the base last; C columns of a system,
half of them for text retrieval and half for image retrieval: hits at each K, and the reciprocal rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.evaluation.bootstrap import bootstrap_sums, sign_flip_test
from dcdctl.core.evaluation.ranks import RANKS_HINT, RankTable
from dcdctl.core.evaluation.recall import KS

LEVEL = 0.95
"""Share of the draws within an interval."""


@dataclass(frozen=True)
class Interval:
    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    value: float
    """On all images, each once."""
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class Estimates:
    """Measures in percent, or differences in percentage points; recalls are named as in `recall.Recalls`."""

    rsum: Estimate
    text_retrieval: dict[str, Estimate]
    image_retrieval: dict[str, Estimate]
    text_reciprocal_rank: Estimate
    """Mean over images of 1 / rank. It changes with ranks beyond 10, which no recall does."""
    image_reciprocal_rank: Estimate
    """Mean over captions."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A system against the base."""

    difference: Estimates
    """Ours minus the base's."""
    ours: Estimates
    base: Estimates
    p_value: float
    """Two-sided bootstrap p-value for no difference in RSUM: twice the share of draws on the rarer side of zero.

    Draws at zero count on both sides, and each side counts one draw more, so it is at least 2 / (R + 1)."""
    sign_flip_p_value: float
    """Two-sided p-value for no difference in RSUM, with a sign for each image and its captions (`bootstrap.sign_flip_test`)."""
    sign_flip_is_exact: bool
    num_images: int
    num_resamples: int
    num_our_runs: int
    num_base_runs: int


def compare_ranks(ours: Sequence[RankTable], base: Sequence[RankTable], *, resamples: int = 10_000, seed: int = 0) -> Comparison:
    """How much better a system retrieves than the base, from runs on the same queries; both are measured on the same draws.

    InputError for a system without runs, StaleError for ranks of other queries.

    >>> run = RankTable(("a", "b"), np.arange(2), np.arange(2), np.array([1, 1]), np.array([1, 7]))
    >>> comparison = compare_ranks([run], [run])
    >>> comparison.difference.rsum, comparison.p_value
    (Estimate(value=0.0, interval=Interval(low=0.0, high=0.0)), 1.0)
    """
    return compare_all({"ours": ours}, base, resamples=resamples, seed=seed)[0]


def compare_all(
    systems: Mapping[str, Sequence[RankTable]], base: Sequence[RankTable], *, resamples: int = 10_000, seed: int = 0
) -> list[Comparison]:
    """Each system, by name, against the base, all on the same draws. Raises what `compare_ranks` raises."""
    draws = _draw({**systems, "the base": base}, resamples, seed)
    return [_against_base(draws, system, resamples, seed) for system in range(len(systems))]


def bootstrap(tables: Sequence[RankTable], *, resamples: int = 10_000, seed: int = 0) -> Estimates:
    """The recalls of one system, averaged over its runs. Raises what `compare_ranks` raises."""
    return _system_estimates(_draw({"this system": tables}, resamples, seed), 0)


def check_queries(named: Mapping[str, RankTable]) -> None:
    """StaleError that names both if a table has other queries than the first one."""
    (first_name, first), *others = named.items()
    for name, table in others:
        # Lists of different lengths differ in their first entry, the counts.
        pairs = zip(_queries(table), _queries(first), strict=False)
        if difference := next((f"{query}, not {expected}" for query, expected in pairs if query != expected), None):
            raise StaleError(f"{name} has other queries than {first_name}: {difference}", hint="evaluate both on the same corpus and split")


def _queries(table: RankTable) -> list[str]:
    """The number of queries, then the name of each."""
    caption_keys = zip(table.caption_image.tolist(), table.caption_ids.tolist(), strict=True)
    captions = [f"caption {number} of {table.image_ids[image]!r}" for image, number in caption_keys]
    return [f"{len(table.image_ids):,} images and {len(captions):,} captions", *map("image {!r}".format, table.image_ids), *captions]


@dataclass(frozen=True)
class _Draws:
    """All systems on the same draws."""

    columns_SIC: NDArray[np.float64]
    """Hits and reciprocal ranks of each image, summed over runs, and for image retrieval over its captions."""
    sums_RSC: NDArray[np.float64]
    """The columns, summed over the images of each draw."""
    captions_R1: NDArray[np.float64]
    """Number of captions of each draw."""
    runs_S: tuple[int, ...]
    """Number of runs of each system."""


def _draw(systems: Mapping[str, Sequence[RankTable]], resamples: int, seed: int) -> _Draws:
    if empty := [name for name, tables in systems.items() if not tables]:
        raise InputError(f"there is no table of ranks for {empty[0]}, expected at least one", hint=RANKS_HINT)
    check_queries({f"run {i} of {name}": table for name, tables in systems.items() for i, table in enumerate(tables, 1)})
    columns_SIC = np.stack([_columns(tables) for tables in systems.values()])
    num_captions_I = np.bincount(next(iter(systems.values()))[0].caption_image)
    values_IC = np.column_stack([*columns_SIC, num_captions_I])
    sums_RC = np.vstack([values_IC.sum(axis=0), bootstrap_sums(values_IC, resamples, seed)])
    num_systems, _, num_columns = columns_SIC.shape
    return _Draws(columns_SIC, sums_RC[:, :-1].reshape(-1, num_systems, num_columns), sums_RC[:, -1:], tuple(map(len, systems.values())))


def _columns(tables: Sequence[RankTable]) -> NDArray[np.float64]:
    """(I, C): hits and reciprocal ranks of each image, summed over tables."""
    text_IC, image_IC = np.zeros((2, len(tables[0].image_ids), len(KS) + 1))
    for table in tables:
        text_IC += _hits_and_reciprocals(table.text_ranks)
        # An image has several captions, and `+=` would add only one of them.
        np.add.at(image_IC, table.caption_image, _hits_and_reciprocals(table.image_ranks))
    return np.hstack([text_IC, image_IC])


def _hits_and_reciprocals(rank_Q: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.column_stack([rank_Q[:, None] <= KS, 1 / rank_Q])


def _system_estimates(draws: _Draws, system: int) -> Estimates:
    return _estimates(_percents(draws.sums_RSC[:, system], draws, draws.runs_S[system]))


def _against_base(draws: _Draws, system: int, resamples: int, seed: int) -> Comparison:
    num_our_runs, num_base_runs = draws.runs_S[system], draws.runs_S[-1]
    # Hits are whole numbers. Multiplied crosswise they stay whole, so a draw without a difference gives exactly zero.
    sums_RC = draws.sums_RSC[:, system] * num_base_runs - draws.sums_RSC[:, -1] * num_our_runs
    columns_IC = draws.columns_SIC[system] * num_base_runs - draws.columns_SIC[-1] * num_our_runs
    percents_RC = _percents(sums_RC, draws, num_base_runs * num_our_runs)
    text_IC, image_IC = np.hsplit(columns_IC, 2)
    num_images, num_captions = len(columns_IC), draws.captions_R1[0, 0]
    # Each image's share of the difference in RSUM, times images and captions: a whole number.
    share_I = num_captions * text_IC[:, :-1].sum(axis=1) + num_images * image_IC[:, :-1].sum(axis=1)
    sign_flip = sign_flip_test(share_I, resamples, seed)
    return Comparison(
        difference=_estimates(percents_RC),
        ours=_system_estimates(draws, system),
        base=_system_estimates(draws, -1),
        p_value=_two_sided(percents_RC[1:, -1]),
        sign_flip_p_value=sign_flip.p_value,
        sign_flip_is_exact=sign_flip.is_exact,
        num_images=num_images,
        num_resamples=resamples,
        num_our_runs=num_our_runs,
        num_base_runs=num_base_runs,
    )


def _percents(sums_RC: NDArray[np.float64], draws: _Draws, num_runs: int) -> NDArray[np.float64]:
    """(R, C + 1): the columns as means over queries, and RSUM, in percent, from sums over `num_runs` runs."""
    num_images = draws.columns_SIC.shape[1]
    text_RC, image_RC = np.hsplit(sums_RC, 2)
    # One division per direction: if the sums of the directions cancel, so do their quotients, to the bit.
    rsum_R = text_RC[:, :-1].sum(axis=1) / num_images + image_RC[:, :-1].sum(axis=1) / draws.captions_R1[:, 0]
    return 100 / num_runs * np.column_stack([text_RC / num_images, image_RC / draws.captions_R1, rsum_R])


def _estimates(percents_RC: NDArray[np.float64]) -> Estimates:
    bounds_2C = np.quantile(percents_RC[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    *columns, rsum = [Estimate(value, Interval(*bounds)) for value, *bounds in np.vstack([percents_RC[0], bounds_2C]).T.tolist()]
    names = [f"R@{k}" for k in KS]
    (*text, text_reciprocal), (*image, image_reciprocal) = columns[: len(KS) + 1], columns[len(KS) + 1 :]
    return Estimates(
        rsum=rsum,
        text_retrieval=dict(zip(names, text, strict=True)),
        image_retrieval=dict(zip(names, image, strict=True)),
        text_reciprocal_rank=text_reciprocal,
        image_reciprocal_rank=image_reciprocal,
    )


def _two_sided(rsum_R: NDArray[np.float64]) -> float:
    rarer = int(min(np.count_nonzero(rsum_R <= 0), np.count_nonzero(rsum_R >= 0)))
    return min(1.0, 2 * (rarer + 1) / (len(rsum_R) + 1))
