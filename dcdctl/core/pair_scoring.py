"""A fusion scorer at work on a part of a corpus, and how long it will be.

Each caption is encoded once and kept; images are encoded a chunk at a time, whenever pairs of them are asked for.

Shape letters: P pairs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from dcdctl.core import scoring
from dcdctl.core.features import Source
from dcdctl.core.models.protocols import FusionScorer, States
from dcdctl.core.progress import Advance

T = TypeVar("T")
ROUNDING = 1e-5
"""Logits this close, relative to the larger of 1 and their size, are a tie: padding and batch size move a logit by this much."""
TRIAL_S = 2.0
"""Seconds of scoring that a rate is told from."""
TRIAL_IMAGES, TRIAL_TEXTS = 16, 128
WARM_UP = 32
"""Pairs scored before."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What scoring pairs will take."""

    num_pairs: int
    pairs_per_s: float
    """Of a short trial on this device."""
    seconds: float
    """All pairs at this rate, and images and captions encoded."""


@dataclass(frozen=True, kw_only=True)
class PairScorer:
    """Scores pairs of these images and captions of a corpus, given by their places among them."""

    scorer: FusionScorer
    source: Source
    images: range
    texts: range
    batch_size: int
    """Pairs in one forward pass."""
    device: torch.device

    def score(self, image_P: NDArray[np.int64], text_P: NDArray[np.int64], advance: Advance | None = None) -> NDArray[np.float32]:
        """Logits in the order given, images ascending; a chunk of images is in memory at a time."""
        parts = [np.empty(0, dtype=np.float32)]
        for first in range(0, len(self.images), scoring.IMAGE_CHUNK):
            start, stop = np.searchsorted(image_P, [first, first + scoring.IMAGE_CHUNK])
            if start < stop:
                parts.append(self._score_chunk(image_P[start:stop], text_P[start:stop], advance))
        return np.concatenate(parts)

    def encode_images(self, images: NDArray[np.int64]) -> States:
        """The states of images."""
        return scoring.encode_images(self.scorer, self.source, images + self.images.start, self.device)

    def workload(self, num_pairs: int, num_images: int, num_texts: int) -> Workload:
        """How long so many pairs of so many encoded images and captions take, by a trial on some that are drawn at random."""
        rng = np.random.default_rng(0)
        image_ix, text_ix = (
            rng.permutation(len(all_of))[:count] for all_of, count in ((self.images, TRIAL_IMAGES), (self.texts, TRIAL_TEXTS))
        )
        first_images, first_texts = self.encode_images(image_ix[:1]), self._encode_texts(text_ix[:1])
        # Whatever comes first is slower, so it is not timed.
        zeros = torch.zeros(WARM_UP, dtype=torch.int64)
        scoring.score_block(self.scorer, first_images, first_texts, zeros, zeros, self.batch_size)
        image_s, images = _timed(lambda: self.encode_images(image_ix))
        text_s, texts = _timed(lambda: self._encode_texts(text_ix))
        count, pairs_s, size = 0, 0.0, min(self.batch_size, num_pairs)
        while pairs_s < TRIAL_S and count < num_pairs:
            image_P, text_P = (torch.from_numpy(rng.integers(len(states), size=size)) for states in (images, texts))
            pairs_s, _ = _timed(partial(scoring.score_block, self.scorer, images, texts, image_P, text_P, self.batch_size))
            count, size = size, min(4 * size, num_pairs)
        encoding_s = num_images * image_s / len(images) + num_texts * text_s / len(texts)
        return Workload(num_pairs=num_pairs, pairs_per_s=count / pairs_s, seconds=num_pairs * pairs_s / count + encoding_s)

    def _score_chunk(self, image_P: NDArray[np.int64], text_P: NDArray[np.int64], advance: Advance | None) -> NDArray[np.float32]:
        images, image_at_P = np.unique(image_P, return_inverse=True)
        pairs = torch.from_numpy(image_at_P), torch.from_numpy(text_P)
        states = self.encode_images(images)
        return scoring.score_block(self.scorer, states, self._texts, *pairs, self.batch_size, advance).numpy()

    @cached_property
    def _texts(self) -> States:
        return self._encode_texts(np.arange(len(self.texts)))

    def _encode_texts(self, texts: NDArray[np.int64]) -> States:
        return scoring.encode_texts(self.scorer, self.source, texts + self.texts.start, self.device)


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found
