"""A contest in numbers, as a document, and in words, as the tables that the terminal and the page show."""

from __future__ import annotations

from typing import Any

from dcdctl.core.data import Direction
from dcdctl.core.evaluation import LEVEL, Contest, Duel, Estimate, Estimates, RankTable, Shift, Side

Table = tuple[list[str], list[list[str]]]
"""Columns and rows."""
RECIPROCAL_RANK = "MRR"


def comparison_document(contest: Contest) -> dict[str, Any]:
    """The contest as a JSON-able document; recalls and mean reciprocal ranks in percent, intervals as [low, high]."""
    document, queries = contest.document or {}, contest.queries
    return {
        "split": document.get("split"),
        "images": len(queries.image_ids),
        "captions": len(queries.caption_ids),
        "protocol": document["protocol"].get("name") if document else None,
        "corpus_fingerprint": document.get("corpus_fingerprint"),
        "level": LEVEL,
        "resamples": contest.num_resamples,
        "seed": contest.seed,
        "base": contest.base,
        "sides": [{"side": letter, **_side(side), **_estimates(contest.alone[letter])} for letter, side in contest.sides.items()],
        "comparisons": [_duel(contest, duel) for duel in contest.duels],
    }


def _side(side: Side) -> dict[str, Any]:
    protocol = {} if side.document is None else side.document["protocol"]
    runs = [member.ref for member in side.members]
    return {"name": side.name, "runs": runs, "kind": protocol.get("kind"), "depth": protocol.get("depth")}


def _duel(contest: Contest, duel: Duel) -> dict[str, Any]:
    found = duel.comparison
    return {
        "side": duel.letter,
        "base": contest.base,
        "difference": _estimates(found.difference),
        "sign_flip": {
            "p_value": found.sign_flip_p_value,
            "holm_p_value": duel.holm_sign_flip_p_value,
            "exact": found.sign_flip_is_exact,
        },
        "bootstrap": {"p_value": found.p_value, "holm_p_value": duel.holm_p_value},
        "text_queries": _queries(contest, duel, Direction.TEXT),
        "image_queries": _queries(contest, duel, Direction.IMAGE),
    }


def _queries(contest: Contest, duel: Duel, direction: Direction) -> dict[str, Any]:
    shifts, ranks = duel.shifts[direction], contest.queries
    return {
        "better": shifts.num_better,
        "equal": shifts.num_equal,
        "worse": shifts.num_worse,
        "most_better": [_query(ranks, direction, shift) for shift in shifts.better],
        "most_worse": [_query(ranks, direction, shift) for shift in shifts.worse],
    }


def _query(ranks: RankTable, direction: Direction, shift: Shift) -> dict[str, Any]:
    image = shift.query if direction == Direction.TEXT else int(ranks.caption_image[shift.query])
    caption = {} if direction == Direction.TEXT else {"caption_id": int(ranks.caption_ids[shift.query])}
    return {"query": shift.query, "image_id": ranks.image_ids[image], **caption, "ranks": list(shift.ours), "base_ranks": list(shift.base)}


def _estimates(estimates: Estimates) -> dict[str, Any]:
    ways = {
        "text_retrieval": {**estimates.text_retrieval, RECIPROCAL_RANK: estimates.text_reciprocal_rank},
        "image_retrieval": {**estimates.image_retrieval, RECIPROCAL_RANK: estimates.image_reciprocal_rank},
    }
    return {"rsum": _estimate(estimates.rsum), **{way: {name: _estimate(one) for name, one in all_.items()} for way, all_ in ways.items()}}


def _estimate(estimate: Estimate) -> dict[str, Any]:
    return {"value": estimate.value, "interval": [estimate.interval.low, estimate.interval.high]}


def comparison_facts(contest: Contest) -> list[tuple[str, str]]:
    """Who is compared, and on what."""
    document, queries = contest.document, contest.queries
    measured = [] if document is None else [f"split {document['split']}", f"protocol {document['protocol'].get('name') or 'not said'}"]
    counts = f"{len(queries.image_ids):,} images, {len(queries.caption_ids):,} captions"
    return [
        *((letter, _about(side, is_base=letter == contest.base)) for letter, side in contest.sides.items()),
        ("measured on", "; ".join([counts, *(measured or ["split and protocol not known: no result.json beside the ranks"])])),
        ("draws", f"{contest.num_resamples:,}, seed {contest.seed}"),
    ]


