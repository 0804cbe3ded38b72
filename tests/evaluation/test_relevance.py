"""nDCG@10 by graded relevance from a file, and comparisons of systems by it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from forks import run_forked
from tables import OWNER, Numbers, make_dual, make_fusion

from dcdctl.core.data import Direction
from dcdctl.core.errors import InputError
from dcdctl.core.evaluation import EvalOptions, RankTable, evaluate, significance
from dcdctl.core.evaluation.files import read_ranks, write_ranks
from dcdctl.core.evaluation.relevance import NUM_TOP, Relevance, read_relevance

CORPUS = Numbers(OWNER)
GRADES_IT = np.random.default_rng(3).choice([0, 0, 0, 1, 2, 3], (10, 18))
GRADES_IT[4] = 0  # a query without a relevant candidate
OPTIONS = EvalOptions(num_top=NUM_TOP)


def rows_of(grades_IT: np.ndarray) -> pd.DataFrame:
    images, texts = np.nonzero(grades_IT)
    return pd.DataFrame(
        {
            "image_id": [CORPUS.image_ids[image] for image in images],
            "caption_id": CORPUS.caption_ids[texts],
            "relevance": grades_IT[images, texts],
        }
    ).sample(frac=1, random_state=0)


@pytest.fixture
def relevance(tmp_path) -> Relevance:
    rows_of(GRADES_IT).to_csv(tmp_path / "relevance.csv", index=False)
    return read_relevance(tmp_path / "relevance.csv", CORPUS)


RANX = """
import json, sys
import numba
numba.config.DISABLE_JIT = True  # compiling takes longer than all else
from ranx import Qrels, Run, evaluate
results = []
for qrels, run in json.load(open(sys.argv[1])):
    results.append(evaluate(Qrels(qrels), Run(run), "ndcg@10", return_mean=False).tolist())
