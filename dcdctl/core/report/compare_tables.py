"""A comparison as a JSON document, and as the tables that the terminal and the page show."""

from __future__ import annotations

from typing import Any

from dcdctl.core.data import Direction
from dcdctl.core.evaluation import (
    LEVEL,
    ComparisonReport,
    Estimate,
    Estimates,
    PairwiseComparison,
    RankShift,
    RankTable,
    System,
)

Table = tuple[list[str], list[list[str]]]
"""Columns and rows."""
RECIPROCAL_RANK = "MRR"


def comparison_document(report: ComparisonReport) -> dict[str, Any]:
    """The comparison for JSON; recalls and mean reciprocal ranks in percent, intervals as [low, high]."""
    summary, queries = report.summary, report.queries
    return {
        "split": None if summary is None else summary.split,
        "images": len(queries.image_ids),
        "captions": len(queries.caption_ids),
        "protocol": None if summary is None else summary.protocol,
        "corpus_fingerprint": None if summary is None else summary.fingerprint,
        "level": LEVEL,
        "resamples": report.num_resamples,
        "seed": report.seed,
        "draws_seeds": report.draws_seeds,
        "base": report.base,
        "sides": [
            {"side": letter, **_system(system), **_estimates(report.estimates[letter])}
            for letter, system in report.systems.items()
        ],
        "comparisons": [_pairwise(report, pairwise) for pairwise in report.comparisons],
    }


def _system(system: System) -> dict[str, Any]:
    kind, depth = (None, None) if system.summary is None else (system.summary.kind, system.summary.depth)
    return {"name": system.name, "runs": [run.ref for run in system.runs], "kind": kind, "depth": depth}


def _pairwise(report: ComparisonReport, pairwise: PairwiseComparison) -> dict[str, Any]:
    comparison = pairwise.comparison
    return {
        "side": pairwise.letter,
        "base": report.base,
        "difference": _estimates(comparison.difference),
        "sign_flip": {
            "p_value": comparison.sign_flip_p_value,
            "holm_p_value": pairwise.holm_sign_flip_p_value,
            "exact": comparison.sign_flip_is_exact,
        },
        "bootstrap": {"p_value": comparison.p_value, "holm_p_value": pairwise.holm_p_value},
        "text_queries": _queries(report, pairwise, Direction.TEXT),
        "image_queries": _queries(report, pairwise, Direction.IMAGE),
    }


