"""Who is near whom: for each query of a corpus, things it may be compared with, the best first.

A miner gives, for a range of queries, a matrix of candidates a row, -1 where it has no more. It need not know what is true of a query:
`first_distinct` leaves that out. Everything is a function of the corpus and the seed.

Shape letters: Q queries, K candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dcdctl.core import retrieval
from dcdctl.core.errors import MissingError

Index = NDArray[np.int64]
Miner = Callable[[range], Index]
IsExcluded = Callable[[Index, Index], NDArray[np.bool_]]
"""Whether a query and a candidate, arrays of one shape, must not be paired."""
CHUNK = 4096
"""Queries mined at a time."""


def random_miner(seed: Sequence[int], num_queries: int, population: int, count: int) -> Miner:
    """Members drawn at random; more than wanted, for some are drawn twice or excluded. All in random order where there are few."""
    width = 2 * count + 8

    def mine(queries: range) -> Index:
        # A query's draws depend on the chunk it is in, and chunks are always cut alike.
        rng = np.random.default_rng([*seed, queries.start, num_queries])
        if width >= population:
            return np.argsort(rng.random((len(queries), population)), axis=1)
        return rng.integers(0, population, (len(queries), width))

    return mine


def lexical_miner(queries: Sequence[str], documents: Sequence[str], count: int) -> Miner:
    """Documents by BM25, the best first; MissingError where bm25s is not installed."""
    try:
        import bm25s  # needed by those who mine with it
    except ImportError as error:
        raise MissingError("candidates.kind lexical needs bm25s, which is not installed", hint="pip install 'dcdctl[mine]'") from error
    index = bm25s.BM25()
    index.index([_words(document) for document in documents], show_progress=False)
    known = set(index.vocab_dict)

    def mine(chunk: range) -> Index:
        tokens = [[word for word in _words(queries[query]) if word in known] for query in chunk]
        found, _ = index.retrieve(tokens, k=min(count, len(documents)), show_progress=False)
        return np.asarray(found, dtype=np.int64)

    return mine


def _words(text: str) -> list[str]:
    return "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()


def embedding_miner(queries_QD: Tensor, gallery_GD: Tensor, count: int) -> Miner:
    """Members of the gallery by inner product, the best first."""

    def mine(queries: range) -> Index:
        _, index_QK = retrieval.top_k(queries_QD[queries.start : queries.stop], gallery_GD, count)
        return index_QK.cpu().numpy()

    return mine


def mixed_miner(miners: Sequence[tuple[Miner, int]], is_excluded: IsExcluded) -> Miner:
    """So many of each miner's best that may be paired with the query, then the rest of all, in the same order."""

    def mine(queries: range) -> Index:
        found = [(_allowed_first(miner(queries), queries, is_excluded), count) for miner, count in miners]
        return np.concatenate([*(matrix[:, :count] for matrix, count in found), *(matrix[:, count:] for matrix, count in found)], axis=1)

    return mine


def _allowed_first(matrix_QK: Index, queries: range, is_excluded: IsExcluded) -> Index:
    query_QK = np.broadcast_to(np.arange(queries.start, queries.stop)[:, None], matrix_QK.shape)
    order_QK = np.argsort(is_excluded(query_QK, np.maximum(matrix_QK, 0)), axis=1, kind="stable")
    return np.take_along_axis(matrix_QK, order_QK, axis=1)


def first_distinct(miner: Miner, num_queries: int, population: int, count: int, is_excluded: IsExcluded) -> tuple[Index, Index]:
    """Queries and candidates: of each query the first `count` different ones that are not excluded, sorted by both."""
    queries, candidates = [], []
    for start in range(0, num_queries, CHUNK):
        chunk = range(start, min(start + CHUNK, num_queries))
        matrix_QK = miner(chunk)
        query_QK = np.broadcast_to(np.arange(chunk.start, chunk.stop)[:, None], matrix_QK.shape)
        kept_QK = (matrix_QK >= 0) & _is_first(matrix_QK)
        kept_QK &= ~is_excluded(query_QK, np.maximum(matrix_QK, 0))
        kept_QK &= kept_QK.cumsum(axis=1) <= count
        keys = np.sort(query_QK[kept_QK] * population + matrix_QK[kept_QK])
        queries.append(keys // population)
        candidates.append(keys % population)
    return np.concatenate(queries), np.concatenate(candidates)


def _is_first(matrix_QK: Index) -> NDArray[np.bool_]:
    """Whether an entry is the first of its value in its row."""
    order_QK = np.argsort(matrix_QK, axis=1, kind="stable")
    sorted_QK = np.take_along_axis(matrix_QK, order_QK, axis=1)
    is_new_QK = np.ones(matrix_QK.shape, dtype=bool)
    is_new_QK[:, 1:] = sorted_QK[:, 1:] != sorted_QK[:, :-1]
    first_QK = np.empty_like(is_new_QK)
    np.put_along_axis(first_QK, order_QK, is_new_QK, axis=1)
    return first_QK
