"""How sure the recalls of a model are, and whether another's are better: the bootstrap over images, and random signs.

Images are drawn with replacement, as many as there are, each with its captions, and the recalls are taken anew of what was drawn; the
middle 95 % of many draws is the interval (Efron & Tibshirani 1993, chapter 13: the percentile interval). Models are compared on the
same draws, so that images that are hard for all do not blur their differences. The gallery is not drawn: ranks stay what they are. So
an interval says how much hangs on which images are in the split. Runs that differ in the seed are averaged query by query beforehand,
not drawn: how much hangs on the seed is not in it.

The sign-flip test asks how often a difference in RSUM as large would come about if, image by image, it were chance which of two models
has which hits.

Shape letters: I images, T texts (captions); R draws, before them one of every image once; S sides, the base last; C columns of a side,
half of them of text retrieval and half of image retrieval: hits by K, and the reciprocal rank.
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
"""Share of the draws that an interval holds."""


@dataclass(frozen=True)
class Interval:
    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    value: float
    """Of all images."""
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class Estimates:
    """In percent, or differences in percentage points; the names of recalls are those in `retrieval.Recalls`."""

    rsum: Estimate
    text_retrieval: dict[str, Estimate]
    image_retrieval: dict[str, Estimate]
    text_reciprocal_rank: Estimate
    """Mean over images of 1 / rank: moves with ranks that no recall sees."""
    image_reciprocal_rank: Estimate
    """Mean over captions."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    difference: Estimates
    """Ours less those of the base."""
    ours: Estimates
    base: Estimates
    p_value: float
    """Two-sided, of no difference in RSUM: twice the share of draws on the rarer side of zero, each side counting one draw more and
    the draws at zero; at least 2 / (R + 1)."""
    sign_flip_p_value: float
    """Two-sided, of no difference in RSUM, by a sign for each image with its captions (`resampling.sign_flip_test`)."""
    sign_flip_is_exact: bool
    num_images: int
    num_resamples: int
    num_our_runs: int
    num_base_runs: int


def compare_ranks(ours: Sequence[RankTable], base: Sequence[RankTable], *, resamples: int = 10_000, seed: int = 0) -> Comparison:
    """How much better we retrieve than the base, by runs on the same queries; both sides are measured on the same draws.

    InputError for a side without runs, StaleError for ranks of other queries.

    >>> run = RankTable(("a", "b"), np.arange(2), np.arange(2), np.array([1, 1]), np.array([1, 7]))
    >>> found = compare([run], [run])
    >>> found.difference.rsum, found.p_value
    (Estimate(value=0.0, interval=Interval(low=0.0, high=0.0)), 1.0)
    """
    return compare_all({"ours": ours}, base, resamples=resamples, seed=seed)[0]


def compare_all(
    sides: Mapping[str, Sequence[RankTable]], base: Sequence[RankTable], *, resamples: int = 10_000, seed: int = 0
) -> list[Comparison]:
    """Each side, by name, against the base, all on the same draws; errors as of `compare`."""
    drawn = _draw({**sides, "the base": base}, resamples, seed)
    return [_against_last(drawn, side, resamples, seed) for side in range(len(sides))]


def bootstrap(tables: Sequence[RankTable], *, resamples: int = 10_000, seed: int = 0) -> Estimates:
    """The recalls of one side, averaged over its runs; errors as of `compare`."""
    return _alone(_draw({"this side": tables}, resamples, seed), 0)


def check_queries(named: Mapping[str, RankTable]) -> None:
    """StaleError that names both where a table is not of the same queries as the first."""
    (first_name, first), *others = named.items()
    for name, table in others:
        odds = (f"{one}, not {other}" for one, other in zip(_queries(table), _queries(first), strict=False) if one != other)
        if found := next(odds, None):
            raise StaleError(f"{name} has other queries than {first_name}: {found}", hint="evaluate both on the same corpus and split")


def _queries(table: RankTable) -> list[str]:
    """How many there are, then the name of each."""
    owners = zip(table.caption_image.tolist(), table.caption_ids.tolist(), strict=True)
    captions = [f"caption {number} of {table.image_ids[image]!r}" for image, number in owners]
    return [f"{len(table.image_ids):,} images and {len(captions):,} captions", *map("image {!r}".format, table.image_ids), *captions]


@dataclass(frozen=True)
class _Drawn:
    """All sides on the same draws."""

    columns_SIC: NDArray[np.float64]
    """Of each image, summed over runs; those of image retrieval over the image's captions too."""
    sums_RSC: NDArray[np.float64]
    captions_R1: NDArray[np.float64]
    """How many the images of each draw have."""
    runs_S: tuple[int, ...]


