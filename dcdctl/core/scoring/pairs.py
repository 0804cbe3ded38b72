"""Pair scores of a model: many image-caption pairs, each image and caption encoded once.

`score_pairs` scores any pairs of a corpus; all their images are in memory at once, their captions come in chunks. For a
model that groups pairs by image, the images come in chunks instead, each with all captions that it is paired with.
`PairScorer` (`folds`) scores pairs of a part of a corpus again and again.

Shape letters: P pairs, T texts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcdctl.core.data import Indices
from dcdctl.core.engines import Compute
from dcdctl.core.machine import read_in_threads
from dcdctl.core.memory import Fitting, GpuMemory, in_fitting_parts
from dcdctl.core.models import ImageBatch, Scorer, States
from dcdctl.core.progress import Advance
from dcdctl.core.scoring.kept_scores import KeptScores
from dcdctl.core.scoring.sources import PairSource, in_memory, read_images

T = TypeVar("T")
Keep = Callable[[Tensor, Callable[[], Tensor]], Tensor]
"""Gives the scores of a batch, from its positions and the call that computes them."""
IMAGE_CHUNK = 64
"""Images encoded in one forward pass; in a `PairScorer` also those in memory."""
TEXT_CHUNK = 512
"""Captions encoded in one forward pass; in `score_pairs` also those in memory."""
LOGIT_ROUNDING = 1e-5
"""Logits closer than this, relative to max(1, |logit|), are a tie: padding and batch size change a logit by as much."""
_FITTING: WeakKeyDictionary[Scorer, dict[tuple[str, torch.device, bool], Fitting]] = WeakKeyDictionary()


@torch.inference_mode()
def encode_images(scorer: Scorer, source: PairSource, image_ix: Indices, compute: Compute) -> States:
    """The states of these images of a corpus, in the order given; chunks are read ahead."""
    chunks = [image_ix[start : start + IMAGE_CHUNK] for start in range(0, len(image_ix), IMAGE_CHUNK)]
    reading = read_in_threads(lambda chunk: read_images(source, chunk, compute), chunks, compute.readers)
    return States.cat([encode_chunk(scorer, images, compute) for images in reading])


@torch.inference_mode()
def encode_chunk(scorer: Scorer, images: ImageBatch | States, compute: Compute) -> States:
    """The states of the images of a chunk, which were read ahead."""

    def encode(part: ImageBatch | States) -> States:
        return scorer.encode_images(part.to(compute.device, non_blocking=True))

    with compute.forward_pass():
        return in_memory(images, IMAGE_CHUNK, encode, _fitting(scorer, "images", compute))


@torch.inference_mode()
def encode_texts(scorer: Scorer, source: PairSource, text_ix: Indices, compute: Compute) -> States:
    """The states of these captions of a corpus, in the order given."""

    def encode(chunk: Indices) -> States:
        return scorer.encode_texts(source.texts(chunk).to(compute.device, non_blocking=True))

    captions = source.captions
    starts = range(0, len(text_ix), TEXT_CHUNK)
    # The chunk with the longest caption first: its width is most often the width of all, and the captions of a fold are
    # in memory only once.
    longest_first = sorted(
        starts, key=lambda start: -max(len(captions[text]) for text in text_ix[start : start + TEXT_CHUNK].tolist())
    )
    room: States | None = None
    with compute.forward_pass():
        for start in longest_first:
            at = start
            for _, part in in_fitting_parts(
                text_ix[start : start + TEXT_CHUNK], TEXT_CHUNK, encode, _fitting(scorer, "captions", compute)
            ):
                if len(part) == len(text_ix):
                    return part
                if room is None or room.tokens.shape[1] < part.tokens.shape[1]:
                    narrow, room = room, part.room_for(len(text_ix), part.tokens.shape[1])
                    if narrow is not None:
                        room.put(torch.arange(len(narrow)), narrow)
                room.put(torch.arange(at, at + len(part)), part)
                at += len(part)
    assert room is not None
    return room


@torch.inference_mode()
def score_block(
    scorer: Scorer,
    images: States,
    texts: States,
    image_ix_P: Tensor,
    text_ix_P: Tensor,
    compute: Compute,
    advance: Advance | None = None,
    keep: Keep | None = None,
) -> Tensor:
    """Logits of pairs of encoded images and captions, float32 on the CPU, in the order given.

    A batch that does not fit into memory is halved, and on a GPU one whose size the user did not set grows. Positions
    stay on the CPU and scores on the device until all are computed, so that the program waits for a GPU once, unless
    `keep` writes each batch.
    """
    length_T = texts.mask_on_cpu.sum(dim=1)
    image_ix_P, text_ix_P = image_ix_P.cpu(), text_ix_P.cpu()
    # Captions of one length share a batch, so that no pair is computed with more padding than it needs.
    order_P = torch.argsort(length_T[text_ix_P], stable=True)
    batch_size, fitting = compute.batch_size or scorer.pairs_per_batch, _fitting(scorer, "pairs", compute)
    batches = _by_image(order_P, image_ix_P, fitting.size(batch_size)) if _groups_by_image(scorer) else [order_P]
    scored: list[Tensor] = []
    ordered: list[Tensor] = []

    def score(batch: Tensor) -> Tensor:
        def ask() -> Tensor:
            return scorer.score_pairs(images, texts, image_ix_P[batch], text_ix_P[batch]).float()

        return ask() if keep is None else keep(batch, ask)

    with compute.forward_pass():
        for group in batches:
            for batch, scores in in_fitting_parts(group, batch_size, score, fitting):
                scored.append(scores)
                ordered.append(batch)
                if advance is not None:
                    advance(len(batch))
    scores_P = torch.empty(len(order_P), dtype=torch.float32)
    if scored:
        scores_P[torch.cat(ordered)] = torch.cat(scored).cpu()
    return scores_P


def _fitting(scorer: Scorer, kind: str, compute: Compute) -> Fitting:
    """The batch size of a kind of work of this scorer on this device, kept as long as the scorer is.

    On a GPU, pairs per batch grow into its memory, unless the user has set a batch size.
    """
    grows = kind == "pairs" and compute.device.type == "cuda" and compute.batch_size is None
    fittings, key = _FITTING.setdefault(scorer, {}), (kind, compute.device, grows)
    if key not in fittings:
        fittings[key] = Fitting(GpuMemory(compute.device) if grows else None)
    return fittings[key]


def _groups_by_image(scorer: Scorer) -> bool:
    """Whether pairs of one image cost less in one batch; late interaction shares nothing between pairs."""
    return scorer.kind == "fusion" and scorer.groups_by_image


def _by_image(order_P: Tensor, image_ix_P: Tensor, batch_size: int) -> list[Tensor]:
    """The pairs in batches of at most `batch_size`, image after image; only pairs of an image that exceed a batch are
    split.

    >>> [batch.tolist() for batch in _by_image(torch.arange(6), torch.tensor([1, 0, 1, 0, 1, 2]), batch_size=3)]
    [[1, 3], [0, 2, 4], [5]]
    """
    order_P = order_P[torch.argsort(image_ix_P[order_P], stable=True)]
    batches: list[Tensor] = []
    for group in order_P.split(image_ix_P[order_P].unique_consecutive(return_counts=True)[1].tolist()):
        if batches and len(batches[-1]) + len(group) <= batch_size:
            batches[-1] = torch.cat([batches[-1], group])
        else:
            batches += group.split(batch_size)
    return batches


def scored_apart(scorer: Scorer, image_P: Indices) -> list[Indices]:
    """The positions of pairs in groups, of which each has the same scores whether the others are scored or not, to the
    bit. For a model that groups pairs by image, those of each chunk of images; else all pairs are one group."""
    if not _groups_by_image(scorer) or not len(image_P):
        return [np.arange(len(image_P))]
    # By rank among the images of these pairs: a cache may use few of the corpus.
    chunk_P = np.unique(image_P, return_inverse=True)[1] // IMAGE_CHUNK
    return [np.flatnonzero(chunk_P == chunk) for chunk in np.unique(chunk_P).tolist()]


def score_pairs(
    scorer: Scorer,
    source: PairSource,
    image_P: Indices,
    text_P: Indices,
    *,
    compute: Compute,
    advance: Advance | None = None,
    kept: KeptScores | None = None,
) -> NDArray[np.float32]:
    """Logits of pairs of a corpus or of a shard, in the order given; of batches that are `kept`, no pair is scored.
    Memory grows with the number of different images, unless pairs are grouped."""

    def keep_of(pairs: Indices) -> Keep | None:
        """Keeps the scores of batches of these pairs."""
        if kept is None:
            return None
        return lambda batch, ask: kept.score(image_P[pairs[batch.numpy()]], text_P[pairs[batch.numpy()]], ask)

    if _groups_by_image(scorer):

        def score_chunk(images: States, image_at_P: Tensor, pairs: Indices) -> Tensor:
            """The pairs of one chunk of images, with all captions that they are paired with."""
            texts, text_at_P = np.unique(text_P[pairs], return_inverse=True)
            text_states = encode_texts(scorer, source, texts, compute)
            ix = image_at_P, torch.from_numpy(text_at_P)
            return score_block(scorer, images, text_states, *ix, compute, advance, keep_of(pairs))

        return _score_by_images(scorer, source, image_P, score_chunk, compute)
    images, image_at_P = np.unique(image_P, return_inverse=True)
    texts, text_at_P = np.unique(text_P, return_inverse=True)
    # Captions with a similar number of characters share a chunk, so that little of it is padding.
    by_length_T = np.argsort([len(source.captions[text]) for text in texts.tolist()], kind="stable")
    position_T = np.empty_like(by_length_T)
    position_T[by_length_T] = np.arange(len(by_length_T))
    position_P = position_T[text_at_P]
    image_states = encode_images(scorer, source, images, compute)
    # One chunk of captions is in memory at a time.
    scores_P, chunk_P = np.empty(len(position_P), dtype=np.float32), position_P // TEXT_CHUNK
    for chunk in np.unique(chunk_P).tolist():
        pairs = np.flatnonzero(chunk_P == chunk)
        first = chunk * TEXT_CHUNK
        text_states = encode_texts(scorer, source, texts[by_length_T[first : first + TEXT_CHUNK]], compute)
        ix = torch.from_numpy(image_at_P[pairs]), torch.from_numpy(position_P[pairs] - first)
        scores_P[pairs] = score_block(scorer, image_states, text_states, *ix, compute, advance, keep_of(pairs)).numpy()
    return scores_P


def _score_by_images(
    scorer: Scorer,
    source: PairSource,
    image_P: Indices,
    score_chunk: Callable[[States, Tensor, Indices], Tensor],
    compute: Compute,
) -> NDArray[np.float32]:
    """The scores of all pairs, in chunks of at most `IMAGE_CHUNK` images, which are read ahead.

    `score_chunk` receives the states of a chunk's images, the position of each pair's image among them, and the pairs.
    """
    scores_P = np.empty(len(image_P), dtype=np.float32)

    def read(pairs: Indices) -> tuple[Indices, Tensor, ImageBatch | States]:
        images, image_at_P = np.unique(image_P[pairs], return_inverse=True)
        return pairs, torch.from_numpy(image_at_P), read_images(source, images, compute)

    for pairs, image_at_P, images in read_in_threads(read, scored_apart(scorer, image_P), compute.readers):
        states = encode_chunk(scorer, images, compute)
        scores_P[pairs] = score_chunk(states, image_at_P, pairs).numpy()
    return scores_P
