"""How far a teacher's scores are apart within a list, and the temperature that follows.

A list is a caption's own pair and NUM_NEGATIVES of its query's candidates: the image with candidate captions, or the
caption with candidate images. In a pool, a list is 1 + NUM_NEGATIVES candidates of a query. Lists of one size make
caches comparable: the spread of a teacher's scores does not depend on how many candidates were cached.

The softmax of scores at temperature T has an entropy between 0 (one-hot: the teacher adds nothing to the label) and log
K (uniform: it says nothing of the order). The recommended T puts the mean of entropy / log K halfway. Setting a
bandwidth by a target entropy is the rule of t-SNE (van der Maaten and Hinton 2008, perplexity); the target of one half
is ours (docs/losses.md).

Shape letters: L lists, K pairs of a list, the own pair in column 0 unless it is a pool's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dcdctl.core.data import Direction, Indices, RaggedArray, Scores, Values
from dcdctl.core.teacher.cache import TeacherCache, TeacherEnsemble
from dcdctl.core.teacher.candidate_lists import POSITIVE

NUM_NEGATIVES = 15
"""Negatives of a list, drawn from the candidates; all of them if there are fewer."""
MAX_LISTS = 4096
"""Lists that are measured per direction, evenly spaced over the captions."""
ENTROPY_SHARE = 0.5
"""Of log K: the mean entropy at the recommended temperature. The teacher then hesitates between sqrt(K) of K pairs."""
Lists = Values


@dataclass(frozen=True, kw_only=True)
class ScoreSpread:
    """How far the scores of a list are apart, in logits."""

    num_lists: int
    std: float
    """Standard deviation within a list, as a mean over lists: what a softmax over a list sees."""
    entropy_share: float
    """Entropy of the softmax of a list at temperature 1 as a share of log K, as a mean over lists: 0 for one-hot, 1 for
    uniform."""
    temperature: float | None
    """Recommended: three digits; None if the scores of lists tie so often that no temperature gives the entropy."""


def measure_spread(scores: TeacherCache | TeacherEnsemble) -> ScoreSpread | None:
    """The spread of the scores of a cache, or of the average of several; None for one without lists."""
    lists = _lists(scores)
    if not len(lists):
        return None
    return ScoreSpread(
        num_lists=len(lists),
        std=float(np.nanstd(lists, axis=1).mean()),
        entropy_share=_share(lists, 1.0),
        temperature=recommend_temperature(lists),
    )


def lack_of_order(score_P: Scores) -> str | None:
    """Why nothing can be learned from the order of scores; None if something can."""
    if not len(score_P) or not (np.isin(score_P, (0, 1)).all() or (score_P == score_P[0]).all()):
        return None
    values = " or ".join(f"{value:g}" for value in np.unique(score_P))
    return f"every score is {values}: nothing can be learned from the order of the scores"


def recommend_temperature(lists_LK: Lists) -> float | None:
    """The temperature at which the mean of entropy / log K is ENTROPY_SHARE, to three digits; None if there is none.

    NaN marks the places of a list that has fewer than K pairs.

    >>> recommend_temperature(np.array([[2.0907, 0.0]]))  # the softmax is (0.89, 0.11), whose entropy is half a bit
    1.0
    """
    scale = float(np.nanstd(lists_LK, axis=1).mean())
    if not scale > 0:
        return None
    # The share grows with the temperature, from the share of ties for the best pair to 1.
    low, high = scale * 1e-4, scale * 1e4
    if not _share(lists_LK, low) < ENTROPY_SHARE < _share(lists_LK, high):
        return None
    # Eight decades halved 60 times leave far less than the three digits that are kept.
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if _share(lists_LK, middle) > ENTROPY_SHARE else (middle, high)
    return float(f"{high:.3g}")


def _share(lists_LK: Lists, temperature: float) -> float:
    """Entropy as a share of log K, K being the pairs that a list has; the mean over lists."""
    return float((_entropy(lists_LK, temperature) / np.log((~np.isnan(lists_LK)).sum(axis=1))).mean())


def _entropy(lists_LK: Lists, temperature: float) -> Values:
    """The entropy of the softmax of each list, in nats."""
    logits = np.where(
        np.isnan(lists_LK), -np.inf, (lists_LK - np.nanmax(lists_LK, axis=1, keepdims=True)) / temperature
    )
    share = np.exp(logits)
    total = share.sum(axis=1)
    # log sum exp(x) - sum p x; a place of no pair has p = 0.
    return np.log(total) - (share * np.where(share > 0, logits, 0)).sum(axis=1) / total


def _lists(scores: TeacherCache | TeacherEnsemble) -> Lists:
    """The scores of the lists of both directions, L x K."""
    first = scores if isinstance(scores, TeacherCache) else scores.teachers[0]
    positives = np.flatnonzero(first.role_P & POSITIVE)
    image_L, text_L = first.image_P[positives], first.text_P[positives]
    # A list of a pool has a further candidate in the place of the positive.
    num_extra = 0 if len(positives) else 1
    # Always the same draws, so that a cache has one recommended temperature.
    rng, parts = np.random.default_rng(0), []
    for direction in Direction:
        candidates = scores.candidates.lists(direction)
        query = np.arange(len(candidates)) if num_extra else direction.query_first(image_L, text_L)[0]
        kept = np.flatnonzero(candidates.lengths[query] > num_extra)
        kept = kept[np.linspace(0, len(kept) - 1, min(len(kept), MAX_LISTS)).astype(np.int64)] if len(kept) else kept
        drawn_LK = _draw(rng, candidates, query[kept], NUM_NEGATIVES + num_extra)
        other_LK = np.maximum(drawn_LK, 0)
        query_LK = np.broadcast_to(query[kept][:, None], drawn_LK.shape)
        negative_LK = scores.lookup(*direction.query_first(query_LK, other_LK))
        part = np.where(drawn_LK >= 0, negative_LK, np.nan).astype(np.float64)
        if not num_extra:
            part = np.column_stack([scores.lookup(image_L[kept], text_L[kept]), part])
        # Of several teachers, not all may have scored the own pair.
        parts.append(part[~np.isnan(part[:, 0])])
    return np.concatenate(parts)


def _draw(rng: np.random.Generator, candidates: RaggedArray, query_L: Indices, count: int) -> Indices:
    """`count` different candidates of each query, L x count; -1 in the places of a query that has fewer."""
    drawn = np.full((len(query_L), count), -1, dtype=np.int64)
    for row, query in enumerate(query_L.tolist()):
        drawn_from = candidates[query]
        chosen = drawn_from if len(drawn_from) <= count else rng.choice(drawn_from, count, replace=False)
        drawn[row, : len(chosen)] = chosen
    return drawn
