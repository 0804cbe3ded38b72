"""Corpus, cache and recipe to the tensors of one optimisation step.

A batch is a function of the seed and the step alone, so that a run that goes on needs nothing but its step. Shape letters: B lists,
N candidates of a list with the positive in column 0, Q x G all pairs of a batch's images and captions with the positives on the
diagonal; R rows and C columns stand for either.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from numpy.typing import NDArray
from torch import Tensor

from dcdctl.core import losses
from dcdctl.core.candidates import Index, text_classes
from dcdctl.core.corpus import Corpus
from dcdctl.core.errors import ConfigError, MissingError
from dcdctl.core.models.protocols import ImageBatch, Preprocessor, TextBatch
from dcdctl.core.recipe import BatchConfig
from dcdctl.core.teacher_cache import TeacherCache

PICTURE_MEMORY = 512 * 2**20
"""Bytes of decoded pictures that a data set keeps: a small corpus is decoded once."""


@dataclass(frozen=True)
class Batch:
    """What one step sees; each image and caption is in it once, however many pairs it is part of."""

    images: ImageBatch
    texts: TextBatch
    image_ix_RC: Tensor
    """Which of `images` each pair has."""
    text_ix_RC: Tensor
    teacher_RC: Tensor
    """The teacher's logits, in the columns of the pairs; NaN where it has not scored a pair."""
    released_teacher_RC: Tensor
    """Lists: the teacher's logits in the order the released code hands them to its loss; elsewhere the same as `teacher_RC`."""
    same_RC: Tensor
    """All pairs: True off the diagonal where the caption belongs to the image all the same."""

    def to(self, device: torch.device) -> Batch:
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in self.__dataclass_fields__}
        return replace(self, **moved)


class _Steps(torch.utils.data.Dataset[Batch]):
    """A data set whose item number s is the batch of step s."""

    def __init__(self, corpus: Corpus, preprocess: Preprocessor, config: BatchConfig, seed: int) -> None:
        self.corpus, self.preprocess, self.config, self.seed = corpus, preprocess, config, seed
        self._pictures: dict[int, Image.Image] = {}
        self._bytes_left = PICTURE_MEMORY

    def _assemble(self, image_RC: Index, text_RC: Index, teacher_RC: NDArray[np.float32], released_RC: NDArray[np.float32]) -> Batch:
        images, image_at = np.unique(image_RC, return_inverse=True)
        texts, text_at = np.unique(text_RC, return_inverse=True)
        owner, classes = self.corpus.caption_image, self._text_class
        num_classes = int(classes.max()) + 1
        same = np.isin(image_RC * num_classes + classes[text_RC], owner * num_classes + classes) if self._marks_same else np.zeros(image_RC.shape, bool)
        return Batch(
            self.preprocess.images(self._read(images)),
            self.preprocess.texts([self.corpus.captions[i] for i in texts]),
            torch.from_numpy(image_at.reshape(image_RC.shape)),
            torch.from_numpy(text_at.reshape(image_RC.shape)),
            torch.from_numpy(teacher_RC.astype(np.float32)),
            torch.from_numpy(released_RC.astype(np.float32)),
            torch.from_numpy(same),
        )

    def _read(self, images: Index) -> list[Image.Image]:
        """The pictures, decoded once while there is room for them."""
        new = [int(image) for image in images if int(image) not in self._pictures]
        read = dict(zip(new, self.corpus.images(new), strict=True))
        for image, picture in read.items():
            size = 3 * picture.width * picture.height
            if size <= self._bytes_left:
                self._bytes_left -= size
                self._pictures[image] = picture
        return [self._pictures[int(image)] if int(image) in self._pictures else read[int(image)] for image in images]

    _marks_same = False

    @cached_property
    def _text_class(self) -> Index:
        return text_classes(self.corpus.captions)

    def _rng(self, *what: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *what])


