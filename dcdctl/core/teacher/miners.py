"""Who is near whom: for each query of a corpus, things it may be compared with, the best first.

A miner need not know what is true of a query: `mined` leaves that out, and asks for more where too few are left. Everything is a
function of the corpus and the seed.

Shape letters: Q queries, K candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dcdctl.core import scoring
from dcdctl.core.data import Corpus
from dcdctl.core.errors import MissingError
from dcdctl.core.teacher.false_negatives import Reasons

Index = NDArray[np.int64]
Miner = Callable[[Index, int], Index]
"""Given queries and a number K, a Q x K matrix: the K best of each query, or all there are where these are fewer."""
Guard = Callable[[Index, Index], Reasons]
"""Given queries and candidates, arrays of one shape: 0 where the two may be paired, else why not."""
CHUNK = 4096
"""Queries mined at a time."""
CELLS = 1 << 22
"""Entries of a matrix at most: bounds the memory where queries need many candidates to find enough."""


@dataclass(frozen=True)
class Mined:
    """Pairs of a query and a candidate, sorted by both, and how many others each guard kept from being among them."""

    queries: Index
    candidates: Index
    num_dropped: Index
    """Entry r: for reason r."""


def random_miner(seed: Sequence[int], num_queries: int, population: int) -> Miner:
    """Members drawn at random, some more than once; all in random order where as many are asked for."""

    def mine(queries: Index, width: int) -> Index:
        # A query's draws depend on the queries it comes with, and these are always cut alike.
        rng = np.random.default_rng([*seed, int(queries[0]), num_queries])
        if width >= population:
            return np.argsort(rng.random((len(queries), population)), axis=1)
        return rng.integers(0, population, (len(queries), width))

    return mine


def lexical_miner(queries: Sequence[str], documents: Sequence[str]) -> Miner:
    """Documents by BM25, the best first, of equal ones the first; MissingError where bm25s is not installed."""
    try:
        import bm25s  # needed by those who mine with it
    except ImportError as error:
        raise MissingError("candidates.kind lexical needs bm25s, which is not installed", hint="pip install 'dcdctl[mine]'") from error
    tokens = [_words(document) for document in documents]
    index = bm25s.BM25(backend="numpy")
    if any(tokens):
        index.index(tokens, show_progress=False)
    known = set(index.vocab_dict) if any(tokens) else set()

    def best(query: str, width: int) -> Index:
        words = [word for word in _words(query) if word in known]
        return _first(index.get_scores(words) if words else np.zeros(len(documents), dtype=np.float32), width)

    return lambda chunk, width: np.stack([best(queries[query], width) for query in chunk])


def _first(scores: NDArray[np.float32], count: int) -> Index:
    """The places of the highest scores, the best first. Of equal scores the first places: a partition alone leaves that to the CPU."""
    if count >= len(scores):
        return np.argsort(-scores, kind="stable")
    least = np.partition(scores, -count)[-count]
    above = np.flatnonzero(scores > least)
    return np.concatenate([above[np.argsort(-scores[above], kind="stable")], np.flatnonzero(scores == least)[: count - len(above)]])


def _words(text: str) -> list[str]:
    return "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()


def embedding_miner(queries_QD: Tensor, gallery_GD: Tensor) -> Miner:
    """Members of the gallery by inner product, the best first."""

    def mine(queries: Index, width: int) -> Index:
        _, index_QK = scoring.top_k(queries_QD[queries], gallery_GD, width)
        return index_QK.cpu().numpy()

    return mine


def mixed_miner(miners: Sequence[tuple[Miner, int]], guard: Guard) -> Miner:
    """So many of each miner's best that may be paired with the query, then the rest of all, in the same order."""

    def mine(queries: Index, width: int) -> Index:
        found, turns = [], []
        for turn, (miner, count) in enumerate(miners):
            matrix_QK = miner(queries, width)
            query_QK = np.broadcast_to(queries[:, None], matrix_QK.shape)
            is_allowed_QK = _is_first(matrix_QK) & (guard(query_QK, matrix_QK) == 0)
            num_before_QK = is_allowed_QK.cumsum(axis=1) - is_allowed_QK
            found.append(matrix_QK)
            turns.append(np.where(num_before_QK < count, turn, turn + len(miners)).astype(np.int8))
        order_QK = np.argsort(np.concatenate(turns, axis=1), axis=1, kind="stable")
        return np.take_along_axis(np.concatenate(found, axis=1), order_QK, axis=1)

    return mine


