"""Which pairs of images and captions the teacher scores.

A query's candidates are the things it is compared with: captions for an image, images for a caption. Its positives (the captions
of an image, the image of a caption) always belong to them and are not drawn. Everything is a function of the corpus and the seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dcdctl.core.corpus import Corpus
from dcdctl.core.errors import ConfigError

Index = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class CandidateConfig:
    """The `[candidates]` table of a recipe."""

    kind: Literal["random", "blocks"] = "random"
    """random: negatives drawn for each query alone, as in the paper. blocks: images are gathered in blocks and every caption of a
    block is scored against every image of it, so that a batch made of one block has a teacher score for every pair."""
    per_query: int = 15
    """random: negatives drawn for each query, in each direction. (The paper: 63 on Flickr30K, 15 on COCO.)"""
    block_size: int = 32
    """blocks: images in a block."""
    rounds: int = 1
    """blocks: how often the images are gathered anew."""
    group_size: int = 4
    """blocks: images whose captions use the same words are put into a block together, this many at a time; 1 for none."""
    captions_per_image: int = 5
    """blocks: captions of each image that take part, in each round."""
    seed: int = 0
    """At least 0."""

    def __post_init__(self) -> None:
        for name in ("per_query", "block_size", "rounds", "group_size", "captions_per_image"):
            if getattr(self, name) < 1:
                raise ConfigError(f"candidates.{name} must be at least 1, got {getattr(self, name)}")
        if self.block_size < 2:
            raise ConfigError("candidates.block_size must be at least 2, got 1")
        if self.seed < 0:
            raise ConfigError(f"candidates.seed must be at least 0, got {self.seed}")


@dataclass(frozen=True)
class Lists:
    """Lists of different lengths in one array: list i is `values[offsets[i] : offsets[i + 1]]`."""

    offsets: Index
    values: Index

    def __getitem__(self, i: int) -> Index:
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @staticmethod
    def from_pairs(owner: Index, value: Index, count: int) -> Lists:
        """One list for each of `count` owners, its values in ascending order, each once."""
        pairs = np.unique(np.stack([owner, value], axis=1), axis=0)
        return Lists(np.searchsorted(pairs[:, 0], np.arange(count + 1)).astype(np.int64), pairs[:, 1].copy())


@dataclass(frozen=True)
class Candidates:
    """The negatives of every query: captions of each image, images of each caption."""

    texts_of_image: Lists
    images_of_text: Lists

    def pairs(self, caption_image: Index) -> tuple[Index, Index]:
        """All pairs to score, positives included, each once, ordered by image and then caption."""
        num_texts = len(caption_image)
        image = np.concatenate([caption_image, _owners(self.texts_of_image), self.images_of_text.values])
        text = np.concatenate([np.arange(num_texts), self.texts_of_image.values, _owners(self.images_of_text)])
        keys = np.unique(image * num_texts + text)
        return keys // num_texts, keys % num_texts


def draw(corpus: Corpus, config: CandidateConfig) -> Candidates:
    """The negatives of every query of a corpus; never a caption of the query's own image nor one with the same text."""
    text_class = text_classes(corpus.captions)
    if config.kind == "random":
        return _draw_random(corpus, text_class, config)
    return _draw_blocks(corpus, text_class, config)


def text_classes(captions: list[str]) -> Index:
    """A number for each caption, the same for captions that differ in case and spacing only."""
    seen: dict[str, int] = {}
    return np.array([seen.setdefault(" ".join(text.lower().split()), len(seen)) for text in captions], dtype=np.int64)


def _draw_random(corpus: Corpus, text_class: Index, config: CandidateConfig) -> Candidates:
    rng = np.random.default_rng([config.seed, 1])
    owner = corpus.caption_image
    own_classes = [set(text_class[list(corpus.captions_of(i))].tolist()) for i in range(corpus.num_images)]
    classes_of = _images_of_classes(text_class, owner)

    def texts_for(image: int) -> Index:
        return _draw_without(rng, corpus.num_captions, config.per_query, lambda text: int(text_class[text]) in own_classes[image])

    def images_for(text: int) -> Index:
        return _draw_without(rng, corpus.num_images, config.per_query, lambda image: image in classes_of[int(text_class[text])])

    texts = [texts_for(image) for image in range(corpus.num_images)]
    return Candidates(_to_lists(texts), _to_lists([images_for(text) for text in range(corpus.num_captions)]))


def _draw_without(rng: np.random.Generator, population: int, count: int, is_excluded: Callable[[int], bool]) -> Index:
    """`count` different members that are not excluded, in ascending order; all of them where there are fewer."""
    tries: list[int] = []
    if 8 * count <= population:
        tries = rng.integers(0, population, 4 * count).tolist()
    chosen = _first_allowed(tries, count, is_excluded)
    # Few to draw from, or most of them excluded: only a look at each finds all that there are.
    if len(chosen) < count:
        chosen = _first_allowed(rng.permutation(population).tolist(), count, is_excluded)
    return np.array(sorted(chosen), dtype=np.int64)


