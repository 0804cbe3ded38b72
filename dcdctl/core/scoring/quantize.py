"""Vectors of fewer bytes: int8 and binary codes of unit vectors, as an index scans them and as an evaluation measures
them.

- int8: each vector has its own scale, which brings its largest number to 127 or -127, and is compared by the cosine
  of codes. The code of a vector depends on that vector alone: nothing is calibrated, and an index that grows keeps its
  codes.
- binary: a bit per number, 1 if it is above 0. Codes are compared by the number of equal bits.

Only NumPy is imported here, because an index is opened before torch is.
Shape letters: N vectors, D numbers of a vector, B bytes of a binary code.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

VectorKind = Literal["float32", "int8", "binary"]
HIGHEST = 127
"""The largest value of a signed byte whose negative is one too."""


def int8_codes(vectors_ND: NDArray[np.float32]) -> NDArray[np.int8]:
    """The int8 codes of vectors, N x D; a zero vector stays zero.

    >>> int8_codes(np.array([[0.6, -0.8], [1.0, 0.1]], np.float32)).tolist()
    [[95, -127], [127, 13]]
    """
    largest_N1 = np.abs(vectors_ND).max(axis=1, keepdims=True)
    scale_N1 = np.divide(HIGHEST, largest_N1, out=np.zeros_like(largest_N1), where=largest_N1 > 0)
    return np.rint(vectors_ND * scale_N1).astype(np.int8)


def binary_codes(vectors_ND: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The binary codes of vectors, eight numbers per byte, N x B; zeros fill the last byte.

    >>> binary_codes(np.array([[0.1, -0.1, 0.2, 0, 0, 0, 0, 0.3, -0.4]], np.float32)).tolist()
    [[161, 0]]
    """
    return np.packbits(vectors_ND > 0, axis=1)


def decoded(vectors_ND: NDArray[np.float32], kind: VectorKind) -> NDArray[np.float32]:
    """Unit vectors whose inner products are the scores of the codes of vectors, N x D.

    For binary codes the score is the share of equal bits minus the share of unequal ones.

    >>> decoded(np.array([[0.8, -0.6], [0.1, 0.9]], np.float32), "binary").astype(float).round(4).tolist()
    [[0.7071, -0.7071], [0.7071, 0.7071]]
    """
    if kind == "binary":
        # All numbers are 1 or -1, so the length is the root of their count.
        return np.where(vectors_ND > 0, 1, -1).astype(np.float32) / np.float32(vectors_ND.shape[1] ** 0.5)
    if kind == "int8":
        codes_ND = int8_codes(vectors_ND).astype(np.float32)
        # A code is at least 127 long, or that of a zero vector, which stays zero.
        return codes_ND / np.maximum(np.linalg.norm(codes_ND, axis=1, keepdims=True), 1)
    return vectors_ND


def bytes_per_vector(dims: int, kind: VectorKind) -> int:
    """Size of a vector, or of its code.

    >>> [bytes_per_vector(100, kind) for kind in ("float32", "int8", "binary")]
    [400, 100, 13]
    """
    return {"float32": 4 * dims, "int8": dims, "binary": -(-dims // 8)}[kind]
