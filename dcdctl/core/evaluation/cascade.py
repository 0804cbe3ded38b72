"""The cascade: a model that encodes items once finds candidates, a scorer orders them. Which pairs that scores, and
what each depth gains and costs.

Shape letters: I images, T texts (captions); Q queries; P pairs; K candidates of a query; D dimensions.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from dcdctl.core import devices
from dcdctl.core.data import Corpus, Direction, Indices, Scores
from dcdctl.core.evaluation.ranking import NUM_TOP, Ranking, Rankings, is_positive
from dcdctl.core.evaluation.ranks import rerank
from dcdctl.core.models import Model, TextBatch
from dcdctl.core.scoring import LOGIT_ROUNDING, PairScorer

TIMED_CAPTIONS, TIMED_IMAGES = 16, 64
"""Captions that are timed, spread over the split, and images that stand in for the candidates of a fusion scorer,
repeated at larger depths."""
MIN_ROUNDS, MAX_ROUNDS, BUDGET_S = 5, 50, 5.0
"""Rounds of timing: as many as fit into the seconds, within these bounds."""
Query = tuple[TextBatch, TextBatch]
"""A caption as the first model reads it, and as the scorer does."""


@dataclass(frozen=True)
class Shortlists:
    """The candidates that the first model finds in a gallery for queries of both directions, and the pairs to score."""

    rankings: Rankings
    """With the first K candidates of every query; K is at least `depth`, or the gallery size."""
    image_T: Indices
    """Image of each caption."""
    depth: int

    @cached_property
    def pair_P(self) -> Indices:
        """Image times the number of captions, plus caption; ascending. A pair that both directions ask for is there
        once."""
        return self._pairs(self.depth)

    @property
    def pairs(self) -> tuple[Indices, Indices]:
        """Image and caption of each pair."""
        return np.divmod(self.pair_P, len(self.image_T))

    def num_pairs(self, depth: int) -> int:
        """Number of pairs at a smaller depth."""
        return len(self._pairs(depth))

    def rerank(self, scores_P: Scores, depth: int, *, num_top: int, margin: float = LOGIT_ROUNDING) -> Rankings:
        """The rankings at a depth, from the scores of all pairs; scores within `margin` of a positive tie with it."""

        def reranked(direction: Direction) -> Ranking:
            first = self.rankings.of(direction)
            scores_QK = scores_P[np.searchsorted(self.pair_P, self._pairs_of(direction, self.depth))]
            is_positive_QK = is_positive(direction, first.top_QK[:, : self.depth], self.image_T)
            return rerank(first, scores_QK, is_positive_QK, depth, margin=margin, num_top=num_top)

        return Rankings(*map(reranked, Direction))

    def _pairs(self, depth: int) -> Indices:
        return np.unique(np.concatenate([self._pairs_of(direction, depth).ravel() for direction in Direction]))

    def _pairs_of(self, direction: Direction, depth: int) -> Indices:
        """(Q, K): the pair of each query with each of its first candidates."""
        top_QK = self.rankings.of(direction).top_QK[:, :depth]
        image, text = direction.query_first(np.arange(len(top_QK))[:, None], top_QK)
        return image * len(self.image_T) + text


@torch.inference_mode()
def query_ms(
    first: Model, scores_of: Callable[[TextBatch], Tensor], fusion: PairScorer, corpus: Corpus, depths: Sequence[int]
) -> list[float]:
    """Milliseconds that a caption takes to find its images, for each depth: medians over rounds, in each of which all
    depths are timed.

    `scores_of` gives the scores of a caption with all images by the first model, whose first candidates are taken. The
    fusion scorer encodes the caption and scores it with as many images as the depth, which were encoded before.
    Captions are tokenized before.
    """
    compute = fusion.compute
    # Over the whole split, because captions differ in length.
    spread = np.unique(np.linspace(fusion.texts.start, fusion.texts.stop - 1, TIMED_CAPTIONS).astype(int)).tolist()
    queries = []
    for text in spread:
        caption = [corpus.captions[text]]
        of_first = first.preprocess.texts(caption).to(compute.device)
        queries.append((of_first, fusion.scorer.preprocess.texts(caption).to(compute.device)))
    deepest = min(max(depths), len(fusion.images))
    # At depth 0 an answer still has its first candidates.
    num_first = max(deepest, min(NUM_TOP, len(fusion.images)))
    # Encoded before the timing, as an index holds them. Kept states are small, and repeats of one would be scored once.
    num_states = deepest if fusion.scorer.keeps_states else min(deepest, TIMED_IMAGES)
    states = fusion.encode_images(np.arange(num_states))

    def find(query: Query) -> object:
        with compute.forward_pass():
            return scores_of(query[0]).topk(num_first)

    def score(query: Query, depth: int) -> object:
        with compute.forward_pass():
            texts = fusion.scorer.encode_texts(query[1])
            batches = (torch.arange(depth) % len(states)).split(fusion.batch_size)
            scores = [fusion.scorer.score_pairs(states, texts, batch, torch.zeros_like(batch)) for batch in batches]
            return torch.cat(scores).argsort()

    above_0 = [depth for depth in depths if depth]
    steps: list[Callable[[Query], object]] = [find, *(partial(score, depth=min(depth, deepest)) for depth in above_0)]
    find_ms, *score_ms = _median_ms(steps, queries, compute.device)
    score_ms_at = {0: 0.0, **dict(zip(above_0, score_ms, strict=True))}
    return [find_ms + score_ms_at[depth] for depth in depths]


def _median_ms(
    steps: Sequence[Callable[[Query], object]], queries: Sequence[Query], device: torch.device
) -> list[float]:
    """The median time of each step over rounds of one query each; the first round warms up and does not count."""
    began, rounds = time.perf_counter(), []
    for count, query in enumerate(itertools.cycle(queries)):
        # One round more than the bounds say, because the first one is not counted.
        if count > MAX_ROUNDS or (count > MIN_ROUNDS and time.perf_counter() - began > BUDGET_S):
            break
        # All depths in every round, so that other work on the machine slows all of them alike.
        rounds.append([devices.timed(partial(step, query), device)[0] for step in steps])
    return (1000 * np.median(rounds[1:], axis=0)).tolist()
