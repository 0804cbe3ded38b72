"""Scores of many image-caption pairs from a fusion model, each image and caption embedded once.

Shape letters: P pairs.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcdctl.core.features import Source
from dcdctl.core.models.protocols import FusionScorer, States
from dcdctl.core.progress import Advance

IMAGE_CHUNK = 64
"""Images embedded at a time."""
TEXT_CHUNK = 512
"""Captions embedded at a time."""


@torch.inference_mode()
def encode_images(scorer: FusionScorer, source: Source, image_ix: NDArray[np.int64], device: torch.device) -> States:
    """The states of some images of a corpus, in the order given."""
    chunks = [image_ix[start : start + IMAGE_CHUNK] for start in range(0, len(image_ix), IMAGE_CHUNK)]
    return States.cat([scorer.encode_images(source.images(chunk).to(device)) for chunk in chunks])


@torch.inference_mode()
def encode_texts(scorer: FusionScorer, source: Source, text_ix: NDArray[np.int64], device: torch.device) -> States:
    """The states of some captions of a corpus, in the order given."""
    chunks = [text_ix[start : start + TEXT_CHUNK] for start in range(0, len(text_ix), TEXT_CHUNK)]
    return States.cat([scorer.encode_texts(source.texts(chunk).to(device)) for chunk in chunks])


@torch.inference_mode()
def score_block(
    scorer: FusionScorer,
    images: States,
    texts: States,
    image_ix_P: Tensor,
    text_ix_P: Tensor,
    batch_size: int,
    advance: Advance | None = None,
) -> Tensor:
    """Logits of the pairs, float32 on the CPU, in the order given.

    Captions of one length go together, so that no pair is computed with more padding than it needs.
    """
    length_T = texts.mask.sum(dim=1)
    image_ix_P, text_ix_P = image_ix_P.to(length_T.device), text_ix_P.to(length_T.device)
    order_P = torch.argsort(length_T[text_ix_P], stable=True)
    scores_P = torch.empty(len(order_P), dtype=torch.float32)
    for chunk in order_P.split(batch_size):
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
    device: torch.device,
    batch_size: int,
    precision: str = "float32",
    advance: Advance | None = None,
) -> NDArray[np.float32]:
    """Logits of pairs of a corpus, in the order given, computed under autocast where `precision` is not float32.

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
    with torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32"):
        image_states = encode_images(scorer, source, images, device)
        for chunk in range(-(-len(texts) // TEXT_CHUNK)):
            members = texts[by_length[chunk * TEXT_CHUNK : (chunk + 1) * TEXT_CHUNK]]
            states = encode_texts(scorer, source, members, device)
            here = np.flatnonzero(chunk_P == chunk)
            pairs = torch.from_numpy(image_at[here]), torch.from_numpy(place[text_at[here]] - chunk * TEXT_CHUNK)
            scores[here] = score_block(scorer, image_states, states, *pairs, batch_size, advance).numpy()
    return scores
