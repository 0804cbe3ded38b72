"""Pictures of one split that stand in another too: the same file, or the same picture saved again.

A file is known by the SHA-256 of its bytes, a look by `pictures.difference_hash`. What is found is a hint for a person, no verdict.
Of 24 million pairs of Flickr8k photos two were within 6 bits: one photo twice (0 bits) and one scene taken twice (5); those at 7 to 9
bits had nothing in common. Copies at JPEG quality 50, at half the size, or enlarged stay within 3 bits in 98 of 100 cases, those with 1%
cut off each side in 86, with 2% in 54: heavier cropping, and mirroring, go unseen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAIRS = (("test", "train"), ("val", "train"), ("test", "val"))
NEAR_BITS = 3
"""At the size of COCO, 5,000 by 113,287 photos, a few to ten of unlike ones may be this near, by extrapolation."""
NUM_EXAMPLES = 5
_BLOCK = 1 << 16
"""Hashes compared at a time: what is in work stays in the processor's cache."""


@dataclass(frozen=True, kw_only=True)
class SplitImages:
    """The pictures of a split, in the order of its rows."""

    image_ids: Sequence[str]
    digests: Sequence[bytes] | Sequence[str]
    """The SHA-256 of each image file, as bytes or in hex, the same in every split."""
    hashes: NDArray[np.uint64]
    """The difference hash of each picture."""

    def __post_init__(self) -> None:
        if not len(self.image_ids) == len(self.digests) == len(self.hashes):
            raise ValueError(f"{len(self.image_ids)} ids, {len(self.digests)} digests and {len(self.hashes)} hashes")


@dataclass(frozen=True, kw_only=True)
class Match:
    """A picture, and the one in the other split that it is like."""

    image: str
    like: str
    bits: int | None
    """How many of 64 bits their hashes differ in; None if the files are the same."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How many pictures of one split are in another one, each counted once."""

    same_file: int
    near: int
    """Of those whose file is not there: the ones that look the same as one that is."""
    examples: tuple[Match, ...]
    """The first few, the same files first."""


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """What `find` found."""

    near_bits: int
    """Pictures whose hashes differ in no more bits than this count as near."""
    overlaps: dict[str, Overlap]
    """By pair of splits: "test in train", "val in train", "test in val"; those of which both splits are there."""
    repeats: dict[str, int]
    """By split: pictures whose file stands in an earlier row of the same split."""

    @property
    def is_clean(self) -> bool:
        """Whether no split has a picture of another."""
        return not any(overlap.same_file or overlap.near for overlap in self.overlaps.values())


def find(splits: Mapping[str, SplitImages], near_bits: int = NEAR_BITS) -> Leakage:
    """The pictures that test and val share with train and with each other, and repeats within a split."""
    overlaps = {
        f"{one} in {other}": _overlap(splits[one], splits[other], near_bits) for one, other in PAIRS if one in splits and other in splits
    }
    repeats = {split: len(part.digests) - len(set(part.digests)) for split, part in splits.items()}
    return Leakage(near_bits=near_bits, overlaps=overlaps, repeats=repeats)


def leakage_facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values, in words, of a `Leakage` as `corpus.json` has it; empty where no split shares a picture with another.

    >>> leakage_facts({"overlaps": {"test in train": {"same_file": 1, "near": 0, "examples": [{"image": "a", "like": "b", "bits": None}]}}})
    [('pictures of test in train', '1 the same file, 0 look the same; the first: a and b')]
    """
    facts = []
    for where, overlap in found.get("overlaps", {}).items():
        if overlap["same_file"] or overlap["near"]:
            first = overlap["examples"][0]
            counts = f"{overlap['same_file']:,} the same file, {overlap['near']:,} look the same"
            facts.append((f"pictures of {where}", f"{counts}; the first: {first['image']} and {first['like']}"))
    for split, count in found.get("repeats", {}).items():
        if count:
            facts.append((f"pictures that {split} has twice", f"{count:,}, by their files"))
    return facts


def nearest(hashes_A: NDArray[np.uint64], hashes_B: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each hash of A the place of the nearest of B, the first one of equals, and how many bits they differ in.

    >>> place, bits = nearest(np.array([7, 8], np.uint64), np.array([0, 3], np.uint64))
    >>> place.tolist(), bits.tolist()
    ([1, 0], [1, 1])
    """
    places = np.zeros(len(hashes_A), dtype=np.int64)
    bits = np.full(len(hashes_A), 65, dtype=np.int64)
    rows = max(1, _BLOCK // max(1, min(len(hashes_B), _BLOCK)))
    for start in range(0, len(hashes_A), rows):
        part = slice(start, start + rows)
        for offset in range(0, len(hashes_B), _BLOCK):
            apart = np.bitwise_count(hashes_A[part, None] ^ hashes_B[None, offset : offset + _BLOCK])
            found = apart.argmin(axis=1)
            least = apart[np.arange(len(found)), found]
            is_nearer = least < bits[part]
            places[part] = np.where(is_nearer, found + offset, places[part])
            bits[part] = np.where(is_nearer, least, bits[part])
    return places, bits


def _overlap(one: SplitImages, other: SplitImages, near_bits: int) -> Overlap:
    first_of = {digest: place for place, digest in reversed(list(enumerate(other.digests)))}
    same = [(i, first_of[digest]) for i, digest in enumerate(one.digests) if digest in first_of]
    same_rows = {i for i, _ in same}
    places, bits = nearest(one.hashes, other.hashes)
    near = [i for i in np.flatnonzero(bits <= near_bits).tolist() if i not in same_rows]
    examples = [Match(image=one.image_ids[i], like=other.image_ids[place], bits=None) for i, place in same[:NUM_EXAMPLES]]
    for i in near[: NUM_EXAMPLES - len(examples)]:
        examples.append(Match(image=one.image_ids[i], like=other.image_ids[int(places[i])], bits=int(bits[i])))
    return Overlap(same_file=len(same), near=len(near), examples=tuple(examples))