def _draw(sides: Mapping[str, Sequence[RankTable]], resamples: int, seed: int) -> _Drawn:
    if empty := [side for side, tables in sides.items() if not tables]:
        raise InputError(f"there is no table of ranks for {empty[0]}, at least one is wanted", hint=RANKS_HINT)
    check_queries({f"run {i} of {side}": table for side, tables in sides.items() for i, table in enumerate(tables, 1)})
    columns_SIC = np.stack([_columns(tables) for tables in sides.values()])
    values_IC = np.column_stack([*columns_SIC, np.bincount(next(iter(sides.values()))[0].caption_image)])
    sums_RC = np.vstack([values_IC.sum(axis=0), bootstrap_sums(values_IC, resamples, seed)])
    num_sides, _, num_columns = columns_SIC.shape
    return _Drawn(columns_SIC, sums_RC[:, :-1].reshape(-1, num_sides, num_columns), sums_RC[:, -1:], tuple(map(len, sides.values())))


def _columns(tables: Sequence[RankTable]) -> NDArray[np.float64]:
    text_IC, image_IC = np.zeros((2, len(tables[0].image_ids), len(KS) + 1))
    for table in tables:
        text_IC += _of_ranks(table.text_ranks)
        np.add.at(image_IC, table.caption_image, _of_ranks(table.image_ranks))
    return np.hstack([text_IC, image_IC])


def _of_ranks(rank_Q: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.column_stack([rank_Q[:, None] <= KS, 1 / rank_Q])


def _alone(drawn: _Drawn, side: int) -> Estimates:
    return _estimates(_percents(drawn.sums_RSC[:, side], drawn, drawn.runs_S[side]))


def _against_last(drawn: _Drawn, side: int, resamples: int, seed: int) -> Comparison:
    num_our_runs, num_base_runs = drawn.runs_S[side], drawn.runs_S[-1]
    # Hits are whole numbers and stay so: draws without a difference are at zero to the bit.
    sums_RC = drawn.sums_RSC[:, side] * num_base_runs - drawn.sums_RSC[:, -1] * num_our_runs
    columns_IC = drawn.columns_SIC[side] * num_base_runs - drawn.columns_SIC[-1] * num_our_runs
    percents_RC = _percents(sums_RC, drawn, num_base_runs * num_our_runs)
    text_IC, image_IC = np.hsplit(columns_IC, 2)
    num_images, num_captions = len(columns_IC), drawn.captions_R1[0, 0]
    share_I = num_captions * text_IC[:, :-1].sum(axis=1) + num_images * image_IC[:, :-1].sum(axis=1)  # in RSUM, in whole numbers
    flipped = sign_flip_test(share_I, resamples, seed)
    return Comparison(
        difference=_estimates(percents_RC),
        ours=_alone(drawn, side),
        base=_alone(drawn, -1),
        p_value=_two_sided(percents_RC[1:, -1]),
        sign_flip_p_value=flipped.p_value,
        sign_flip_is_exact=flipped.is_exact,
        num_images=num_images,
        num_resamples=resamples,
        num_our_runs=num_our_runs,
        num_base_runs=num_base_runs,
    )


def _percents(sums_RC: NDArray[np.float64], drawn: _Drawn, num_runs: int) -> NDArray[np.float64]:
    """(R, C + 1): the columns as means over queries, and RSUM, of sums over `num_runs` runs."""
    num_images = drawn.columns_SIC.shape[1]
    text_RC, image_RC = np.hsplit(sums_RC, 2)
    # One division a direction: where the directions cancel, so do their quotients, to the bit.
    rsum_R = text_RC[:, :-1].sum(axis=1) / num_images + image_RC[:, :-1].sum(axis=1) / drawn.captions_R1[:, 0]
    return 100 / num_runs * np.column_stack([text_RC / num_images, image_RC / drawn.captions_R1, rsum_R])


def _estimates(percents_RC: NDArray[np.float64]) -> Estimates:
    bounds_2C = np.quantile(percents_RC[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    *found, rsum = [Estimate(value, Interval(*bounds)) for value, *bounds in np.vstack([percents_RC[0], bounds_2C]).T.tolist()]
    names = [f"R@{k}" for k in KS]
    (*text, text_reciprocal), (*image, image_reciprocal) = found[: len(KS) + 1], found[len(KS) + 1 :]
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
