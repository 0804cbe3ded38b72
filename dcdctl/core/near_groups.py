"""Images in small groups of near ones, for blocks whose pairs are hard to tell apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dcdctl.core.corpus import Corpus

Index = NDArray[np.int64]


def near_groups(corpus: Corpus, group_size: int, vectors_ID: NDArray[np.float32] | None = None) -> list[Index]:
    """The images in groups of near ones by their vectors, or whose captions share the most words, weighted by how rare each is; every
    image in one group.

    Greedy, from the first image on: the nearest images not yet in a group join it.
    """
    if group_size == 1:
        return [np.array([i], dtype=np.int64) for i in range(corpus.num_images)]
    near_by = _word_vectors(corpus) if vectors_ID is None else vectors_ID
    is_free = np.ones(corpus.num_images, dtype=bool)
    groups = []
    while len(free := np.flatnonzero(is_free)):
        seeds = free[:_SEEDS]
        for seed, near in zip(seeds.tolist(), near_by[seeds] @ near_by[free].T, strict=True):
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
