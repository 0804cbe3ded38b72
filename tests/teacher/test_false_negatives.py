"""The filter of false negatives against a plain loop over images, captions and bits."""

from __future__ import annotations

import numpy as np
import pytest

from dcdctl.core.teacher import false_negatives
from dcdctl.core.teacher.false_negatives import FalseNegativeFilter, false_negative_filter


def reason_by_hand(image: int, text: int, owner: list[int], classes: list[int], hashes: list[int], bits: int) -> int:
    if owner[text] == image:
        return 1
    if any(classes[other] == classes[text] for other in range(len(owner)) if owner[other] == image):
        return 2
    return 3 if (hashes[image] ^ hashes[owner[text]]).bit_count() <= bits else 0


@pytest.mark.parametrize("bits", [0, 1, 2])
def test_the_reason_of_every_pair_is_that_of_a_loop(bits):
    seen = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        num_images = int(rng.integers(2, 6))
        owner = np.repeat(np.arange(num_images), rng.integers(1, 4, num_images))
        # Texts of all images and few of them, so that the largest key is at times a true one and at times none.
        _, classes = np.unique(rng.integers(0, 4, len(owner)), return_inverse=True)
        hashes = rng.integers(0, 8, num_images).astype(np.uint64)
        pairs = np.indices((num_images, len(owner)))
        found = FalseNegativeFilter(owner, classes, hashes, bits)(*pairs)
        expected = [
            [
                reason_by_hand(image, text, owner.tolist(), classes.tolist(), hashes.tolist(), bits)
                for text in range(len(owner))
            ]
            for image in range(num_images)
        ]
        assert found.tolist() == expected
        seen |= set(found.ravel().tolist())
    assert seen == {0, 1, 2, 3}


def test_with_0_bits_only_equal_hashes_are_duplicates(corpus):
    hashes = np.arange(corpus.num_images, dtype=np.uint64) * 16
    hashes[1], hashes[2] = hashes[0], hashes[0] + 1
    try:
        false_negatives._HASHES[corpus] = hashes
        found = false_negative_filter(corpus, 0)
        assert found.duplicates_of(0) == {0, 1}
        assert found.knows_duplicates
        first_of = [corpus.captions_of(image)[0] for image in range(3)]
        reasons = FalseNegativeFilter(corpus.caption_image, np.arange(corpus.num_captions), hashes)(
            np.zeros(3, dtype=np.int64), np.array(first_of)
        )
        assert reasons.tolist() == [1, 3, 0]
    finally:
        del false_negatives._HASHES[corpus]
    assert false_negative_filter(corpus, None).duplicates_of(0) == frozenset()