def _queries(report: ComparisonReport, pairwise: PairwiseComparison, direction: Direction) -> dict[str, Any]:
    shifts, ranks = pairwise.shifts[direction], report.queries
    return {
        "better": shifts.num_better,
        "equal": shifts.num_equal,
        "worse": shifts.num_worse,
        "most_better": [_query(ranks, direction, shift) for shift in shifts.better],
        "most_worse": [_query(ranks, direction, shift) for shift in shifts.worse],
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


def _estimates(estimates: Estimates) -> dict[str, Any]:
    directions = {
        "text_retrieval": {**estimates.text_retrieval, RECIPROCAL_RANK: estimates.text_reciprocal_rank},
        "image_retrieval": {**estimates.image_retrieval, RECIPROCAL_RANK: estimates.image_reciprocal_rank},
    }
    return {
        "rsum": _estimate(estimates.rsum),
        **{
            key: {name: _estimate(estimate) for name, estimate in by_name.items()}
            for key, by_name in directions.items()
        },
    }


def _estimate(estimate: Estimate) -> dict[str, Any]:
    return {"value": estimate.value, "interval": [estimate.interval.low, estimate.interval.high]}


def comparison_facts(report: ComparisonReport) -> list[tuple[str, str]]:
    """The systems and the corpus of a comparison."""
    summary, queries = report.summary, report.queries
    measured = [] if summary is None else [f"split {summary.split}", f"protocol {summary.protocol or 'unknown'}"]
    counts = f"{len(queries.image_ids):,} images, {len(queries.caption_ids):,} captions"
    return [
        *(
            (report.names[letter], _about(system, is_base=letter == report.base))
            for letter, system in report.systems.items()
        ),
        (
            "measured on",
            "; ".join([counts, *(measured or ["split and protocol unknown: no result.json next to the ranks"])]),
        ),
        (
            "draws",
            f"{report.num_resamples:,} of images{' and of runs' if report.draws_seeds else ''}, seed {report.seed}",
        ),
    ]


def _about(system: System, *, is_base: bool) -> str:
    summary = system.summary
    kind = "" if summary is None else f"{summary.kind} of depth {summary.depth}" if summary.depth else summary.kind
    words = [kind, f"mean of {len(system.runs)} runs" if len(system.runs) > 1 else "", "the base" if is_base else ""]
    about = ", ".join(filter(None, words))
    return ", ".join(run.ref for run in system.runs) + (f" ({about})" if about else "")


def comparison_summary(report: ComparisonReport) -> Table:
    """RSUM of each system, its difference from the base, and the p-values of the difference."""
    columns = ["", "RSUM", "difference", "sign-flip p", "bootstrap p"]
    rows = []
    compared = {pairwise.letter: pairwise for pairwise in report.comparisons}
    for letter, estimates in report.estimates.items():
        cells = [report.names[letter], f"{estimates.rsum.value:.2f}"]
        if pairwise := compared.get(letter):
            comparison = pairwise.comparison
            p_values = [
                (comparison.sign_flip_p_value, pairwise.holm_sign_flip_p_value),
                (comparison.p_value, pairwise.holm_p_value),
            ]
            rsum = comparison.difference.rsum
            cells += [f"{signed(rsum.value)} {_interval(rsum)}"]
            cells += [_p(raw) + (f" ({_p(holm)})" if len(compared) > 1 else "") for raw, holm in p_values]
        rows.append([*cells, *[""] * (len(columns) - len(cells))])
    return columns, rows


def comparison_details(report: ComparisonReport, pairwise: PairwiseComparison) -> Table:
    """Recalls and mean reciprocal ranks of both systems, and the differences with their intervals."""
    parts = [
        _flat(estimates)
        for estimates in (pairwise.comparison.base, pairwise.comparison.ours, pairwise.comparison.difference)
    ]
    rows = [
        [name, f"{base.value:.2f}", f"{ours.value:.2f}", signed(difference.value), _interval(difference)]
        for name, base, ours, difference in zip(parts[0], *(part.values() for part in parts), strict=True)
    ]
    return [
        "",
        report.names[report.base],
        report.names[pairwise.letter],
        "difference",
        f"{100 * LEVEL:g} % interval",
    ], rows


def rank_changes(report: ComparisonReport, pairwise: PairwiseComparison) -> list[str]:
    """The numbers of queries that rank better and worse, a line per direction."""
    queries = {"images": pairwise.shifts[Direction.TEXT], "captions": pairwise.shifts[Direction.IMAGE]}
    return [
        f"ranks of {name}: {shifts.num_better:,} better with {report.names[pairwise.letter]} than with "
        f"{report.names[report.base]}, "
        f"{shifts.num_equal:,} equal, {shifts.num_worse:,} worse"
        for name, shifts in queries.items()
    ]


def how_to_read(report: ComparisonReport) -> list[str]:
    """Notes on the intervals and p-values of the tables."""
    is_exact = all(pairwise.comparison.sign_flip_is_exact for pairwise in report.comparisons)
    interval = "interval over images and runs" if report.draws_seeds else "bootstrap interval over images"
    lines = [
        f"[low, high]: {100 * LEVEL:g}% {interval}. {RECIPROCAL_RANK}: mean of 100 / rank.",
        f"p: two-sided, for no difference in RSUM{'; all patterns of signs counted' if is_exact else ''}.",
    ]
    if report.draws_seeds:
        lines.append("The bootstrap draws the runs of a system; the sign-flip test averages them.")
    return (
        [*lines, f"In parentheses after p: adjusted for {len(report.comparisons)} comparisons (Holm)."]
        if len(report.comparisons) > 1
        else lines
    )


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


def _flat(estimates: Estimates) -> dict[str, Estimate]:
    return {
        **{f"text {name}": estimate for name, estimate in estimates.text_retrieval.items()},
        f"text {RECIPROCAL_RANK}": estimates.text_reciprocal_rank,
        **{f"image {name}": estimate for name, estimate in estimates.image_retrieval.items()},
        f"image {RECIPROCAL_RANK}": estimates.image_reciprocal_rank,
        "RSUM": estimates.rsum,
    }
