"""A budget in pairs: which candidates a teacher scores if it cannot score all.

First come pairs about which the student and the teacher are likely to disagree. A query's candidates come in the order
of the miner, so that the budget goes to what the student takes for a match. With an earlier cache, a query gets a share
in proportion to its disagreement: the Kullback-Leibler divergence KL(teacher || student) of the softmax over its scored
candidates. Query by committee chooses by such a divergence too, from the mean of its members (McCallum and Nigam 1998).
Shares are rounded by Webster's method of apportionment: the r-th candidate of a query of weight w (r from 0) has
priority w / (2 r + 1).

Shape letters: P pairs, Q queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcdctl.core.data import Corpus, Direction, Indices, Values
from dcdctl.core.errors import ConfigError
from dcdctl.core.teacher.candidate_lists import Candidates

LEFT_OUT = "--max-pairs"
"""The reason of candidates that a budget leaves out."""


def num_candidates(corpus: Corpus, max_pairs: int, scored_P: Indices) -> int:
    """How many candidates a budget has beside the positives, which are always scored; ConfigError if it is too small
    for these. `scored_P` are the keys of pairs whose scores are free: image * captions + caption."""
    own = np.flatnonzero(corpus.caption_image >= 0)
    num_own = int((~np.isin(corpus.caption_image[own] * corpus.num_captions + own, scored_P)).sum())
    if max_pairs <= num_own:
        raise ConfigError(
            f"--max-pairs is {max_pairs:,}, and {num_own:,} pairs of images with their own captions are always scored",
            hint="raise it, or take fewer images with --max-images",
        )
    return max_pairs - num_own


def within_budget(
    drawn: Candidates, count: int, scored_P: Indices, weights: Mapping[Direction, Values], seed: int
) -> Candidates:
    """The first `count` unscored candidates by priority, and all scored ones; a pair of two queries counts once, with
    its higher priority. Pairs of equal priority are chosen at random."""
    num_texts, keys, priorities = len(drawn.images_of_text), [], []
    for direction, rank_P in drawn.ranks.items():
        lists = drawn.lists(direction)
        key_P = drawn.keys(direction)
        is_open = ~np.isin(key_P, scored_P)
        rows = lists.rows[is_open]
        order = np.lexsort((rank_P[is_open], rows))
        # The place of each open candidate among those of its query.
        place = np.arange(len(rows)) - np.searchsorted(rows, rows)
        keys.append(key_P[is_open][order])
        priorities.append(weights[direction][rows] / (2 * place + 1))
    open_P, pair_P = np.unique(np.concatenate(keys), return_inverse=True)
    priority_P = np.zeros(len(open_P))
    np.maximum.at(priority_P, pair_P, np.concatenate(priorities))
    # Without a draw, pairs of the first images would come first.
    tie_P = np.random.default_rng([seed, 3]).permutation(len(open_P))
    allowed_P = np.union1d(open_P[np.lexsort((tie_P, -priority_P))[:count]], scored_P)
    kept = drawn.where(lambda image_P, text_P: np.isin(image_P * num_texts + text_P, allowed_P))
    return replace(kept, dropped={**drawn.dropped, LEFT_OUT: max(len(open_P) - count, 0)})


def num_blocks(count: int, block_P: Indices, total: int) -> tuple[int, int]:
    """How many of the first blocks of a `total` have at most `count` pairs to score together, from the block of each
    such pair, and how many pairs the others have. Blocks are kept whole, because a batch needs every score of its
    block."""
    costs = np.cumsum(np.bincount(block_P, minlength=total))
    kept = int((costs <= count).sum())
    if not kept:
        raise ConfigError(
            f"--max-pairs leaves {count:,} pairs for blocks, and the first has {costs[0]:,} to score",
            hint="raise it, or set candidates.block_size lower",
        )
    return kept, int(costs[-1] - costs[kept - 1])


def disagreement(query_P: Indices, teacher_P: NDArray[Any], student_P: NDArray[Any], num_queries: int) -> Values:
    """KL(teacher || student) of each query in nats, from the logits of its pairs; the mean of the others for a query
    of fewer than two pairs, and 1 for all if no query has any.

    >>> logits = np.log([0.5, 0.5, 0.8, 0.2]), np.log([0.5, 0.5, 0.5, 0.5])
    >>> disagreement(np.array([0, 0, 2, 2]), *logits, num_queries=3).round(4).tolist()
    [0.0, 0.0964, 0.1927]
    """
    order = np.argsort(query_P, kind="stable")
    queries, starts, counts = np.unique(query_P[order], return_index=True, return_counts=True)

    def log_softmax(logit_P: NDArray[Any]) -> Values:
        logit_P = logit_P[order].astype(np.float64)
        logit_P = logit_P - np.repeat(np.maximum.reduceat(logit_P, starts), counts)
        return logit_P - np.repeat(np.log(np.add.reduceat(np.exp(logit_P), starts)), counts)

    teacher_P, student_P = log_softmax(teacher_P), log_softmax(student_P)
    # Rounding can make a sum slightly negative.
    divergence = np.maximum(np.add.reduceat(np.exp(teacher_P) * (teacher_P - student_P), starts), 0)
    weight_Q, is_known = np.full(num_queries, np.nan), counts > 1
    weight_Q[queries[is_known]] = divergence[is_known]
    known = weight_Q[~np.isnan(weight_Q)]
    return np.where(np.isnan(weight_Q), known.mean(), weight_Q) if known.any() else np.ones(num_queries)
