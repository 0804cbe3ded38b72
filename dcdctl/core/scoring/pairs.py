"""Scores of many image-caption pairs from a fusion model, each image and caption embedded once.

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
from torch import Tensor

from dcdctl.core.devices import Compute
from dcdctl.core.models import FusionScorer, States
from dcdctl.core.progress import Advance
from dcdctl.core.scoring.features import Source

IMAGE_CHUNK = 64
"""Images embedded at a time."""
TEXT_CHUNK = 512
"""Captions embedded at a time."""


@torch.inference_mode()
def encode_images(scorer: FusionScorer, source: Source, image_ix: NDArray[np.int64], compute: Compute) -> States:
    """The states of some images of a corpus, in the order given."""
    chunks = [image_ix[start : start + IMAGE_CHUNK] for start in range(0, len(image_ix), IMAGE_CHUNK)]
    with compute.autocast():
        return States.cat([scorer.encode_images(source.images(chunk).to(compute.device)) for chunk in chunks])


@torch.inference_mode()
def encode_texts(scorer: FusionScorer, source: Source, text_ix: NDArray[np.int64], compute: Compute) -> States:
    """The states of some captions of a corpus, in the order given."""
    chunks = [text_ix[start : start + TEXT_CHUNK] for start in range(0, len(text_ix), TEXT_CHUNK)]
    with compute.autocast():
        return States.cat([scorer.encode_texts(source.texts(chunk).to(compute.device)) for chunk in chunks])


@torch.inference_mode()
def score_block(
    scorer: FusionScorer,
    images: States,
    texts: States,
    image_ix_P: Tensor,
    text_ix_P: Tensor,
    compute: Compute,
    advance: Advance | None = None,
) -> Tensor:
    """Logits of the pairs, float32 on the CPU, in the order given.

    Captions of one length go together, so that no pair is computed with more padding than it needs.
    """
    length_T = texts.mask.sum(dim=1)
    image_ix_P, text_ix_P = image_ix_P.to(length_T.device), text_ix_P.to(length_T.device)
    order_P = torch.argsort(length_T[text_ix_P], stable=True)
    scores_P = torch.empty(len(order_P), dtype=torch.float32)
    with compute.autocast():
        for chunk in order_P.split(compute.batch_size):
            scores_P[chunk.cpu()] = scorer.score_pairs(images, texts, image_ix_P[chunk], text_ix_P[chunk]).float().cpu()
            if advance is not None:
                advance(len(chunk))
    return scores_P


def score_pairs(
    scorer: FusionScorer,
    source: Source,
    image_ix: NDArray[np.int64],
    text_ix: NDArray[np.int64],
    *,
    compute: Compute,
    advance: Advance | None = None,
) -> NDArray[np.float32]:
    """Logits of pairs of a corpus, in the order given, computed under autocast unless the precision is float32.

    Memory grows with the number of different images; captions, of which there may be many more, come a chunk at a time, sorted by
    their number of characters so that captions of like length share a chunk.
    """
    images, image_at = np.unique(image_ix, return_inverse=True)
    texts, text_at = np.unique(text_ix, return_inverse=True)
    by_length = np.argsort([len(source.corpus.captions[text]) for text in texts.tolist()], kind="stable")
    place = np.empty_like(by_length)
    place[by_length] = np.arange(len(by_length))
    chunk_P = place[text_at] // TEXT_CHUNK
    scores = np.empty(len(image_ix), dtype=np.float32)
    image_states = encode_images(scorer, source, images, compute)
    for chunk in range(-(-len(texts) // TEXT_CHUNK)):
        members = texts[by_length[chunk * TEXT_CHUNK : (chunk + 1) * TEXT_CHUNK]]
        states = encode_texts(scorer, source, members, compute)
        here = np.flatnonzero(chunk_P == chunk)
        pairs = torch.from_numpy(image_at[here]), torch.from_numpy(place[text_at[here]] - chunk * TEXT_CHUNK)
        scores[here] = score_block(scorer, image_states, states, *pairs, compute, advance).numpy()
    return scores


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
    compute: Compute

    def score(self, image_P: NDArray[np.int64], text_P: NDArray[np.int64], advance: Advance | None = None) -> NDArray[np.float32]:
        """Logits in the order given, images ascending; a chunk of images is in memory at a time."""
        parts = [np.empty(0, dtype=np.float32)]
        for first in range(0, len(self.images), IMAGE_CHUNK):
            start, stop = np.searchsorted(image_P, [first, first + IMAGE_CHUNK])
            if start < stop:
                parts.append(self._score_chunk(image_P[start:stop], text_P[start:stop], advance))
        return np.concatenate(parts)

    def encode_images(self, images: NDArray[np.int64]) -> States:
        """The states of images."""
        return encode_images(self.scorer, self.source, images + self.images.start, self.compute)

    def workload(self, num_pairs: int, num_images: int, num_texts: int) -> Workload:
        """How long so many pairs of so many encoded images and captions take, by a trial on some that are drawn at random."""
        rng = np.random.default_rng(0)
        image_ix, text_ix = (
            rng.permutation(len(all_of))[:count] for all_of, count in ((self.images, TRIAL_IMAGES), (self.texts, TRIAL_TEXTS))
        )
        first_images, first_texts = self.encode_images(image_ix[:1]), self._encode_texts(text_ix[:1])
        # Whatever comes first is slower, so it is not timed.
        zeros = torch.zeros(WARM_UP, dtype=torch.int64)
        score_block(self.scorer, first_images, first_texts, zeros, zeros, self.compute)
        image_s, images = _timed(lambda: self.encode_images(image_ix))
        text_s, texts = _timed(lambda: self._encode_texts(text_ix))
        count, pairs_s, size = 0, 0.0, min(self.compute.batch_size, num_pairs)
        while pairs_s < TRIAL_S and count < num_pairs:
            image_P, text_P = (torch.from_numpy(rng.integers(len(states), size=size)) for states in (images, texts))
            pairs_s, _ = _timed(partial(score_block, self.scorer, images, texts, image_P, text_P, self.compute))
            count, size = size, min(4 * size, num_pairs)
        encoding_s = num_images * image_s / len(images) + num_texts * text_s / len(texts)
        return Workload(num_pairs=num_pairs, pairs_per_s=count / pairs_s, seconds=num_pairs * pairs_s / count + encoding_s)

    def _score_chunk(self, image_P: NDArray[np.int64], text_P: NDArray[np.int64], advance: Advance | None) -> NDArray[np.float32]:
        images, image_at_P = np.unique(image_P, return_inverse=True)
        pairs = torch.from_numpy(image_at_P), torch.from_numpy(text_P)
        states = self.encode_images(images)
        return score_block(self.scorer, states, self._texts, *pairs, self.compute, advance).numpy()

    @cached_property
    def _texts(self) -> States:
        return self._encode_texts(np.arange(len(self.texts)))

    def _encode_texts(self, texts: NDArray[np.int64]) -> States:
        return encode_texts(self.scorer, self.source, texts + self.texts.start, self.compute)


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found
