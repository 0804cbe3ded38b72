"""What is timed and how: a clock that waits for the device, and the steps of both kinds of model."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from dcdctl.core.corpus import Corpus
from dcdctl.core.models.protocols import DualEncoder, FusionScorer, States


@dataclass(frozen=True, kw_only=True)
class Timer:
    """Seconds that work takes, by a clock that waits for the device."""

    num_warmup: int
    num_repeats: int
    budget_s: float
    clock: Callable[[], float] = time.perf_counter
    synchronize: Callable[[], None] = lambda: None
    """Waits until the device has nothing left to do."""

    def once(self, work: Callable[[], object]) -> float:
        self.synchronize()
        started = self.clock()
        work()
        self.synchronize()
        return self.clock() - started

    def repeats(self, work: Callable[[], object]) -> list[float]:
        """The times after the warm-up: as many as the budget allows, at least one."""
        warm = self.once(work)
        if warm < self.budget_s / 10:  # slow work is warm after one run
            warm = min([warm, *(self.once(work) for _ in range(self.num_warmup - 1))])
        affordable = self.num_repeats if warm <= 0 else int(self.budget_s / warm)
        return [self.once(work) for _ in range(max(1, min(self.num_repeats, affordable)))]


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

    def rank(self, gallery: Any, text: Any) -> Tensor:
        """Scores of one encoded caption with each image of a gallery."""
        ...

    def block(self, gallery: Any, texts: Any) -> Tensor:
        """Scores of some pairs as a whole test set is scored, grouped by image."""
        ...


class FusionSide:
    """A cross-encoder: every pair goes through the fusion layers, a batch at a time."""

    kind = "fusion"

    def __init__(self, model: FusionScorer, batch_size: int) -> None:
        self._model, self._size = model, batch_size
        self.encode_images, self.encode_texts = model.encode_images, model.encode_texts

    def score_own(self, images: States, texts: States) -> Tensor:
        each = torch.arange(len(texts), device=texts.mask.device)
        return self._model.score_pairs(images, texts, each, each)

    def gallery(self, images: States, count: int) -> tuple[States, Tensor]:
        return images, torch.arange(count, device=images.mask.device) % len(images)

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
    """Batches of images by size: full ones, and what is left of a gallery."""
    texts: Any
    """A batch of captions; number k belongs to image k of the full batch."""

    def chunks(self, count: int) -> list[Any]:
        """The image batches that `count` images take."""
        full = max(self.images)
        return [self.images[full]] * (count // full) + ([self.images[count % full]] if count % full else [])


def side_of(model: FusionScorer | DualEncoder, batch_size: int) -> Side:
    """The steps of a model; a cross-encoder scores `batch_size` pairs at a time."""
    if hasattr(model, "embed_images"):
        return DualSide(cast(DualEncoder, model))
    return FusionSide(model, batch_size)


def device_of(model: FusionScorer | DualEncoder) -> torch.device:
    """Where the first parameter is."""
    return next(iter(model.parameters())).device


def inputs_for(model: FusionScorer | DualEncoder, corpus: Corpus, num_images: int, batch_size: int, counts: Collection[int]) -> Inputs:
    """The first images of a corpus with their captions, preprocessed: one by one, in batches, and what is left of `counts` images."""
    device, preprocess = device_of(model), model.preprocess
    pictures = corpus.images(range(min(num_images, corpus.num_images)))

    def caption(k: int) -> str:
        turn, image = divmod(k, len(pictures))
        own = corpus.captions_of(image)
        return corpus.captions[own[turn % len(own)]]

    def image_batch(count: int) -> Any:
        return preprocess.images([pictures[k % len(pictures)] for k in range(count)]).to(device)

    remainders = {count % batch_size for count in counts} - {0}
    return Inputs(
        singles=[
            (preprocess.images([picture]).to(device), preprocess.texts([caption(k)]).to(device)) for k, picture in enumerate(pictures)
        ],
        images={count: image_batch(count) for count in {batch_size, *remainders}},
        texts=preprocess.texts([caption(k) for k in range(batch_size)]).to(device),
    )
