"""Comparison of systems: which evaluations are compared, the tests of every system against the base, and the queries
that differ most.

A system is an evaluation on disk, or several evaluations that differ only in the seed. It is named by one of

    FOLDER           ranks.parquet and result.json, as `dcdctl eval` writes them; the cascade's files if there are
        no others
    FOLDER:cascade   cascade-ranks.parquet and cascade.json
    REF,REF,REF      the seeds of one system, each any of the above

All systems must have the same queries and the same protocol.

Shape letters: Q queries of a direction, R runs of a system.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dcdctl.core.artifacts import kind_of_folder, other_folder_error
from dcdctl.core.data import Direction, Index, group_captions
from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.evaluation import significance
from dcdctl.core.evaluation.bootstrap import holm
from dcdctl.core.evaluation.comparison import (
    LETTERS,
    AdjustedComparison,
    Comparison,
    PairwiseComparison,
    RankShift,
    RankShifts,
    System,
    refs_of,
    short_names,
)
from dcdctl.core.evaluation.document import CASCADE_FILES, MODEL_FILES, Evaluation
from dcdctl.core.evaluation.files import SavedEvaluation
from dcdctl.core.evaluation.ranking import RankTable, check_queries
from dcdctl.core.evaluation.significance import RankComparison, Runs
from dcdctl.core.places import shown

CASCADE_SUFFIX = ":cascade"
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
    systems = dict(zip(LETTERS, read_systems(names), strict=False))
    base, *other_letters = systems
    base_tables, others = systems[base].tables, {letter: systems[letter].tables for letter in other_letters}
    named = dict(zip(systems, short_names(names), strict=True))
    options: dict[str, Any] = {"resamples": resamples, "seed": seed, "draw_seeds": draw_seeds}
    compare = partial(_compare, {named[letter]: tables for letter, tables in others.items()}, base_tables, options)
    languages = group_captions(base_tables[0].languages)
    of_languages = compare(languages.values())
    pairwise = [
        PairwiseComparison(
            **vars(one),
            letter=letter,
            shifts={
                direction: find_rank_shifts(others[letter], base_tables, direction, NUM_QUERIES)
                for direction in Direction
            },
            by_language=dict(zip(languages, of_languages[number :: len(others)], strict=True)),
        )
        for number, (letter, one) in enumerate(zip(others, compare([None]), strict=True))
    ]
    return Comparison(
        systems=systems,
        base=base,
        comparisons=tuple(pairwise),
        num_resamples=resamples,
        seed=seed,
        draws_seeds=draw_seeds,
    )


def _compare(
    systems: Mapping[str, Runs], base: Runs, options: Mapping[str, Any], groups: Iterable[Index | None]
) -> list[AdjustedComparison]:
    """Every system, by name, against the base on the captions of each group, on everything if it is None; adjusted for
    all of them."""
    comparisons: list[RankComparison] = []
    for texts_T in groups:
        *tables, of_base = [
            runs if texts_T is None else [table.of_captions(texts_T) for table in runs]
            for runs in (*systems.values(), base)
        ]
        comparisons += significance.compare_all(dict(zip(systems, tables, strict=True)), of_base, **options)
    p_values = [(one.p_value, one.sign_flip_p_value, one.t_test_p_value or 0.0) for one in comparisons]
    return [
        AdjustedComparison(
            comparison=comparison,
            holm_p_value=holm_p,
            holm_sign_flip_p_value=holm_flip_p,
            holm_t_test_p_value=holm_t_p if options["draw_seeds"] else None,
        )
        for comparison, holm_p, holm_flip_p, holm_t_p in zip(
            comparisons, *map(holm, zip(*p_values, strict=True)), strict=False
        )
    ]


def find_rank_shifts(
    ours: Sequence[RankTable], base: Sequence[RankTable], direction: Direction, num_queries: int
) -> RankShifts:
    """The queries of a direction whose ranks differ most, by the ratio of the geometric means over runs.

    Up to `num_queries` better and as many worse queries are listed, the largest ratio first; of equal ratios, the query
    nearer to the top.

    >>> ours, base = (RankTable(("a", "b"), np.arange(2), np.arange(2), np.array(ranks),
    ...     np.ones(2)) for ranks in ([3, 9], [5, 1]))
    >>> find_rank_shifts([ours], [base], Direction.TEXT, 1).worse
    (RankShift(query=1, ours=(9,), base=(1,)),)
    """
    ours_QR, base_QR = (np.column_stack([table.ranks(direction) for table in tables]) for tables in (ours, base))
    # Ratios of ranks: from 40 to 20 is as much as from 2 to 1.
    log_ours_Q, log_base_Q = np.log(ours_QR).mean(axis=1), np.log(base_QR).mean(axis=1)
    gain_Q = (log_base_Q - log_ours_Q).round(DECIMALS)
    # np.lexsort sorts by its last key first.
    order_Q = np.lexsort([np.minimum(log_ours_Q, log_base_Q), -np.abs(gain_Q)])
    better, worse = order_Q[gain_Q[order_Q] > 0], order_Q[gain_Q[order_Q] < 0]
    listed = [
        tuple(
            RankShift(query, tuple(ours_QR[query].tolist()), tuple(base_QR[query].tolist()))
            for query in queries[:num_queries].tolist()
        )
        for queries in (better, worse)
    ]
    return RankShifts(len(better), len(gain_Q) - len(better) - len(worse), len(worse), *listed)


def read_systems(names: Sequence[str]) -> list[System]:
    """Read all systems; InputError for a missing or damaged file, StaleError that names both if two cannot be
    compared."""
    systems = [System(name, tuple(_read(ref) for ref in refs_of(name))) for name in names]
    for system in systems:
        _check_alike(
            system.runs,
            lambda evaluation: {name: getattr(evaluation.protocol, name) for name in ("kind", "depth")},
            "are not seeds of one system",
            "name them as two",
        )
    runs = [run for system in systems for run in system.runs]
    _check_alike(
        runs,
        lambda evaluation: {
            "split": evaluation.split,
            **{f"protocol's {name}": getattr(evaluation.protocol, name) for name in ("name", "folds", "ties")},
            "corpus": evaluation.corpus_fingerprint[:8],
            "relevance": evaluation.relevance,
        },
        "were evaluated differently",
        "evaluate both the same way with `dcdctl eval`",
    )
    check_queries({run.ref: run.table for run in runs if run.table is not None})
    return systems


def _read(ref: str) -> SavedEvaluation:
    path, is_cascade = Path(ref), False
    # A folder may really have such a name.
    if not path.exists() and ref.endswith(CASCADE_SUFFIX):
        path, is_cascade = Path(ref.removesuffix(CASCADE_SUFFIX)), True
    choices = (CASCADE_FILES,) if is_cascade else (MODEL_FILES, CASCADE_FILES)
    names = next((names for names in choices if (path / names.ranks).is_file()), None)
    if names is not None and (path / names.result).is_file():
        return SavedEvaluation.load(path, names, ref)
    other = other_folder_error(path, "evaluation", error=InputError)
    if names is None and other is not None and kind_of_folder(path) != "a run":
        raise other
    fault = f"there is no finished evaluation in {shown(path)}"
    more = " --rerank REF" if is_cascade else ""
    raise InputError(fault, hint=f"`dcdctl eval {path if path.is_dir() else 'RUN'} --data DIR{more}` makes one")


def _check_alike(
    runs: Sequence[SavedEvaluation], facts_of: Callable[[Evaluation], dict[str, Any]], fault: str, hint: str
) -> None:
    """StaleError if a run differs from the first one."""
    known = [(run.ref, facts_of(run.evaluation)) for run in runs if run.evaluation is not None]
    for ref, facts in known[1:]:
        first_ref, first = known[0]
        for name, value in facts.items():
            if value != first[name]:
                difference = f"the {name} is {value!r} for {ref}, {first[name]!r} for {first_ref}"
                raise StaleError(f"{first_ref} and {ref} {fault}: {difference}", hint=hint)