class ListSteps(_Steps):
    """Batches of candidate lists: a query, its positive and its hardest negatives.

    With a cache the negatives are drawn from the query's cached candidates and the hardest by the teacher's score are kept; without
    one they are drawn from the whole corpus and all are kept.
    """

    def __init__(self, corpus: Corpus, preprocess: Preprocessor, config: BatchConfig, seed: int, cache: TeacherCache | None) -> None:
        super().__init__(corpus, preprocess, config, seed)
        self.cache = cache
        self.samples_per_epoch = corpus.num_captions
        if cache is not None:
            self._check_lengths(cache)

    def _check_lengths(self, cache: TeacherCache) -> None:
        for lists, what in ((cache.candidates.texts_of_image, "image"), (cache.candidates.images_of_text, "caption")):
            shortest = int(np.diff(lists.offsets).min())
            if shortest < self.config.hard_negatives:
                raise ConfigError(
                    f"batch.hard_negatives is {self.config.hard_negatives}, the cache has only {shortest} candidates for some {what}",
                    hint="set it lower, or cache more with --set candidates.per_query=N",
                )

    def __getitem__(self, step: int) -> Batch:
        rows = [self._row(sample) for sample in range(step * self.config.size, (step + 1) * self.config.size)]
        image_BN, text_BN = np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows])
        if self.cache is None:
            missing = np.full(image_BN.shape, np.nan, dtype=np.float32)
            return self._assemble(image_BN, text_BN, missing, missing)
        teacher_BK = torch.from_numpy(self.cache.lookup(image_BN, text_BN))
        chosen_BN = losses.select_hardest(teacher_BK, self.config.hard_negatives)
        _, released_BN = losses.select_as_released(teacher_BK, self.config.hard_negatives)
        chosen = chosen_BN.numpy()
        return self._assemble(
            np.take_along_axis(image_BN, chosen, axis=1),
            np.take_along_axis(text_BN, chosen, axis=1),
            teacher_BK.gather(1, chosen_BN).numpy(),
            released_BN.numpy(),
        )

    def _row(self, sample: int) -> tuple[Index, Index]:
        """Images and captions of one list: the positive, then drawn negatives."""
        epoch, place = divmod(sample, self.corpus.num_captions)
        text = int(self._order(epoch)[place])
        image = int(self.corpus.caption_image[text])
        rng = self._rng(1, sample)
        direction = self.config.directions[sample % len(self.config.directions)]
        if direction == "text":
            texts = np.concatenate([[text], self._negative_texts(rng, image)])
            return np.full(len(texts), image), texts
        images = np.concatenate([[image], self._negative_images(rng, text)])
        return images, np.full(len(images), text)

    def _order(self, epoch: int) -> Index:
        if getattr(self, "_epoch", None) != epoch:
            self._epoch, self._epoch_order = epoch, self._rng(0, epoch).permutation(self.corpus.num_captions)
        return self._epoch_order

    def _negative_texts(self, rng: np.random.Generator, image: int) -> Index:
        if self.cache is not None:
            return self._some(rng, self.cache.candidates.texts_of_image[image])
        own = set(self._text_class[list(self.corpus.captions_of(image))].tolist())
        return self._draw(rng, self.corpus.num_captions, lambda text: int(self._text_class[text]) in own)

    def _negative_images(self, rng: np.random.Generator, text: int) -> Index:
        if self.cache is not None:
            return self._some(rng, self.cache.candidates.images_of_text[text])
        own = set(self.corpus.caption_image[self._text_class == self._text_class[text]].tolist())
        return self._draw(rng, self.corpus.num_images, lambda image: image in own)

    def _some(self, rng: np.random.Generator, candidates: Index) -> Index:
        count = self._num_drawn
        return candidates if len(candidates) == count else rng.choice(candidates, count, replace=False)

    @cached_property
    def _num_drawn(self) -> int:
        """Negatives of every list: as many as wanted, or as the shortest list of the cache has."""
        assert self.cache is not None
        lists = (self.cache.candidates.texts_of_image, self.cache.candidates.images_of_text)
        return min(self.config.drawn_negatives, *(int(np.diff(them.offsets).min()) for them in lists))

    def _draw(self, rng: np.random.Generator, population: int, is_own: object) -> Index:
        assert callable(is_own)
        chosen: list[int] = []
        for _ in range(50):
            chosen += [int(i) for i in rng.integers(0, population, self.config.drawn_negatives) if not is_own(int(i))]
            if len(chosen) >= self.config.drawn_negatives:
                return np.array(chosen[: self.config.drawn_negatives], dtype=np.int64)
        raise MissingError(f"no negatives to draw among {population} images or captions", hint="the corpus needs more than one picture")


