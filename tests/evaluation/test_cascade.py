"""Cascades: what is scored, what each depth brings and costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matrix_ranks import rank_matrix
from tables import OWNER, Numbers, TableFusion, make_dual, make_fusion

from dcdctl.core.engines import Compute
from dcdctl.core.evaluation import EvalOptions, Measured, cascade, evaluate, rankers
from dcdctl.core.evaluation.cascade import Shortlists
from dcdctl.core.evaluation.measures import on_front
from dcdctl.core.progress import silent


def swept(depths: tuple[int, ...]) -> tuple[Measured, TableFusion]:
    fusion = make_fusion()
    options = EvalOptions(depths=depths, compute=Compute(batch_size=5))
    return evaluate.evaluate_model(make_dual(), Numbers(OWNER), rerank=fusion, options=options), fusion


def test_a_pair_that_both_directions_want_is_scored_once():
    # Image 0 finds caption 0, image 1 caption 1; captions 0 and 1 find their images, caption 2 finds image 0: three
    # pairs, not five.
    rankings = rank_matrix(torch.tensor([[3.0, 1.0, 2.0], [1.0, 3.0, 0.0]]), np.array([0, 1, 1]))
    shortlists = Shortlists(rankings, np.array([0, 1, 1]), 2)
    assert shortlists.num_pairs(1) == 3
    assert [indices.tolist() for indices in Shortlists(rankings, np.array([0, 1, 1]), 1).pairs] == [
        [0, 0, 1],
        [0, 2, 1],
    ]
    assert shortlists.num_pairs(2) == len(shortlists.pair_P) == 6


def test_every_depth_is_what_an_evaluation_at_that_depth_gives():
    evaluation, _ = swept((0, 1, 3, 6))
    assert [result.depth for result in evaluation.depths] == [0, 1, 3, 6]
    alone = evaluate.evaluate_model(make_dual(), Numbers(OWNER))
    assert (evaluation.depths[0].text_retrieval, evaluation.depths[0].image_retrieval) == (
        alone.text_retrieval,
        alone.image_retrieval,
    )
    assert evaluation.depths[0].pairs == 0
    for at_depth in evaluation.depths[1:]:
        single, _ = swept((at_depth.depth,))
        assert (at_depth.text_retrieval, at_depth.image_retrieval) == (single.text_retrieval, single.image_retrieval)
        assert at_depth.pairs == single.pairs_scored
    assert len({result.rsum for result in evaluation.depths}) > 2


def test_pairs_are_scored_once_for_the_largest_depth(monkeypatch):
    monkeypatch.setattr(cascade, "query_ms", lambda *arguments: [1.0, 2.0, 3.0])
    evaluation, fusion = swept((1, 3, 6))
    assert len(fusion.pairs) == len(set(fusion.pairs)) == evaluation.pairs_scored == evaluation.depths[-1].pairs
    assert evaluation.protocol.depth == 6
    assert evaluation.depths[-1].text_retrieval == evaluation.text_retrieval


class Clock:
    """Seconds that pass when models work."""

    def __init__(self, monkeypatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("time.perf_counter", lambda: self.now)

    def takes(self, work, seconds_of):
        def timed(*arguments):
            self.now += seconds_of(*arguments)
            return work(*arguments)

        return timed


@pytest.mark.parametrize(("timed_images", "keeps_states"), [(64, False), (4, False), (4, True)])
def test_the_time_of_a_query_is_the_dual_encoders_and_that_of_so_many_pairs(monkeypatch, timed_images, keeps_states):
    # A few images stand in for more candidates than they are; not for a scorer that computes equal pairs once.
    monkeypatch.setattr(cascade, "TIMED_IMAGES", timed_images)
    clock, dual, fusion = Clock(monkeypatch), make_dual(), make_fusion()
    monkeypatch.setattr(rankers.scoring, "encode_corpus", lambda scorer, source, *settings, **more: source)
    monkeypatch.setattr(fusion, "keeps_states", keeps_states)
    monkeypatch.setattr(dual, "embed_texts", clock.takes(dual.embed_texts, lambda texts: 0.002 * len(texts)))
    monkeypatch.setattr(fusion, "encode_texts", clock.takes(fusion.encode_texts, lambda texts: 0.010 * len(texts)))
    monkeypatch.setattr(
        fusion,
        "score_pairs",
        clock.takes(
            fusion.score_pairs,
            lambda images, texts, image_P, text_P: 0.001 * len(image_P.unique() if keeps_states else image_P),
        ),
    )
    options = EvalOptions(depths=(0, 1, 4, 100), compute=Compute(batch_size=5))
    evaluation = evaluate.evaluate_model(dual, Numbers(OWNER), rerank=fusion, options=options)
    # 2 ms to embed a caption; 10 ms to encode it for the fusion scorer and 1 ms a pair; there are ten images.
    assert [result.ms_per_query for result in evaluation.depths] == pytest.approx(
        [2, 2 + 10 + 1, 2 + 10 + 4, 2 + 10 + 10]
    )


def test_a_cascade_keeps_more_candidates_than_it_reranks():
    corpus = Numbers(OWNER)
    task = rankers.RankingTask(corpus, EvalOptions(depths=(2,), num_top=5), silent, None)
    (rankings,) = rankers.rank_by_cascade(make_dual(), make_fusion(), task)[0]
    (first,) = rankers.rank_embedded(rankers.embed(make_dual(), task), task)
    for ranking, before in ((rankings.text, first.text), (rankings.image, first.image)):
        assert ranking.top_QK.shape[1] == 5
        assert ranking.top_QK[:, 2:].tolist() == before.top_QK[:, 2:].tolist()
        assert np.sort(ranking.top_QK[:, :2]).tolist() == np.sort(before.top_QK[:, :2]).tolist()


def test_the_front_holds_what_nothing_beats():
    # The second is slower than the third and worse; the fifth is as good as the fourth and slower; the last is both.
    rsums, times_ms = [300, 330, 360, 420, 420, 410], [1, 9, 8, 15, 30, 60]
    assert on_front(rsums, times_ms) == [True, False, True, True, False, False]
    assert on_front([300, 300], [1, 1]) == [True, True]
    assert on_front([200, 150], [1, 1]) == [True, False]
