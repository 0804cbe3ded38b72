"""False negatives: candidates that a miner proposes although they match the query.

A caption of the same image, a caption with equal text, and a caption of a duplicate image are no negatives. Indices are those of the
corpus: an image is a row of its split, a caption counts captions in row order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dcdctl.core.data import Corpus, Index, difference_hash
from dcdctl.core.progress import Track, silent

Reasons = NDArray[np.uint8]
"""For each pair: 0 if it may be a negative, else the 1-based position of its reason in `FalseNegativeFilter.names`."""
SAME_IMAGE, EQUAL_TEXT, DUPLICATE_IMAGE = "same image", "equal text", "near-duplicate images"


class FalseNegativeFilter:
    """Tells why an image and a caption are no negatives of each other. Call it with two index arrays of one shape."""

    def __init__(self, caption_image: Index, text_class: Index, hash_I: NDArray[np.uint64] | None = None, duplicate_bits: int = 0) -> None:
        """`text_class` gives equal texts the same number. Images whose `hash_I` differ in at most `duplicate_bits` bits are duplicates."""
        self._caption_image, self._class, self._num_classes = caption_image, text_class, int(text_class.max()) + 1
        self._true_keys = np.unique(caption_image * self._num_classes + text_class)
        self._is_repeated_T = np.bincount(text_class)[text_class] > 1
        self._hash_I, self._bits = hash_I, duplicate_bits
        self.names = (SAME_IMAGE, EQUAL_TEXT) if hash_I is None else (SAME_IMAGE, EQUAL_TEXT, DUPLICATE_IMAGE)

    def __call__(self, image: Index, text: Index) -> Reasons:
        """The reason of each pair; images are the queries."""
        reasons = np.zeros(image.shape, dtype=np.uint8)
        # From the last reason to the first, so that a pair with several gets the first.
        if self._hash_I is not None:
            reasons[np.bitwise_count(self._hash_I[image] ^ self._hash_I[self._caption_image[text]]) <= self._bits] = 3
        # Most texts occur once. Looking up the others takes time when there are millions of pairs.
        repeated = np.nonzero(self._is_repeated_T[text])
        reasons[repeated] = np.where(self._has_equal_text(image[repeated], text[repeated]), 2, reasons[repeated])
        reasons[self._caption_image[text] == image] = 1
        return reasons

    def for_captions(self, text: Index, image: Index) -> Reasons:
        """The reason of each pair; captions are the queries."""
        return self(image, text)

    def _has_equal_text(self, image: Index, text: Index) -> NDArray[np.bool_]:
        keys = image * self._num_classes + self._class[text]
        position = np.minimum(np.searchsorted(self._true_keys, keys), len(self._true_keys) - 1)
        return self._true_keys[position] == keys


def image_hashes(corpus: Corpus, track: Track = silent) -> NDArray[np.uint64]:
    """The difference hash of every image."""
    hashes = []
    with track("compare images", total=corpus.num_images, unit="images") as advance:
        for image in range(corpus.num_images):
            hashes.append(difference_hash(corpus.images([image])[0]))
            advance(1)
    return np.array(hashes, dtype=np.uint64)
