"""A summary of a teacher cache.

It holds counts, histograms of the scores of positives and negatives, how often the teacher ranks the positive first,
and the hardest negatives. A hardest negative is either useful to learn from, or a false negative.

Shape letters: P pairs, Q queries.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dcdctl.core.data import Corpus, Direction, Flags, Indices, Scores
from dcdctl.core.teacher.cache import TeacherCache
from dcdctl.core.teacher.candidate_lists import IMAGE_CANDIDATE, POSITIVE, TEXT_CANDIDATE
from dcdctl.core.teacher.spread import ENTROPY_SHARE, NUM_NEGATIVES, ScoreSpread, lack_of_order, measure_spread

# They fit one line of blocks in a terminal of 80 columns, labels included.
NUM_BINS = 24


@dataclass(frozen=True, kw_only=True)
class DirectionSummary:
    """How well the teacher separates positives from negatives in one direction."""

    num_queries: int
    """Queries with at least one negative."""
    num_negatives: int
    positive_first: float
    """Share of queries whose best positive scores above every negative; a tie counts as a miss. NaN for a pool."""
    outranking: float
    """Share of negatives that score at least as high as the query's best positive. NaN for a pool."""


@dataclass(frozen=True, kw_only=True)
class Negative:
    """A hard negative."""

    image: int
    text: int
    score: float
    own_text: int
    """The best-scoring positive caption of the image."""
    own_score: float


@dataclass(frozen=True, kw_only=True)
class CacheSummary:
    """What `dcdctl inspect` shows of a teacher cache."""

    teacher_name: str | None
    """Who gave the scores, if they come from elsewhere; None for scores that dcdctl computed."""
    num_images: int
    num_captions: int
    num_pairs: int
    dropped: dict[str, int]
    """Number of removed candidates by reason."""
    text_retrieval: DirectionSummary
    image_retrieval: DirectionSummary
    edges: list[float]
    """Edges of the histogram bins, ascending; one more than there are bins."""
    positives: list[int]
    negatives: list[int]
    spread: ScoreSpread | None
    """None for a cache without lists."""
    lack_of_order: str | None
    """Why nothing can be learned from the order of the scores, if that is so."""
    hardest: list[Negative]
    """Sorted by the lead over the best positive caption of the same image, largest first; none in a pool."""


def summarize_cache(cache: TeacherCache, num_hardest: int = 20) -> CacheSummary:
    """Read a whole cache and summarize it."""
    is_own = (cache.role_P & POSITIVE) > 0
    # A pair that an extended cache reuses may have no role any more.
    is_negative = (cache.role_P & (TEXT_CANDIDATE | IMAGE_CANDIDATE)) > 0
    # One set of bins, so that positives and negatives can be laid over each other.
    edges = np.histogram_bin_edges(cache.score_P, NUM_BINS)
    image_P, text_P = cache.scored_pairs
    best_I = _best(image_P[is_own], cache.score_P[is_own], cache.num_images)
    best_T = _best(text_P[is_own], cache.score_P[is_own], cache.num_texts)
    return CacheSummary(
        teacher_name=cache.teacher_name,
        num_images=cache.num_images,
        num_captions=cache.num_texts,
        num_pairs=cache.num_pairs,
        dropped=cache.seal["dropped"],
        text_retrieval=_summarize_direction(cache, Direction.TEXT, best_I),
        image_retrieval=_summarize_direction(cache, Direction.IMAGE, best_T),
        edges=edges.tolist(),
        positives=np.histogram(cache.score_P[is_own], edges)[0].tolist(),
        negatives=np.histogram(cache.score_P[is_negative], edges)[0].tolist(),
        spread=measure_spread(cache),
        lack_of_order=lack_of_order(cache.score_P),
        hardest=_hardest(cache, is_negative, best_I, num_hardest),
    )


def _best(query_P: Indices, score_P: Scores, num_queries: int) -> Scores:
    best_Q = np.full(num_queries, -np.inf, dtype=np.float32)
    # Not best_Q[query_P] = ..., which keeps one score of a query that repeats.
    np.maximum.at(best_Q, query_P, score_P)
    return best_Q


