"""The worked example of docs/metrics.md, recomputed from its first table."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from matrix_ranks import rank_matrix
from paths import DOCS

from dcdctl.core.evaluation import RankTable, measures, significance
from dcdctl.core.evaluation.agreement import compare_orders
from dcdctl.core.evaluation.measures import average_precision_at_r
from dcdctl.core.evaluation.ranking import NO_POSITION, Ranking, Rankings

PAGE = (DOCS / "metrics.md").read_text(encoding="utf-8")
OWNER = np.array([0, 0, 1, 1])
IMAGES, CAPTIONS = ["A", "B"], ["a1", "a2", "b1", "b2"]


def tables() -> list[list[list[str]]]:
    """The cells of every table, header first."""
    tables = re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE)
    rows = [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
        for table in tables
    ]
    return [[table[0], *table[2:]] for table in rows]


SCORES, TEXT, IMAGE, MEASURES, _, AGREEMENT, DRAWS, PROTOCOLS, *_ = tables()


@pytest.fixture(scope="module")
def rankings() -> Rankings:
    assert [SCORES[0], [row[0] for row in SCORES[1:]]] == [["score", *CAPTIONS], IMAGES]
    return rank_matrix(torch.tensor([[float(cell) for cell in row[1:]] for row in SCORES[1:]]), OWNER)


@pytest.mark.parametrize(
    ("direction", "table", "queries", "candidates"),
    [("text", TEXT, IMAGES, CAPTIONS), ("image", IMAGE, CAPTIONS, IMAGES)],
)
def test_order_positions_ranks_and_precisions(rankings, direction, table, queries, candidates):
    ranking: Ranking = getattr(rankings, direction)
    expected = [
        [
            query,
            ", ".join(candidates[candidate] for candidate in order),
            ", ".join(str(place) for place in places if place != NO_POSITION),
            str(rank),
            f"{precision:.2f}",
        ]
        for query, order, places, rank, precision in zip(
            queries,
            ranking.top_QK.tolist(),
            ranking.positions_QR.tolist(),
            ranking.ranks.tolist(),
            average_precision_at_r(ranking.positions_QR).tolist(),
            strict=True,
        )
    ]
    assert table[1:] == expected


def test_the_measures(rankings):
    assert [name.replace(" ", "_") for name in MEASURES[0][1:]] == list(measures.of_ranking(rankings.text))
    for row, ranking in zip(MEASURES[1:], (rankings.text, rankings.image), strict=True):
        found = list(measures.of_ranking(ranking).values())
        assert [float(cell) for cell in row[1:]] == pytest.approx(found, abs=0.005)
    rsum = measures.rsum(measures.recall_at_k(rankings.text.ranks), measures.recall_at_k(rankings.image.ranks))
    assert f"RSUM is {rsum:.2f}, the mean recall {rsum / 6:.2f}." in PAGE


def test_the_agreement_of_a_query():
    teacher, gains, model = ([float(cell) for cell in row[1:]] for row in AGREEMENT[1:])
    same_first, ndcg, correlation = compare_orders(np.float32(model), np.float32(teacher))
    assert not same_first
    assert f"nDCG@10 is {100 * ndcg:.2f}, and the correlation is {correlation:.2f}." in PAGE
    order = sorted(range(4), key=lambda candidate: (-model[candidate], gains[candidate]))
    assert f"The model's order is {', '.join('abcd'[candidate] for candidate in order)}:" in PAGE
    discounts = np.log2([2, 3, 4, 5])
    dcg, best = (sum(np.array(sorted_gains) / discounts) for sorted_gains in ([gains[c] for c in order], gains))
    assert ndcg == pytest.approx(dcg / best, abs=1e-4)


def test_the_draws(rankings):
    shares = []
    for drawn, share, *values in DRAWS[1:]:
        images = [IMAGES.index(name) for name in drawn.split(", ")]
        captions = [text for image in images for text in np.flatnonzero(image == OWNER)]
        text, image = map(measures.recall_at_k, (rankings.text.ranks[images], rankings.image.ranks[captions]))
        assert values == [f"{value:.2f}" for value in (text["R@1"], image["R@1"], measures.rsum(text, image))]
        shares.append(share)
    assert shares == ["1/4", "1/2", "1/4"]


def test_the_intervals(rankings):
    estimates = significance.bootstrap(
        [RankTable(("A", "B"), np.arange(4), OWNER, rankings.text.ranks, rankings.image.ranks)]
    )
    rsum, text, image = (
        f"{estimate.interval.low:.2f} to {estimate.interval.high:.2f}"
        for estimate in (estimates.rsum, estimates.text_retrieval["R@1"], estimates.image_retrieval["R@1"])
    )
    assert f"intervals are {rsum} (RSUM), {text} (text R@1) and {image} (image R@1)." in PAGE
