"""Ranks and measures against the released evaluation, other libraries, and by hand; retrieval by vectors against the
full matrix."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from forks import run_forked
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix_ranks import rank_matrix
from paths import FIXTURES
from torch.testing import assert_close

from dcdctl.core.evaluation import measures
from dcdctl.core.evaluation import ranks as evaluation_ranks
from dcdctl.core.evaluation.measures import average_precision_at_r
from dcdctl.core.evaluation.ranking import NO_POSITION, Rankings
from dcdctl.core.scoring import topk

# From the released evaluation (METER's compute_irtr_recall); fractions in float32.
GOLDEN = json.loads((FIXTURES / "recall_a.json").read_text(encoding="utf-8"))["cases"]


def unit(seed: int, *shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def all_of(rankings: Rankings) -> list[list[list[int]]]:
    return [
        array.tolist()
        for ranking in (rankings.text, rankings.image)
        for array in (ranking.positions_QR, ranking.top_QK)
    ]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['images']}x{case['captions_per_image']}")
def test_recalls_are_those_of_the_released_evaluation(case):
    rankings = rank_matrix(torch.tensor(case["scores_images_by_texts"]), np.array(case["text_owner"]))
    text, image = measures.of_ranking(rankings.text), measures.of_ranking(rankings.image)
    for k in (1, 5, 10):
        assert text[f"R@{k}"] == pytest.approx(100 * case[f"tr_r{k}"], rel=1e-7)
        assert image[f"R@{k}"] == pytest.approx(100 * case[f"ir_r{k}"], rel=1e-7)


@given(counts=st.lists(st.integers(1, 4), min_size=1, max_size=9), seed=st.integers(0, 1000), block=st.integers(1, 8))
@settings(
    max_examples=60, deadline=None, derandomize=True
)  # drawn anew, two scores are a tie for us alone once in a long while
def test_rankings_by_vectors_are_those_of_the_matrix(counts, seed, block):
    owner = np.repeat(np.arange(len(counts)), counts)
    image_ID, text_TD = unit(seed, len(counts), 8), unit(seed + 1, len(owner), 8)
    rankings = evaluation_ranks.rank_embeddings(image_ID, text_TD, owner, block=block)
    assert all_of(rankings) == all_of(rank_matrix(image_ID @ text_TD.T, owner))


@pytest.mark.parametrize("gallery_block", [4, 64])
def test_rankings_do_not_depend_on_the_gallery_block(monkeypatch, gallery_block):
    owner, image_ID, text_TD = np.arange(40) // 2, unit(0, 20, 6), unit(1, 40, 6)
    monkeypatch.setattr(evaluation_ranks, "GALLERY_BLOCK", gallery_block)
    rankings = evaluation_ranks.rank_embeddings(image_ID, text_TD, owner, block=7)
    assert all_of(rankings) == all_of(rank_matrix(image_ID @ text_TD.T, owner))


@pytest.mark.parametrize("threads", [2, 5])
def test_rankings_do_not_depend_on_the_number_of_threads(threads):
    # Each image thrice: its copies have equal scores, and the same ones must be kept.
    owner, image_ID, text_TD = np.arange(300) // 2, unit(0, 50, 6).repeat(3, 1), unit(1, 300, 6)
    before, expected = (
        torch.get_num_threads(),
        all_of(evaluation_ranks.rank_embeddings(image_ID, text_TD, owner, block=40)),
    )
    torch.set_num_threads(threads)
    try:
        assert all_of(evaluation_ranks.rank_embeddings(image_ID, text_TD, owner, block=40)) == expected
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("num_images", [2, 33, 200])
def test_equal_vectors_are_a_tie_whatever_their_products_last_bits_are(num_images):
    owner = np.repeat(np.arange(num_images), 3)
    for seed in range(8):
        vector_D = unit(seed, 256)
        rankings = evaluation_ranks.rank_embeddings(
            vector_D.repeat(num_images, 1), vector_D.repeat(len(owner), 1), owner, block=30
        )
        assert set(rankings.text.ranks.tolist()) == {3 * num_images - 2}
        assert set(rankings.image.ranks.tolist()) == {num_images}
        assert measures.of_ranking(rankings.text)["R@1"] == measures.of_ranking(rankings.image)["R@1"] == 0


def test_other_own_captions_never_count_against_the_best():
    scores_IT = torch.tensor([[5.0, 5.0, 5.0, 4.0], [0.0, 0.0, 0.0, 1.0]])
    rankings = rank_matrix(scores_IT, np.array([0, 0, 0, 1]))
    assert rankings.text.ranks.tolist() == [1, 1]
    assert rankings.image.ranks.tolist() == [1, 1, 1, 2]


@given(
    num_queries=st.integers(1, 9),
    gallery=st.integers(1, 30),
    k=st.integers(1, 12),
    block=st.integers(1, 5),
    gallery_block=st.integers(1, 31),
)
@settings(max_examples=80, deadline=None)
def test_streaming_top_k_equals_the_full_matrix(num_queries, gallery, k, block, gallery_block):
    queries_QD, gallery_GD = unit(0, num_queries, 5), unit(1, gallery, 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk, "BLOCK", block)
        patch.setattr(topk, "GALLERY_BLOCK", gallery_block)
        scores_QK, index_QK = topk.top_k(queries_QD, gallery_GD, k)
    full_QG = queries_QD @ gallery_GD.T
    assert_close(scores_QK, full_QG.topk(min(k, gallery)).values)
    assert_close(full_QG.gather(1, index_QK), scores_QK)
    assert all(len(set(row)) == len(row) for row in index_QK.tolist())


def test_vectors_in_half_precision_are_compared_in_float32():
    """Products in bfloat16 have three digits, so that close candidates would tie."""
    queries_QD, gallery_GD = unit(0, 4, 64).bfloat16(), unit(1, 300, 64).bfloat16()
    scores_QK, index_QK = topk.top_k(queries_QD, gallery_GD, 300)
    expected_QG = queries_QD.float() @ gallery_GD.float().T
    assert scores_QK.dtype == torch.float32
    assert torch.equal(index_QK, expected_QG.topk(300).indices)
    owner = np.arange(300) // 75
    rankings = evaluation_ranks.rank_embeddings(queries_QD, gallery_GD, owner)
    assert all_of(rankings) == all_of(rank_matrix(expected_QG, owner))


def test_average_precision_counts_positives_among_the_first_r_only():
    # Five positives at 1, 2, 4, 7, 9: the first three count, with 1/1, 2/2 and 3/4. Two at 3 and 4: none among the
    # first two.
    positions_QR = np.array([[1, 2, 4, 7, 9], [3, 4, *[NO_POSITION] * 3], [1, *[NO_POSITION] * 4]])
    assert average_precision_at_r(positions_QR).tolist() == pytest.approx([(1 + 1 + 0.75) / 5, 0, 1])


def test_measures_of_folds_are_averaged():
    matrices = [torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([[1.0, 2.0], [2.0, 1.0]])]
    measured = measures.mean_measures([rank_matrix(scores_IT, np.array([0, 1])) for scores_IT in matrices])
    text, image = measured.values()
    assert text == image
    expected = {"R@1": 50.0, "R@5": 100.0, "R@10": 100.0, "mAP@R": 50.0, "median_rank": 1.5, "mean_rank": 1.5}
    assert text.items() >= expected.items()


OWNER = np.repeat(np.arange(30), np.random.default_rng(0).integers(1, 6, 30))


@pytest.fixture(scope="module")
def asked() -> tuple[torch.Tensor, torch.Tensor, Rankings]:
    """Vectors of 30 images with one to five captions each, some of them near, and how we rank them."""
    image_ID, noise_TD = unit(0, 30, 12), unit(1, len(OWNER), 12)
    text_TD = torch.nn.functional.normalize(image_ID[OWNER] + 1.3 * noise_TD, dim=1)
    return image_ID, text_TD, evaluation_ranks.rank_embeddings(image_ID, text_TD, OWNER)


RANX = """
import json, sys
import numba
numba.config.DISABLE_JIT = True  # compiling takes longer than all else
from ranx import Qrels, Run, evaluate
results = []
for direction in json.load(open(sys.argv[1])):
    run, qrels = Run(direction["run"]), Qrels(direction["qrels"])
    wanted = ["hit_rate@1", "hit_rate@5", "hit_rate@10", "mrr", *(f"map@{r}" for r in range(1, 6))]
    evaluate(qrels, run, wanted)
    results.append(run.scores)