def _summarize_direction(cache: TeacherCache, direction: Direction, best_Q: Scores) -> DirectionSummary:
    negatives = cache.candidates.lists(direction)
    query = negatives.rows
    outranks = cache.lookup(*direction.query_first(query, negatives.values)) >= best_Q[query]
    has_any = negatives.lengths > 0
    is_beaten = np.bincount(query[outranks], minlength=len(negatives)) > 0
    positive_first, outranking = float("nan"), float("nan")
    # Not in a pool, which has no positives.
    if len(query) and np.isfinite(best_Q).any():
        positive_first, outranking = float((~is_beaten[has_any]).mean()), float(outranks.mean())
    return DirectionSummary(
        num_queries=int(has_any.sum()),
        num_negatives=len(query),
        positive_first=positive_first,
        outranking=outranking,
    )


def _hardest(cache: TeacherCache, is_negative: Flags, best_I: Scores, count: int) -> list[Negative]:
    image_P, text_P = cache.scored_pairs
    # A pool has no positive that a negative could be compared with.
    is_negative = is_negative & np.isfinite(best_I).any()
    lead_P = np.where(is_negative, cache.score_P - best_I[image_P], -np.inf)
    negatives = []
    for pair in np.argsort(-lead_P, kind="stable")[: min(count, int(is_negative.sum()))].tolist():
        image = int(image_P[pair])
        start, end = np.searchsorted(image_P, (image, image + 1)).tolist()
        positives = np.flatnonzero((cache.role_P[start:end] & POSITIVE) > 0) + start
        best = int(positives[cache.score_P[positives].argmax()])
        negatives.append(
            Negative(
                image=image,
                text=int(text_P[pair]),
                score=float(cache.score_P[pair]),
                own_text=int(text_P[best]),
                own_score=float(cache.score_P[best]),
            )
        )
    return negatives


def cache_document(summary: CacheSummary, corpus: Corpus | None) -> dict[str, Any]:
    """The summary as a JSON document. With the corpus, hard negatives have their captions and image ids."""
    document = asdict(summary)
    for part in (direction.key for direction in Direction):
        # JSON has no NaN, the only value that differs from itself.
        document[part] = {key: None if value != value else value for key, value in document[part].items()}
    if corpus is not None:
        for entry in document["hardest"]:
            entry["image_id"] = corpus.image_ids[entry["image"]]
            entry["caption"], entry["own_caption"] = corpus.captions[entry["text"]], corpus.captions[entry["own_text"]]
    return document


def cache_facts(summary: CacheSummary) -> list[tuple[str, str]]:
    """The summary as pairs of name and value, in words."""
    num_true = sum(summary.positives)
    which = f", of which {num_true:,} true" if num_true else " of a pool"
    facts = [
        ("images, captions", f"{summary.num_images:,}, {summary.num_captions:,}"),
        ("pairs", f"{summary.num_pairs:,}{which}"),
    ]
    if summary.teacher_name is not None:
        facts.append(("scores from elsewhere", summary.teacher_name))
    for name, direction in (("text retrieval", summary.text_retrieval), ("image retrieval", summary.image_retrieval)):
        if direction.num_queries:
            counts = f"{direction.num_queries:,} queries, {direction.num_negatives:,}"
            shares = f"positive first {direction.positive_first:.1%}, negatives above it {direction.outranking:.2%}"
            facts.append((name, f"{counts} negatives: {shares}" if num_true else f"{counts} candidates"))
    if (spread := summary.spread) is not None:
        within = (
            f"standard deviation {spread.std:.2f} within a list, entropy {spread.entropy_share:.0%} of the largest "
            "possible at temperature 1"
        )
        temperature = "none: the best scores of too many lists are equal"
        if spread.temperature is not None:
            temperature = f"{spread.temperature:g}, where the entropy is {ENTROPY_SHARE:.0%} of the largest possible"
        facts += [
            (f"scores in {spread.num_lists:,} lists of at most {1 + NUM_NEGATIVES}", within),
            ("loss.temperature", temperature),
        ]
    if summary.lack_of_order:
        facts.append(("note", summary.lack_of_order))
    if summary.dropped:
        facts.append(("removed", ", ".join(f"{count:,} by {reason}" for reason, count in summary.dropped.items())))
    return facts
