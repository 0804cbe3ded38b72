"""What a model reads of a corpus, by index: images and captions that are preprocessed, or states of frozen encoders;
and what of it travels to a worker on another machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from dcdctl.core import data
from dcdctl.core.data import Corpus, ImageError, Indices
from dcdctl.core.engines import Compute
from dcdctl.core.errors import CorpusError, InputError
from dcdctl.core.memory import Fitting, in_fitting_parts
from dcdctl.core.models import ImageBatch, Preprocessor, RefusedTextError, States, TextBatch
from dcdctl.core.places import shown


class Reader(Protocol):
    """Images and captions by index, as a model reads them: preprocessed, or encoded by its frozen encoders."""

    def images(self, image_ix: Sequence[int] | Indices) -> ImageBatch | States: ...

    def texts(self, text_ix: Sequence[int] | Indices) -> TextBatch | States: ...


class PairSource(Reader, Protocol):
    """Images and captions whose pairs are scored: those of a corpus, or of one shard."""

    @property
    def captions(self) -> Sequence[str]: ...


class Source(PairSource, Protocol):
    """Images and captions of a corpus."""

    @property
    def corpus(self) -> Corpus: ...

    def packed_images(self, image_ix: Indices) -> ShardImages | States:
        """Some images to travel to a worker: files, or what frozen encoders made of them."""
        ...

    def packed_texts(self, text_ix: Indices) -> States | None:
        """What frozen encoders made of some captions, to travel; None if the model reads their texts."""
        ...


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


class CorpusSource:
    """Images and captions, preprocessed each time they are read; decoded images are kept in memory up to
    `memory_bytes`."""

    def __init__(self, corpus: Corpus, preprocess: Preprocessor, memory_bytes: int = 0) -> None:
        self.corpus, self.preprocess = corpus, preprocess
        self._bytes_left = memory_bytes
        self._decoded: dict[int, Image.Image] = {}

    @property
    def captions(self) -> Sequence[str]:
        """The text of each caption."""
        return self.corpus.captions

    def images(self, image_ix: Sequence[int] | Indices) -> ImageBatch:
        """The preprocessed images, in the order given."""
        return self.preprocess.images(self._read([int(image) for image in image_ix]))

    def texts(self, text_ix: Sequence[int] | Indices) -> TextBatch:
        """The tokenized captions, in the order given."""
        try:
            return self.preprocess.texts([self.corpus.captions[int(text)] for text in text_ix])
        except RefusedTextError as error:
            text = int(text_ix[error.position])
            raise InputError(
                f"caption {self.corpus.caption_ids[text]} of {shown(self.corpus.folder)} {error.reason}: "
                f"{self.corpus.captions[text][:80]!r}",
                hint="remove it from the caption, and prepare the corpus again",
            ) from error

    def packed_images(self, image_ix: Indices) -> ShardImages:
        """Some images as files to travel; those of a corpus at a URL are read by the worker."""
        if self.corpus.is_remote:
            return CorpusRows(self.corpus, image_ix)
        images, split = image_ix.tolist(), self.corpus.split
        names = [f"image {self.corpus.image_ids[image]!r} of split {split}" for image in images]
        return ImageFiles(names, [self.corpus.image_bytes(image) for image in images])

    def packed_texts(self, text_ix: Indices) -> None:
        """Nothing: a worker makes inputs of the texts of captions itself."""

    def _read(self, image_ix: list[int]) -> list[Image.Image]:
        if not self._bytes_left and not self._decoded:
            return list(self.corpus.images(image_ix))
        missing = [index for index in image_ix if index not in self._decoded]
        read = dict(zip(missing, self.corpus.images(missing), strict=True))
        for index, image in read.items():
            size = 3 * image.width * image.height
            if size <= self._bytes_left:
                self._bytes_left -= size
                self._decoded[index] = image
        return [read[index] if index in read else self._decoded[index] for index in image_ix]


class EmbeddedImages(CorpusSource):
    """Images that a query encoder's teacher has embedded, and captions."""

    def __init__(self, corpus: Corpus, preprocess: Preprocessor, states: States) -> None:
        super().__init__(corpus, preprocess)
        self._states = states

    def images(self, image_ix: Sequence[int] | Indices) -> Any:
        """The states of these images, in the order given."""
        # Not `take`, which cuts off padding: micro-batches have equally many tokens.
        return self._states[torch.as_tensor(image_ix)]

    def packed_images(self, image_ix: Indices) -> Any:
        """The states of these images: a query encoder has no images to read."""
        return self.images(image_ix)


def read_images(source: PairSource, image_ix: Sequence[int] | Indices, compute: Compute) -> ImageBatch | States:
    """Images of a source as a reader leaves them: not on the device yet, but for CUDA in memory that it copies from by
    itself."""
    images = source.images(image_ix)
    is_copied = compute.device.type == "cuda" and isinstance(images, ImageBatch)
    return images.pin_memory() if is_copied else images


def in_memory(items: Any, size: int, encode: Callable[[Any], States], fitting: Fitting | None = None) -> States:
    """The states of items, encoded `size` at a time; a batch that does not fit into memory is halved."""
    return States.cat([states for _, states in in_fitting_parts(items, size, encode, fitting)])
