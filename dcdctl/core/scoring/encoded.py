"""A corpus encoded once for all its pairs, by a scorer whose states are small enough to keep: the unit vectors of a
dual encoder, or the token vectors of late interaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from dcdctl.core.data import Corpus, Indices
from dcdctl.core.engines import Compute
from dcdctl.core.memory import Fitting
from dcdctl.core.models import Preprocessor, Scorer, States
from dcdctl.core.progress import Track, silent
from dcdctl.core.scoring.batches import Batch, Side, encoded_batches
from dcdctl.core.scoring.features import Features
from dcdctl.core.scoring.sources import Source, in_memory

IMAGE_CHUNK, TEXT_CHUNK = 64, 512
"""Images and captions encoded in one forward pass."""


@dataclass(frozen=True)
class EncodedCorpus:
    """The states of all images and captions of a corpus, which a scorer encodes no more."""

    corpus: Corpus
    of_images: States
    of_texts: States

    @property
    def captions(self) -> Sequence[str]:
        """The text of each caption."""
        return self.corpus.captions

    def images(self, image_ix: Sequence[int] | Indices) -> States:
        """The states of these images, in the order given."""
        return self.of_images.take(torch.as_tensor(image_ix))

    def texts(self, text_ix: Sequence[int] | Indices) -> States:
        """The states of these captions, in the order given."""
        return self.of_texts.take(torch.as_tensor(text_ix))

    def packed_images(self, image_ix: Indices) -> States:
        """The states of these images, to travel."""
        return self.images(image_ix)

    def packed_texts(self, text_ix: Indices) -> States:
        """The states of these captions, to travel."""
        return self.texts(text_ix)


@dataclass(frozen=True)
class _StatesEncoder:
    """A scorer, and the device on which its states are kept."""

    scorer: Scorer
    side: Side
    home: torch.device

    @property
    def preprocess(self) -> Preprocessor:
        return self.scorer.preprocess

    def placed(self, compute: Compute) -> Callable[[Any], States]:
        """The states of a batch; one that does not fit into memory is halved."""
        scorer = self.scorer.to(compute.device).eval()
        is_image = self.side == "images"
        work = scorer.encode_images if is_image else scorer.encode_texts
        step, fitting = IMAGE_CHUNK if is_image else TEXT_CHUNK, Fitting()

        def encode(batch: Any) -> States:
            with compute.forward_pass():
                return in_memory(batch, step, work, fitting).to(self.home)

        return encode


@torch.inference_mode()
def encode_corpus(scorer: Scorer, source: Source, compute: Compute, *, track: Track = silent) -> Source:
    """What a scorer reads to score pairs: the whole corpus encoded, if the scorer keeps its states; else the source as
    it is.

    The batches are the same in every call, so a vector does not depend on the pairs that need it. A batch that does not
    fit into memory is halved.
    """
    if not scorer.keeps_states:
        return source
    scorer.to(compute.device).eval()
    corpus = source.corpus
    text_order: Sequence[int] = range(corpus.num_captions)
    if isinstance(source, Features):
        # One token of an image may be enough; and features are read fastest in the order in which they are stored.
        source = replace(source, only_first=not scorer.keeps_tokens)
    else:
        # Captions of similar length share a batch, so that little of it is padding.
        text_order = sorted(text_order, key=lambda text: len(corpus.captions[text]))

    def encode(side: Side, order: Sequence[int], step: int) -> States:
        encoder = _StatesEncoder(scorer, side, compute.device)
        batches = [order[start : start + step] for start in range(0, len(order), step)]
        with track(f"encode {side}", total=len(order), unit=side) as advance:
            found: Iterable[tuple[Batch, States]]
            found = encoded_batches(encoder, source, side, batches, compute, advance)
            longest = 1
            if scorer.keeps_tokens:  # how many tokens the longest item has is known at the end
                found = list(found)
                longest = max(states.tokens.shape[1] for _, states in found)
            room: States | None = None
            for batch, states in found:
                if room is None:
                    room = states.room_for(len(order), longest)
                room.put(torch.tensor(batch), states)
        assert room is not None
        return room

    of_images = encode("images", range(corpus.num_images), IMAGE_CHUNK)
    return EncodedCorpus(corpus, of_images, encode("captions", text_order, TEXT_CHUNK))
