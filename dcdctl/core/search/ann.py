"""Approximate search over a range of rows: graphs by usearch, codes by NumPy. Both only propose candidates.

Shape letters: Q queries, R rows, D width, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcdctl.core import machine, scoring
from dcdctl.core.errors import require_extra
from dcdctl.core.scoring import HIGHEST
from dcdctl.core.search.entries import Segment
from dcdctl.core.search.exact import Floats, Rows
from dcdctl.core.search.graph_file import check_graph
from dcdctl.core.search.index_config import IndexConfig
from dcdctl.core.search.storage import INDEX, mapped_arrays

CODES = 8192
"""Codes that are converted and compared at a time: they fit a processor's cache."""


PACKAGES = {"hnsw": "usearch"}
"""The package that a kind of segment needs."""


def open_segment(
    folder: Path, segment: Segment, *, config: IndexConfig, dim: int
) -> Graph | Int8Codes | BinaryCodes | Centroids:
    """A memory-mapped segment of vectors of `dim` numbers, which several threads may search at once; StaleError if the
    file is damaged."""
    return SEGMENTS[segment.kind](folder, segment, config, dim)


def require(kind: str) -> None:
    """MissingError if the package is not installed that a kind needs."""
    if package := PACKAGES.get(kind):
        needed_by, or_else = f"an index of kind {kind}", "search exactly with --set kind=flat"
        require_extra("index", package, needed_by=needed_by, or_else=or_else)


class Graph:
    """A graph of usearch. A view serves one call at a time, so parallel calls use separate views."""

    def __init__(self, folder: Path, segment: Segment, config: IndexConfig, dim: int) -> None:
        self._folder, self._segment, self._width = folder, segment, config.hnsw.search_width
        path = INDEX.checked(folder / segment.file, segment.sha256)
        try:
            check_graph(path, segment.rows, dim, config.hnsw)
        except ValueError as error:
            raise INDEX.damaged(path, str(error)) from error
        self._views = [self._view()]

    def candidates(self, queries_QD: Floats, count: int) -> Rows:
        """Q x C rows counted from the first row of the segment, nearest first; -1 if there are fewer. Codes have the
        same method."""
        # Each query has its own scale, which does not change the order of its inner products.
        codes_QD = np.rint(queries_QD * (HIGHEST / np.abs(queries_QD).max(axis=1, keepdims=True))).astype(np.int8)
        with self._borrowed() as view:
            # One thread: parallel queries come from threads of their own.
            matches = view.search(codes_QD, min(count, len(view)), threads=1)
        # For a single query usearch returns one-dimensional matches without counts.
        keys_QC = np.atleast_2d(matches.keys).astype(np.int64)
        counts_Q = np.atleast_1d(matches.counts if hasattr(matches, "counts") else keys_QC.shape[1])
        return np.where(np.arange(keys_QC.shape[1]) < counts_Q[:, None], keys_QC, -1)

    @contextmanager
    def _borrowed(self) -> Iterator[Any]:
        try:
            view = self._views.pop()
        except IndexError:
            view = self._view()
        try:
            yield view
        finally:
            self._views.append(view)

    def _view(self) -> Any:
        from usearch.index import Index as Usearch

        # Before native code maps it, because a damaged graph would end the process by a signal; and for every view,
        # because the file may have changed after the first one.
        path = INDEX.checked(self._folder / self._segment.file, self._segment.sha256)
        try:
            view = Usearch.restore(str(path), view=True, enable_key_lookups=False)
        except (ValueError, RuntimeError, OSError) as error:
            raise INDEX.damaged(path, str(error)) from error
        # Set here, not in the file: another search width needs no new graph.
        view.expansion_search = self._width
        return view


class Int8Codes:
    """The int8 codes of a segment, all of which are compared with a query by the cosine of codes."""

    def __init__(self, folder: Path, segment: Segment, _: IndexConfig, dim: int) -> None:
        codes_RD = self._codes_RD = _mapped(folder, segment, np.int8, dim)
        # In blocks, because float32 takes four times the memory of the codes.
        blocks = (codes_RD[first : first + CODES].astype(np.float32) for first in range(0, len(codes_RD), CODES))
        self._length_R = np.concatenate([np.maximum(np.linalg.norm(block_RD, axis=1), 1) for block_RD in blocks])

    def candidates(self, queries_QD: Floats, count: int) -> Rows:
        codes_QD = scoring.int8_codes(queries_QD).astype(np.float32)
        scores_QR = np.empty((len(codes_QD), len(self._codes_RD)), np.float32)
        for first in range(0, len(self._codes_RD), CODES):
            # Products of bytes are exact in float32 up to 1,040 numbers, and BLAS has no integers.
            scores_QR[:, first : first + CODES] = codes_QD @ self._codes_RD[first : first + CODES].astype(np.float32).T
        scores_QR /= self._length_R
        count = min(count, scores_QR.shape[1])
        best_QC = np.argpartition(-scores_QR, count - 1, axis=1)[:, :count]
        order_QC = np.argsort(-np.take_along_axis(scores_QR, best_QC, axis=1), axis=1, kind="stable")
        return np.take_along_axis(best_QC, order_QC, axis=1)


