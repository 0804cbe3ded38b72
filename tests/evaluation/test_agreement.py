"""Agreement of a model's order with a teacher's: one query by hand and by libraries, then whole evaluations."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from forks import run_forked
from numpy.typing import NDArray
from scipy import stats
from tables import OWNER, Numbers, TableFusion, make_dual, make_fusion

from dcdctl.core import scoring
from dcdctl.core.data import Direction
from dcdctl.core.errors import InputError, ModelError
from dcdctl.core.evaluation import EvalOptions, agreement, evaluate, files, rankers
from dcdctl.core.evaluation.against import compare_with
from dcdctl.core.evaluation.agreement import Agreements, QueryAgreement, compare_orders
from dcdctl.core.evaluation.document import Agreement
from dcdctl.core.evaluation.files import SavedEvaluation
from dcdctl.core.evaluation.rankers import RankingTask
from dcdctl.core.teacher import TeacherScores

CORPUS = Numbers(OWNER)
TABLE_IT = make_fusion().table_IT.numpy()
"""A teacher's scores of all pairs."""


class TableScores(TeacherScores):
    """A teacher whose scores are a table, of all pairs or of some."""

    def __init__(self, scores_IT: NDArray[np.float32], pairs: tuple[NDArray, NDArray] | None = None) -> None:
        self.scores_IT, self.pairs = scores_IT, pairs

    @property
    def scored_pairs(self):
        return self.pairs

    def lookup(self, image_ix, text_ix):
        return self.scores_IT[image_ix, text_ix]


def given(scores_IT: NDArray[np.float32], pairs=None) -> TableScores:
    return TableScores(scores_IT, pairs)


def compared(model, against) -> Agreements:
    measured = evaluate.evaluate_model(model, CORPUS, options=EvalOptions(keeps_order=True))
    return compare_with(against, measured.order, CORPUS)


def cosines() -> NDArray[np.float32]:
    dual = make_dual()
    return (dual.image_ID @ dual.text_TD.T).numpy()


def slowly(ours: list[float], teacher: list[float]) -> tuple[float, float]:
    """same_first and nDCG@10 by loops over places."""
    count = len(ours)
    by_teacher = sorted(range(count), key=lambda candidate: -teacher[candidate])
    gain = {}
    for candidate in range(count):
        tied = [place for place, other in enumerate(by_teacher, 1) if teacher[other] == teacher[candidate]]
        gain[candidate] = sum(1 / place if place <= 10 else 0.0 for place in tied) / len(tied)
    ordered = sorted(range(count), key=lambda candidate: (-ours[candidate], gain[candidate]))
    ideal = sorted(gain.values(), reverse=True)
    dcg, best = (
        sum(gain_of / np.log2(place + 1) for place, gain_of in enumerate(gains[:10], 1))
        for gains in ([gain[candidate] for candidate in ordered], ideal)
    )
    return float(gain[ordered[0]] == ideal[0]), dcg / best


@pytest.mark.parametrize("num_values", [2, 5, 1000])
@pytest.mark.parametrize("count", [2, 7, 10, 11, 40])
def test_a_query_is_measured_as_by_loops_and_by_scipy(count, num_values):
    rng = np.random.default_rng(count)
    for _ in range(20):
        ours, teacher = rng.integers(num_values, size=(2, count)).astype(np.float32)
        same_first, ndcg, correlation = compare_orders(ours, teacher)
        assert (same_first, ndcg) == pytest.approx(slowly(ours.tolist(), teacher.tolist()))
        # scipy has no number for equal scores of all candidates.
        is_constant = 1 in (len(set(ours)), len(set(teacher)))
        assert correlation == pytest.approx(0 if is_constant else stats.spearmanr(ours, teacher).statistic)


RANX = """
import json, sys
import numba
numba.config.DISABLE_JIT = True  # compiling takes longer than all else
from ranx import Qrels, Run, evaluate
qrels, run = json.load(open(sys.argv[1]))
print(json.dumps(evaluate(Qrels(qrels), Run(run), "ndcg@10", return_mean=False).tolist()))
"""


def test_ndcg_is_that_of_ranx(tmp_path):
    rng = np.random.default_rng(0)
    ours_QC, teacher_QC = rng.permuted(np.tile(np.arange(30.0), (2, 8, 1)), axis=2)
    # ranx takes whole numbers, which all of 1/1 to 1/10 times 2,520 are.
    places_QC = 30 - teacher_QC
    qrels = {
        f"q{query}": {f"c{candidate}": int(2520 / place) for candidate, place in enumerate(row) if place <= 10}
        for query, row in enumerate(places_QC)
    }
    run = {
        f"q{query}": {f"c{candidate}": score for candidate, score in enumerate(row)}
        for query, row in enumerate(ours_QC)
    }
    (tmp_path / "both.json").write_text(json.dumps([qrels, run]))
    theirs = json.loads(run_forked(RANX, tmp_path / "both.json")[0])
    ours = [compare_orders(*scores)[1] for scores in zip(ours_QC, teacher_QC, strict=True)]
    assert ours == pytest.approx(theirs)
    assert 0.02 < min(ours) < max(ours) < 0.8


