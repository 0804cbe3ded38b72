"""A dual encoder that finds candidates and a fusion scorer that puts them in order: what it scores, and what each depth brings and costs.

Shape letters: I images, T texts (captions); Q queries; P pairs; K candidates of a query.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcdctl.core.data import Corpus
from dcdctl.core.evaluation.ranks import NUM_TOP, Rankings, reranked
from dcdctl.core.evaluation.recall import recalls_in
from dcdctl.core.models import DualEncoder
from dcdctl.core.scoring import LOGIT_ROUNDING, PairScorer

TIMED_CAPTIONS, TIMED_IMAGES = 16, 64
"""Queries that are timed, spread over the split, and images that stand for their candidates, in turn."""
MIN_ROUNDS, MAX_ROUNDS, BUDGET_S = 5, 50, 5.0
"""Rounds of timing: as many as seconds allow, within these bounds."""


@dataclass(frozen=True, kw_only=True)
class DepthResult:
    """A cascade at one depth; at 0 the dual encoder alone."""

    depth: int
    text_retrieval: dict[str, float]
    image_retrieval: dict[str, float]
    ms_per_query: float
    """One caption against the images, which were encoded before by both models: see `query_ms`."""
    num_pairs: int
    """Pairs that the fusion scorer has to score for all queries of both directions."""
    is_on_front: bool = False
    """No other depth is as good and as fast, and better or faster."""

    @property
    def rsum(self) -> float:
        return recalls_in(self.text_retrieval, self.image_retrieval).rsum


@dataclass(frozen=True)
class Shortlists:
    """What a dual encoder finds in a gallery, its first K candidates of every query among it, and the pairs that makes."""

    rankings: Rankings
    owner_T: NDArray[np.int64]
    """Image of each caption."""
    depth: int

    @cached_property
    def pair_P(self) -> NDArray[np.int64]:
        """Image times the number of captions, plus caption; ascending. A pair that both directions want is there once."""
        return self._pairs(self.depth)

    @property
    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Image and caption of each pair."""
        image_P, text_P = np.divmod(self.pair_P, len(self.owner_T))
        return image_P, text_P

    def num_pairs(self, depth: int) -> int:
        """How many pairs a smaller depth makes."""
        return len(self._pairs(depth))

    def reranked(self, scores_P: NDArray[np.float32], depth: int, *, num_top: int = NUM_TOP) -> Rankings:
        """The rankings at a depth, from the scores of all pairs."""
        texts_IK, images_TK = self._text_pairs(self.depth), self._image_pairs(self.depth)
        is_own_IK = self.owner_T[self.rankings.text.top_QK[:, : self.depth]] == np.arange(len(texts_IK))[:, None]
        is_own_TK = self.rankings.image.top_QK[:, : self.depth] == self.owner_T[:, None]
        return Rankings(
            *(
                reranked(first, scores_P[np.searchsorted(self.pair_P, pair_QK)], is_own_QK, depth, margin=LOGIT_ROUNDING, num_top=num_top)
                for first, pair_QK, is_own_QK in ((self.rankings.text, texts_IK, is_own_IK), (self.rankings.image, images_TK, is_own_TK))
            )
        )

    def _pairs(self, depth: int) -> NDArray[np.int64]:
        return np.unique(np.concatenate([self._text_pairs(depth).ravel(), self._image_pairs(depth).ravel()]))

    def _text_pairs(self, depth: int) -> NDArray[np.int64]:
        texts_IK = self.rankings.text.top_QK[:, :depth]
        return np.arange(len(texts_IK))[:, None] * len(self.owner_T) + texts_IK

    def _image_pairs(self, depth: int) -> NDArray[np.int64]:
        return self.rankings.image.top_QK[:, :depth] * len(self.owner_T) + np.arange(len(self.owner_T))[:, None]


@torch.inference_mode()
def query_ms(dual: DualEncoder, image_ID: Tensor, fusion: PairScorer, corpus: Corpus, depths: Sequence[int]) -> list[float]:
    """Milliseconds that a caption takes to find its images, at each depth; medians over rounds in which all are timed in turn.

    The dual encoder's part is the caption embedded, its products with all vectors and the first of them; the fusion scorer's is the
    caption encoded and scored with as many images as the depth, encoded before. Captions are tokenized beforehand.
    """
    compute = fusion.compute
    spread = np.unique(np.linspace(fusion.texts.start, fusion.texts.stop - 1, TIMED_CAPTIONS).astype(int)).tolist()
    captions = [[corpus.captions[text]] for text in spread]
    queries = [tuple(model.preprocess.texts(one).to(compute.device) for model in (dual, fusion.scorer)) for one in captions]
    deepest = min(max(depths), len(image_ID))
    num_first = max(deepest, min(NUM_TOP, len(image_ID)))
    states = fusion.encode_images(np.arange(min(deepest, TIMED_IMAGES)))

    def find(query: tuple[Any, Any]) -> object:
        with compute.autocast():
            text_1D = dual.embed_texts(query[0])
        return (image_ID @ text_1D.float()[0]).topk(num_first)

    def rerank(query: tuple[Any, Any], depth: int) -> object:
        with compute.autocast():
            texts = fusion.scorer.encode_texts(query[1])
            parts = (torch.arange(depth, device=compute.device) % len(states)).split(compute.batch_size)
            return torch.cat([fusion.scorer.score_pairs(states, texts, part, torch.zeros_like(part)) for part in parts]).argsort()

    works: list[Callable[[Any], object]] = [find, *(partial(rerank, depth=min(depth, deepest)) for depth in depths if depth)]
    first_ms, *rest_ms = _median_ms(works, queries, compute.device)
    rest = iter(rest_ms)
    return [first_ms + (next(rest) if depth else 0.0) for depth in depths]


def on_front(results: Sequence[DepthResult]) -> list[bool]:
    """Which depths no other beats: none is as good and as fast, and better or faster."""

    def beats(one: DepthResult, other: DepthResult) -> bool:
        gains = one.rsum - other.rsum, other.ms_per_query - one.ms_per_query
        return min(gains) >= 0 and max(gains) > 0

    return [not any(beats(other, one) for other in results) for one in results]


def _median_ms(works: Sequence[Callable[[Any], object]], queries: Sequence[Any], device: torch.device) -> list[float]:
    """The median time of each work over rounds, of which the first does not count; a query a round."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    began, rounds = time.perf_counter(), []
    for count, query in enumerate(itertools.cycle(queries)):
        if count > MAX_ROUNDS or (count > MIN_ROUNDS and time.perf_counter() - began > BUDGET_S):
            break
        times = []
        for work in works:
            wait()
            started = time.perf_counter()
            work(query)
            wait()
            times.append(time.perf_counter() - started)
        rounds.append(times)
    return (1000 * np.median(rounds[1:], axis=0)).tolist()
