"""Significance of recalls: intervals from the bootstrap over images, and tests of whether one system retrieves better
than another.

Bootstrap: images are drawn with replacement, as many as there are, each with its captions, and the recalls of the draw
are computed. The middle 95 % of many draws is the interval (the percentile interval; Efron & Tibshirani 1993, chapter
13). Systems are compared on the same draws, so that images that are hard for all of them do not hide their difference.
The gallery is not drawn: ranks do not change. An interval shows how much a result depends on which images are in the
split. Runs that differ in the seed are averaged query by query, not drawn: how much a result depends on the seed is not
in the interval.

With `draw_seeds`, each draw of images also draws the mean over runs, from Student's t distribution (`_with_runs`).
Runs drawn with replacement would be too alike: of 2 + 2 or 3 + 3 runs that differ much, such intervals of 95 % contain
the difference in 79 % and 90 % of cases (benchmarks/interval_coverage.py). Systems draw independently, also if their
seeds are equal: what a seed does to both of them makes the interval too wide rather than too narrow.

Sign-flip test: how often would a difference in RSUM be as large if, image by image, it were chance which of two systems
has which hits?

A claim about methods needs the t-test over the RSUM of the runs too (`RankComparison.method_p_value`).

Shape letters: I images, T texts (captions); R draws, the first of them every image once; S systems, the base last; C
columns of a system, half of them for text retrieval and half for image retrieval: the measures that are COMPARED; N
runs of a system.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dcdctl.core.data import Direction, Indices, Values
from dcdctl.core.errors import InputError
from dcdctl.core.evaluation.agreement import AGREEMENT, Agreements, check_same_queries, mean_ndcg_Q
from dcdctl.core.evaluation.bootstrap import bootstrap_sums, sign_flip_test
from dcdctl.core.evaluation.estimates import (
    AgreementComparison,
    AgreementEstimates,
    Estimate,
    Estimates,
    Interval,
    MeanTest,
    RankComparison,
)
from dcdctl.core.evaluation.measures import COMPARED, IN_RSUM, NDCG
from dcdctl.core.evaluation.ranking import RankTable, check_queries

Runs = Sequence[RankTable]
"""The ranks of a system, from each of its runs."""
LEVEL = 0.95
"""Share of the draws within an interval."""
WHOLE = 10**9
"""Differences of values in [0, 1] are tested as whole numbers of this fraction."""
DECIMALS = 9
"""Digits of an agreement in percent that are kept: further digits are rounding."""
LIMITS_2C = np.array([[0.0, 100.0]] * 2 * len(COMPARED) + [[0.0, 600.0]]).T
"""The lowest and the highest value of each column in percent, and of RSUM."""
MIN_DRAWN_SEEDS = 2
"""Fewest runs of a system whose seeds can be drawn: one run does not show how runs differ."""
_RUN_STREAM = 2
"""Stream of the drawn means over runs, so that they do not depend on the draws of images with the same seed."""


def compare_ranks(
    ours: Runs, base: Runs, *, resamples: int = 10_000, seed: int = 0, draw_seeds: bool = False
) -> RankComparison:
    """How much better a system retrieves than the base, from runs on the same queries; both are measured on the same
    draws.

    With `draw_seeds`, intervals and `p_value` cover other runs too; the sign-flip test does not. InputError for a
    system with one run whose seeds are to be drawn; StaleError for ranks of other queries.

    >>> run = RankTable(("a", "b"), np.arange(2), np.arange(2), np.array([1, 1]), np.array([1, 7]))
    >>> comparison = compare_ranks([run], [run])
    >>> comparison.difference.rsum, comparison.p_value
    (Estimate(value=0.0, interval=Interval(low=0.0, high=0.0)), 1.0)
    """
    return compare_all({"ours": ours}, base, resamples=resamples, seed=seed, draw_seeds=draw_seeds)[0]


def compare_all(
    systems: Mapping[str, Runs], base: Runs, *, resamples: int = 10_000, seed: int = 0, draw_seeds: bool = False
) -> list[RankComparison]:
    """Each system, by name, against the base, all on the same draws. Raises what `compare_ranks` raises."""
    draws = _draw({**systems, "the base": base}, resamples, seed, draw_seeds=draw_seeds)
    comparisons = [_against_base(draws, system) for system in range(len(systems))]
    if draw_seeds:  # draws of runs are those of recalls alone
        return comparisons
    for system, ours in enumerate(systems.values()):
        comparisons[system] = _with_ndcg(comparisons[system], ours, base, resamples=resamples, seed=seed)
    return comparisons


def bootstrap(tables: Runs, *, resamples: int = 10_000, seed: int = 0) -> Estimates:
    """The recalls of one system, averaged over its runs. Raises what `compare_ranks` raises."""
    estimates = _system_estimates(_draw({"this system": tables}, resamples, seed), 0)
    for direction, ndcg_Q1, image_Q in _graded([tables]):
        (estimate,) = estimate_means(100 * ndcg_Q1, image_Q, resamples, seed)
        estimates = estimates.with_ndcg(direction, estimate)
    return estimates


def estimate_means(values_QM: Values, unit_Q: Indices, resamples: int, seed: int) -> list[Estimate]:
    """The means of columns over queries, with intervals from draws of units: the queries of one unit, such as the
    captions of an image, are drawn together."""
    return _with_intervals(np.vstack([values_QM.mean(axis=0), _drawn_means(values_QM, unit_Q, resamples, seed)]))


def compare_means(ours_Q: Values, base_Q: Values, unit_Q: Indices, resamples: int, seed: int) -> MeanTest:
    """Whether a mean over queries differs between two systems, from their values of each query."""
    # Whole numbers, so that sums are exact: a draw without a difference gives exactly zero.
    difference_Q: Values = np.round((ours_Q - base_Q) * WHOLE)
    drawn_R = _drawn_means(difference_Q[:, None], unit_Q, resamples, seed)[:, 0]
    by_unit = np.bincount(np.unique(unit_Q, return_inverse=True)[1], difference_Q).astype(np.float64)
    return MeanTest(**_tests(drawn_R, by_unit, seed))


def compare_agreements(
    ours: Sequence[Agreements],
    base: Sequence[Agreements],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    draw_seeds: bool = False,
) -> AgreementComparison:
    """Compare the agreement of two systems with one teacher, from runs on the same candidates.

    Images are drawn with their captions, as by `compare_ranks`. The texts of a pool have no images: there, the queries
    of each direction are drawn for themselves, and the sign-flip test has a sign for each query. InputError for a
    system with one run whose seeds are to be drawn; StaleError for an agreement over other candidates.
    """
    check_seeds({"ours": ours, "the base": base}, draw_seeds=draw_seeds)
    runs = (*ours, *base)
    check_same_queries({f"run {number}": run for number, run in enumerate(runs, 1)})
    means_DRNM = _drawn_agreements(runs, resamples, seed)
    columns_RNM = np.concatenate([*means_DRNM.values(), _mean_ndcg(means_DRNM)], axis=2)
    sides_RNM = np.split(columns_RNM, [len(ours)], axis=1)
    ours_RM, base_RM = (side_RNM.mean(axis=1).round(DECIMALS) for side_RNM in sides_RNM)
    difference_RM, limits_2M = ours_RM - base_RM, _agreement_limits(len(means_DRNM))
    our_NM, base_NM = (side_RNM[0] for side_RNM in sides_RNM)
    if draw_seeds:
        ours_RM = _with_runs(ours_RM, [our_NM], limits_2M, seed)
        base_RM = _with_runs(base_RM, [base_NM], limits_2M, seed)
        difference_RM = _with_runs(difference_RM, [our_NM, base_NM], limits_2M - limits_2M[::-1], seed)
    directions = list(means_DRNM)
    return AgreementComparison(
        ours=_agreement_estimates(ours_RM, directions),
        base=_agreement_estimates(base_RM, directions),
        difference=_agreement_estimates(difference_RM, directions),
        runs=(tuple(our_NM[:, -1].tolist()), tuple(base_NM[:, -1].tolist())),
        **_tests(difference_RM[1:, -1], _ndcg_shares(ours, base), seed),
    )


def _drawn_agreements(runs: Sequence[Agreements], resamples: int, seed: int) -> dict[Direction, Values]:
    """(1 + R, N, M) by direction: the measures of each run on all queries, and on those of each draw."""
    first, of_draws = runs[0], {}
    values = {way: np.hstack([run.by_direction[way].scaled_QM for run in runs]) for way in first.by_direction}
    if first.image_of_text is None:
        for number, (direction, values_QC) in enumerate(values.items()):
            query_Q = first.unit_Q(direction)
            of_draws[direction] = _drawn_means(values_QC, query_Q, resamples, seed + number)
    else:
        # One draw of images for both directions.
        image_U = np.unique(np.concatenate([first.unit_Q(direction) for direction in values]))
        sums = []
        for direction, values_QC in values.items():
            index_Q = np.searchsorted(image_U, first.unit_Q(direction))
            sums.append(_unit_sums(values_QC, index_Q, len(image_U)))
        drawn = np.hsplit(bootstrap_sums(np.hstack(sums), resamples, seed), len(sums))
        for (direction, values_QC), drawn_RC in zip(values.items(), drawn, strict=True):
            # A draw may have no query of a direction of which few images have one; it takes the mean of all.
            means_RC = np.tile(values_QC.mean(axis=0), (resamples, 1))
            np.divide(drawn_RC[:, :-1], drawn_RC[:, -1:], out=means_RC, where=drawn_RC[:, -1:] > 0)
            of_draws[direction] = means_RC
    shape = (resamples + 1, len(runs), len(AGREEMENT))
    return {way: np.vstack([values[way].mean(axis=0), of_draws[way]]).reshape(shape) for way in values}


def _mean_ndcg(means_DRNM: Mapping[Direction, Values]) -> Values:
    """(1 + R, N, 1): nDCG@10, the mean of both directions."""
    column = [row.name for row in AGREEMENT].index(NDCG.name)
    return np.asarray(np.mean([means_RNM[:, :, column, None] for means_RNM in means_DRNM.values()], axis=0))


def _agreement_limits(num_directions: int) -> Values:
    """(2, M): the lowest and the highest value of the measures of each direction, and of nDCG@10."""
    limits_M2 = [(row.lowest, row.factor) for row in AGREEMENT] * num_directions
    return np.array([*limits_M2, (NDCG.lowest, NDCG.factor)]).T


def _ndcg_shares(ours: Sequence[Agreements], base: Sequence[Agreements]) -> Values:
    """The share of each unit in the difference in nDCG@10, as whole numbers, whose sums are exact: of each image; of a
    pool, of each query."""
    first, shares, units = ours[0], [], []
    for direction in first.by_direction:
        ours_Q, base_Q = mean_ndcg_Q(ours, direction), mean_ndcg_Q(base, direction)
        shares.append(np.round(100 * (ours_Q - base_Q) / len(ours_Q) * WHOLE))
        units.append(first.unit_Q(direction))
    if first.image_of_text is None:
        return np.concatenate(shares)
    return np.bincount(np.concatenate(units), np.concatenate(shares)).astype(np.float64)


def _agreement_estimates(values_RC: Values, directions: Sequence[Direction]) -> AgreementEstimates:
    """From the measures of each direction, and the total last."""
    *columns, total = _with_intervals(values_RC)
    names, by_direction = [row.name for row in AGREEMENT], {}
    for number, direction in enumerate(directions):
        own = columns[number * len(names) : (number + 1) * len(names)]
        by_direction[direction] = dict(zip(names, own, strict=True))
    return AgreementEstimates(
        ndcg=total,
        text_retrieval=by_direction.get(Direction.TEXT, {}),
        image_retrieval=by_direction.get(Direction.IMAGE, {}),
    )


def _drawn_means(values_QM: Values, unit_Q: Indices, resamples: int, seed: int) -> Values:
    """(R, M): the means of the columns over the queries of each draw of units."""
    index_Q = np.unique(unit_Q, return_inverse=True)[1]
    sums_RC = bootstrap_sums(_unit_sums(values_QM, index_Q, index_Q.max() + 1), resamples, seed)
    return sums_RC[:, :-1] / sums_RC[:, -1:]


def _unit_sums(values_QM: Values, index_Q: Indices, num_units: int) -> Values:
    """(U, M + 1): the columns summed over the queries of each unit, and the number of its queries."""
    columns_UC = np.zeros((num_units, values_QM.shape[1] + 1))
    np.add.at(columns_UC, index_Q, np.column_stack([values_QM, np.ones(len(index_Q))]))
    return columns_UC


def _graded(systems: Sequence[Runs]) -> Iterator[tuple[Direction, Values, Indices]]:
    """Each direction in which all runs have the nDCG of the same queries: (Q, S) of these queries, averaged over runs,
    and the image of each."""
    first = systems[0][0]
    if not all(table.ndcg for tables in systems for table in tables):
        return
    for direction in Direction:
        of_systems = []
        for tables in systems:
            of_systems.append(np.mean([table.ndcg[direction] for table in tables], axis=0))
        ndcg_QS = np.stack(of_systems, axis=1)
        is_graded_Q = np.isfinite(ndcg_QS).all(axis=1)
        if is_graded_Q.any():
            image_Q = np.arange(len(ndcg_QS)) if direction == Direction.TEXT else first.caption_image
            yield direction, ndcg_QS[is_graded_Q], image_Q[is_graded_Q]


def _with_ndcg(comparison: RankComparison, ours: Runs, base: Runs, *, resamples: int, seed: int) -> RankComparison:
    sides: dict[str, Any] = {"ours": comparison.ours, "base": comparison.base, "difference": comparison.difference}
    tests = {}
    for direction, ndcg_QS, image_Q in _graded([ours, base]):
        ours_Q, base_Q = ndcg_QS.T
        values_QM = 100 * np.column_stack([ours_Q, base_Q, ours_Q - base_Q])
        for name, estimate in zip(sides, estimate_means(values_QM, image_Q, resamples, seed), strict=True):
            sides[name] = sides[name].with_ndcg(direction, estimate)
        tests[direction.key] = compare_means(ours_Q, base_Q, image_Q, resamples=resamples, seed=seed)
    return replace(comparison, **sides, ndcg_tests=tests)


@dataclass(frozen=True)
class _Draws:
    """All systems on the same draws."""

    columns_SIC: Values
    """The measures of each image, summed over runs, and for image retrieval over its captions."""
    sums_RSC: Values
    """The columns, summed over the images of each draw."""
    captions_R1: Values
    """Number of captions of each draw."""
    percents_SNC: list[Values]
    """The columns of each run as means over queries, and RSUM, in percent: (N, C + 1) of each system."""
    covers_runs: bool
    seed: int


def _draw(systems: Mapping[str, Runs], resamples: int, seed: int, *, draw_seeds: bool = False) -> _Draws:
    check_seeds(systems, draw_seeds=draw_seeds)
    named = {f"run {i} of {name}": table for name, tables in systems.items() for i, table in enumerate(tables, 1)}
    check_queries(named)
    # Summed over runs, not averaged: sums of hits stay whole numbers.
    runs_SNIC = [np.stack([_columns(table) for table in tables]) for tables in systems.values()]
    columns_SIC = np.stack([runs_NIC.sum(axis=0) for runs_NIC in runs_SNIC])
    num_captions_I = np.bincount(next(iter(named.values())).caption_image)
    drawn_RC = bootstrap_sums(np.column_stack([*columns_SIC, num_captions_I]), resamples, seed)
    num_images, num_captions = len(num_captions_I), num_captions_I.sum(keepdims=True)[None]
    return _Draws(
        columns_SIC=columns_SIC,
        sums_RSC=np.vstack([columns_SIC.sum(axis=1)[None], drawn_RC[:, :-1].reshape(resamples, len(systems), -1)]),
        captions_R1=np.vstack([num_captions, drawn_RC[:, -1:]]),
        percents_SNC=[_percents(runs_NIC.sum(axis=1), num_images, num_captions) for runs_NIC in runs_SNIC],
        covers_runs=draw_seeds,
        seed=seed,
    )


def check_seeds(systems: Mapping[str, Sequence[object]], *, draw_seeds: bool) -> None:
    """InputError for a system, by its name, with one run whose seeds are to be drawn."""
    few = [name for name, runs in systems.items() if len(runs) < MIN_DRAWN_SEEDS]
    if draw_seeds and few:
        raise InputError(
            f"{few[0]} has 1 run, drawing its seeds needs {MIN_DRAWN_SEEDS} or more",
            hint="name the runs of each seed, separated by commas, or leave --draw-seeds out",
        )


def _columns(table: RankTable) -> Values:
    """(I, C): the measures of each image."""
    text_IC = np.column_stack([of_rank(table.text_ranks) for _, of_rank in COMPARED]).astype(np.float64)
    image_TC = np.column_stack([of_rank(table.image_ranks) for _, of_rank in COMPARED])
    image_IC = np.zeros_like(text_IC)
    # An image has several captions, and `+=` would add only one of them.
    np.add.at(image_IC, table.caption_image, image_TC)
    return np.hstack([text_IC, image_IC])


def _system_estimates(draws: _Draws, system: int) -> Estimates:
    percents_NC = draws.percents_SNC[system]
    sums_RC = draws.sums_RSC[:, system] / len(percents_NC)
    percents_RC = _percents(sums_RC, draws.columns_SIC.shape[1], draws.captions_R1)
    if draws.covers_runs:
        percents_RC = _with_runs(percents_RC, [percents_NC], LIMITS_2C, draws.seed)
    return _estimates(percents_RC)


def _against_base(draws: _Draws, system: int) -> RankComparison:
    our_NC, base_NC = draws.percents_SNC[system], draws.percents_SNC[-1]
    # Hits are whole numbers. Multiplied crosswise they stay whole, so a draw without a difference gives exactly zero.
    sums_RC = draws.sums_RSC[:, system] * len(base_NC) - draws.sums_RSC[:, -1] * len(our_NC)
    columns_IC = draws.columns_SIC[system] * len(base_NC) - draws.columns_SIC[-1] * len(our_NC)
    text_IC, image_IC = np.hsplit(columns_IC, 2)
    num_images, num_captions = len(columns_IC), draws.captions_R1[0, 0]
    percents_RC = _percents(sums_RC, num_images, draws.captions_R1) / (len(our_NC) * len(base_NC))
    if draws.covers_runs:
        percents_RC = _with_runs(percents_RC, [our_NC, base_NC], LIMITS_2C - LIMITS_2C[::-1], draws.seed)
    # Each image's share of the difference in RSUM, times images and captions: a whole number.
    share_I = num_captions * text_IC[:, IN_RSUM].sum(axis=1) + num_images * image_IC[:, IN_RSUM].sum(axis=1)
    return RankComparison(
        difference=_estimates(percents_RC),
        ours=_system_estimates(draws, system),
        base=_system_estimates(draws, -1),
        runs=(tuple(our_NC[:, -1].tolist()), tuple(base_NC[:, -1].tolist())),
        **_tests(percents_RC[1:, -1], share_I, draws.seed),
    )


def _with_runs(values_RC: Values, runs_SNC: Sequence[Values], limits_2C: Values, seed: int) -> Values:
    """The draws of a mean over runs, or of the difference of two such means, spread by how much runs differ.

    The mean of N runs has the variance s^2 / N beside that over images. Both are estimates, and s^2 from few runs is a
    poor one: a normal distribution is too narrow, and Student's t is wider by as much as the degrees of freedom say
    (Welch 1947, Satterthwaite 1946; images are many, so their variance counts as known). The draws of images keep their
    skew. The first row, what was observed, stays as it is, and so do columns in which all runs are equal.
    """
    # Less the first run: the variance of equal runs is then exactly zero.
    variance_SC = np.stack([np.var(runs_NC - runs_NC[0], axis=0, ddof=1) / len(runs_NC) for runs_NC in runs_SNC])
    freedom_S1 = np.array([[len(runs_NC) - 1] for runs_NC in runs_SNC])
    over_runs_C, over_images_C = variance_SC.sum(axis=0), values_RC[1:].var(axis=0)
    rng, spread_RC = np.random.default_rng((seed, _RUN_STREAM)), values_RC.copy()
    for column in np.flatnonzero(over_runs_C):
        total = over_images_C[column] + over_runs_C[column]
        freedom = total**2 / (variance_SC[:, column] ** 2 / freedom_S1[:, 0]).sum()
        observed, *drawn = values_RC[:, column]
        error_R = drawn - observed + rng.normal(0, np.sqrt(over_runs_C[column]), len(drawn))
        # A normal number over the root of a mean of squares is what Student's t is.
        error_R *= np.sqrt(freedom / rng.chisquare(freedom, len(drawn)))
        spread_RC[1:, column] = np.clip(observed + error_R, *limits_2C[:, column])
    return spread_RC


def _tests(difference_R: Values, difference_U: Values, seed: int) -> dict[str, Any]:
    """The fields of a `MeanTest`, from the difference of each draw and each unit's share of the difference."""
    num_rarer = int(min(np.count_nonzero(difference_R <= 0), np.count_nonzero(difference_R >= 0)))
    sign_flip_p_value, is_exact = sign_flip_test(difference_U, len(difference_R), seed)
    return {
        "p_value": min(1.0, 2 * (num_rarer + 1) / (len(difference_R) + 1)),
        "sign_flip_p_value": sign_flip_p_value,
        "sign_flip_is_exact": is_exact,
    }