def test_no_score_of_a_constant_model_agrees_and_the_scale_of_a_teacher_does_not_matter():
    teacher = np.random.default_rng(0).normal(size=200).astype(np.float32)
    same_first, ndcg, correlation = compare_orders(np.ones(200, np.float32), teacher)
    assert (same_first, ndcg, correlation) == (0, 0, 0)
    ours = np.random.default_rng(1).normal(size=200).astype(np.float32)
    assert compare_orders(ours, teacher) == compare_orders(ours, 100 * teacher) == compare_orders(ours - 7, teacher)
    assert compare_orders(teacher, teacher) == pytest.approx((1, 1, 1))
    assert compare_orders(-teacher, teacher) == pytest.approx((0, 0, -1))


def test_all_candidates_of_a_dual_encoder_are_compared_in_both_directions(monkeypatch):
    # Blocks of three queries of one direction, and of two of the other.
    monkeypatch.setattr(agreement, "PAIRS_AT_A_TIME", 36)
    agreements = compared(make_dual(), given(TABLE_IT))
    assert agreements.over == "all"
    for direction, ours, teacher in (
        (Direction.TEXT, cosines(), TABLE_IT),
        (Direction.IMAGE, cosines().T, TABLE_IT.T),
    ):
        by_query = agreements.by_direction[direction]
        expected = [compare_orders(*scores) for scores in zip(ours, teacher, strict=True)]
        assert by_query.measures_QM.tolist() == pytest.approx(np.array(expected))
        assert by_query.query_Q.tolist() == list(range(len(ours)))
        assert set(by_query.num_candidates_Q.tolist()) == {ours.shape[1]}
    assert 0.1 < agreements.ndcg / 100 < 0.99


def test_a_cache_is_compared_over_the_pairs_that_it_has_scores_of():
    # Image 0 has three pairs, image 1 one, image 4 two; caption 5 has two, all others one or none.
    pairs = np.array([0, 0, 0, 1, 4, 4]), np.array([1, 5, 9, 5, 2, 17])
    elsewhere = np.full_like(TABLE_IT, np.nan)
    elsewhere[pairs] = TABLE_IT[pairs]
    agreements = compared(make_dual(), given(elsewhere, pairs))
    text, image = agreements.by_direction.values()
    assert (text.query_Q.tolist(), text.num_candidates_Q.tolist()) == ([0, 4], [3, 2])
    assert (image.query_Q.tolist(), image.num_candidates_Q.tolist()) == ([5], [2])
    expected = compare_orders(cosines()[0, [1, 5, 9]], TABLE_IT[0, [1, 5, 9]])
    assert text.measures_QM[0].tolist() == pytest.approx(expected)
    assert image.measures_QM[0].tolist() == pytest.approx(compare_orders(cosines()[[0, 1], 5], TABLE_IT[[0, 1], 5]))


def test_the_pairs_of_a_cache_have_a_fingerprint():
    found = []
    for count in (6, 6, 5):
        pairs = np.arange(count) // 3, np.arange(count) % 3
        found.append(compared(make_dual(), given(TABLE_IT, pairs)).pairs_fingerprint)
    first, same, fewer = found
    assert first == same != fewer
    assert compared(make_dual(), given(TABLE_IT)).pairs_fingerprint is None


def test_a_split_without_two_candidates_of_a_query_is_an_error():
    with pytest.raises(InputError, match="no query of split test has two candidates"):
        compared(make_dual(), given(TABLE_IT, (np.array([0, 1]), np.array([3, 2]))))


def test_a_fusion_model_keeps_its_scores_for_the_comparison(monkeypatch):
    monkeypatch.setattr(scoring, "IMAGE_CHUNK", 3)
    model = TableFusion(torch.from_numpy(TABLE_IT))
    alone = evaluate.evaluate_model(model, CORPUS)
    assert alone.order is None
    measured = evaluate.evaluate_model(model, CORPUS, options=EvalOptions(keeps_order=True))
    agreements = compare_with(given(-TABLE_IT), measured.order, CORPUS)
    assert measured.table.text_ranks.tolist() == alone.table.text_ranks.tolist()
    # The pairs of one evaluation, and no more.
    assert len(model.pairs) == 2 * TABLE_IT.size
    for by_query in agreements.by_direction.values():
        assert by_query.measures_QM[:, 2].tolist() == pytest.approx([-1] * len(by_query.query_Q))