def shared_out(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers in these proportions that sum to the total.

    >>> shared_out(5, [1, 1]), shared_out(4, [1, 1, 1])
    ([3, 2], [1, 2, 1])
    """
    ends = np.floor(total * np.cumsum(shares) / np.sum(shares) + 0.5).astype(int)
    return np.diff(ends, prepend=0).tolist()


def mined(miner: Miner, num_queries: int, population: int, count: int, guard: Guard) -> Mined:
    """Of each query the first `count` different candidates that may be paired with it; all there are where these are fewer."""
    parts = []
    for start in range(0, num_queries, CHUNK):
        left = np.arange(start, min(start + CHUNK, num_queries))
        keys, num_dropped, width = [], np.zeros(256, dtype=np.int64), 2 * count + 8
        while len(left):
            short, num_at_once = [], max(1, CELLS // min(width, population))
            for first in range(0, len(left), num_at_once):
                queries = left[first : first + num_at_once]
                is_enough, found, dropped = _chosen(miner(queries, width), queries, population, count, guard)
                keys.append(found)
                num_dropped += dropped
                short.append(queries[~is_enough])
            left, width = np.concatenate(short), 4 * width
        sorted_keys = np.sort(np.concatenate(keys))
        parts.append(Mined(sorted_keys // population, sorted_keys % population, num_dropped))
    return Mined(
        np.concatenate([part.queries for part in parts]),
        np.concatenate([part.candidates for part in parts]),
        np.sum([part.num_dropped for part in parts], axis=0),
    )


def _chosen(matrix_QK: Index, queries: Index, population: int, count: int, guard: Guard) -> tuple[NDArray[np.bool_], Index, Index]:
    """Which queries have found enough, or seen all there is; the keys of their pairs; for each reason, how many it took the place of."""
    query_QK = np.broadcast_to(queries[:, None], matrix_QK.shape)
    reason_QK, is_first_QK = guard(query_QK, matrix_QK), _is_first(matrix_QK)
    is_allowed_QK = is_first_QK & (reason_QK == 0)
    num_before_QK = is_allowed_QK.cumsum(axis=1) - is_allowed_QK
    is_enough_Q = (is_allowed_QK.sum(axis=1) >= count) | (is_first_QK.sum(axis=1) >= population)
    is_in_time_QK = (num_before_QK < count) & is_enough_Q[:, None]
    kept_QK = is_allowed_QK & is_in_time_QK
    dropped_QK = is_first_QK & (reason_QK != 0) & is_in_time_QK
    return is_enough_Q, query_QK[kept_QK] * population + matrix_QK[kept_QK], np.bincount(reason_QK[dropped_QK], minlength=256)


def _is_first(matrix_QK: Index) -> NDArray[np.bool_]:
    """Whether an entry is the first of its value in its row."""
    order_QK = np.argsort(matrix_QK, axis=1, kind="stable")
    sorted_QK = np.take_along_axis(matrix_QK, order_QK, axis=1)
    is_new_QK = np.ones(matrix_QK.shape, dtype=bool)
    is_new_QK[:, 1:] = sorted_QK[:, 1:] != sorted_QK[:, :-1]
    first_QK = np.empty_like(is_new_QK)
    np.put_along_axis(first_QK, order_QK, is_new_QK, axis=1)
    return first_QK


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
