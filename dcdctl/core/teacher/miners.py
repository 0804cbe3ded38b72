"""Hard-negative mining: for each query, candidates sorted by similarity.

A miner does not know which candidates are true. `mine` removes false negatives and repeats, and asks the miner for more
where too few remain. Every result is a function of the corpus and the seed.

Shape letters: Q queries, K candidates, I images, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcdctl.core import scoring
from dcdctl.core.data import Corpus, Flags, Indices, Scores, tokens_of
from dcdctl.core.errors import require_extra
from dcdctl.core.teacher.false_negatives import Reasons

Miner = Callable[[Indices, int], Indices]
"""Given queries and a number K, a Q x K matrix of the best K candidates per query, or all candidates if there are
fewer."""
PairFilter = Callable[[Indices, Indices], Reasons]
"""Given queries and candidates, arrays of one shape: 0 where the pair is allowed, else the reason against it."""
# Both numbers decide which queries `random_miner` draws for together, so another value gives other random candidates.
QUERIES_PER_CHUNK = 4096
MAX_MATRIX_ENTRIES = 1 << 22
"""Bounds the memory when queries need many candidates to find enough."""
_SEEDS_PER_CHUNK = 256
"""Images compared with all free images at once."""
_TEXTS_PER_CHUNK = 8192
"""Texts compared with all blocks at once."""
_MAX_WORDS = 2048
"""Words used for clustering, the most frequent first. The bound limits memory; rarer words connect few images."""


def random_miner(seed: Sequence[int], num_queries: int, population: int) -> Miner:
    """Random candidates, possibly with repeats; a permutation of all if K is at least the population."""

    def mine(queries: Indices, width: int) -> Indices:
        # The draws of a query depend on the other queries of its chunk. Chunks are always cut alike, so results are
        # reproducible.
        rng = np.random.default_rng([*seed, int(queries[0]), num_queries])
        if width >= population:
            return np.argsort(rng.random((len(queries), population)), axis=1)
        return rng.integers(0, population, (len(queries), width))

    return mine


def load_bm25s() -> Any:
    """The package of the extra `mine`, which lexical mining needs; MissingError if it is not installed."""
    require_extra("mine", "bm25s", needed_by="candidates.kind lexical")
    import bm25s

    return bm25s


def lexical_miner(queries: Sequence[str], documents: Sequence[str]) -> Miner:
    """Documents by BM25, best first, ties by position. MissingError if bm25s is not installed."""
    bm25s = load_bm25s()
    tokens = [tokens_of(document) for document in documents]
    index = bm25s.BM25(backend="numpy")
    if any(tokens):
        index.index(tokens, show_progress=False)
    vocabulary = set(index.vocab_dict) if any(tokens) else set()

    def best(query: str, width: int) -> Indices:
        words = [word for word in tokens_of(query) if word in vocabulary]
        return _first(index.get_scores(words) if words else np.zeros(len(documents), dtype=np.float32), width)

    return lambda chunk, width: np.stack([best(queries[query], width) for query in chunk])


def _first(scores: Scores, count: int) -> Indices:
    """Positions of the highest scores, best first, ties by position. A partition alone would leave ties to the
    processor."""
    if count >= len(scores):
        return np.argsort(-scores, kind="stable")
    least = np.partition(scores, -count)[-count]
    above = np.flatnonzero(scores > least)
    return np.concatenate(
        [above[np.argsort(-scores[above], kind="stable")], np.flatnonzero(scores == least)[: count - len(above)]]
    )


def embedding_miner(queries_QD: Tensor, gallery_GD: Tensor) -> Miner:
    """Gallery entries by inner product, best first."""

    def mine(queries: Indices, width: int) -> Indices:
        _, index_QK = scoring.top_k(queries_QD[queries], gallery_GD, width)
        return index_QK.cpu().numpy()

    return mine


def score_miner(score: Callable[[Indices, Indices], Scores], population: int) -> Miner:
    """Candidates by a function that scores pairs of queries and candidates, in their common shape; best first, ties by
    position."""

    def mine(queries: Indices, width: int) -> Indices:
        step, everything = max(1, MAX_MATRIX_ENTRIES // population), np.arange(population)[None]
        best: list[Indices] = []
        for start in range(0, len(queries), step):
            scores_QG = score(queries[start : start + step, None], everything)
            best += [_first(scores_G, width) for scores_G in scores_QG]
        return np.stack(best)

    return mine


def share_out(centroids_BD: Tensor, texts_TD: Tensor, size: int) -> list[Indices]:
    """`size` different texts for each of B blocks, the nearest by inner product with its centroid, balanced greedily.

    Each text goes to the nearest block that has room; a block that is chosen by too many takes the nearest, and the
    others go to their next block. A text is in one block until all texts are; then all are shared out again. O(B T D)
    per pass over the free texts.
    """
    chosen = [np.empty(0, dtype=np.int64) for _ in centroids_BD]
    free = np.arange(len(texts_TD))
    while (room_B := size - np.array([len(texts) for texts in chosen])).any():
        near, best = [], []
        held_H, block_H = np.concatenate(chosen), np.repeat(np.arange(len(chosen)), size - room_B)
        for part in np.split(free, range(_TEXTS_PER_CHUNK, len(free), _TEXTS_PER_CHUNK)):
            similarity_BF = (centroids_BD @ texts_TD[torch.from_numpy(part)].T).cpu().numpy()
            similarity_BF[room_B == 0] = -np.inf
            # No block takes a text twice; those of `part` ascend.
            place_H = np.minimum(np.searchsorted(part, held_H), len(part) - 1)
            is_here = part[place_H] == held_H
            similarity_BF[block_H[is_here], place_H[is_here]] = -np.inf
            near.append(similarity_BF.argmax(axis=0))
            best.append(similarity_BF.max(axis=0))
        near_F, best_F = np.concatenate(near), np.concatenate(best)
        taken = []
        for block in np.flatnonzero(room_B).tolist():
            fits = np.flatnonzero((near_F == block) & (best_F > -np.inf))
            taken.append(fits[np.argsort(-best_F[fits], kind="stable")[: room_B[block]]])
            chosen[block] = np.concatenate([chosen[block], free[taken[-1]]])
        left = np.delete(free, np.concatenate(taken))
        # Texts that no open block can take leave none to wait for.
        free = left if 0 < len(left) < len(free) else np.arange(len(texts_TD))
    return chosen


def mine(
    miner: Miner, num_queries: int, population: int, count: int, reason_against: PairFilter
) -> tuple[Indices, Indices, Indices]:
    """The first `count` different allowed candidates of each query, or all of them if there are fewer: their keys,
    query * population + candidate, sorted; the rank of each in the miner's order; and the number of pairs that would be
    here but for each reason."""
    # Reasons are uint8, hence 256 counts.
    keys, ranks, num_dropped = [], [], np.zeros(256, dtype=np.int64)
    for start in range(0, num_queries, QUERIES_PER_CHUNK):
        remaining = np.arange(start, min(start + QUERIES_PER_CHUNK, num_queries))
        # Twice the count leaves room for repeats and false negatives.
        width = 2 * count + 8
        while len(remaining):
            short, num_at_once = [], max(1, MAX_MATRIX_ENTRIES // min(width, population))
            for first in range(0, len(remaining), num_at_once):
                queries = remaining[first : first + num_at_once]
                is_enough, new_keys, new_ranks, dropped = _choose(
                    miner(queries, width), queries, population, count, reason_against
                )
                keys.append(new_keys)
                ranks.append(new_ranks)
                num_dropped += dropped
                short.append(queries[~is_enough])
            remaining, width = np.concatenate(short), 4 * width
    key_P = np.concatenate(keys)
    order = np.argsort(key_P)
    return key_P[order], np.concatenate(ranks)[order], num_dropped


def _choose(
    matrix_QK: Indices, queries: Indices, population: int, count: int, reason_against: PairFilter
) -> tuple[Flags, Indices, Indices, Indices]:
    """Which queries have enough candidates or have seen all; the keys of their pairs, and the rank of each; for each
    reason, how many pairs it removed."""
    query_QK = np.broadcast_to(queries[:, None], matrix_QK.shape)
    reason_QK, is_first_QK = reason_against(query_QK, matrix_QK), _is_first(matrix_QK)
    is_allowed_QK = is_first_QK & (reason_QK == 0)
    num_before_QK = is_allowed_QK.cumsum(axis=1) - is_allowed_QK
    is_enough_Q = (is_allowed_QK.sum(axis=1) >= count) | (is_first_QK.sum(axis=1) >= population)
    is_in_time_QK = (num_before_QK < count) & is_enough_Q[:, None]
    kept_QK = is_allowed_QK & is_in_time_QK
    dropped_QK = is_first_QK & (reason_QK != 0) & is_in_time_QK
    return (
        is_enough_Q,
        query_QK[kept_QK] * population + matrix_QK[kept_QK],
        num_before_QK[kept_QK],
        np.bincount(reason_QK[dropped_QK], minlength=256),
    )


def _is_first(matrix_QK: Indices) -> Flags:
    """Whether an entry is the first of its value in its row."""
    # Stable, so that among equal entries the first in the row stays first.
    order_QK = np.argsort(matrix_QK, axis=1, kind="stable")
    sorted_QK = np.take_along_axis(matrix_QK, order_QK, axis=1)
    is_new_QK = np.ones(matrix_QK.shape, dtype=bool)
    is_new_QK[:, 1:] = sorted_QK[:, 1:] != sorted_QK[:, :-1]
    first_QK = np.empty_like(is_new_QK)
    np.put_along_axis(first_QK, order_QK, is_new_QK, axis=1)
    return first_QK


def clusters(corpus: Corpus, cluster_size: int, vectors_ID: Scores | None = None) -> list[Indices]:
    """Clusters of similar images; every image is in one cluster.

    Similarity is the inner product of `vectors_ID` (I x D), or by default of the words of the captions, each weighted
    by its inverse document frequency. The search is greedy from the first image on: its nearest free images join it.
    """
    # Without comparing any images, which takes time by their square.
    if cluster_size == 1:
        return [np.array([i], dtype=np.int64) for i in range(corpus.num_images)]
    vectors = _word_vectors(corpus) if vectors_ID is None else vectors_ID
    is_free = np.ones(corpus.num_images, dtype=bool)
    result = []
    while len(free := np.flatnonzero(is_free)):
        seeds = free[:_SEEDS_PER_CHUNK]
        for seed, similarity in zip(seeds.tolist(), vectors[seeds] @ vectors[free].T, strict=True):
            if not is_free[seed]:
                continue
            # `free` is from the start of the chunk; earlier seeds of the chunk have taken some of its images.
            similarity[~is_free[free]] = -np.inf
            # A seed belongs to its own cluster, even if others have equal words or a larger product with it.
            similarity[np.searchsorted(free, seed)] = np.inf
            best = np.argsort(-similarity, kind="stable")[:cluster_size]
            cluster = np.sort(free[best[is_free[free[best]]]])
            is_free[cluster] = False
            result.append(cluster)
    return result


def _word_vectors(corpus: Corpus) -> Scores:
    """One unit vector per image: the words of its captions, weighted by inverse document frequency."""
    words: dict[str, int] = {}
    rows, columns = [], []
    for text, image in zip(corpus.captions, corpus.caption_image.tolist(), strict=True):
        for word in text.lower().split():
            rows.append(image)
            columns.append(words.setdefault(word, len(words)))
    image_P, word_P = np.unique(np.array([rows, columns]), axis=1)
    frequency = np.bincount(word_P, minlength=len(words))
    # Stable, so that the processor does not decide which of equally frequent words are kept.
    common = np.argsort(-frequency, kind="stable")[:_MAX_WORDS]
    column_of_word = np.full(len(words), -1)
    column_of_word[common] = np.arange(len(common))
    vectors = np.zeros((corpus.num_images, len(common)), dtype=np.float32)
    kept = column_of_word[word_P] >= 0
    image_P, word_P = image_P[kept], word_P[kept]
    vectors[image_P, column_of_word[word_P]] = np.log(1 + corpus.num_images / frequency[word_P])
    norms = np.linalg.norm(vectors, axis=1, keepdims=True).astype(np.float32)
    # An image none of whose words is kept has a vector of zeros.
    return vectors / np.maximum(norms, np.float32(1e-12))
