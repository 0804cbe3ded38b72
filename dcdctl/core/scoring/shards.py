"""The pairs of one shard, apart from their corpus: what a worker on another machine has to score; and the worker that
scores them.

Shape letters: P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from dcdctl.core.data import Indices, Scores
from dcdctl.core.engines import Compute
from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.models import ImageBatch, Preprocessor, RefusedTextError, Scorer, States, TextBatch
from dcdctl.core.progress import Advance
from dcdctl.core.scoring.kept_scores import KeptScores
from dcdctl.core.scoring.pairs import score_pairs
from dcdctl.core.scoring.sources import PairSource, ShardImages, Source


@dataclass(frozen=True)
class ShardItems:
    """Images and captions of a shard by their position in it, in the order of the corpus, to travel."""

    of_images: ShardImages | States
    """Files, or what frozen encoders made of them."""
    captions: Sequence[str]
    caption_names: Sequence[str]
    """For messages."""
    of_texts: States | None = None
    """What frozen encoders made of the captions, if the model reads that."""

    @classmethod
    def packed(cls, source: Source, images: Indices, texts: Indices) -> ShardItems:
        """Some items of a source, as it packs them."""
        corpus = source.corpus
        captions = [corpus.captions[text] for text in texts.tolist()]
        names_of_captions = [f"caption {corpus.caption_ids[text]}" for text in texts.tolist()]
        return cls(source.packed_images(images), captions, names_of_captions, source.packed_texts(texts))


@dataclass(frozen=True)
class ShardSource:
    """The items of a shard as a model reads them. `score_pairs` gives the pairs of a shard the scores that they have in
    the corpus, to the bit: chunks and batches are those of the shard in both."""

    items: ShardItems
    preprocess: Preprocessor

    @property
    def captions(self) -> Sequence[str]:
        """The text of each caption."""
        return self.items.captions

    def images(self, image_ix: Sequence[int] | Indices) -> ImageBatch | States:
        """The preprocessed images or their states, in the order given."""
        of_images = self.items.of_images
        if isinstance(of_images, States):
            return of_images.take(torch.as_tensor(image_ix))
        return self.preprocess.images(of_images.images([int(image) for image in image_ix]))

    def texts(self, text_ix: Sequence[int] | Indices) -> TextBatch | States:
        """The tokenized captions or their states, in the order given."""
        if self.items.of_texts is not None:
            return self.items.of_texts.take(torch.as_tensor(text_ix))
        try:
            return self.preprocess.texts([self.captions[int(text)] for text in text_ix])
        except RefusedTextError as error:
            text = int(text_ix[error.position])
            raise InputError(
                f"{self.items.caption_names[text]} {error.reason}: {self.captions[text][:80]!r}",
                hint="remove it from the caption, and prepare the corpus again",
            ) from error


def reader_of(items: PairSource | ShardItems, preprocess: Preprocessor) -> PairSource:
    """What a model reads of items: in a worker of a cluster they have travelled there."""
    return ShardSource(items, preprocess) if isinstance(items, ShardItems) else items


@dataclass(frozen=True)
class ShardPairs:
    """The pairs of a shard: what they are made of, and which image belongs to which caption."""

    items: PairSource | ShardItems
    image_P: Indices
    text_P: Indices
    keep_in: Path | None = None
    """The file that keeps the scores of batches until the shard is done. None where the worker is elsewhere."""

    @classmethod
    def packed(cls, source: Source, image_P: Indices, text_P: Indices) -> ShardPairs:
        """Pairs of a corpus, to travel with their items."""
        images, image_at_P = np.unique(image_P, return_inverse=True)
        texts, text_at_P = np.unique(text_P, return_inverse=True)
        return cls(ShardItems.packed(source, images, texts), image_at_P, text_at_P)


@dataclass(frozen=True)
class PairWorker:
    """Scores the pairs of shards."""

    scorer: Scorer
    compute: Compute

    @classmethod
    def make(cls, scorer: Scorer, compute: Compute) -> PairWorker:
        """A worker with the scorer on its device. In eval mode, since dropout would make its scores random."""
        compute = compute.in_worker()
        return cls(scorer.to(compute.device).eval(), compute)

    def start(self, pairs: ShardPairs) -> Callable[[Advance], Scores]:
        """The scoring of the pairs of a shard."""
        return partial(self._score, pairs)

    def _score(self, pairs: ShardPairs, advance: Advance) -> Scores:
        if not len(pairs.image_P):
            return np.empty(0, dtype=np.float32)
        source = reader_of(pairs.items, self.scorer.preprocess)
        kept = None if pairs.keep_in is None else KeptScores.open(pairs.keep_in)
        scores_P = score_pairs(
            self.scorer, source, pairs.image_P, pairs.text_P, compute=self.compute, advance=advance, kept=kept
        )
        if not np.isfinite(scores_P).all():
            raise StaleError(
                f"the teacher gave {int((~np.isfinite(scores_P)).sum())} scores that are not finite",
                hint="try --precision fp32",
            )
        return scores_P
