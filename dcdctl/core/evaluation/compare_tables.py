"""A comparison as a JSON document, and as the tables of text that the terminal, the page and notebooks show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dcdctl.core.config import to_table
from dcdctl.core.data import Direction
from dcdctl.core.evaluation.ranking import RankTable
from dcdctl.core.evaluation.significance import LEVEL, RECIPROCAL_RANK, Estimate, Estimates
from dcdctl.core.templates import Table

if TYPE_CHECKING:  # it shows itself in notebooks
    from dcdctl.core.evaluation.compare import Comparison, PairwiseComparison, RankShift, System


def comparison_document(comparison: Comparison) -> dict[str, Any]:
    """The comparison for JSON; recalls and mean reciprocal ranks in percent, intervals as [low, high]."""
    evaluation, queries = comparison.evaluation, comparison.queries
    return {
        "split": None if evaluation is None else evaluation.split,
        "images": len(queries.image_ids),
        "captions": len(queries.caption_ids),
        "protocol": None if evaluation is None else evaluation.protocol.name,
        "corpus_fingerprint": None if evaluation is None else evaluation.corpus_fingerprint,
        "level": LEVEL,
        "resamples": comparison.num_resamples,
        "seed": comparison.seed,
        "draws_seeds": comparison.draws_seeds,
        "base": comparison.base,
        "sides": [
            {"side": letter, **_system(system), **to_table(comparison.estimates[letter])}
            for letter, system in comparison.systems.items()
        ],
        "comparisons": [_pairwise(comparison, pairwise) for pairwise in comparison.comparisons],
    }


def _system(system: System) -> dict[str, Any]:
    protocol = None if system.evaluation is None else system.evaluation.protocol
    kind, depth = (None, None) if protocol is None else (protocol.kind, protocol.depth)
    return {"name": system.name, "runs": [run.ref for run in system.runs], "kind": kind, "depth": depth}


def _pairwise(comparison: Comparison, pairwise: PairwiseComparison) -> dict[str, Any]:
    ranks = pairwise.comparison
    return {
        "side": pairwise.letter,
        "base": comparison.base,
        "difference": to_table(ranks.difference),
        "sign_flip": {
            "p_value": ranks.sign_flip_p_value,
            "holm_p_value": pairwise.holm_sign_flip_p_value,
            "exact": ranks.sign_flip_is_exact,
        },
        "bootstrap": {"p_value": ranks.p_value, "holm_p_value": pairwise.holm_p_value},
        **{
            f"{direction}_queries": {
                "better": shifts.num_better,
                "equal": shifts.num_equal,
                "worse": shifts.num_worse,
                "most_better": [_query(comparison.queries, direction, shift) for shift in shifts.better],
                "most_worse": [_query(comparison.queries, direction, shift) for shift in shifts.worse],
            }
            for direction, shifts in pairwise.shifts.items()
        },
    }


def _query(ranks: RankTable, direction: Direction, shift: RankShift) -> dict[str, Any]:
    image = shift.query if direction == Direction.TEXT else int(ranks.caption_image[shift.query])
    caption = {} if direction == Direction.TEXT else {"caption_id": int(ranks.caption_ids[shift.query])}
    return {
        "query": shift.query,
        "image_id": ranks.image_ids[image],
        **caption,
        "ranks": list(shift.ours),
        "base_ranks": list(shift.base),
    }


def comparison_facts(comparison: Comparison) -> list[tuple[str, str]]:
    """The systems and the corpus of a comparison."""
    evaluation, queries = comparison.evaluation, comparison.queries
    counts = f"{len(queries.image_ids):,} images, {len(queries.caption_ids):,} captions"
    measured = (
        "split and protocol unknown: no result.json next to the ranks"
        if evaluation is None
        else f"split {evaluation.split}; protocol {evaluation.protocol.name}"
    )
    draws = f"{comparison.num_resamples:,} of images{' and of runs' if comparison.draws_seeds else ''}"
    return [
        *(
            (comparison.names[letter], _about(system, is_base=letter == comparison.base))
            for letter, system in comparison.systems.items()
        ),
        ("measured on", f"{counts}; {measured}"),
        ("draws", f"{draws}, seed {comparison.seed}"),
    ]


def _about(system: System, *, is_base: bool) -> str:
    protocol = None if system.evaluation is None else system.evaluation.protocol
    kind = "" if protocol is None else f"{protocol.kind} of depth {protocol.depth}" if protocol.depth else protocol.kind
    words = [kind, f"mean of {len(system.runs)} runs" if len(system.runs) > 1 else "", "the base" if is_base else ""]
    about = ", ".join(filter(None, words))
    return ", ".join(run.ref for run in system.runs) + (f" ({about})" if about else "")


def comparison_tables(comparison: Comparison) -> list[Table]:
    """RSUM and p-values of all systems; then the recalls of each system against the base."""
    return [_summary(comparison), *(_details(comparison, pairwise) for pairwise in comparison.comparisons)]


def _summary(comparison: Comparison) -> Table:
    """RSUM of each system, its difference from the base, and the p-values of the difference."""
    columns = ["", "RSUM", "difference", "sign-flip p", "bootstrap p"]
    rows = []
    compared = {pairwise.letter: pairwise for pairwise in comparison.comparisons}
    for letter, estimates in comparison.estimates.items():
        cells = [comparison.names[letter], f"{estimates.rsum.value:.2f}"]
        if pairwise := compared.get(letter):
            ranks, rsum = pairwise.comparison, pairwise.comparison.difference.rsum
            p_values = [
                (ranks.sign_flip_p_value, pairwise.holm_sign_flip_p_value),
                (ranks.p_value, pairwise.holm_p_value),
            ]
            cells += [f"{signed(rsum.value)} {_interval(rsum)}"]
            cells += [_p(raw) + (f" ({_p(holm)})" if len(compared) > 1 else "") for raw, holm in p_values]
        rows.append([*cells, *[""] * (len(columns) - len(cells))])
    return Table("", columns, rows)


def _details(comparison: Comparison, pairwise: PairwiseComparison) -> Table:
    """Recalls and mean reciprocal ranks of both systems with the differences, and how many queries rank better."""
    base_name, name = comparison.names[comparison.base], comparison.names[pairwise.letter]
    ranks = pairwise.comparison
    base, ours, difference = map(_flat, (ranks.base, ranks.ours, ranks.difference))
    rows = [
        [row, f"{base[row].value:.2f}", f"{ours[row].value:.2f}", signed(change.value), _interval(change)]
        for row, change in difference.items()
    ]
    changes = [
        f"ranks of {direction.query}s: {shifts.num_better:,} better with {name} than with {base_name}, "
        f"{shifts.num_equal:,} equal, {shifts.num_worse:,} worse"
        for direction, shifts in pairwise.shifts.items()
    ]
    return Table("", ["", base_name, name, "difference", f"{100 * LEVEL:g} % interval"], rows, "\n".join(changes))


def _flat(estimates: Estimates) -> dict[str, Estimate]:
    by_name = {
        f"{direction} {name}": value for direction in Direction for name, value in estimates.of(direction).items()
    }
    return {**by_name, "RSUM": estimates.rsum}


def how_to_read(comparison: Comparison) -> list[str]:
    """Notes on the intervals and p-values of the tables."""
    is_exact = all(pairwise.comparison.sign_flip_is_exact for pairwise in comparison.comparisons)
    interval = "interval over images and runs" if comparison.draws_seeds else "bootstrap interval over images"
    lines = [
        f"[low, high]: {100 * LEVEL:g}% {interval}. {RECIPROCAL_RANK}: mean of 100 / rank.",
        f"p: two-sided, for no difference in RSUM{'; all patterns of signs counted' if is_exact else ''}.",
    ]
    if comparison.draws_seeds:
        lines.append("The bootstrap draws the runs of a system; the sign-flip test averages them.")
    if (count := len(comparison.comparisons)) > 1:
        lines.append(f"In parentheses after p: adjusted for {count} comparisons (Holm).")
    return lines


def signed(value: float) -> str:
    """Two digits with a sign; zero gets a plus.

    >>> signed(-0.001), signed(-1.238)
    ('+0.00', '-1.24')
    """
    # Adding 0.0 turns a negative zero into a positive one.
    return f"{round(value, 2) + 0.0:+.2f}"


def _interval(difference: Estimate) -> str:
    return f"[{signed(difference.interval.low)}, {signed(difference.interval.high)}]"


def _p(p_value: float) -> str:
    # A smaller value would be shown as 0.0000.
    return f"{p_value:.4f}" if p_value >= 5e-5 else f"{p_value:.0e}"
