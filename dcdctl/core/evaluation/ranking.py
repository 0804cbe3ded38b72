"""Rankings and ranks of both directions as values; `ranks` computes them and says how ties count.

Only NumPy is imported here, because results on disk are read, compared and shown without torch.

Shape letters: I images, T texts (captions); Q queries; R positives of the query that has most; K first candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from dcdctl.core.data import Corpus, Direction, Flags, Indices, Scores, Values
from dcdctl.core.errors import StaleError

NUM_TOP = 10
"""Candidates of each query that are kept: as far as R@10 looks."""
NO_POSITION = int(np.iinfo(np.int64).max)
"""Position of a positive that a query does not have, where other queries have more positives."""


@dataclass(frozen=True)
class Ranking:
    """How a gallery was ranked for the queries of one direction."""

    positions_QR: Indices
    """Positions of the query's positives, from 1, ascending; NO_POSITION if it has fewer positives than R."""
    positive_score_Q: Scores
    """Score of the best positive."""
    top_QK: Indices
    """The first candidates, best first, positives last among equal scores; K is smaller than asked for if the gallery
    is."""
    top_score_QK: Scores

    @property
    def ranks(self) -> Indices:
        """(Q,): position of the best positive."""
        return self.positions_QR[:, 0]


@dataclass(frozen=True)
class Rankings:
    """How captions were ranked for every image, and images for every caption."""

    text: Ranking
    image: Ranking

    def of(self, direction: Direction) -> Ranking:
        return self.text if direction == Direction.TEXT else self.image


@dataclass(frozen=True)
class RankTable:
    """The rank of every query of an evaluation, from 1, with the names of the queries; every image has a caption."""

    image_ids: tuple[str, ...]
    caption_ids: Indices
    """(T,): the source's number of each caption."""
    caption_image: Indices
    """(T,): the image index of each caption."""
    text_ranks: Indices
    """(I,): rank of each image's best positive caption."""
    image_ranks: Indices
    """(T,): rank of each caption's image."""
    captions: tuple[str, ...] = ()
    """(T,): none if it was not made for them."""
    scores: dict[Direction, Scores] = field(default_factory=dict)
    """(Q,): score of each query's best positive, by direction."""
    ndcg: dict[Direction, Values] = field(default_factory=dict)
    """(Q,): nDCG@10 by a file of relevance, from 0 to 1; NaN for queries without a relevant candidate. Empty if there
    was no file."""
    languages: tuple[str | None, ...] = ()
    """(T,): the language of each caption, None where it is not known; none if it was not made for them."""

    @staticmethod
    def of(corpus: Corpus, rankings: Rankings) -> RankTable:
        """The ranks of a corpus."""
        return RankTable(
            image_ids=tuple(corpus.image_ids),
            caption_ids=corpus.caption_ids,
            caption_image=corpus.caption_image,
            text_ranks=rankings.text.ranks,
            image_ranks=rankings.image.ranks,
            captions=tuple(corpus.captions),
            scores={direction: rankings.of(direction).positive_score_Q for direction in Direction},
            languages=tuple(corpus.languages),
        )

    def of_captions(self, texts_T: Indices) -> RankTable:
        """These captions and their images, to compare image retrieval alone: text retrieval has rank 1 throughout, so
        that a difference of systems in RSUM is one in the three recalls of image retrieval."""
        image_I, image_T = np.unique(self.caption_image[texts_T], return_inverse=True)
        return RankTable(
            image_ids=tuple(self.image_ids[image] for image in image_I),
            caption_ids=self.caption_ids[texts_T],
            caption_image=image_T,
            text_ranks=np.ones_like(image_I),
            image_ranks=self.image_ranks[texts_T],
        )

    def ranks(self, direction: Direction) -> Indices:
        """(Q,): rank of each query of a direction."""
        return self.text_ranks if direction == Direction.TEXT else self.image_ranks


def is_positive(direction: Direction, top_QK: Indices, image_T: Indices) -> Flags:
    """(Q, K): whether each candidate is a positive of its query; `image_T` is the image of each caption."""
    if direction == Direction.TEXT:
        return image_T[top_QK] == np.arange(len(top_QK))[:, None]
    return top_QK == image_T[:, None]


def check_queries(named: Mapping[str, RankTable]) -> None:
    """StaleError that names both if a table has other queries than the first one."""
    (first_name, first), *others = named.items()
    for name, table in others:
        queries, expected = _queries(table), _queries(first)
        if queries != expected:
            # Lists of different lengths differ in their first entry, the counts.
            place = next(place for place, query in enumerate(queries) if query != expected[place])
            raise StaleError(
                f"{name} has other queries than {first_name}: {queries[place]}, not {expected[place]}",
                hint="evaluate both on the same corpus and split",
            )


def _queries(table: RankTable) -> list[str]:
    """The number of queries, then the name of each."""
    caption_keys = zip(table.caption_image.tolist(), table.caption_ids.tolist(), strict=True)
    captions = [f"caption {number} of {table.image_ids[image]!r}" for image, number in caption_keys]
    return [
        f"{len(table.image_ids):,} images and {len(captions):,} captions",
        *map("image {!r}".format, table.image_ids),
        *captions,
    ]