class BinaryCodes:
    """The bits of a segment, all of which are compared with a query by the number of equal ones; ties by row."""

    def __init__(self, folder: Path, segment: Segment, _: IndexConfig, dim: int) -> None:
        self._words_RW = _mapped(folder, segment, np.uint64, -(-dim // 64))

    def candidates(self, queries_QD: Floats, count: int) -> Rows:
        num_rows = len(self._words_RW)
        rows_R, count = np.arange(num_rows), min(count, num_rows)
        best = []
        for words_W in binary_words(queries_QD):
            # int64, because a count times the number of rows does not fit into 32 bits.
            unequal_R = np.bitwise_count(self._words_RW ^ words_W).sum(axis=1, dtype=np.int64)
            # One number for both, so that equal distances are in the order of rows.
            keys_R = unequal_R * num_rows + rows_R
            best.append(np.sort(np.partition(keys_R, count - 1)[:count]) % num_rows)
        return np.stack(best)


class Centroids:
    """The tokens of a segment of a late index as numbers of centroids: MaxSim with the centroids in place of the tokens
    proposes images (Santhanam et al. 2022, PLAID, arXiv 2205.09707, who also skip most of the images).

    A mean or another single vector per image, as of MUVERA, would fit the other kinds of segments, and misses most of
    the best images (docs/indexing.md).
    """

    def __init__(self, folder: Path, segment: Segment, _: IndexConfig, dim: int) -> None:
        path = INDEX.checked(folder / segment.file, segment.sha256)
        centroids_KD, codes_NR = mapped_arrays(path, (np.float16, (None, dim)), (np.uint16, (None, segment.rows)))
        # Each image has a token; a code that is no centroid stands for a missing token.
        if not len(codes_NR) or codes_NR[0].max() >= len(centroids_KD) or codes_NR.max() > len(centroids_KD):
            raise INDEX.damaged(path, f"it has codes of more than its {len(centroids_KD):,} centroids")
        if not np.isfinite(centroids_KD).all():
            raise INDEX.damaged(path, "it has centroids that are NaN or infinite")
        self._centroids_KD = centroids_KD.astype(np.float32)
        # In memory, because each query reads all codes.
        self._codes_NR = np.array(codes_NR)

    def candidates(self, queries_QLD: Floats, count: int) -> Rows:
        scores_QR = np.stack([self._scores(query_LD[query_LD.any(axis=1)]) for query_LD in queries_QLD])
        return np.argpartition(-scores_QR, min(count, scores_QR.shape[1]) - 1, axis=1)[:, :count]

    def _scores(self, query_LD: Floats) -> Floats:
        products_KL = self._centroids_KD @ query_LD.T
        products_KL -= products_KL.min()
        num_centroids, length = products_KL.shape
        # A byte per product finds as much as a float. Rows of 16 and 32 bytes are copied fastest. The last row is of
        # missing tokens.
        table_KL = np.zeros((num_centroids + 1, 16 * -(-length // 16)), dtype=np.uint8)
        table_KL[:-1, :length] = products_KL * (255 / max(float(products_KL.max()), 1e-9))
        ones_L = np.ones(table_KL.shape[1], dtype=np.float32)

        def scores(first: int) -> Floats:
            codes_NR = self._codes_NR[:, first : first + CODES].astype(np.intp)
            largest_RL = table_KL.take(codes_NR[0], axis=0, mode="clip")
            products_RL = np.empty_like(largest_RL)
            for codes_R in codes_NR[1:]:
                table_KL.take(codes_R, axis=0, out=products_RL, mode="clip")
                np.maximum(largest_RL, products_RL, out=largest_RL)
            return largest_RL.astype(np.float32) @ ones_L

        # NumPy releases the lock of Python in both calls of the loop.
        with ThreadPoolExecutor(machine.num_threads()) as pool:
            return np.concatenate(list(pool.map(scores, range(0, self._codes_NR.shape[1], CODES))))


def _mapped(folder: Path, segment: Segment, type_: Any, width: int) -> NDArray[Any]:
    """The array of a segment."""
    path = INDEX.checked(folder / segment.file, segment.sha256)
    return mapped_arrays(path, (type_, (segment.rows, width)))[0]


def binary_words(vectors_ND: Floats) -> NDArray[np.uint64]:
    """The binary codes of vectors as words of 64 bits; zeros fill the last word."""
    codes_NB = scoring.binary_codes(vectors_ND)
    return np.pad(codes_NB, ((0, 0), (0, -codes_NB.shape[1] % 8))).view("<u8")


SEGMENTS: dict[str, Callable[[Path, Segment, IndexConfig, int], Graph | Int8Codes | BinaryCodes | Centroids]] = {
    "hnsw": Graph,
    "int8": Int8Codes,
    "binary": BinaryCodes,
    "centroids": Centroids,
}
"""Opens a segment, by the kind of index."""
