"""Leakage between splits: images of one split that are also in another, as the same file or as a copy that was saved
again.

Files are compared by the SHA-256 of their bytes, images by `images.difference_hash`. A match is a hint for a person,
not a verdict. Among 24 million pairs of Flickr8k photos, two were within 6 bits: one photo twice (0 bits) and one scene
photographed twice (5 bits). Pairs at 7 to 9 bits had nothing in common. Copies at JPEG quality 50, at half the size, or
enlarged stay within 3 bits in 98 of 100 cases; copies with 1% cut off each side in 86, with 2% in 54. Heavier cropping
and mirroring are not found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from dcdctl.core.config import Key
from dcdctl.core.data.shards import RowFacts

# The first is the one that makes a published number wrong: the model has seen the images that it is measured on.
PAIRS = (("test", "train"), ("val", "train"), ("test", "val"))
NEAR_BITS = 3
"""Images count as near up to this distance. At COCO's size (5,000 by 113,287 photos), extrapolation gives a few to ten
unlike pairs."""
# Enough to judge by eye whether the matches are real.
NUM_EXAMPLES = 5
_BLOCK = 1 << 16
"""Pairs of hashes compared at a time, so that the intermediate results stay in the processor's cache."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """An image, and the image of the other split that it equals or looks like."""

    image: str
    like: str
    bits: int | None
    """The number of bits, of 64, in which their hashes differ; None if the files are the same."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """The number of images of one split that are in another one; each image is counted once."""

    same_file: int
    near: int
    """Images whose file is not in the other split, but one that looks the same."""
    examples: tuple[Match, ...]
    """The first few, the same files first."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """What a pool was left without, because something is measured on it."""

    same_file: int
    near: int
    """Images that look like a measured one, in another file."""
    texts: int
    examples: tuple[Match, ...]
    """The first few images, the same files first."""
    example_texts: tuple[str, ...]

    @staticmethod
    def of(matches: Sequence[Match], texts: Sequence[str]) -> LeftOut:
        """The counts and the first of images and texts that were left out."""
        same = [match for match in matches if match.bits is None]
        near = [match for match in matches if match.bits is not None]
        return LeftOut(
            same_file=len(same),
            near=len(near),
            texts=len(texts),
            examples=tuple([*same, *near][:NUM_EXAMPLES]),
            example_texts=tuple(texts[:NUM_EXAMPLES]),
        )

    def __str__(self) -> str:
        first = ""
        if self.examples:
            first = f"; the first: {self.examples[0].image}, {self.examples[0].like}"
        elif self.example_texts:
            first = f"; the first: {self.example_texts[0][:80]}"
        counts = f"{self.same_file:,} images by their files, {self.near:,} that look the same, {self.texts:,} texts"
        return f"{counts}, which are measured on{first}"


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """Images that splits share."""

    near_bits: int = NEAR_BITS
    """Images count as near if their hashes differ in at most so many bits."""
    overlaps: dict[str, Overlap] = field(default_factory=dict)
    """By pair of splits that the corpus has: "test in train", "val in train", "test in val"."""
    repeats: dict[str, int] = field(default_factory=dict)
    """By split: images with the same file as an earlier row of the split."""

    left_out: Annotated[dict[str, LeftOut], Key(omits_default=True)] = field(default_factory=dict)
    """By split that is a pool to train on: what it was left without."""

    def facts(self) -> list[tuple[str, str]]:
        """Names and values, in words; empty if no split shares an image with another and none has one twice."""
        facts = []
        for pair, overlap in self.overlaps.items():
            if overlap.same_file or overlap.near:
                first = overlap.examples[0]
                counts = f"{overlap.same_file:,} the same file, {overlap.near:,} look the same"
                facts.append((f"images of {pair}", f"{counts}; the first: {first.image} and {first.like}"))
        repeats = [
            (f"repeated images in {split}", f"{count:,}, by their files")
            for split, count in self.repeats.items()
            if count
        ]
        left_out = [
            (f"left out of {split}", str(left))
            for split, left in self.left_out.items()
            if left.same_file or left.near or left.texts
        ]
        return facts + repeats + left_out


def find_leakage(splits: Mapping[str, Sequence[RowFacts]]) -> Leakage:
    """The images that test and val share with train and with each other, and repeats within a split."""
    overlaps = {
        f"{held_out} in {other}": _overlap(splits[held_out], splits[other])
        for held_out, other in PAIRS
        if held_out in splits and other in splits
    }
    repeats = {split: len(rows) - len({row.image_digest for row in rows}) for split, rows in splits.items()}
    return Leakage(overlaps=overlaps, repeats=repeats)


def nearest_hashes(
    hashes_A: NDArray[np.uint64], hashes_B: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each hash of A: the index of the nearest hash of B, the first of equally near ones, and the number of bits in
    which they differ.

    >>> index, bits = nearest_hashes(np.array([7, 8], np.uint64), np.array([0, 3], np.uint64))
    >>> index.tolist(), bits.tolist()
    ([1, 0], [1, 1])
    """
    nearest_A = np.zeros(len(hashes_A), dtype=np.int64)
    bits_A = np.full(len(hashes_A), 65, dtype=np.int64)  # more than any distance of 64-bit hashes
    # As many rows of A as fit beside one block of B.
    rows = max(1, _BLOCK // max(1, min(len(hashes_B), _BLOCK)))
    for start in range(0, len(hashes_A), rows):
        part = slice(start, start + rows)
        for offset in range(0, len(hashes_B), _BLOCK):
            distance_RC = np.bitwise_count(hashes_A[part, None] ^ hashes_B[None, offset : offset + _BLOCK])
            nearest_R = distance_RC.argmin(axis=1)
            bits_R = distance_RC[np.arange(len(nearest_R)), nearest_R]
            # Strictly nearer, so that the first of equally near hashes wins across blocks too.
            is_nearer_R = bits_R < bits_A[part]
            nearest_A[part] = np.where(is_nearer_R, nearest_R + offset, nearest_A[part])
            bits_A[part] = np.where(is_nearer_R, bits_R, bits_A[part])
    return nearest_A, bits_A


def _overlap(held_out: Sequence[RowFacts], other: Sequence[RowFacts]) -> Overlap:
    # Reversed, so that the first of several rows with the same file wins.
    first = {row.image_digest: row for row in reversed(other)}
    nearest, bits = nearest_hashes(
        np.array([row.hash for row in held_out], np.uint64), np.array([row.hash for row in other], np.uint64)
    )
    same, near = [], []
    for row, place, distance in zip(held_out, nearest.tolist(), bits.tolist(), strict=True):
        if row.image_digest in first:
            same.append(Match(image=row.image_id, like=first[row.image_digest].image_id, bits=None))
        elif distance <= NEAR_BITS:
            near.append(Match(image=row.image_id, like=other[place].image_id, bits=distance))
    return Overlap(same_file=len(same), near=len(near), examples=tuple([*same, *near][:NUM_EXAMPLES]))