class MatrixSteps(_Steps):
    """Batches of images with one caption each, all pairs of which are candidates.

    With a cache, a batch is a neighbourhood of it: images whose pairs the teacher has scored come together, so that the hard
    candidates of one query are the positives of others.
    """

    _marks_same = True

    def __init__(self, corpus: Corpus, preprocess: Preprocessor, config: BatchConfig, seed: int, cache: TeacherCache | None) -> None:
        super().__init__(corpus, preprocess, config, seed)
        if corpus.num_images < config.size:
            raise ConfigError(f"batch.size is {config.size}, the split has only {corpus.num_images} images")
        self.cache = cache
        self.samples_per_epoch = corpus.num_images
        self._near = _neighbours(cache, corpus) if cache is not None else None

    def __getitem__(self, step: int) -> Batch:
        per_epoch = self.corpus.num_images // self.config.size
        epoch, place = divmod(step, per_epoch)
        image_Q = np.sort(self._epoch_batches(epoch)[place])
        rng = self._rng(1, step)
        text_G = np.array([rng.choice(self.corpus.captions_of(int(image))) for image in image_Q])
        image_QG, text_QG = np.broadcast_arrays(image_Q[:, None], text_G[None, :])
        teacher_QG = (
            np.full(image_QG.shape, np.nan, dtype=np.float32) if self.cache is None else self.cache.lookup(image_QG, text_QG)
        )
        batch = self._assemble(image_QG, text_QG, teacher_QG, teacher_QG)
        return replace(batch, same_RC=batch.same_RC & ~torch.eye(len(image_Q), dtype=torch.bool))

    def _epoch_batches(self, epoch: int) -> list[Index]:
        if getattr(self, "_epoch", None) != epoch:
            rng = self._rng(0, epoch)
            order = rng.permutation(self.corpus.num_images) if self._near is None else _walk(self._near, rng)
            size = self.config.size
            starts = rng.permutation(len(order) // size) * size
            self._epoch, self._epoch_parts = epoch, [order[start : start + size] for start in starts]
        return self._epoch_parts


def _neighbours(cache: TeacherCache, corpus: Corpus) -> list[Index]:
    """For each image, the images it shares scored pairs with, those with the most pairs first."""
    owner = corpus.caption_image[cache.text_P]
    between = cache.image_P != owner
    one, other = cache.image_P[between], owner[between]
    keys, counts = np.unique(np.concatenate([one * corpus.num_images + other, other * corpus.num_images + one]), return_counts=True)
    image, near = keys // corpus.num_images, keys % corpus.num_images
    order = np.lexsort((near, -counts, image))
    bounds = np.searchsorted(image[order], np.arange(corpus.num_images + 1))
    return [near[order][bounds[i] : bounds[i + 1]] for i in range(corpus.num_images)]


def _walk(near: list[Index], rng: np.random.Generator) -> Index:
    """All images in an order that keeps neighbours together: breadth first from images taken at random."""
    is_free = np.ones(len(near), dtype=bool)
    order: list[int] = []
    for seed in rng.permutation(len(near)).tolist():
        if not is_free[seed]:
            continue
        is_free[seed] = False
        start = len(order)
        order.append(seed)
        while start < len(order):
            fresh = near[order[start]][is_free[near[order[start]]]]
            is_free[fresh] = False
            order.extend(fresh.tolist())
            start += 1
    return np.array(order, dtype=np.int64)
