"""The first K candidates of each query, from blocks of a score matrix.

Shape letters: Q queries, G gallery, K first candidates, N groups.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dcdctl.core.data import Indices, Scores

MOST_WAITING = 4
"""Candidates of a block that wait, in multiples of the number that is kept."""
Waiting = tuple[Indices, Scores, Indices]
"""Query, score and index of each candidate."""


class RowTops:
    """The first K candidates of each query, where queries are rows of a block."""

    def __init__(self, num_queries: int, k: int) -> None:
        self.k = k
        self._score_QK = torch.full((num_queries, k), -torch.inf)
        self._index_QK = torch.zeros(num_queries, k, dtype=torch.int64)

    def add(self, score_QK: Tensor, index_QK: Tensor, queries: slice) -> None:
        """Sort in the first candidates of a block."""
        score = torch.cat([self._score_QK[queries], score_QK], dim=1)
        index = torch.cat([self._index_QK[queries], index_QK], dim=1)
        self._score_QK[queries], kept = score.topk(self.k, dim=1)
        self._index_QK[queries] = index.gather(1, kept)

    def sorted(self) -> tuple[Indices, Scores]:
        """Indices and scores, best first."""
        return self._index_QK.numpy(), self._score_QK.numpy()


class ColumnTops:
    """The first K candidates of each query, where queries are columns of a block.

    A block has few scores above a query's K-th best so far. They wait in a list, and many are sorted in at once. Among
    equal scores, those that were added first are kept.
    """

    def __init__(self, num_queries: int, k: int) -> None:
        self._score_QK = np.full((num_queries, k), -np.inf, dtype=np.float32)
        self._index_QK = np.zeros((num_queries, k), dtype=np.int64)
        self._waiting: list[Waiting] = []
        self.kth_best_Q = self._score_QK[:, -1]
        """The K-th best score of each query when candidates were last sorted in."""

    def candidates(self, scores_GQ: Scores, first: int, queries: slice, above_Q: Scores) -> Waiting:
        """The scores of a block above a threshold of each query; without thresholds, those that may be among the first
        K of the block."""
        k = self._score_QK.shape[1]
        if len(scores_GQ) >= k and np.isinf(above_Q).all():
            # All scores of the first block would wait. K groups have a maximum of at least the K-th best of these
            # maxima.
            group_starts = np.linspace(0, len(scores_GQ), min(len(scores_GQ), 2 * k), endpoint=False, dtype=np.int64)
            # Contiguous, because a partition of strided columns is far slower.
            maxima_QN = np.ascontiguousarray(np.maximum.reduceat(scores_GQ, group_starts, axis=0).T)
            above_Q = np.nextafter(np.partition(maxima_QN, -k, axis=1)[:, -k], np.float32(-np.inf))
        positions = np.flatnonzero(scores_GQ > above_Q)
        if len(positions) > MOST_WAITING * k * len(above_Q) and len(scores_GQ) >= k:
            # Many equal scores, as of a constant model: exactly K of each query.
            row_KQ = np.argsort(-scores_GQ, axis=0, kind="stable")[:k]
            query_KQ = np.broadcast_to(np.arange(queries.start, queries.stop), row_KQ.shape)
            return query_KQ.ravel(), np.take_along_axis(scores_GQ, row_KQ, axis=0).ravel(), row_KQ.ravel() + first
        row, column = np.divmod(positions, len(above_Q))
        return column + queries.start, scores_GQ.ravel()[positions], row + first

    def add(self, waiting: Waiting) -> None:
        self._waiting.append(waiting)
        if sum(len(query) for query, _, _ in self._waiting) > self._score_QK.size:
            self._sort_in()

    def sorted(self) -> tuple[Indices, Scores]:
        """Indices and scores, best first."""
        self._sort_in()
        return self._index_QK, self._score_QK

    def _sort_in(self) -> None:
        num_queries, k = self._score_QK.shape
        kept = (np.repeat(np.arange(num_queries), k), self._score_QK.ravel(), self._index_QK.ravel())
        candidates = [kept, *self._waiting]
        query = np.concatenate([queries for queries, _, _ in candidates])
        score = np.concatenate([scores for _, scores, _ in candidates])
        index = np.concatenate([indices for _, _, indices in candidates])
        # By query and, within a query, descending score; equal ones keep their order. One sort of integers is far
        # faster than two sorts: the bits of a float, with the lower ones flipped if it is negative, ascend with it.
        bits = (-score).view(np.int32)
        order = np.argsort((query << 32) + (bits ^ ((bits >> 31) & 0x7FFFFFFF)), kind="stable")
        starts_Q = np.searchsorted(query[order], np.arange(num_queries))
        first_QK = order[starts_Q[:, None] + np.arange(k)]
        self._score_QK, self._index_QK, self._waiting = score[first_QK], index[first_QK], []
        self.kth_best_Q = np.ascontiguousarray(self._score_QK[:, -1])
