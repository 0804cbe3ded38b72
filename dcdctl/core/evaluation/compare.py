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

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dcdctl.core.artifacts import kind_of_folder, other_folder_error
from dcdctl.core.data import Direction, Indices, group_captions
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
from dcdctl.core.evaluation.document import CASCADE_FILES, MODEL_FILES
from dcdctl.core.evaluation.files import SavedEvaluation
from dcdctl.core.evaluation.ranking import RankTable, check_queries
from dcdctl.core.evaluation.significance import RankComparison
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
    systems = dict(zip(LETTERS[: len(names)], read_systems(names), strict=True))
    short = dict(zip(systems, short_names(names), strict=True))
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
    pairwise = []
    for number, (letter, runs) in enumerate(others.items()):
        # The comparisons stand language by language, each with all systems.
        own_languages = adjusted[number :: len(others)]
        shifts = {each: find_rank_shifts(runs, base_runs, each, NUM_QUERIES) for each in Direction}
        pairwise.append(
            PairwiseComparison(
                **vars(whole[number]),
                letter=letter,
                shifts=shifts,
                by_language=dict(zip(languages, own_languages, strict=True)),
            )
        )
    return Comparison(
        systems=systems,
        base=base,
        comparisons=tuple(pairwise),
        num_resamples=resamples,
        seed=seed,
        draws_seeds=draw_seeds,
    )


def _adjusted(comparisons: Sequence[RankComparison], *, draw_seeds: bool) -> list[AdjustedComparison]:
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
) -> RankShifts:
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
    return RankShifts(
        num_better=len(better),
        num_equal=len(gain_Q) - len(better) - len(worse),
        num_worse=len(worse),
        better=tuple(listed[query] for query in better[:num_queries].tolist()),
        worse=tuple(listed[query] for query in worse[:num_queries].tolist()),
    )


def read_systems(names: Sequence[str]) -> list[System]:
    """Read all systems; InputError for a missing or damaged file, StaleError that names both if two cannot be
    compared."""
    systems = [System(name, tuple(map(_read, refs_of(name)))) for name in names]
    runs, bases = [], []
    for system in systems:
        models = []
        for run in system.runs:
            evaluation, protocol = run.evaluation, run.evaluation.protocol
            runs.append(run)
            models.append((run.ref, {"kind": protocol.kind, "depth": protocol.depth}))
            basis = {
                "split": evaluation.split,
                "protocol's name": protocol.name,
                "protocol's folds": protocol.folds,
                "protocol's ties": protocol.ties,
                "corpus": evaluation.corpus_fingerprint[:8],
                "relevance": evaluation.relevance,
            }
            bases.append((run.ref, basis))
        _check_alike(models, "are not seeds of one system", "name them as two")
    _check_alike(bases, "were evaluated differently", "evaluate both the same way with `dcdctl eval`")
    check_queries({run.ref: run.table for run in runs})
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
    named, more = path if path.is_dir() else "RUN", " --rerank REF" if is_cascade else ""
    raise InputError(fault, hint=f"`dcdctl eval {named} --data DIR{more}` makes one")


def _check_alike(named: Sequence[tuple[str, Mapping[str, object]]], fault: str, hint: str) -> None:
    """StaleError if a run has other facts than the first one."""
    first_ref, first = named[0]
    for ref, facts in named[1:]:
        for name, value in facts.items():
            if value != first[name]:
                difference = f"the {name} is {value!r} for {ref}, {first[name]!r} for {first_ref}"
                raise StaleError(f"{first_ref} and {ref} {fault}: {difference}", hint=hint)