def _first_allowed(members: list[int], count: int, is_excluded: Callable[[int], bool]) -> set[int]:
    chosen: set[int] = set()
    for member in members:
        if len(chosen) == count:
            break
        if not is_excluded(member):
            chosen.add(member)
    return chosen


def _draw_blocks(corpus: Corpus, text_class: Index, config: CandidateConfig) -> Candidates:
    rng = np.random.default_rng([config.seed, 2])
    groups = near_groups(corpus, config.group_size)
    image_parts, text_parts = [], []
    for _ in range(config.rounds):
        order = np.concatenate([groups[i] for i in rng.permutation(len(groups))])
        for images in _blocks(order, config.block_size):
            texts = np.concatenate([_some_captions(rng, corpus, int(i), config.captions_per_image) for i in images])
            image_parts.append(np.repeat(images, len(texts)))
            text_parts.append(np.tile(texts, len(images)))
    image, text = np.concatenate(image_parts), np.concatenate(text_parts)
    keep = ~_is_positive(image, text, text_class, corpus.caption_image)
    image, text = image[keep], text[keep]
    return Candidates(Lists.from_pairs(image, text, corpus.num_images), Lists.from_pairs(text, image, corpus.num_captions))


def _blocks(order: Index, size: int) -> list[Index]:
    """The images cut into blocks of one size; the last is filled up from the first images, so that no query is left with few others."""
    size = min(size, len(order))
    num_blocks = -(-len(order) // size)
    return np.split(np.resize(order, num_blocks * size), num_blocks)


def _some_captions(rng: np.random.Generator, corpus: Corpus, image: int, count: int) -> Index:
    own = np.array(corpus.captions_of(image), dtype=np.int64)
    return own if len(own) <= count else np.sort(rng.choice(own, count, replace=False))


def near_groups(corpus: Corpus, group_size: int) -> list[Index]:
    """The images in groups whose captions share the most words, weighted by how rare each is; every image in one group.

    Greedy, from the first image on: the nearest images not yet in a group join it.
    """
    if group_size == 1:
        return [np.array([i], dtype=np.int64) for i in range(corpus.num_images)]
    vectors = _word_vectors(corpus)
    is_free = np.ones(corpus.num_images, dtype=bool)
    groups = []
    while len(free := np.flatnonzero(is_free)):
        seeds = free[:_SEEDS]
        for seed, near in zip(seeds.tolist(), vectors[seeds] @ vectors[free].T, strict=True):
            if not is_free[seed]:
                continue
            near[~is_free[free]] = -np.inf
            near[np.searchsorted(free, seed)] = np.inf
            best = np.argsort(-near, kind="stable")[:group_size]
            group = np.sort(free[best[is_free[free[best]]]])
            is_free[group] = False
            groups.append(group)
    return groups


def _word_vectors(corpus: Corpus) -> NDArray[np.float32]:
    """A unit vector an image: which words its captions use, weighted by inverse document frequency."""
    words: dict[str, int] = {}
    rows, columns = [], []
    for text, image in zip(corpus.captions, corpus.caption_image.tolist(), strict=True):
        for word in text.lower().split():
            rows.append(image)
            columns.append(words.setdefault(word, len(words)))
    used = np.unique(np.array([rows, columns]), axis=1)
    frequency = np.bincount(used[1], minlength=len(words))
    common = np.argsort(-frequency, kind="stable")[:_MAX_WORDS]
    place = np.full(len(words), -1)
    place[common] = np.arange(len(common))
    vectors = np.zeros((corpus.num_images, len(common)), dtype=np.float32)
    kept = place[used[1]] >= 0
    vectors[used[0][kept], place[used[1][kept]]] = np.log(1 + corpus.num_images / frequency[used[1][kept]])
    norms = np.linalg.norm(vectors, axis=1, keepdims=True).astype(np.float32)
    return vectors / np.maximum(norms, np.float32(1e-12))


_SEEDS = 256
"""Images that are compared with all free ones at a time."""
_MAX_WORDS = 2048
"""Words that take part in the grouping, the commonest first: bounds its memory, and rarer ones join few images."""


def _is_positive(image: Index, text: Index, text_class: Index, owner: Index) -> NDArray[np.bool_]:
    """Whether the text of each pair is a caption of its image, or equal to one."""
    num_classes = int(text_class.max()) + 1
    true_keys = np.unique(owner * num_classes + text_class)
    return np.isin(image * num_classes + text_class[text], true_keys)


def _images_of_classes(text_class: Index, owner: Index) -> list[set[int]]:
    images: list[set[int]] = [set() for _ in range(int(text_class.max()) + 1)]
    for kind, image in zip(text_class.tolist(), owner.tolist(), strict=True):
        images[kind].add(image)
    return images


def _to_lists(parts: list[Index]) -> Lists:
    lengths = np.array([0, *map(len, parts)], dtype=np.int64)
    return Lists(np.cumsum(lengths), np.concatenate(parts).astype(np.int64))


def _owners(lists: Lists) -> Index:
    return np.repeat(np.arange(len(lists)), np.diff(lists.offsets))
