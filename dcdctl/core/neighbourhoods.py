"""Batches of images that belong together: whose pairs the teacher has scored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dcdctl.core.candidates import Index, Lists
from dcdctl.core.corpus import Corpus
from dcdctl.core.teacher_cache import TeacherCache
from dcdctl.core.teacher_ensemble import TeacherEnsemble

Scores = TeacherCache | TeacherEnsemble


@dataclass(frozen=True)
class Neighbours:
    """For each image, the images it shares scored pairs with, and with how many pairs."""

    images: Lists
    num_pairs: Index


def neighbours(cache: Scores, corpus: Corpus) -> Neighbours:
    """Who shares scored pairs with whom."""
    num_images = corpus.num_images
    owner = corpus.caption_image[cache.text_P]
    between = cache.image_P != owner
    one, other = cache.image_P[between], owner[between]
    keys, counts = np.unique(np.concatenate([one * num_images + other, other * num_images + one]), return_counts=True)
    return Neighbours(Lists.from_pairs(keys // num_images, keys % num_images, num_images), counts)


def gather(near: Neighbours, size: int, rng: np.random.Generator) -> list[Index]:
    """Batches of one size, each image in at most one: from an image taken at random, always the one that shares most scored pairs
    with those already in the batch; of equal ones a random one. What is left at the end and fills no batch is left out."""
    num_images = len(near.images)
    is_free = np.ones(num_images, dtype=bool)
    parts = []
    for _ in range(num_images // size):
        luck = rng.random(num_images)
        claim = np.where(is_free, luck, -np.inf)
        part: list[int] = []
        while len(part) < size:
            image = int(claim.argmax())
            part.append(image)
            here = slice(near.images.offsets[image], near.images.offsets[image + 1])
            claim[near.images.values[here]] += near.num_pairs[here]
            claim[image] = -np.inf
        is_free[part] = False
        parts.append(np.array(part, dtype=np.int64))
    return [parts[i] for i in rng.permutation(len(parts))]


def scatter(num_images: int, size: int, rng: np.random.Generator) -> list[Index]:
    """Batches as `gather` makes them where no images share scored pairs, up to the order in a batch, without a search for each image."""
    is_free = np.ones(num_images, dtype=bool)
    parts = []
    for _ in range(num_images // size):
        claim = np.where(is_free, rng.random(num_images), -np.inf)
        part = np.argpartition(claim, -size)[-size:]
        is_free[part] = False
        parts.append(part)
    return [parts[i] for i in rng.permutation(len(parts))]