json.dump(results, sys.stdout)
"""


def test_every_query_is_measured_as_by_ranx(tmp_path, asked):
    image_ID, text_TD, rankings = asked
    ways = []
    for scores_QG, own in (
        (image_ID @ text_TD.T, [np.flatnonzero(image == OWNER).tolist() for image in range(30)]),
        (text_TD @ image_ID.T, [[image] for image in OWNER.tolist()]),
    ):
        qrels = {f"q{query}": {f"c{candidate}": 1 for candidate in positives} for query, positives in enumerate(own)}
        run = {
            f"q{query}": {f"c{candidate}": score for candidate, score in enumerate(row)}
            for query, row in enumerate(scores_QG.tolist())
        }
        ways.append({"qrels": qrels, "run": run})
    (tmp_path / "ways.json").write_text(json.dumps(ways))
    for theirs, ours in zip(
        json.loads(run_forked(RANX, tmp_path / "ways.json")[0]), (rankings.text, rankings.image), strict=True
    ):
        num_own = np.count_nonzero(ours.positions_QR != NO_POSITION, axis=1).tolist()
        expected = [theirs[f"map@{count}"][f"q{query}"] for query, count in enumerate(num_own)]
        assert average_precision_at_r(ours.positions_QR).tolist() == pytest.approx(expected)
        assert 0.1 < np.mean(expected) < 0.9
        assert (1 / ours.ranks).tolist() == pytest.approx([theirs["mrr"][f"q{query}"] for query in range(len(num_own))])
        for k in (1, 5, 10):
            assert (ours.ranks <= k).tolist() == [
                bool(theirs[f"hit_rate@{k}"][f"q{query}"]) for query in range(len(num_own))
            ]


class Given:
    """A model, as sentence-transformers asks one, that looks its vectors up."""

    def __init__(self, queries: torch.Tensor, documents: torch.Tensor) -> None:
        self.queries, self.documents = queries, documents

    def encode_query(self, index: list[str], **_: object) -> torch.Tensor:
        return self.queries[[int(name) for name in index]]

    def encode_document(self, index: list[str], **_: object) -> torch.Tensor:
        return self.documents[[int(name) for name in index]]


def test_recalls_are_the_accuracies_of_sentence_transformers(asked):
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    image_ID, text_TD, rankings = asked
    ways = (
        (image_ID, text_TD, [np.flatnonzero(image == OWNER).tolist() for image in range(30)], rankings.text),
        (text_TD, image_ID, [[image] for image in OWNER.tolist()], rankings.image),
    )
    for queries, documents, own, ours in ways:
        names, gallery = ({str(row): str(row) for row in range(len(side))} for side in (queries, documents))
        relevant = {str(query): set(map(str, positives)) for query, positives in enumerate(own)}
        cosine = {"cosine": lambda queries, documents: queries @ documents.T}
        measure = InformationRetrievalEvaluator(
            names, gallery, relevant, accuracy_at_k=[1, 5, 10], score_functions=cosine
        )
        accuracies = measure.compute_all_metrics(Given(queries, documents))["cosine"]["accuracy@k"]
        measured = measures.of_ranking(ours)
        assert [measured[f"R@{k}"] for k in (1, 5, 10)] == pytest.approx([100 * accuracies[k] for k in (1, 5, 10)])
        assert 10 < measured["R@1"] < 90


@pytest.mark.parametrize(
    ("name", "value", "shown", "brief"),
    [
        ("R@1", 66.6667, "66.67", "66.7"),
        ("mAP@R", 5, "5.00", "5.0"),
        ("median_rank", 2.0, "2", "2"),
        ("median_rank", 2.5, "2.5", "2.5"),
        ("median_rank", 1234.0, "1,234", "1234"),
        ("mean_rank", 1234.56, "1,234.6", None),
    ],
)
def test_each_measure_has_the_digits_of_its_kind(name, value, shown, brief):
    (measure,) = [row for row in measures.MEASURES if row.name == name]
    assert measure.show(value) == shown
    assert (measure.brief(value) if measure.in_report else None) == brief