def _about(side: Side, *, is_base: bool) -> str:
    protocol = {} if side.document is None else side.document["protocol"]
    kind = " of depth ".join(str(protocol[key]) for key in ("kind", "depth") if protocol.get(key))
    words = [kind, f"mean of {len(side.members)} runs" if len(side.members) > 1 else "", "the base" if is_base else ""]
    about = ", ".join(filter(None, words))
    return ", ".join(member.ref for member in side.members) + (f" ({about})" if about else "")


def comparison_summary(contest: Contest) -> Table:
    """RSUM of each side, how far it is from the base's, and how likely that is by chance alone."""
    columns = ["", "RSUM", f"difference from {contest.base}", "sign-flip p", "bootstrap p"]
    rows = []
    duels = {duel.letter: duel for duel in contest.duels}
    for letter, estimates in contest.alone.items():
        cells = [letter, f"{estimates.rsum.value:.2f}"]
        if duel := duels.get(letter):
            found = duel.comparison
            chances = [(found.sign_flip_p_value, duel.holm_sign_flip_p_value), (found.p_value, duel.holm_p_value)]
            rsum = found.difference.rsum
            cells += [f"{signed(rsum.value)} {_interval(rsum)}"]
            cells += [_p(raw) + (f" ({_p(holm)})" if len(duels) > 1 else "") for raw, holm in chances]
        rows.append([*cells, *[""] * (len(columns) - len(cells))])
    return columns, rows


def comparison_details(contest: Contest, duel: Duel) -> Table:
    """Every recall and mean reciprocal rank of both, and the difference with its interval."""
    parts = [_flat(estimates) for estimates in (duel.comparison.base, duel.comparison.ours, duel.comparison.difference)]
    rows = [
        [name, f"{base.value:.2f}", f"{ours.value:.2f}", signed(difference.value), _interval(difference)]
        for name, base, ours, difference in zip(parts[0], *(part.values() for part in parts), strict=True)
    ]
    return ["", contest.base, duel.letter, f"{duel.letter} - {contest.base}", f"{100 * LEVEL:g} % interval"], rows


def rank_changes(contest: Contest, duel: Duel) -> list[str]:
    """How many queries rank better and worse, a line a direction."""
    queries = {"images": duel.shifts[Direction.TEXT], "captions": duel.shifts[Direction.IMAGE]}
    return [
        f"ranks of {name}: {shifts.num_better:,} better with {duel.letter} than with {contest.base}, "
        f"{shifts.num_equal:,} equal, {shifts.num_worse:,} worse"
        for name, shifts in queries.items()
    ]


def how_to_read(contest: Contest) -> list[str]:
    """What the brackets and p-values of the tables are, a line each."""
    is_exact = all(duel.comparison.sign_flip_is_exact for duel in contest.duels)
    lines = [
        f"[low, high]: the middle {100 * LEVEL:g} % of the draws of images. {RECIPROCAL_RANK}: mean of 100 / rank.",
        f"p: two-sided, of no difference in RSUM{', all patterns of signs counted' if is_exact else ''}.",
    ]
    return [*lines, f"In brackets behind p: adjusted for {len(contest.duels)} comparisons (Holm)."] if len(contest.duels) > 1 else lines


def signed(value: float) -> str:
    """Two digits with a sign; what rounds to zero has a plus.

    >>> signed(-0.001), signed(-1.238)
    ('+0.00', '-1.24')
    """
    return f"{round(value, 2) + 0.0:+.2f}"


def _interval(difference: Estimate) -> str:
    return f"[{signed(difference.interval.low)}, {signed(difference.interval.high)}]"


def _p(p_value: float) -> str:
    return f"{p_value:.4f}" if p_value >= 5e-5 else f"{p_value:.0e}"


def _flat(estimates: Estimates) -> dict[str, Estimate]:
    return {
        **{f"text {name}": one for name, one in estimates.text_retrieval.items()},
        f"text {RECIPROCAL_RANK}": estimates.text_reciprocal_rank,
        **{f"image {name}": one for name, one in estimates.image_retrieval.items()},
        f"image {RECIPROCAL_RANK}": estimates.image_reciprocal_rank,
        "RSUM": estimates.rsum,
    }
