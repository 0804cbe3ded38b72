"""How well a model's order of candidates agrees with a teacher's, which needs no labels; docs/metrics.md works out each
number by hand.

- same_first: whether the teacher scores no candidate above the model's first one.
- nDCG@10: the teacher's first ten candidates have the gains 1, 1/2, ..., 1/10, all others 0. Gains by place, not by
  score: the softmax of a teacher's scores is nearly 1 for one candidate of a CLIP (scale 100), and nearly equal for
  grades in [0, 1], where the nDCG of any order is near 1.
- spearman: Spearman's rank correlation over all candidates.

Candidates that the teacher scores alike share their gains. A tie of the model counts against it: among equal scores,
the candidate with the lowest gain comes first.

Shape letters: I images, T texts; Q queries, G gallery, C candidates of a query, M measures; U units of the bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dcdctl.core.data import Corpus, Direction, Indices, RaggedArray, Scores, Values
from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.evaluation.measures import NDCG, Measure

Lookup = Callable[[Indices, Indices], Scores]
"""The scores of pairs, given as images and texts of shapes that broadcast."""
Over = Literal["all", "cached"]
DEPTH = 10
DISCOUNTS = 1 / np.log2(np.arange(2, DEPTH + 2))
PAIRS_AT_A_TIME = 1 << 22


@dataclass(frozen=True, eq=False)
class QueryAgreement:
    """The agreement of each query of a direction that has two candidates or more."""

    query_Q: Indices
    num_candidates_Q: Indices
    measures_QM: Values
    """The measures of AGREEMENT, from 0 or -1 to 1."""

    @property
    def scaled_QM(self) -> Values:
        """The measures as tables have them: in percent, correlations as they are."""
        return self.measures_QM * [row.factor for row in AGREEMENT]

    @property
    def ndcg_Q(self) -> Values:
        return self.measures_QM[:, [row.name for row in AGREEMENT].index(NDCG.name)]


@dataclass(frozen=True, eq=False)
class Agreements:
    """The agreement of a model with a teacher, query by query."""

    over: Over
    """Which candidates were compared: all, or those in a teacher cache."""
    by_direction: dict[Direction, QueryAgreement]
    """Without a direction in which no query has two candidates."""
    image_of_text: Indices | None = None
    """The image of each text; None for a pool, whose texts have none."""
    pairs_fingerprint: str | None = None
    """cached: SHA-256 of the pairs that the cache has scores of."""

    @property
    def drawn(self) -> str:
        """What an interval is over."""
        return "queries" if self.image_of_text is None else "images"

    def unit_Q(self, direction: Direction) -> Indices:
        """What is drawn with each query of a direction: an image with all of its captions, as for recalls; of a pool,
        every query by itself."""
        query_Q = self.by_direction[direction].query_Q
        if self.image_of_text is None or direction == Direction.TEXT:
            return query_Q
        return self.image_of_text[query_Q]

    @property
    def ndcg(self) -> float:
        """nDCG@10 in percent, the mean over directions."""
        return float(np.mean([100 * each.ndcg_Q.mean() for each in self.by_direction.values()]))


def mean_ndcg_Q(runs: Sequence[Agreements], direction: Direction) -> Values:
    """(Q,): nDCG@10 of each query of a direction, in [0, 1], averaged over runs."""
    return np.asarray(np.mean([run.by_direction[direction].ndcg_Q for run in runs], axis=0))


def check_same_queries(named: Mapping[str, Agreements]) -> None:
    """StaleError that names both if the agreements of one were measured on other candidates than those of the first."""
    (first_name, first), *others = named.items()
    for name, agreements in others:
        for direction in Direction:
            queries, expected = (each.by_direction.get(direction) for each in (agreements, first))
            if _counts(queries) != _counts(expected):
                raise StaleError(
                    f"{name} has other candidates of {direction.query}s than {first_name}",
                    hint="evaluate both on the same corpus and split, against the same teacher or the same cache",
                )


def _counts(agreement: QueryAgreement | None) -> list[tuple[int, int]]:
    """Each query with the number of its candidates."""
    if agreement is None:
        return []
    return list(zip(agreement.query_Q.tolist(), agreement.num_candidates_Q.tolist(), strict=True))


def agree(
    ours: Lookup, teacher: Lookup, corpus: Corpus, lists: dict[Direction, RaggedArray], pairs_fingerprint: str | None
) -> Agreements:
    """Compare the order of two scorers on the candidates of `lists`, or on all pairs without any.

    InputError if no query has two candidates, whose order could be compared.
    """
    by_direction = {}
    for direction in Direction:
        queries, counts, measures = [], [], []
        scored = _scored(ours, teacher, corpus, direction, lists=lists.get(direction))
        for query, ours_C, teacher_C in scored:
            if len(ours_C) > 1:
                queries.append(query)
                counts.append(len(ours_C))
                measures.append(compare_orders(ours_C, teacher_C))
        if queries:
            by_direction[direction] = QueryAgreement(np.array(queries), np.array(counts), np.array(measures))
    if not by_direction:
        raise InputError(
            f"no query of split {corpus.split} has two candidates whose order could be compared",
            hint="the split needs images and texts, and a teacher cache several candidates per query",
        )
    return Agreements(
        over="cached" if lists else "all",
        by_direction=by_direction,
        image_of_text=None if corpus.is_pool else corpus.caption_image,
        pairs_fingerprint=pairs_fingerprint,
    )


def _scored(
    ours: Lookup, teacher: Lookup, corpus: Corpus, direction: Direction, *, lists: RaggedArray | None
) -> Iterator[tuple[int, Scores, Scores]]:
    """Each query of a direction with the scores of its candidates by both scorers."""
    num_queries, gallery = direction.query_first(corpus.num_images, corpus.num_captions)
    block = max(1, PAIRS_AT_A_TIME // max(1, gallery))
    for first in range(0, num_queries, block):
        queries = np.arange(first, min(first + block, num_queries))
        if lists is None:
            # A column of images and a row of texts, which lookups of vectors answer by one product.
            image_ix, text_ix = direction.query_first(queries, np.arange(gallery))
            ours_IT, teacher_IT = (
                ours(image_ix[:, None], text_ix[None, :]),
                teacher(image_ix[:, None], text_ix[None, :]),
            )
            is_by_image = direction == Direction.TEXT
            ours_QG, teacher_QG = (ours_IT, teacher_IT) if is_by_image else (ours_IT.T, teacher_IT.T)
            yield from zip(queries.tolist(), ours_QG, teacher_QG, strict=True)
        else:
            starts = lists.offsets[first : queries[-1] + 2]
            candidates = lists.values[starts[0] : starts[-1]]
            image_P, text_P = direction.query_first(np.repeat(queries, np.diff(starts)), candidates)
            ends = (starts - starts[0])[1:-1]
            of_ours, of_teacher = np.split(ours(image_P, text_P), ends), np.split(teacher(image_P, text_P), ends)
            yield from zip(queries.tolist(), of_ours, of_teacher, strict=True)


@dataclass(frozen=True, eq=False)
class Orders:
    """The candidates of a query in the order of a model and in that of its teacher."""

    gain_D: Values
    """The gains of the first DEPTH candidates, in the model's order."""
    ideal_D: Values
    """The gains of the teacher's first ones."""
    our_place_C: Values
    teacher_place_C: Values


