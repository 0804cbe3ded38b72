"""What is no negative although a miner gives it: a caption of the very image, a text that says the same, a picture that is the same.

Indices are those of the corpus: an image is a row of its split, a caption counts captions in row order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dcdctl.core.data import Corpus, difference_hash
from dcdctl.core.progress import Track, silent

Index = NDArray[np.int64]
Reasons = NDArray[np.uint8]
"""For each pair 0 where it may be a negative, else 1 plus the place of the first guard against it."""
SAME_IMAGE, EQUAL_TEXT, DUPLICATE = "same image", "equal text", "near-duplicate pictures"


class Guards:
    """Why an image and a caption are no negatives of each other; called with arrays of one shape."""

    def __init__(self, owner: Index, text_class: Index, hash_I: NDArray[np.uint64] | None = None, duplicate_bits: int = 0) -> None:
        self._owner, self._class, self._num_classes = owner, text_class, int(text_class.max()) + 1
        self._true_keys = np.unique(owner * self._num_classes + text_class)
        self._is_shared_T = np.bincount(text_class)[text_class] > 1
        self._hash_I, self._bits = hash_I, duplicate_bits
        self.names = (SAME_IMAGE, EQUAL_TEXT) if hash_I is None else (SAME_IMAGE, EQUAL_TEXT, DUPLICATE)

    def __call__(self, image: Index, text: Index) -> Reasons:
        """For images as queries."""
        reasons = np.zeros(image.shape, dtype=np.uint8)
        if self._hash_I is not None:
            reasons[np.bitwise_count(self._hash_I[image] ^ self._hash_I[self._owner[text]]) <= self._bits] = 3
        # Most texts are said once; looking the others up takes time where there are millions of pairs.
        shared = np.nonzero(self._is_shared_T[text])
        reasons[shared] = np.where(self._says_the_same(image[shared], text[shared]), 2, reasons[shared])
        reasons[self._owner[text] == image] = 1
        return reasons

    def turned(self, text: Index, image: Index) -> Reasons:
        """The same, for captions as queries."""
        return self(image, text)

    def _says_the_same(self, image: Index, text: Index) -> NDArray[np.bool_]:
        keys = image * self._num_classes + self._class[text]
        place = np.minimum(np.searchsorted(self._true_keys, keys), len(self._true_keys) - 1)
        return self._true_keys[place] == keys


def picture_hashes(corpus: Corpus, track: Track = silent) -> NDArray[np.uint64]:
    """The difference hash of every picture."""
    hashes = []
    with track("compare pictures", total=corpus.num_images, unit="images") as advance:
        for image in range(corpus.num_images):
            hashes.append(difference_hash(corpus.images([image])[0]))
            advance(1)
    return np.array(hashes, dtype=np.uint64)
