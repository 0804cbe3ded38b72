"""Comparison of systems: which evaluations are compared, the tests of every system against the base, and the queries
that differ most.

A system is an evaluation on disk, or several evaluations that differ only in the seed. It is named by one of

    FOLDER           ranks.parquet and result.json, as `dcdctl eval` writes them; the cascade's files if there are
        no others
    FOLDER:cascade   cascade-ranks.parquet and cascade.json
    FOLDER:agreement the agreement with a teacher: pool-agreement.parquet and pool.json, or else agreement.parquet and
        result.json; FOLDER is enough where there is nothing but the evaluation of a pool
    REF,REF,REF      the seeds of one system, each any of the above

All systems must have the same queries, and the same protocol or the same teacher.

Shape letters: Q queries of a direction, R runs of a system.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from dcdctl.core.artifacts import kind_of_folder, other_folder_error
from dcdctl.core.data import Direction, Indices, group_captions
from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.evaluation import significance
from dcdctl.core.evaluation.agreement import Agreements, check_same_queries, mean_ndcg_Q
from dcdctl.core.evaluation.bootstrap import holm
from dcdctl.core.evaluation.comparison import (
    LETTERS,
    AdjustedComparison,
    Comparison,
    PairwiseComparison,
    QueryShifts,
    RankShift,
    System,
    refs_of,
    short_names,
)
from dcdctl.core.evaluation.document import CASCADE_FILES, MODEL_FILES, POOL_FILES
from dcdctl.core.evaluation.estimates import (
    AgreementComparison,
    RankComparison,
)
from dcdctl.core.evaluation.files import SavedAgreement, SavedEvaluation
from dcdctl.core.evaluation.ranking import RankTable, check_queries
from dcdctl.core.places import shown

WHOLE, CASCADE, AGREEMENT = "", ":cascade", ":agreement"
"""How the name of a system ends."""
FILES = {
    WHOLE: (MODEL_FILES, CASCADE_FILES, POOL_FILES),
    CASCADE: (CASCADE_FILES,),
    AGREEMENT: (POOL_FILES, MODEL_FILES),
}
"""The files that it may have, in the order in which they are looked for."""
OPTIONS = {WHOLE: "", CASCADE: " --rerank REF", AGREEMENT: " --against TEACHER"}
"""What `dcdctl eval` needs to write them."""
NUM_QUERIES = 6
"""Better and worse queries that are listed for each direction."""
DECIMALS = 9
"""Digits of a difference of mean logarithms that are kept: further digits are rounding."""


def compare_systems(
    names: Sequence[str], *, resamples: int = 10_000, seed: int = 0, draw_seeds: bool = False
) -> Comparison:
    """Compare each system with the base, which is the first one.

    Up to `NUM_QUERIES` queries that rank better, and as many that rank worse, are listed for each direction. InputError
    for a system that does not exist, or that has one run and seeds to draw; StaleError for systems that cannot be
    compared.
    """
    if not 2 <= len(names) <= len(LETTERS):
        raise InputError(f"got {len(names)} systems, expected 2 to {len(LETTERS)}", hint="name two or more evaluations")
    systems = dict(zip(LETTERS[: len(names)], read_systems(names), strict=True))
    short = dict(zip(systems, short_names(names), strict=True))
    compare = _compare_agreements if systems[LETTERS[0]].agreements else _compare_ranks
    return Comparison(
        systems=systems,
        base=LETTERS[0],
        comparisons=tuple(compare(systems, short, resamples=resamples, seed=seed, draw_seeds=draw_seeds)),
        num_resamples=resamples,
        seed=seed,
        draws_seeds=draw_seeds,
    )


def _compare_ranks(
    systems: Mapping[str, System], short: Mapping[str, str], *, resamples: int, seed: int, draw_seeds: bool
) -> Iterator[PairwiseComparison]:
    """The ranks of every system against those of the first; `short` has their names by letter."""
    base, *other_letters = systems
    base_runs, others = systems[base].tables, {letter: systems[letter].tables for letter in other_letters}

    def compare_on(texts_T: Indices | None) -> list[RankComparison]:
        """Every other system against the base on these captions, on everything without any."""
        runs = {}
        for letter, system in systems.items():
            tables = system.tables
            if texts_T is not None:
                tables = [table.of_captions(texts_T) for table in tables]
            runs[short[letter]] = tables
        of_base = runs.pop(short[base])
        return significance.compare_all(runs, of_base, resamples=resamples, seed=seed, draw_seeds=draw_seeds)

    whole = _adjusted(compare_on(None), draw_seeds=draw_seeds)
    languages = group_captions(base_runs[0].languages)
    of_languages: list[RankComparison] = []
    for texts_T in languages.values():
        of_languages += compare_on(texts_T)
    adjusted = _adjusted(of_languages, draw_seeds=draw_seeds)
    for number, (letter, runs) in enumerate(others.items()):
        # The comparisons stand language by language, each with all systems.
        own_languages = adjusted[number :: len(others)]
        yield PairwiseComparison(
            **vars(whole[number]),
            letter=letter,
            shifts={each: find_rank_shifts(runs, base_runs, each, NUM_QUERIES) for each in Direction},
            by_language=dict(zip(languages, own_languages, strict=True)),
        )


def _compare_agreements(
    systems: Mapping[str, System], short: Mapping[str, str], *, resamples: int, seed: int, draw_seeds: bool
) -> Iterator[PairwiseComparison]:
    """The agreement of every system with the teacher against that of the first."""
    base, *others = systems
    # Here by the names of the systems; the comparison of two does not know them.
    significance.check_seeds({short[letter]: system.runs for letter, system in systems.items()}, draw_seeds=draw_seeds)
    of_base, comparisons = systems[base].agreements, []
    for letter in others:
        comparisons.append(
            significance.compare_agreements(
                systems[letter].agreements, of_base, resamples=resamples, seed=seed, draw_seeds=draw_seeds
            )
        )
    for letter, adjusted in zip(others, _adjusted(comparisons, draw_seeds=draw_seeds), strict=True):
        ours = systems[letter].agreements
        shifts = {each: count_shifts(ours, of_base, each) for each in of_base[0].by_direction}
        yield PairwiseComparison(**vars(adjusted), letter=letter, shifts=shifts, by_language={})


def _adjusted(
    comparisons: Sequence[RankComparison | AgreementComparison], *, draw_seeds: bool
) -> list[AdjustedComparison]:
    """The comparisons with p-values that are adjusted for all of them."""
    bootstrap = holm([one.p_value for one in comparisons])
    sign_flip = holm([one.sign_flip_p_value for one in comparisons])
    t_test = holm([one.t_test_p_value or 0.0 for one in comparisons])
    adjusted = []
    for number, comparison in enumerate(comparisons):
        adjusted.append(
            AdjustedComparison(
                comparison=comparison,
                holm_p_value=bootstrap[number],
                holm_sign_flip_p_value=sign_flip[number],
                holm_t_test_p_value=t_test[number] if draw_seeds else None,
            )
        )
    return adjusted


def find_rank_shifts(
    ours: Sequence[RankTable], base: Sequence[RankTable], direction: Direction, num_queries: int
) -> QueryShifts:
    """The queries of a direction whose ranks differ most, by the ratio of the geometric means over runs.

    Up to `num_queries` better and as many worse queries are listed, the largest ratio first; of equal ratios, the query
    nearer to the top.

    >>> ours, base = (RankTable(("a", "b"), np.arange(2), np.arange(2), np.array(ranks),
    ...     np.ones(2)) for ranks in ([3, 9], [5, 1]))
    >>> find_rank_shifts([ours], [base], Direction.TEXT, 1).worse
    (RankShift(query=1, ours=(9,), base=(1,)),)
    """
    ours_QR = np.column_stack([table.ranks(direction) for table in ours])
    base_QR = np.column_stack([table.ranks(direction) for table in base])
    # Ratios of ranks: from 40 to 20 is as much as from 2 to 1.
    log_ours_Q, log_base_Q = np.log(ours_QR).mean(axis=1), np.log(base_QR).mean(axis=1)
    gain_Q = (log_base_Q - log_ours_Q).round(DECIMALS)
    # np.lexsort sorts by its last key first.
    order_Q = np.lexsort([np.minimum(log_ours_Q, log_base_Q), -np.abs(gain_Q)])
    better, worse = order_Q[gain_Q[order_Q] > 0], order_Q[gain_Q[order_Q] < 0]
    listed = {}
    for query in (*better[:num_queries].tolist(), *worse[:num_queries].tolist()):
        listed[query] = RankShift(query, tuple(ours_QR[query].tolist()), tuple(base_QR[query].tolist()))
    return QueryShifts(
        num_better=len(better),
        num_equal=len(gain_Q) - len(better) - len(worse),
        num_worse=len(worse),
        better=tuple(listed[query] for query in better[:num_queries].tolist()),
        worse=tuple(listed[query] for query in worse[:num_queries].tolist()),
    )


def count_shifts(ours: Sequence[Agreements], base: Sequence[Agreements], direction: Direction) -> QueryShifts:
    """How many queries of a direction have a higher, an equal and a lower nDCG@10 than in the base, by the means over
    runs."""
    gain_Q = (mean_ndcg_Q(ours, direction) - mean_ndcg_Q(base, direction)).round(DECIMALS)
    num_better, num_worse = int(np.count_nonzero(gain_Q > 0)), int(np.count_nonzero(gain_Q < 0))
    return QueryShifts(num_better=num_better, num_equal=len(gain_Q) - num_better - num_worse, num_worse=num_worse)


def read_systems(names: Sequence[str]) -> list[System]:
    """Read all systems; InputError for a missing or damaged file, StaleError that names both if two cannot be
    compared."""
    systems = [System(name, tuple(map(_read, refs_of(name)))) for name in names]
    runs, bases = [], []
    for system in systems:
        models = []
        for run in system.runs:
            protocol = run.evaluation.protocol
            runs.append(run)
            models.append((run.ref, {"kind": protocol.kind, "depth": protocol.depth}))
            bases.append((run.ref, run.basis))
        _check_alike(models, "are not seeds of one system", "name them as two")
    _check_alike(bases, "were evaluated differently", "evaluate both the same way with `dcdctl eval`")
    # Of the same kind, as their bases say.
    if ranks := {run.ref: run.table for run in runs if isinstance(run, SavedEvaluation)}:
        check_queries(ranks)
    else:
        check_same_queries({run.ref: run.by_query for run in runs if isinstance(run, SavedAgreement)})
    return systems


def _read(ref: str) -> SavedEvaluation | SavedAgreement:
    path, end = Path(ref), WHOLE
    # A folder may really have such a name.
    if not path.exists() and (ends := [each for each in (CASCADE, AGREEMENT) if ref.endswith(each)]):
        (end,) = ends
        path = Path(ref.removesuffix(end))
    names = next((names for names in FILES[end] if (path / (names.ranks or names.agreement)).is_file()), None)
    if names is not None and (path / names.result).is_file():
        is_agreement = end == AGREEMENT or names is POOL_FILES
        return (SavedAgreement if is_agreement else SavedEvaluation).load(path, names, ref)
    other = other_folder_error(path, "evaluation", error=InputError)
    if names is None and other is not None and kind_of_folder(path) != "a run":
        raise other
    fault = f"there is no finished evaluation in {shown(path)}"
    named = path if path.is_dir() else "RUN"
    raise InputError(fault, hint=f"`dcdctl eval {named} --data DIR{OPTIONS[end]}` makes one")


def _check_alike(named: Sequence[tuple[str, Mapping[str, object]]], fault: str, hint: str) -> None:
    """StaleError if a run has other facts than the first one."""
    first_ref, first = named[0]
    for ref, facts in named[1:]:
        for name, value in facts.items():
            if value != first[name]:
                difference = f"the {name} is {value!r} for {ref}, {first[name]!r} for {first_ref}"
                raise StaleError(f"{first_ref} and {ref} {fault}: {difference}", hint=hint)
