"""A corpus encoded once for all its pairs, by a scorer whose states are small enough to keep: the unit vectors of a
dual encoder, or the token vectors of late interaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from dcdctl.core import distributed
from dcdctl.core.data import Corpus, Indices
from dcdctl.core.engines import Compute
from dcdctl.core.memory import Fitting
from dcdctl.core.models import Scorer, States
from dcdctl.core.progress import Track, silent
from dcdctl.core.scoring.features import Features, Source, images_ahead, in_memory

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


@torch.inference_mode()
def encode_corpus(
    scorer: Scorer, source: Source, compute: Compute, *, track: Track = silent, is_shared: bool = False
) -> Source:
    """What a scorer reads to score pairs: the whole corpus encoded, if the scorer keeps its states; else the source as
    it is.

    The batches are the same in every call, so a vector does not depend on the pairs that need it. If several processes
    call this together with `is_shared`, each encodes its share of the batches, and all of them have all vectors. A
    batch that does not fit into memory is halved.
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

    def encode(noun: Literal["images", "captions"], order: Sequence[int], step: int) -> States:
        fitting = Fitting()

        def states_of(batches: Iterable[Sequence[int]]) -> Iterator[States]:
            read: Iterable[Any] = (source.texts(batch).to(compute.device) for batch in batches)
            work: Callable[..., States] = scorer.encode_texts
            if noun == "images":
                read, work = images_ahead(source, batches, compute), scorer.encode_images
            for batch in read:
                yield in_memory(batch, step, work, fitting)

        batches = [order[start : start + step] for start in range(0, len(order), step)]
        with track(f"encode {noun}", total=len(order), unit=noun) as advance, compute.forward_pass():
            # Every process needs the widths, also one without a batch of its own.
            first = next(states_of([batches[0][:1]]))
            local = [batches[i] for i in (distributed.local_indices if is_shared else range)(len(batches))]
            # How many tokens the longest item has is known at the end.
            encoded = list(states_of(local)) if scorer.keeps_tokens else states_of(local)
            longest = _longest([first, *encoded], is_shared=is_shared) if isinstance(encoded, list) else 1
            room = first.room_for(len(order), longest)
            for batch, states in zip(local, encoded, strict=True):
                room.put(torch.tensor(batch), states)
                advance(len(batch))
        # Rows of other processes are zeros here.
        return room.summed(distributed.all_sum) if is_shared else room

    of_images = encode("images", range(corpus.num_images), IMAGE_CHUNK)
    return EncodedCorpus(corpus, of_images, encode("captions", text_order, TEXT_CHUNK))


def _longest(encoded: Sequence[States], *, is_shared: bool) -> int:
    """The tokens of the longest item, of all processes if they share the work."""
    lengths = torch.zeros(distributed.world_size(), device=encoded[0].tokens.device)
    lengths[distributed.rank()] = max(states.tokens.shape[1] for states in encoded)
    return int((distributed.all_sum(lengths) if is_shared else lengths).max())