def _percents(sums_RC: Values, num_images: int, captions_R1: Values) -> Values:
    """(R, C + 1): the columns as means over queries, and RSUM, in percent."""
    text_RC, image_RC = np.hsplit(sums_RC, 2)
    # One division per direction: if the sums of the directions cancel, so do their quotients, to the bit.
    text_R, image_R = text_RC[:, IN_RSUM].sum(axis=1), image_RC[:, IN_RSUM].sum(axis=1)
    rsum_R = text_R / num_images + image_R / captions_R1[:, 0]
    return 100 * np.column_stack([text_RC / num_images, image_RC / captions_R1, rsum_R])


def _with_intervals(values_RC: Values) -> list[Estimate]:
    """The first row of each column, with the interval of the draws in the other rows."""
    bounds_2C = np.quantile(values_RC[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    columns = np.vstack([values_RC[0], bounds_2C]).T.tolist()
    return [Estimate(value, Interval(*bounds)) for value, *bounds in columns]


def _estimates(percents_RC: Values) -> Estimates:
    *columns, rsum = _with_intervals(percents_RC)
    names, half = [name for name, _ in COMPARED], len(COMPARED)
    return Estimates(
        rsum=rsum,
        text_retrieval=dict(zip(names, columns[:half], strict=True)),
        image_retrieval=dict(zip(names, columns[half:], strict=True)),
    )
