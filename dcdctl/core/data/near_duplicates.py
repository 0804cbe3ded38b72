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
from typing import Annotated, Any, Self

import numpy as np

from dcdctl.core.config import OMITTED
from dcdctl.core.data.shards import RowFacts

# The first is the one that makes a published number wrong: the model has seen the images that it is measured on.
PAIRS = (("test", "train"), ("val", "train"), ("test", "val"))
NEAR_BITS = 3
"""Images count as near up to this distance. At COCO's size (5,000 by 113,287 photos), extrapolation gives a few to ten
unlike pairs."""
# Enough to judge by eye whether the matches are real.
NUM_EXAMPLES = 5


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

    @classmethod
    def of(cls, matches: Sequence[Match], **more: Any) -> Self:
        """The counts and the first of matches."""
        ordered = sorted(matches, key=lambda match: match.bits is not None)
        same = sum(match.bits is None for match in matches)
        return cls(same_file=same, near=len(matches) - same, examples=tuple(ordered[:NUM_EXAMPLES]), **more)

    def __str__(self) -> str:
        first = "".join(f"; the first: {match.image} and {match.like}" for match in self.examples[:1])
        return f"{self.same_file:,} the same file, {self.near:,} look the same{first}"


@dataclass(frozen=True, kw_only=True)
class LeftOut(Overlap):
    """What a pool was left without, because something is measured on it: images, and texts."""

    texts: int
    example_texts: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.texts:,} texts that are measured on, and images: {super().__str__()}"


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """Images that splits share."""

    near_bits: int = NEAR_BITS
    """Images count as near if their hashes differ in at most so many bits."""
    overlaps: dict[str, Overlap] = field(default_factory=dict)
    """By pair of splits that the corpus has: "test in train", "val in train", "test in val"."""
    left_out: Annotated[dict[str, LeftOut], OMITTED] = field(default_factory=dict)
    """By split that is a pool to train on: what it was left without."""

    def facts(self) -> list[tuple[str, str]]:
        """Names and values, in words; empty if no split shares an image with another."""
        facts = [(f"images of {pair}", str(found)) for pair, found in self.overlaps.items() if found.examples]
        for split, left in self.left_out.items():
            if left.examples or left.example_texts:
                facts.append((f"left out of {split}", str(left)))
        return facts


class SeenImages:
    """Images that others are compared with."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._first: dict[bytes, int] = {}
        self._hashes: list[int] = []
        self._array = np.empty(0, np.uint64)

    def add(self, name: str, digest: bytes, hash_bits: int) -> None:
        """Add an image by the SHA-256 of its file and its difference hash."""
        self._first.setdefault(digest, len(self._names))
        self._names.append(name)
        self._hashes.append(hash_bits)

    def find(self, image_id: str, digest: bytes, hash_bits: int) -> Match | None:
        """The first image with the same file, else the first of those that look most like it; None if none is near."""
        if (same := self._first.get(digest)) is not None:
            return Match(image=image_id, like=self._names[same], bits=None)
        if not self._names:
            return None
        if len(self._array) < len(self._hashes):
            self._array = np.array(self._hashes, np.uint64)
        bits = np.bitwise_count(self._array ^ np.uint64(hash_bits))
        nearest = int(bits.argmin())
        is_near = bits[nearest] <= NEAR_BITS
        return Match(image=image_id, like=self._names[nearest], bits=int(bits[nearest])) if is_near else None


def find_leakage(splits: Mapping[str, Sequence[RowFacts]]) -> Leakage:
    """The images that test and val share with train and with each other."""
    overlaps = {}
    for held_out, other in PAIRS:
        if held_out in splits and other in splits:
            seen = SeenImages()
            for row in splits[other]:
                seen.add(row.image_id, row.image_digest, row.hash)
            found = (seen.find(row.image_id, row.image_digest, row.hash) for row in splits[held_out])
            overlaps[f"{held_out} in {other}"] = Overlap.of([match for match in found if match is not None])
    return Leakage(overlaps=overlaps)