def document_of(by_direction: dict[Direction, QueryAgreement], corpus: Numbers) -> Agreement:
    return Agreement.of(Agreements("all", by_direction, corpus.caption_image), "teacher", "1")


def test_intervals_are_over_images_with_all_their_captions():
    # One image is all of every draw; over captions, the means of draws would differ.
    measures_QM = np.array([[1, 0.5, -0.5], [0, 0.25, 0.5]])
    by_query = QueryAgreement(np.arange(2), np.full(2, 9), measures_QM)
    document = document_of({Direction.IMAGE: by_query}, Numbers([0, 0]))
    assert document.image_retrieval == {
        "queries": 2, "candidates": 9, "same_first": 50, "nDCG@10": 37.5, "spearman": 0,
    }  # fmt: skip
    assert document.intervals == {
        "image_retrieval": {"same_first": (50, 50), "nDCG@10": (37.5, 37.5), "spearman": (0, 0)}
    }
    assert (document.text_retrieval, document.ndcg) == (None, 37.5)
    # Of two images, half of the draws take both, and a quarter each of them alone.
    document = document_of({Direction.TEXT: by_query}, Numbers([0, 1]))
    assert document.intervals["text_retrieval"]["nDCG@10"] == (25, 50)


def test_the_results_hold_the_agreement_and_a_later_evaluation_without_it_removes_it(tmp_path):
    measured = evaluate.evaluate_model(make_dual(), CORPUS)
    agreements = compared(make_dual(), given(TABLE_IT))
    document = Agreement.of(agreements, "table", "1")
    files.write_evaluation(tmp_path, measured.evaluation("dual", agreement=document), measured, agreements)
    saved = SavedEvaluation.load(tmp_path)
    assert saved.evaluation.agreement == document
    rows = pd.read_parquet(tmp_path / "agreement.parquet")
    assert list(rows) == ["direction", "query", "candidates", "same_first", "ndcg", "spearman"]
    assert rows.groupby("direction").ndcg.mean().mean() == pytest.approx(document.ndcg / 100)
    assert len(rows) == 28
    assert saved.table is not None
    path = tmp_path / "agreement.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match=r"agreement\.parquet is damaged"):
        _ = SavedEvaluation.load(tmp_path).table
    alone = evaluate.evaluate_model(make_dual(), CORPUS)
    files.write_evaluation(tmp_path, alone.evaluation("dual"), alone)
    assert not path.exists()
    assert "agreement" not in json.loads((tmp_path / "result.json").read_text())


class Pool(Numbers):
    """The same images and texts, unpaired."""

    def __init__(self, owner: list[int]) -> None:
        super().__init__(owner)
        self.is_pool, self.caption_image = True, np.full(len(owner), -1)


@pytest.mark.parametrize("model", [make_dual(), TableFusion(torch.from_numpy(cosines()))])
def test_a_pool_is_compared_like_the_corpus_without_its_captions_images(monkeypatch, model):
    monkeypatch.setattr(scoring, "IMAGE_CHUNK", 3)
    pool = Pool(OWNER)
    order = rankers.order_of(model, RankingTask(pool, EvalOptions()))
    agreements, expected = compare_with(given(TABLE_IT), order, pool), compared(make_dual(), given(TABLE_IT))
    for ours, theirs in zip(agreements.by_direction.values(), expected.by_direction.values(), strict=True):
        assert ours.measures_QM.tolist() == pytest.approx(theirs.measures_QM)
    document = Agreement.of(agreements, "table", "1")
    assert document.ndcg == pytest.approx(expected.ndcg)
    # Texts of a pool are drawn each by itself.
    low, high = document.intervals["image_retrieval"]["nDCG@10"]
    assert low < document.image_retrieval["nDCG@10"] < high


def test_scores_that_are_not_finite_are_an_error():
    table_IT = torch.from_numpy(TABLE_IT.copy())
    table_IT[3, 4] = torch.nan
    with pytest.raises(ModelError, match="NaN"):
        rankers.order_of(TableFusion(table_IT), RankingTask(Pool(OWNER), EvalOptions()))


def test_a_correlation_has_two_digits_everywhere_and_shares_are_percentages():
    shown = {row.name: (row.show(0.5 * row.factor), row.brief(0.5 * row.factor)) for row in agreement.AGREEMENT}
    assert shown == {"same_first": ("50.00", "50.0"), "nDCG@10": ("50.00", "50.0"), "spearman": ("0.50", "0.50")}
