"""Codes of vectors: their numbers, their scores, and their bytes."""

from __future__ import annotations

import numpy as np
import pytest

from dcdctl.core.scoring.quantize import binary_codes, bytes_per_vector, decoded, int8_codes


@pytest.fixture
def vectors_ND() -> np.ndarray:
    """Twelve unit vectors and a zero vector."""
    vectors = np.random.default_rng(0).normal(size=(13, 19)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[-1] = 0
    return vectors


def test_an_int8_code_has_the_largest_number_at_127_and_the_others_in_proportion(vectors_ND):
    codes_ND = int8_codes(vectors_ND)
    assert codes_ND.dtype == np.int8
    assert np.abs(codes_ND.astype(int)).max(axis=1).tolist() == [127] * 12 + [0]
    largest_N1 = np.abs(vectors_ND).max(axis=1, keepdims=True)
    np.testing.assert_allclose(codes_ND * largest_N1 / 127, vectors_ND, atol=largest_N1.max() / 254 + 1e-6)
    # The code of a vector depends on that vector alone.
    assert all(int8_codes(vectors_ND[[row]])[0].tolist() == codes_ND[row].tolist() for row in range(13))


def test_scores_of_codes_are_cosines_and_shares_of_equal_bits(vectors_ND):
    codes_ND, bits_ND = int8_codes(vectors_ND).astype(float), vectors_ND > 0
    lengths_N = np.linalg.norm(codes_ND, axis=1)
    cosines_NN = codes_ND @ codes_ND.T / np.maximum(np.outer(lengths_N, lengths_N), 1)
    equal_NN = (bits_ND[:, None] == bits_ND).mean(axis=2)
    for kind, expected in (
        ("float32", vectors_ND @ vectors_ND.T),
        ("int8", cosines_NN),
        ("binary", 2 * equal_NN - 1),
    ):
        as_floats = decoded(vectors_ND, kind)
        assert as_floats.dtype == np.float32
        np.testing.assert_allclose(as_floats @ as_floats.T, expected, atol=1e-5)


def test_the_bytes_of_a_vector_are_those_of_its_code(vectors_ND):
    codes = {"float32": vectors_ND, "int8": int8_codes(vectors_ND), "binary": binary_codes(vectors_ND)}
    for kind, code in codes.items():
        assert bytes_per_vector(19, kind) == code[0].nbytes
    unpacked = np.unpackbits(codes["binary"], axis=1)
    assert unpacked[:, :19].tolist() == (vectors_ND > 0).tolist()
    assert not unpacked[:, 19:].any()
