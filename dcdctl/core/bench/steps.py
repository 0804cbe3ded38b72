"""What is timed: the steps of both kinds of model, on the same images and captions."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from dcdctl.core.data import Corpus
from dcdctl.core.models import DualEncoder, FusionScorer, Preprocessor, States

FIRST = 10
"""A query is answered when its first ten images are known."""
FLOAT32_BYTES = 4
MiB = 2**20


class Side(Protocol):
    """One of the two kinds of model, as far as it is timed; a gallery is what it keeps of many encoded images."""

    kind: str

    def encode_images(self, batch: Any) -> Any: ...

    def encode_texts(self, batch: Any) -> Any: ...

    def score_own(self, images: Any, texts: Any) -> Tensor:
        """Image k with caption k."""
        ...

    def gallery(self, images: Any, count: int) -> Any:
        """This many encoded images, made of the ones given, over and over."""
        ...

    def gallery_bytes(self, images: Any, count: int) -> int:
        """What such a gallery takes here."""
        ...

    def index_floats(self, images: Any) -> float:
        """Numbers that an index keeps of one image, in the mean."""
        ...

    def rank(self, gallery: Any, text: Any) -> Tensor:
        """Scores of one encoded caption with each image of a gallery."""
        ...

    def block(self, gallery: Any, texts: Any) -> Tensor:
        """Scores of some pairs as a whole test set is scored, grouped by image."""
        ...


class FusionSide:
    """A cross-encoder: every pair goes through the fusion layers, a batch at a time. Its gallery repeats positions, not states."""

    kind = "fusion"

    def __init__(self, model: FusionScorer, batch_size: int) -> None:
        self._model, self._size = model, batch_size
        self.encode_images, self.encode_texts = model.encode_images, model.encode_texts

    def score_own(self, images: States, texts: States) -> Tensor:
        each = torch.arange(len(texts), device=texts.mask.device)
        return self._model.score_pairs(images, texts, each, each)

    def gallery(self, images: States, count: int) -> tuple[States, Tensor]:
        return images, torch.arange(count, device=images.mask.device) % len(images)

    def gallery_bytes(self, images: States, count: int) -> int:
        return torch.int64.itemsize * count

    def index_floats(self, images: States) -> float:
        vectors = 0 if images.vectors is None else images.vectors.shape[1]
        return float(images.mask.sum()) / len(images) * images.tokens.shape[2] + vectors

    def rank(self, gallery: tuple[States, Tensor], text: States) -> Tensor:
        images, image_ix_N = gallery
        chunks = image_ix_N.split(self._size)
        return torch.cat([self._model.score_pairs(images, text, chunk, torch.zeros_like(chunk)) for chunk in chunks])

    def block(self, gallery: tuple[States, Tensor], texts: States) -> Tensor:
        each = torch.arange(len(texts), device=texts.mask.device)
        return self._model.score_pairs(gallery[0], texts, torch.zeros_like(each), each)


class DualSide:
    """A dual encoder: one vector an image, one a caption, and a matrix product."""

    kind = "dual"

    def __init__(self, model: DualEncoder) -> None:
        self.encode_images, self.encode_texts = model.embed_images, model.embed_texts

    def score_own(self, images: Tensor, texts: Tensor) -> Tensor:
        return (images * texts).sum(dim=-1)

    def gallery(self, images: Tensor, count: int) -> Tensor:
        return images[torch.arange(count, device=images.device) % len(images)]

    def gallery_bytes(self, images: Tensor, count: int) -> int:
        return images.itemsize * images.shape[1] * count

    def index_floats(self, images: Tensor) -> float:
        return float(images.shape[1])

    def rank(self, gallery: Tensor, text: Tensor) -> Tensor:
        return gallery @ text[0]

    def block(self, gallery: Tensor, texts: Tensor) -> Tensor:
        return gallery @ texts.T


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The same images and captions for every model, through its own preprocessing, on its device."""

    singles: list[tuple[Any, Any]]
    """One image and one caption each."""
    images: dict[int, Any]
    """Batches of images by size: those asked for, and what is left of a gallery."""
    texts: dict[int, Any]
    """Batches of captions by size; number k belongs to image k of the batch of this size."""
    batch_size: int
    """Of galleries."""

    def chunks(self, count: int) -> list[Any]:
        """The image batches that `count` images take."""
        full, rest = divmod(count, self.batch_size)
        return [self.images[self.batch_size]] * full + ([self.images[rest]] if rest else [])


@dataclass(frozen=True)
class Contestant:
    """Someone who takes turns at the clock."""

    side: Side
    inputs: Inputs

    @cached_property
    def images(self) -> Any:
        """A batch of images, encoded."""
        return self.side.encode_images(self.inputs.images[self.inputs.batch_size])

    @cached_property
    def texts(self) -> Any:
        """A batch of captions, encoded."""
        return self.side.encode_texts(self.inputs.texts[self.inputs.batch_size])

    def gallery(self, count: int) -> Any:
        """So many encoded images."""
        return self.side.gallery(self.images, count)


def side_of(model: FusionScorer | DualEncoder, batch_size: int) -> Side:
    """The steps of a model; a cross-encoder scores `batch_size` pairs at a time."""
    if model.kind == "dual":
        return DualSide(model)
    return FusionSide(model, batch_size)


def device_of(model: FusionScorer | DualEncoder) -> torch.device:
    """Where the first parameter is."""
    return next(iter(model.parameters())).device


def inputs_for(
    preprocess: Preprocessor,
    corpus: Corpus,
    device: torch.device,
    *,
    num_images: int,
    batch_size: int,
    batch_sizes: Collection[int] = (),
    counts: Collection[int] = (),
) -> Inputs:
    """The first images of a corpus with their captions, preprocessed: one by one, in batches, and what is left of `counts` images."""
    pictures = corpus.images(range(min(num_images, corpus.num_images)))

    def caption(k: int) -> str:
        turn, image = divmod(k, len(pictures))
        own = corpus.captions_of(image)
        return corpus.captions[own[turn % len(own)]]

    def image_batch(count: int) -> Any:
        return preprocess.images([pictures[k % len(pictures)] for k in range(count)]).to(device)

    sizes = {batch_size, *batch_sizes}
    remainders = {count % batch_size for count in counts} - {0}
    return Inputs(
        singles=[
            (preprocess.images([picture]).to(device), preprocess.texts([caption(k)]).to(device)) for k, picture in enumerate(pictures)
        ],
        images={count: image_batch(count) for count in sizes | remainders},
        texts={size: preprocess.texts([caption(k) for k in range(size)]).to(device) for size in sizes},
        batch_size=batch_size,
    )
