"""Codes of one bit a number, which propose candidates among all vectors of a segment: RaBitQ (Gao & Long 2024,
arXiv 2405.12497), as faiss computes and compares it (`IndexRaBitQFastScan`).

They take an eighth of a byte a number and 8 bytes a vector, and are all read by each query; docs/indexing.md compares
them with graphs and lists. faiss never opens a file: its codes are an array of bytes, and any bytes are codes.

Shape letters: Q queries, R rows, D width, C candidates, K best.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dcdctl.core.errors import MissingError, install_command
from dcdctl.core.progress import Advance
from dcdctl.core.search.exact import ROUNDING, Floats, Rows, spread_over
from dcdctl.core.search.index_config import IndexConfig
from dcdctl.core.search.storage import INDEX, mapped_arrays, save_arrays

HELD_OUT, BEST, SHARE = 200, 10, 0.995
"""Vectors that choose the number of candidates: it holds at least this share of their best ten."""
MARGIN = 3
"""Texts are further from images than images are: a query takes so many times the candidates."""
OLDEST = (1, 15)
"""The version of faiss whose codes these are."""
MOST = 1000
"""Candidates that are tried at most."""
Blocks = Callable[[], Iterator[Any]]
"""Reads what is stored of the rows of a segment; again at each call."""


class Codes:
    """The codes of a segment; several threads may search them at once."""

    name: ClassVar = "codes"
    package: ClassVar = "faiss"

    def __init__(self, path: Path, rows: int, dim: int) -> None:
        """StaleError if the file is not one of so many rows."""
        rotation_DD, center_D, codes, candidates = mapped_arrays(
            path, (np.float32, (dim, dim)), (np.float32, (dim,)), (np.uint8, (None,)), (np.int64, (1,))
        )
        if not (np.isfinite(rotation_DD).all() and np.isfinite(center_D).all()):
            raise INDEX.damaged(path, "its rotation or its center has numbers that are NaN or infinite")
        if not 1 <= candidates[0] <= MARGIN * MOST:
            raise INDEX.damaged(path, f"it asks for {candidates[0]:,} candidates")
        self._rotation_DD, self._rows, self._candidates = np.array(rotation_DD), rows, int(candidates[0])
        self._codes = _no_codes(center_D)
        # faiss compares blocks of codes, the last of which may be filled in part.
        blocks = -(-rows // self._codes.bbs)
        if len(codes) != blocks * self._codes.get_block_stride():
            raise INDEX.damaged(path, f"it has no codes of {rows:,} vectors")
        _faiss().copy_array_to_AlignedTable(np.array(codes), self._codes.codes)
        self._codes.ntotal, self._codes.ntotal2 = rows, blocks * self._codes.bbs

    def num_candidates(self, k: int) -> int:
        """How many candidates hold the `k` best."""
        return self._candidates * -(-max(k, BEST) // BEST)

    def candidates(self, queries_QD: Floats, count: int) -> Rows:
        """Q x C rows counted from the first row of the segment, the nearest by their codes first; -1 if there are
        fewer."""
        rows_QC: Rows = self._codes.search(queries_QD @ self._rotation_DD, min(count, self._rows))[1]
        return rows_QC

    @classmethod
    def build(cls, path: Path, blocks: Blocks, dim: int, _: IndexConfig, advance: Advance) -> None:
        """Write the codes of the vectors of a segment, which `blocks()` reads in blocks of `StoredVectors`."""
        rng = np.random.default_rng(0)
        # A vector of few numbers that are not zero would have bits of the others, which say nothing.
        rotation_DD = np.linalg.qr(rng.normal(size=(dim, dim)))[0].astype(np.float32)
        sums_D, rows = np.zeros(dim), 0
        for block in blocks():
            sums_D += block.unit_RD.sum(axis=0, dtype=np.float64)
            rows += len(block)
        center_D = (sums_D / rows @ rotation_DD).astype(np.float32)
        made = _no_codes(center_D)
        for block in blocks():
            made.add(block.unit_RD @ rotation_DD)
            advance(len(block))
        arrays = [rotation_DD, center_D, _faiss().AlignedTable_to_array(made.codes)]
        candidates = MARGIN * _enough(lambda queries_QD: made.search(queries_QD @ rotation_DD, MOST)[1], blocks, rows)
        save_arrays([*arrays, np.array([candidates])], path)


def _faiss() -> Any:
    """faiss, beside torch in one process; MissingError for a version that lays out codes in another way."""
    is_mac = sys.platform == "darwin"
    if is_mac:
        # Each brings an OpenMP of its own there, and the second one ends the process (faiss-wheels, issue 73).
        os.environ.setdefault("KMP_DUPLICATE_LIB_OK", "TRUE")
    import faiss

    if tuple(map(int, faiss.__version__.split(".")[:2])) < OLDEST:
        # Not tried with an older one, but for 1.13: tests that made codes ended by a signal.
        needed = ".".join(map(str, OLDEST))
        message = f"the codes of an index need faiss {needed} or newer, and {faiss.__version__} is installed"
        raise MissingError(message, hint=install_command("index"))
    if is_mac:
        faiss.omp_set_num_threads(1)  # two pools of threads crash
    return faiss


def _no_codes(center_D: NDArray[np.float32]) -> Any:
    faiss = _faiss()
    codes = faiss.IndexRaBitQFastScan(len(center_D), faiss.METRIC_INNER_PRODUCT)
    # faiss takes the mean of what it is trained with.
    codes.train(np.array(center_D[None]))
    return codes


def _enough(search: Callable[[Floats], Rows], blocks: Blocks, rows: int) -> int:
    """How many candidates hold `SHARE` of the best ten of vectors spread over the segment; equal scores are as good."""
    held_R = np.zeros(rows, dtype=np.bool_)
    held_R[spread_over(rows, HELD_OUT)] = True
    held = []
    for first, block_RD in _numbered(blocks):
        held.append(block_RD[held_R[first : first + len(block_RD)]])
    queries_QD = np.concatenate(held)
    found_QC = search(queries_QD)
    scores_QC = np.full(found_QC.shape, -np.inf, dtype=np.float32)
    best_QK = np.full((len(queries_QD), BEST), -np.inf, dtype=np.float32)
    for first, block_RD in _numbered(blocks):
        scores_QR = queries_QD @ block_RD.T
        query, place = np.nonzero((found_QC >= first) & (found_QC < first + len(block_RD)))
        scores_QC[query, place] = scores_QR[query, found_QC[query, place] - first]
        best_QK = np.partition(np.concatenate([best_QK, scores_QR], axis=1), -BEST, axis=1)[:, -BEST:]
    is_best_QC = scores_QC >= best_QK.min(axis=1, keepdims=True) - ROUNDING
    share_C = np.minimum(is_best_QC.cumsum(axis=1), min(BEST, rows)).mean(axis=0) / min(BEST, rows)
    enough = np.flatnonzero(share_C >= SHARE)
    return int(enough[0]) + 1 if len(enough) else found_QC.shape[1]


def _numbered(blocks: Blocks) -> Iterator[tuple[int, Floats]]:
    """The unit vectors of each block, with its first row."""
    first = 0
    for block in blocks():
        yield first, block.unit_RD
        first += len(block)
