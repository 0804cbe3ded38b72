"""The candidate lists of a cache as values, and the roles of its pairs; `candidates` draws them.

Only NumPy is imported here, because `dcdctl inspect` and `verify` read caches without torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcdctl.core.data import Direction, Flags, Indices, RaggedArray

POSITIVE, TEXT_CANDIDATE, IMAGE_CANDIDATE = 1, 2, 4
"""Roles of a pair: the caption belongs to the image; the caption is a candidate of the image; the image is a candidate
of the caption."""
ROLES = {Direction.TEXT: TEXT_CANDIDATE, Direction.IMAGE: IMAGE_CANDIDATE}
"""The role of the candidates of each direction."""


@dataclass(frozen=True)
class Candidates:
    """The negatives of every query: captions for each image, images for each caption."""

    texts_of_image: RaggedArray
    images_of_text: RaggedArray
    dropped: dict[str, int] = field(default_factory=dict)
    """Number of removed candidates by reason, for both directions together."""
    ranks: dict[Direction, NDArray[Any]] = field(default_factory=dict)
    """The rank of each value of the lists that were mined, in their order; the first of its query has the least."""

    def lists(self, direction: Direction) -> RaggedArray:
        """The negatives of the queries of a direction."""
        return self.texts_of_image if direction == Direction.TEXT else self.images_of_text

    def keys(self, direction: Direction) -> Indices:
        """One number for each pair of a direction, in the order of its lists: image * captions + caption."""
        lists = self.lists(direction)
        image_P, text_P = direction.query_first(lists.rows, lists.values)
        return image_P * len(self.images_of_text) + text_P

    def pairs(self, caption_image: Indices) -> tuple[Indices, Indices, NDArray[np.uint8]]:
        """All pairs to score, positives included, each once: image, caption and the sum of the roles, sorted by image
        and caption."""
        num_texts, own = len(caption_image), np.flatnonzero(caption_image >= 0)  # none in a pool
        # One number per pair and role, so that a single in-place sort is enough: there may be 40 million.
        coded = np.concatenate(
            [
                (caption_image[own] * num_texts + own) * 8 + POSITIVE,
                *(self.keys(direction) * 8 + role for direction, role in ROLES.items()),
            ]
        )
        coded.sort()
        starts = np.flatnonzero(np.diff(coded >> 3, prepend=-1))
        role = np.bitwise_or.reduceat((coded & 7).astype(np.uint8), starts)
        keys = coded[starts] >> 3
        return keys // num_texts, keys % num_texts, role

    def of_texts(self, is_asked_T: Flags) -> Candidates:
        """The candidates of images, and of some of the texts."""
        lists = self.images_of_text
        here = is_asked_T[lists.rows]
        asked = RaggedArray.from_sorted(lists.rows[here], lists.values[here], len(lists))
        ranks = {
            direction: ranks_P[here] if direction == Direction.IMAGE else ranks_P
            for direction, ranks_P in self.ranks.items()
        }
        return replace(self, images_of_text=asked, ranks=ranks)

    def where(self, is_kept: Callable[[Indices, Indices], Any]) -> Candidates:
        """The candidates whose images and captions `is_kept` tells to keep; without ranks."""

        def kept(direction: Direction) -> RaggedArray:
            lists = self.lists(direction)
            here = is_kept(*direction.query_first(lists.rows, lists.values))
            return RaggedArray.from_sorted(lists.rows[here], lists.values[here], len(lists))

        return Candidates(kept(Direction.TEXT), kept(Direction.IMAGE), self.dropped)
