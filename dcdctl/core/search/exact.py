"""The nearest vectors by cosine: candidates are scored exactly, so scores and ties do not depend on how the candidates
were found.

A late index has a vector for each token, and compares by MaxSim (`models.networks.maxsim`).

Shape letters: Q queries, R rows of vectors, D width, K answers per query, C candidates, L tokens of a query, N tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dcdctl.core.errors import StaleError
from dcdctl.core.scoring import HIGHEST, int8_codes

Floats = NDArray[np.float32]
Half = NDArray[np.float16]
Rows = NDArray[np.int64]
Codes = Literal["float16", "int8"]
# numpy has no type for the fields of a token.
Element = np.dtype[Any]
"""How a vector, or a token, is stored: little-endian float16, or int8 codes with a scale."""
Elements = NDArray[Any]
"""Vectors or tokens as they are stored."""
ROUNDING = 1e-5
"""Maximum error of a float32 product of unit vectors."""
NO_ROW = -1
AT_ONCE = 1 << 20
"""Numbers that a comparison computes together, 8 MB of float64: the products of a thousand tokens with a thousand
others."""
SLACK = 1e-10
"""Maximum error of a float64 product of unit vectors of up to 65,535 numbers."""


def unit(vectors_QD: NDArray[np.floating], dim: int) -> Floats:
    """Queries as float32 unit vectors, or Q x L x `dim` for MaxSim as they are; ValueError if they are not Q x `dim`,
    not finite, or zero."""
    # In float64, so that the numbers are rounded only once, at the end.
    queries = np.asarray(vectors_QD, dtype=np.float64)
    if queries.ndim not in (2, 3) or queries.shape[-1] != dim:
        raise ValueError(f"queries must be a Q x {dim} array, got {queries.shape}")
    lengths = np.linalg.norm(queries, axis=tuple(range(1, queries.ndim)), keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise ValueError("a query has a number that is not finite, or is zero")
    return (queries / lengths if queries.ndim == 2 else queries).astype(np.float32)


def unit_rows(vectors_RD: Half) -> Floats:
    """Stored vectors as float32 unit vectors. StaleError if one has no direction."""
    rows = vectors_RD.astype(np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not ((lengths > 0) & (lengths < np.inf)).all():
        raise _no_direction()
    rows /= lengths
    return rows


def _no_direction() -> StaleError:
    """The error for stored numbers that would rank by chance: each comparison with NaN is false."""
    return StaleError("it has vectors that are zero, NaN or infinite", hint="make it again from the images")


def cosines(query_D: Floats, vectors_CD: Half) -> Floats:
    """Exact cosines of a query with stored vectors, rounded to float32 once: equal vectors have equal scores in every
    position.

    >>> cosines(np.array([3, 4], np.float32), np.array([[3, 4], [4, -3], [0, 2]], np.float16)).round(4).tolist()
    [1.0, 0.0, 0.800000011920929]
    """
    query, length = query_D.astype(np.float64), float(np.square(query_D.astype(np.float64)).sum())
    scores_C = np.empty(len(vectors_CD), dtype=np.float32)
    step = max(1, AT_ONCE // len(query))
    for start in range(0, len(vectors_CD), step):
        vectors = vectors_CD[start : start + step].astype(np.float64)
        # Not a matrix product: in BLAS the rounding of a row depends on its position in a block.
        products = (vectors * query).sum(axis=1)
        lengths = np.sqrt(np.square(vectors).sum(axis=1) * length)
        if not ((lengths > 0) & (lengths < np.inf)).all():
            raise _no_direction()
        scores_C[start : start + step] = np.clip(products / lengths, -1, 1)
    return scores_C


def rough(
    queries_QD: Floats, blocks: Iterable[tuple[int, Floats]], k: int, is_gone: NDArray[np.bool_] | None = None
) -> list[Rows]:
    """For each query the rows that may be among its k best: all within the rounding error of the k-th.

    `blocks` are unit vectors in blocks, each with its first row; rows marked in `is_gone` are left out.
    """
    kept: list[list[tuple[Rows, Floats]]] = [[] for _ in queries_QD]
    worst = np.full(len(queries_QD), -np.inf, dtype=np.float32)
    for first, block_RD in blocks:
        scores_QR = queries_QD @ block_RD.T
        if is_gone is not None:
            scores_QR[:, is_gone[first : first + len(block_RD)]] = -np.inf
        # A block of at most k rows does not bound the score of the k-th best.
        if len(block_RD) > k:
            worst = np.maximum(worst, np.partition(scores_QR, -k, axis=1)[:, -k] - np.float32(ROUNDING))
        for parts, scores_R, lowest in zip(kept, scores_QR, worst, strict=True):
            # The second comparison drops removed rows while `lowest` is still -inf.
            rows = np.flatnonzero((scores_R >= lowest) & (scores_R > -np.inf))
            parts.append((rows + first, scores_R[rows]))
    return [best_of(parts, k) for parts in kept]


def best_of(parts: list[tuple[Rows, Floats]], k: int) -> Rows:
    """The rows that may be among the k best: all within the rounding error of the k-th score."""
    if not parts:
        return np.empty(0, dtype=np.int64)
    rows = np.concatenate([rows for rows, _ in parts])
    scores = np.concatenate([scores for _, scores in parts])
    if len(rows) <= k:
        return rows
    return rows[scores >= np.partition(scores, -k)[-k] - np.float32(ROUNDING)]


def best_first(scores_C: Floats, rows_C: Rows, k: int) -> Rows:
    """The places of the k highest scores, best first, ties by row."""
    # lexsort sorts by its last key first: by score, then by row.
    return np.lexsort((rows_C, -scores_C))[:k]


def spread_over(num_rows: int, count: int) -> list[int]:
    """Row numbers spread evenly: the middle of each of `count` equal parts; all rows if there are no more than `count`.

    >>> spread_over(10, 2), spread_over(2, 5)
    ([2, 7], [0, 1])
    """
    count = min(count, num_rows)
    return [(2 * part + 1) * num_rows // (2 * count) for part in range(count)]


def token_type(dim: int, codes: Codes) -> Element:
    """How a token is stored."""
    return np.dtype([("codes", "i1", dim), ("scale", "<f2")] if codes == "int8" else ("<f2", (dim,)))


def encoded(tokens_ND: Floats, codes: Codes) -> Elements:
    """Tokens as they are stored."""
    if codes == "float16":
        return tokens_ND.astype("<f2")
    records = np.empty(len(tokens_ND), token_type(tokens_ND.shape[1], codes))
    records["codes"], records["scale"] = int8_codes(tokens_ND), np.abs(tokens_ND).max(axis=1) / HIGHEST
    return records


def decoded(records: Elements) -> Floats:
    """Stored tokens as float32.

    >>> decoded(encoded(np.array([[0.5, -0.25]], np.float32), "int8")).round(2).tolist()
    [[0.5, -0.25]]
    """
    if records.dtype.names is None:
        return records.astype(np.float32, copy=False)
    return records["codes"].astype(np.float32) * records["scale"].astype(np.float32)[:, None]


def maxsims(query_LD: Floats, stored_N: Elements, counts_R: Rows, *, is_precise: bool = False) -> Floats:
    """The sum over the tokens of a query of the largest product with a token of each item, R; an item has `counts_R`
    tokens, one after another, at least one. If it is precise, equal items have equal scores in every position.

    Tokens are float32, or as they are stored; some are decoded at a time, because a thousand per item take gigabytes.

    >>> tokens = np.array([[1, 0], [0, 1], [0.5, 0.5]], np.float32)
    >>> maxsims(np.array([[0.5, 0], [0, 0.5]], np.float32), tokens, np.array([2, 1])).round(2).tolist()
    [1.0, 0.5]
    """
    words_LD: NDArray[Any] = query_LD[query_LD.any(axis=1)]
    if is_precise:
        words_LD = words_LD.astype(np.float64)
    scores_R = np.empty(len(counts_R), dtype=np.float32)
    stops_R = np.cumsum(counts_R)
    starts_R = stops_R - counts_R
    # Neither the products nor the numbers of the tokens are more than AT_ONCE, unless those of one item are.
    num_tokens = max(1, AT_ONCE // max(words_LD.shape))
    row = 0
    while row < len(counts_R):
        stop = max(row + 1, int(np.searchsorted(stops_R, starts_R[row] + num_tokens, side="right")))
        tokens_ND = decoded(stored_N[starts_R[row] : stops_R[stop - 1]]).astype(words_LD.dtype, copy=False)
        products_NL = tokens_ND @ words_LD.T
        largest_RL = _largest(products_NL, counts_R[row:stop])
        if is_precise:
            largest_RL = _precise(words_LD, tokens_ND, counts_R[row:stop], products_NL, largest_RL)
        scores_R[row:stop] = largest_RL.sum(axis=1)
        row = stop
    if not np.isfinite(scores_R).all():
        raise _no_direction()
    return scores_R


def _largest(products_NL: NDArray[Any], counts_R: Rows) -> NDArray[Any]:
    """The largest product of each item with each token of a query, R x L."""
    if (counts_R == counts_R[0]).all():
        return products_NL.reshape(len(counts_R), counts_R[0], -1).max(axis=1)
    return np.maximum.reduceat(products_NL, np.cumsum(counts_R) - counts_R, axis=0)


def _precise(
    query_LD: NDArray[np.float64],
    tokens_ND: NDArray[np.float64],
    counts_R: Rows,
    products_NL: NDArray[np.float64],
    largest_RL: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The largest products, with a rounding that does not depend on the position of a token: products that may be the
    largest are computed again, as in `cosines`."""
    scale_N, scale_L = np.linalg.norm(tokens_ND, axis=1), np.linalg.norm(query_LD, axis=1)
    least_RL = largest_RL - SLACK * scale_N.max() * scale_L
    row_N = np.repeat(np.arange(len(counts_R)), counts_R)
    near_N, near_L = np.nonzero(products_NL >= least_RL[row_N])
    precise_RL = np.full_like(largest_RL, -np.inf)
    step = max(1, AT_ONCE // query_LD.shape[1])
    for start in range(0, len(near_N), step):
        token, word = near_N[start : start + step], near_L[start : start + step]
        np.maximum.at(precise_RL, (row_N[token], word), (tokens_ND[token] * query_LD[word]).sum(axis=1))
    return precise_RL