def compare_orders(ours_C: Scores, teacher_C: Scores) -> tuple[float, ...]:
    """The measures of AGREEMENT of one query, from the scores of its candidates; higher is better in both.

    A correlation with equal scores for all candidates is 0.

    >>> same_first, ndcg, spearman = compare_orders(np.array([2.0, 3.0, 1.0]), np.array([9.0, 5.0, 1.0]))
    >>> same_first, round(ndcg, 4), spearman  # (1/2 + 0.631 + 0.5 / 3) / (1 + 0.631 / 2 + 0.5 / 3)
    (0.0, 0.8755, 0.5)
    """
    gains = np.zeros(len(ours_C))
    gains[:DEPTH] = 1 / np.arange(1, DEPTH + 1)[: len(gains)]
    places = np.arange(len(ours_C), dtype=np.float64)
    gain_C, teacher_place_C = _by_place(teacher_C, np.stack([gains, places]))
    (our_place_C,) = _by_place(ours_C, places[None])
    depth = min(DEPTH, len(ours_C))
    # All candidates that tie with the last of the first ten, because ties count against the model.
    head = np.flatnonzero(ours_C >= np.partition(ours_C, -depth)[-depth])
    orders = Orders(
        gain_D=gain_C[head[np.lexsort((gain_C[head], -ours_C[head]))][:depth]],
        ideal_D=np.sort(np.partition(gain_C, -depth)[-depth:])[::-1],
        our_place_C=our_place_C,
        teacher_place_C=teacher_place_C,
    )
    return tuple(row.of(orders) for row in AGREEMENT if row.of is not None)


def _by_place(scores_C: Scores, values_NC: Values) -> Values:
    """(N, C): the value of each candidate, where the values belong to the places from the highest score on; candidates
    with one score have the mean of their places' values."""
    order_C = np.argsort(-scores_C)
    is_new = np.diff(scores_C[order_C], prepend=np.nan) != 0
    starts, tie_C = np.flatnonzero(is_new), np.cumsum(is_new) - 1
    means = np.add.reduceat(values_NC, starts, axis=1) / np.bincount(tie_C)
    by_candidate = np.empty_like(values_NC)
    by_candidate[:, order_C] = means[:, tie_C]
    return by_candidate


def _ndcg(orders: Orders) -> float:
    discounts = DISCOUNTS[: len(orders.gain_D)]
    return float(orders.gain_D @ discounts / (orders.ideal_D @ discounts))


def _spearman(orders: Orders) -> float:
    deviations = [place_C - place_C.mean() for place_C in (orders.our_place_C, orders.teacher_place_C)]
    spread = np.sqrt(np.prod([side @ side for side in deviations]))
    return float(deviations[0] @ deviations[1] / spread) if spread else 0.0


AGREEMENT: tuple[Measure[Orders], ...] = (
    Measure(name="same_first", of=lambda orders: float(orders.gain_D[0] == orders.ideal_D[0])),
    Measure(name=NDCG.name, of=_ndcg),
    # A correlation stays in [-1, 1], and has two digits everywhere.
    Measure(name="spearman", of=_spearman, factor=1.0, lowest=-1.0, brief="{:.2f}".format),
)
"""The measures of a query, in the order of documents and tables."""
