"""False negatives: candidates that a miner proposes although they match the query.

A caption of the same image, a caption with equal text, and a caption of a duplicate image are no negatives. Indices
follow the corpus: an image is a row of its split, a caption counts captions in row order.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from dcdctl.core.data import Corpus, Indices, difference_hash, text_key
from dcdctl.core.progress import Track, silent

Reasons = NDArray[np.uint8]
"""For each pair: 0 if it may be a negative, else the 1-based position of its reason in `FalseNegativeFilter.names`."""
SAME_IMAGE, EQUAL_TEXT, DUPLICATE_IMAGE = "same image", "equal text", "near-duplicate images"


class FalseNegativeFilter:
    """Tells why an image and a caption are no negatives of each other. Call it with two index arrays of one shape."""

    def __init__(
        self,
        caption_image: Indices,
        text_class: Indices,
        hash_I: NDArray[np.uint64] | None = None,
        duplicate_bits: int = 0,
    ) -> None:
        """`text_class` gives equal texts the same number. Images whose `hash_I` differ in at most `duplicate_bits` bits
        are duplicates."""
        self._caption_image, self._num_classes = caption_image, int(text_class.max(initial=-1)) + 1
        self.text_class = text_class
        self._true_keys = np.unique(caption_image * self._num_classes + text_class)
        self.is_repeated_T = np.bincount(text_class)[text_class] > 1
        """Whether another caption has equal text."""
        self._hash_I, self._bits = hash_I, duplicate_bits
        self.names = (SAME_IMAGE, EQUAL_TEXT) if hash_I is None else (SAME_IMAGE, EQUAL_TEXT, DUPLICATE_IMAGE)

    @property
    def knows_duplicates(self) -> bool:
        """Whether duplicate images are looked for."""
        return self._hash_I is not None

    def duplicates_of(self, image: int) -> frozenset[int]:
        """The image and its duplicates; empty if duplicates are not looked for."""
        if self._hash_I is None:
            return frozenset()
        return frozenset(np.flatnonzero(np.bitwise_count(self._hash_I ^ self._hash_I[image]) <= self._bits).tolist())

    def with_owners(self, caption_image: Indices) -> FalseNegativeFilter:
        """The same texts and images, where each text belongs to an image of `caption_image`: in a pool, the one that a
        teacher picked for it."""
        return FalseNegativeFilter(caption_image, self.text_class, self._hash_I, self._bits)

    def __call__(self, image: Indices, text: Indices) -> Reasons:
        """The reason of each pair; images are the queries."""
        reasons = np.zeros(image.shape, dtype=np.uint8)
        # From the last reason to the first, so that a pair with several gets the first.
        if self._hash_I is not None:
            owner = self._caption_image[text]
            is_duplicate = np.bitwise_count(self._hash_I[image] ^ self._hash_I[owner]) <= self._bits
            # A text of a pool may belong to no image.
            reasons[is_duplicate & (owner >= 0)] = 3
        # Most texts occur once. Looking up the others takes time when there are millions of pairs.
        repeated = np.nonzero(self.is_repeated_T[text])
        keys = image[repeated] * self._num_classes + self.text_class[text[repeated]]
        position = np.minimum(np.searchsorted(self._true_keys, keys), len(self._true_keys) - 1)
        reasons[repeated] = np.where(self._true_keys[position] == keys, 2, reasons[repeated])
        reasons[self._caption_image[text] == image] = 1
        return reasons

    def for_captions(self, text: Indices, image: Indices) -> Reasons:
        """The reason of each pair; captions are the queries."""
        return self(image, text)


def false_negative_filter(corpus: Corpus, duplicate_bits: int | None, track: Track = silent) -> FalseNegativeFilter:
    """The filter of a corpus; `duplicate_bits` is that of a recipe's `[candidates]`, and None looks for no duplicate
    images."""
    hash_I = None if duplicate_bits is None else image_hashes(corpus, track)
    return FalseNegativeFilter(corpus.caption_image, text_classes(corpus.captions), hash_I, duplicate_bits or 0)


def text_classes(captions: list[str]) -> Indices:
    """A number for each caption; captions with equal text (`data.text_key`) get the same number."""
    seen: dict[str, int] = {}
    return np.array([seen.setdefault(text_key(text), len(seen)) for text in captions], dtype=np.int64)


# Weak, so that hashes go with the corpus that they are of.
_HASHES: WeakKeyDictionary[Corpus, NDArray[np.uint64]] = WeakKeyDictionary()


def image_hashes(corpus: Corpus, track: Track) -> NDArray[np.uint64]:
    """The difference hash of every image; every image is decoded, once per process and opened corpus."""
    if corpus not in _HASHES:
        hashes = []
        with track("compare images", total=corpus.num_images, unit="images") as advance:
            for image in range(corpus.num_images):
                hashes.append(difference_hash(corpus.images([image])[0]))
                advance(1)
        _HASHES[corpus] = np.array(hashes, dtype=np.uint64)
    return _HASHES[corpus]
