"""Images of one split in another."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dcdctl.core import config
from dcdctl.core.data import near_duplicates
from dcdctl.core.data.near_duplicates import Match, Overlap
from dcdctl.core.data.shards import RowFacts


def split(name, digests, hashes):
    return [
        RowFacts(f"{name}/{i}", 1, b"", bytes([digest]), bits)
        for i, (digest, bits) in enumerate(zip(digests, hashes, strict=True))
    ]


TRAIN = split("train", [1, 2, 3, 2, 1], [0, 0xFF, 0xFF00, 0xFF, 0])


def test_same_files_and_near_images_are_counted_once_each():
    # test/0 is the file of train/1 and of train/3, test/1 is 2 bits from train/2, test/2 is 4 from the nearest, test/3
    # looks like train/0.
    test = split("test", [2, 9, 8, 7], [0xFF, 0xFF03, 0xF0, 0])
    leakage = near_duplicates.find_leakage({"train": TRAIN, "test": test})
    assert leakage.overlaps == {
        "test in train": Overlap(
            same_file=1,
            near=2,
            examples=(
                Match(image="test/0", like="train/1", bits=None),
                Match(image="test/1", like="train/2", bits=2),
                Match(image="test/3", like="train/0", bits=0),
            ),
        )
    }


def test_every_pair_of_present_splits_is_compared():
    val = split("val", [1], [0])
    leakage = near_duplicates.find_leakage({"train": TRAIN, "val": val, "test": split("test", [50], [2**64 - 1])})
    assert list(leakage.overlaps) == ["test in train", "val in train", "test in val"]
    assert [overlap.same_file for overlap in leakage.overlaps.values()] == [0, 1, 0]
    assert not near_duplicates.find_leakage({"train": TRAIN}).overlaps
    assert json.loads(json.dumps(config.to_table(leakage)))["overlaps"]["val in train"]["examples"] == [
        {"image": "val/0", "like": "train/0", "bits": None}
    ]


def test_images_of_more_different_bits_are_not_near():
    bits = [2 ** (near_duplicates.NEAR_BITS + more) - 1 for more in (0, 1)]
    leakage = [
        near_duplicates.find_leakage({"train": split("train", [1], [0]), "test": split("test", [9], [bit])})
        for bit in bits
    ]
    assert [found.overlaps["test in train"].near for found in leakage] == [1, 0]


def test_only_the_first_few_are_shown():
    many = split("test", [2] * 30, [0xFF] * 30)
    overlap = near_duplicates.find_leakage({"train": TRAIN, "test": many}).overlaps["test in train"]
    assert (overlap.same_file, overlap.near, len(overlap.examples)) == (30, 0, near_duplicates.NUM_EXAMPLES)


def test_an_empty_split_has_nothing_in_common():
    empty = split("any", [], [])
    for splits in ({"train": TRAIN, "test": empty}, {"train": empty, "test": TRAIN}):
        overlap = near_duplicates.find_leakage(splits).overlaps["test in train"]
        assert (overlap.same_file, overlap.near) == (0, 0)


@pytest.mark.parametrize(("num_a", "num_b"), [(1, 1), (7, 300), (300, 7)])
def test_the_nearest_equals_the_full_matrix(num_a, num_b, monkeypatch):
    monkeypatch.setattr(near_duplicates, "NEAR_BITS", 64)
    rng = np.random.default_rng(0)
    hashes_A, hashes_B = (
        [int(n) & 0xFFF for n in rng.integers(0, 2**64, num, dtype=np.uint64)] for num in (num_a, num_b)
    )
    seen = near_duplicates.SeenImages()
    found = []
    for i, bits in enumerate(hashes_B):
        seen.add(str(i), bytes([i // 256, i % 256]), bits)
        found = [seen.find("", b"", hash_bits) for hash_bits in hashes_A] if i in (0, num_b - 1) else found
    distance_AB = np.array([[(a ^ b).bit_count() for b in hashes_B] for a in hashes_A])
    assert [match.like for match in found] == list(map(str, distance_AB.argmin(axis=1)))
    assert [match.bits for match in found] == distance_AB.min(axis=1).tolist()
