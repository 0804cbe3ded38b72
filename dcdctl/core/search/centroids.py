"""Centroids of tokens, which propose candidates among all images of a segment of a late index.

Shape letters: Q queries, R rows, D width, C candidates, K centroids, L tokens of a query, N tokens, S sampled tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dcdctl.core import machine
from dcdctl.core.progress import Advance
from dcdctl.core.search.exact import Floats, Rows
from dcdctl.core.search.index_config import IndexConfig
from dcdctl.core.search.storage import INDEX, mapped_arrays, save_arrays

CANDIDATES = 200
"""Measured: docs/indexing.md."""
CODES = 8192
"""Codes that are compared at a time: they fit a processor's cache."""
SAMPLES, ROUNDS = 40, 8
"""Tokens per centroid from which k-means starts, and its rounds."""
TOKENS = 1024
"""Tokens that are compared with all centroids at a time."""


class Centroids:
    """The tokens of a segment of a late index as numbers of centroids: MaxSim with the centroids in place of the tokens
    proposes images (Santhanam et al. 2022, PLAID, arXiv 2205.09707, who also skip most of the images).

    A mean or another single vector per image, as of MUVERA, would fit the codes of vectors, and misses most of the best
    images (docs/indexing.md).
    """

    name: ClassVar = "centroids"
    package: ClassVar = None

    def __init__(self, path: Path, rows: int, dim: int) -> None:
        """StaleError if the file is not one of so many images."""
        centroids_KD, codes_NR = mapped_arrays(path, (np.float16, (None, dim)), (np.uint16, (None, rows)))
        # Each image has a token; a code that is no centroid stands for a missing token.
        if not len(codes_NR) or codes_NR[0].max() >= len(centroids_KD) or codes_NR.max() > len(centroids_KD):
            raise INDEX.damaged(path, f"it has codes of more than its {len(centroids_KD):,} centroids")
        if not np.isfinite(centroids_KD).all():
            raise INDEX.damaged(path, "it has centroids that are NaN or infinite")
        self._centroids_KD = centroids_KD.astype(np.float32)
        # In memory, because each query reads all codes.
        self._codes_NR = np.array(codes_NR)

    def num_candidates(self, k: int) -> int:
        """How many candidates hold the `k` best."""
        return max(CANDIDATES, 2 * k)

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

    @classmethod
    def build(
        cls, path: Path, blocks: Callable[[], Iterator[Any]], dim: int, config: IndexConfig, advance: Advance
    ) -> None:
        """Write two arrays: K centroids of a sample of the tokens, by k-means, and the nearest one of each token,
        N x R. An image of fewer than N tokens ends with K."""
        import torch  # a search needs none of it

        rng, size = np.random.default_rng(0), config.tokens.centroids
        counts_R = np.concatenate([block.counts_R for block in blocks()])
        share, most = SAMPLES * size / counts_R.sum(), counts_R.max()
        sample_SD = np.concatenate([block.tokens_ND[rng.random(len(block.data)) < share] for block in blocks()])
        centroids_KD = rng.permutation(sample_SD)[:size]
        for _ in range(ROUNDS):
            nearest_S = _nearest(sample_SD, centroids_KD)
            sums_KD, num_K = np.zeros_like(centroids_KD), np.bincount(nearest_S, minlength=len(centroids_KD))
            torch.from_numpy(sums_KD).index_add_(0, torch.from_numpy(nearest_S), torch.from_numpy(sample_SD))
            centroids_KD = np.where(num_K[:, None] > 0, sums_KD / np.maximum(num_K, 1)[:, None], centroids_KD)
            centroids_KD = centroids_KD.astype(np.float16).astype(np.float32)
        codes = []
        for block in blocks():
            codes_RN = np.full((len(block), most), len(centroids_KD), dtype=np.uint16)
            codes_RN[np.arange(most) < block.counts_R[:, None]] = _nearest(block.tokens_ND, centroids_KD)
            codes.append(codes_RN.T)
            advance(len(block))
        save_arrays([centroids_KD.astype(np.float16), np.concatenate(codes, axis=1)], path)


def _nearest(tokens_ND: Floats, centroids_KD: Floats) -> Rows:
    """The nearest centroid of each token."""
    halves_K = np.square(centroids_KD).sum(axis=1) / 2
    parts = np.split(tokens_ND, range(TOKENS, len(tokens_ND), TOKENS))
    return np.concatenate([(part_BD @ centroids_KD.T - halves_K).argmax(axis=1) for part_BD in parts])
