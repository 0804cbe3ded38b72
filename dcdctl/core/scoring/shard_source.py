"""The images and captions of one shard, apart from their corpus: what a worker on another machine, or a file of the
work list, has to score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from dcdctl.core import data
from dcdctl.core.data import Corpus, ImageError, Indices
from dcdctl.core.errors import CorpusError, InputError
from dcdctl.core.models import ImageBatch, Preprocessor, RefusedTextError, States, TextBatch


class ShardImages(Protocol):
    """The images of a shard, by their position in it."""

    def images(self, image_ix: Sequence[int]) -> list[Image.Image]:
        """Upright RGB images, in the order given; CorpusError that names one whose bytes are no image."""
        ...


@dataclass(frozen=True)
class ImageFiles:
    """Images as files in memory, which travel with a task."""

    names: Sequence[str]
    """For messages."""
    files: Sequence[bytes]

    def images(self, image_ix: Sequence[int]) -> list[Image.Image]:
        """Upright RGB images, in the order given; CorpusError that names one whose bytes are no image."""
        return [self._decoded(ix) for ix in image_ix]

    def _decoded(self, ix: int) -> Image.Image:
        try:
            return data.decode_image(self.files[ix])
        except ImageError as error:
            raise CorpusError(f"{self.names[ix]} cannot be decoded: {error}") from error


@dataclass(frozen=True)
class CorpusRows:
    """Images that a worker reads itself, from a corpus at a URL."""

    corpus: Corpus
    rows: Indices

    def images(self, image_ix: Sequence[int]) -> list[Image.Image]:
        """Upright RGB images, in the order given; CorpusError that names one whose bytes are no image."""
        return self.corpus.images(self.rows[np.asarray(image_ix, dtype=np.int64)].tolist())


@dataclass(frozen=True)
class ShardItems:
    """What the pairs of a shard need: images and captions by their position, in the order of the corpus."""

    of_images: ShardImages
    captions: Sequence[str]
    caption_names: Sequence[str]
    """For messages."""


@dataclass(frozen=True)
class ShardSource:
    """The items of a shard, preprocessed each time they are read. `score_pairs` gives the pairs of a shard the scores
    that they have in the corpus, to the bit: chunks and batches are those of the shard in both."""

    items: ShardItems
    preprocess: Preprocessor

    @property
    def captions(self) -> Sequence[str]:
        """The text of each caption."""
        return self.items.captions

    def images(self, image_ix: Sequence[int] | Indices) -> ImageBatch:
        """The preprocessed images, in the order given."""
        return self.preprocess.images(self.items.of_images.images([int(image) for image in image_ix]))

    def texts(self, text_ix: Sequence[int] | Indices) -> TextBatch:
        """The tokenized captions, in the order given."""
        try:
            return self.preprocess.texts([self.captions[int(text)] for text in text_ix])
        except RefusedTextError as error:
            text = int(text_ix[error.position])
            raise InputError(
                f"{self.items.caption_names[text]} {error.reason}: {self.captions[text][:80]!r}",
                hint="remove it from the caption, and prepare the corpus again",
            ) from error


@dataclass(frozen=True)
class EncodedShard:
    """The items of a shard as frozen encoders gave them."""

    of_images: States
    of_texts: States
    captions: Sequence[str]

    def images(self, image_ix: Sequence[int] | Indices) -> States:
        """The states of these images, in the order given."""
        return self.of_images.take(torch.as_tensor(image_ix))

    def texts(self, text_ix: Sequence[int] | Indices) -> States:
        """The states of these captions, in the order given."""
        return self.of_texts.take(torch.as_tensor(text_ix))