print(json.dumps(results))
"""


def test_ndcg_is_that_of_ranx(tmp_path, relevance):
    dual = make_dual()
    scores_IT = (dual.image_ID @ dual.text_TD.T).numpy()
    measured = evaluate.evaluate_model(dual, CORPUS, options=OPTIONS)
    both, asked = [], []
    for scores_QG, grades_QG in ((scores_IT, GRADES_IT), (scores_IT.T, GRADES_IT.T)):
        kept = [query for query in range(len(scores_QG)) if grades_QG[query].any()]
        qrels, run = (
            {
                f"q{query:02}": {f"c{candidate}": value for candidate, value in enumerate(table[query].tolist())}
                for query in kept
            }
            for table in (grades_QG, scores_QG)
        )
        both.append(({q: {c: grade for c, grade in row.items() if grade} for q, row in qrels.items()}, run))
        asked.append(kept)
    (tmp_path / "both.json").write_text(json.dumps(both))
    theirs = json.loads(run_forked(RANX, tmp_path / "both.json")[0])
    for direction, gallery, expected, kept in zip(Direction, (18, 10), theirs, asked, strict=True):
        ours = relevance.ndcg(direction, measured.rankings.of(direction), gallery)
        assert ours[kept].tolist() == pytest.approx(expected)
        assert np.flatnonzero(np.isnan(ours)).tolist() == [query for query in range(len(ours)) if query not in kept]
    assert asked[0] == [0, 1, 2, 3, 5, 6, 7, 8, 9]


def test_ties_count_against_the_model_also_beyond_the_candidates_that_are_kept(relevance):
    ranking = evaluate.evaluate_model(make_dual(), CORPUS, options=OPTIONS).rankings.text
    # All scores alike: the seven captions that are not kept may come before any of these.
    constant = replace(ranking, top_score_QK=np.ones_like(ranking.top_score_QK))
    assert not np.nan_to_num(relevance.ndcg(Direction.TEXT, constant, 18)).any()
    # With all captions kept, the relevant ones come last: 18 candidates in order of their grades.
    whole = evaluate.evaluate_model(make_dual(), CORPUS, options=EvalOptions(num_top=18)).rankings.text
    constant = replace(whole, top_score_QK=np.ones_like(whole.top_score_QK))
    discounts = 1 / np.log2(np.arange(2, 12))
    for query, ndcg in enumerate(relevance.ndcg(Direction.TEXT, constant, 18)):
        grades = np.sort(GRADES_IT[query])
        ideal = grades[::-1][:10] @ discounts
        assert np.isnan(ndcg) if not ideal else ndcg == pytest.approx(grades[:10] @ discounts / ideal)


def test_the_first_images_of_a_split_leave_other_pairs_out(tmp_path):
    rows_of(GRADES_IT).to_json(tmp_path / "relevance.jsonl", orient="records", lines=True)
    subset = CORPUS.subset(4)
    subset.whole = CORPUS
    relevance = read_relevance(tmp_path / "relevance.jsonl", subset)
    dense = np.zeros((4, 7))
    dense[np.divmod(relevance.key_P, 7)] = relevance.gain_P
    assert dense.tolist() == GRADES_IT[:4, :7].tolist()


def test_a_pair_may_be_there_twice_with_one_relevance_only(tmp_path):
    row, path = {"image_id": "image 1", "caption_id": 103, "relevance": 2.0}, tmp_path / "relevance.parquet"
    pd.DataFrame([row, row]).to_parquet(path)
    assert read_relevance(path, CORPUS).gain_P.tolist() == [2]
    pd.DataFrame([row, {**row, "relevance": 1.0}]).to_parquet(path)
    with pytest.raises(InputError, match=r"1 rows of pairs with two relevances \(2 and 1\)"):
        read_relevance(path, CORPUS)
    pd.DataFrame([{**row, "relevance": 0.0}]).to_parquet(path)
    with pytest.raises(InputError, match="no pair of split test with a relevance above 0"):
        read_relevance(path, CORPUS)
    pd.DataFrame([{"image_id": "image 1", "caption_id": 103}]).to_parquet(path)
    with pytest.raises(InputError, match="has no column score"):
        read_relevance(path, CORPUS)
    pd.DataFrame([{"image_id": "image 1", "caption_id": 103, "score": 1.0}]).to_parquet(path)
    with pytest.raises(InputError, match="has no column relevance"):
        read_relevance(path, CORPUS)
    # A caption may be named by its text.
    pd.DataFrame([{"image_id": "image 1", "caption": CORPUS.captions[3], "relevance": 2.0}]).to_parquet(path)
    assert read_relevance(path, CORPUS).key_P.tolist() == [1 * 18 + 3]


def graded(relevance: Relevance, model) -> RankTable:
    measured = evaluate.evaluate_model(model, CORPUS, options=OPTIONS)
    ndcg = {
        direction: relevance.ndcg(direction, measured.rankings.of(direction), gallery)
        for direction, gallery in zip(Direction, (18, 10), strict=True)
    }
    return replace(measured.table, ndcg=ndcg)


def test_ranks_keep_the_ndcg_of_every_query(tmp_path, relevance):
    table = graded(relevance, make_dual())
    write_ranks(tmp_path / "ranks.parquet", table)
    read = read_ranks(tmp_path / "ranks.parquet")
    for direction in Direction:
        assert read.ndcg[direction].tolist() == pytest.approx(table.ndcg[direction], nan_ok=True)
    write_ranks(tmp_path / "ranks.parquet", replace(table, ndcg={}))
    assert read_ranks(tmp_path / "ranks.parquet").ndcg == {}


def test_systems_are_compared_by_the_ndcg_of_the_same_queries(relevance):
    ours, base = graded(relevance, make_fusion()), graded(relevance, make_dual())
    compared = significance.compare_ranks([ours], [base], resamples=500)
    for direction in Direction:
        ours_Q, base_Q = ours.ndcg[direction], base.ndcg[direction]
        change = compared.difference.of(direction)["nDCG@10"]
        assert change.value == pytest.approx(100 * np.nanmean(ours_Q - base_Q))
        assert change.interval.low < change.value < change.interval.high
        for system, values in ((compared.ours, ours_Q), (compared.base, base_Q)):
            assert system.of(direction)["nDCG@10"].value == pytest.approx(100 * np.nanmean(values))
        test = compared.ndcg_tests[direction.key]
        assert (test.p_value <= 0.05) == (change.interval.low > 0 or change.interval.high < 0)
        assert test.sign_flip_is_exact
        # All patterns of signs of images, whose captions keep one sign.
        unit_Q = np.arange(10) if direction == Direction.TEXT else CORPUS.caption_image
        sums = np.bincount(unit_Q, np.nan_to_num(ours_Q - base_Q))
        signs = np.array(np.meshgrid(*[[-1, 1]] * 10)).reshape(10, -1)
        expected = (np.abs(sums @ signs) >= abs(sums.sum()) - 1e-9).mean()
        assert test.sign_flip_p_value == pytest.approx(expected)
    same = significance.compare_ranks([ours], [ours], resamples=50)
    assert [test.p_value for test in same.ndcg_tests.values()] == [1, 1]
    # Without it on one side, recalls alone are compared.
    alone = significance.compare_ranks([replace(ours, ndcg={})], [base], resamples=50)
    assert "nDCG@10" not in alone.difference.text_retrieval
    assert alone.ndcg_tests == {}
    assert "nDCG@10" in significance.bootstrap([base], resamples=50).text_retrieval
