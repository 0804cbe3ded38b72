"""Evaluation: fakes whose scores are a table, and a tiny real model against its plain scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matrix_ranks import rank_matrix
from plain_scores import plain_score
from tables import OWNER, Numbers, TableDual, TableFusion, make_dual, make_fusion
from tiny import make_models
from torch import Tensor

from dcdctl.core import scoring
from dcdctl.core.data import Corpus, Direction
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ModelError
from dcdctl.core.evaluation import ESTIMATED, EvalOptions, Measured, evaluate
from dcdctl.core.evaluation.protocols import Protocol
from dcdctl.core.evaluation.ranks import RankCounter
from dcdctl.core.scoring import pairs


@pytest.fixture
def corpus() -> Numbers:
    return Numbers(OWNER)


@pytest.fixture
def dual() -> TableDual:
    return make_dual()


@pytest.fixture
def fusion() -> TableFusion:
    return make_fusion()


def ranks_of(result: Measured) -> tuple[list[int], list[int]]:
    return result.table.text_ranks.tolist(), result.table.image_ranks.tolist()


def ranks_of_table(table_IT: Tensor, owner: list[int]) -> tuple[list[int], list[int]]:
    rankings = rank_matrix(table_IT, np.array(owner))
    return rankings.text.ranks.tolist(), rankings.image.ranks.tolist()


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_a_dual_encoder_is_ranked_by_its_cosines(corpus, dual, batch_size):
    result = evaluate.evaluate_model(dual, corpus, options=EvalOptions(compute=Compute(batch_size=batch_size)))
    assert ranks_of(result) == ranks_of_table(dual.image_ID @ dual.text_TD.T, OWNER)
    assert (result.protocol.kind, result.pairs_scored) == ("dual", 0)


@pytest.mark.parametrize(("batch_size", "image_chunk"), [(1, 64), (7, 3), (1000, 1)])
def test_a_fusion_scorer_is_ranked_by_every_pair_scored_once(monkeypatch, corpus, fusion, batch_size, image_chunk):
    # Rankers read the chunk of images from the room, `PairScorer` from its own file.
    assert scoring.IMAGE_CHUNK == pairs.IMAGE_CHUNK
    for holder in (scoring, pairs):
        monkeypatch.setattr(holder, "IMAGE_CHUNK", image_chunk)
    result = evaluate.evaluate_model(fusion, corpus, options=EvalOptions(compute=Compute(batch_size=batch_size)))
    assert ranks_of(result) == ranks_of_table(fusion.table_IT, OWNER)
    assert sorted(fusion.pairs) == [(image, text) for image in range(10) for text in range(18)]
    assert fusion.num_encoded_texts == 18
    assert (result.protocol.kind, result.pairs_scored) == ("fusion", 180)


def test_a_cascade_as_deep_as_the_corpus_is_the_fusion_scorer(corpus, dual, fusion):
    result = evaluate.evaluate_model(dual, corpus, rerank=fusion)
    assert ranks_of(result) == ranks_of_table(fusion.table_IT, OWNER)
    assert result.pairs_scored == 180


def test_max_images_narrows_queries_and_galleries(corpus, fusion):
    result = evaluate.evaluate_model(fusion, corpus.subset(4))
    assert ranks_of(result) == ranks_of_table(fusion.table_IT[:4, :7], OWNER[:7])
    assert result.corpus.fingerprint == "numbers 7"


def test_stored_features_of_a_dual_encoder_without_frozen_encoders_are_an_error(corpus, dual, tmp_path):
    with pytest.raises(ModelError, match="features are its vectors"):
        evaluate.evaluate_model(dual, corpus, options=EvalOptions(compute=Compute(features=tmp_path)))


def test_scores_that_are_no_numbers_are_an_error(corpus, fusion):
    fusion.table_IT[3, 4] = float("nan")
    with pytest.raises(ModelError, match="NaN"):
        evaluate.evaluate_model(fusion, corpus)


def test_the_document_says_what_was_measured(corpus, fusion):
    result = evaluate.evaluate_model(fusion, corpus)
    document = result.evaluation("fake").document
    assert json.loads(json.dumps(document)) == document
    assert (document["images"], document["captions"], document["pairs_scored"]) == (10, 18, 180)
    values = [document[key][name] for key in ("text_retrieval", "image_retrieval") for name in ("R@1", "R@5", "R@10")]
    assert document["rsum"] == pytest.approx(sum(values))
    assert document["mean_recall"] == pytest.approx(sum(values) / 6)
    assert document["text_retrieval"]["R@1"] == pytest.approx(100 * np.mean(result.table.text_ranks == 1))
    about = {"kind": "fusion", "depth": None, "features": None, "ties": "count against the positive"}
    assert document["protocol"] == {"name": "whole", "folds": 1, **about}
    assert document["data"] == str(Path("numbers").absolute())


FIVE_FOLDS = Protocol(name="five", num_folds=5)


@pytest.mark.parametrize("kind", ["dual", "fusion", "cascade"])
def test_a_protocol_of_folds_is_the_mean_of_galleries_of_their_own(kind, corpus, dual, fusion):
    model = fusion if kind == "fusion" else dual
    rerank = fusion if kind == "cascade" else None
    evaluation = evaluate.evaluate_model(
        model, corpus, rerank=rerank, options=EvalOptions(protocol=FIVE_FOLDS, depths=(3,))
    )
    scored, parts = list(fusion.pairs), []
    for first in range(0, 10, 2):
        texts = [text for text, image in enumerate(OWNER) if image in (first, first + 1)]
        part = Numbers([OWNER[text] - first for text in texts])
        fold_dual = TableDual(dual.image_ID[first : first + 2], dual.text_TD[texts])
        other = TableFusion(fusion.table_IT[first : first + 2, texts])
        options = EvalOptions(depths=(3,))
        parts.append(
            evaluate.evaluate_model(
                other if kind == "fusion" else fold_dual, part, rerank=other if rerank else None, options=options
            )
        )
        own = np.arange(evaluation.table.text_ranks.size)[first : first + 2]
        assert evaluation.table.text_ranks[own].tolist() == parts[-1].table.text_ranks.tolist()
        assert evaluation.table.image_ranks[texts].tolist() == parts[-1].table.image_ranks.tolist()
        assert (evaluation.rankings.image.top_QK[texts] - first).tolist() == parts[-1].rankings.image.top_QK[
            :, :2
        ].tolist()
    for key in ("text_retrieval", "image_retrieval"):
        for name, value in getattr(evaluation, key).items():
            assert value == pytest.approx(np.mean([getattr(part, key)[name] for part in parts]))
    assert all(image // 2 == OWNER[text] // 2 for image, text in scored)
    assert len(scored) == evaluation.pairs_scored == sum(part.pairs_scored for part in parts)


def test_a_document_has_intervals_of_the_bootstrap_over_images(corpus, dual):
    document = evaluate.evaluate_model(dual, corpus).evaluation("fake").document
    intervals = document["intervals"]
    assert (intervals["level"], intervals["resamples"]) == (0.95, 10_000)
    assert intervals["rsum"][0] < document["rsum"] < intervals["rsum"][1]
    for key in ("text_retrieval", "image_retrieval"):
        assert list(intervals[key]) == [row.name for row in ESTIMATED]
        assert all(intervals[key][name][0] <= document[key][name] <= intervals[key][name][1] for name in intervals[key])


@torch.inference_mode()
def test_a_tiny_vilt_is_ranked_as_by_its_plain_scores(scenes_corpus_dir):
    corpus = Corpus.open(scenes_corpus_dir, "test")
    fusion, _ = make_models(corpus.captions)
    images = fusion.preprocess.images(corpus.images(range(6)))
    texts = fusion.preprocess.texts(corpus.captions[: corpus.captions_of(5).stop])
    rows = []
    for image in range(6):
        pixels = images.pixel_values[image].expand(len(texts), -1, -1, -1)
        mask = None if images.pixel_mask is None else images.pixel_mask[image].expand(len(texts), -1, -1)
        rows.append(plain_score(fusion, pixels, texts.input_ids, texts.attention_mask, mask))
    scores_IT, owner = torch.stack(rows).numpy(), corpus.caption_image[: len(texts)]
    counter = RankCounter(scores_IT[owner, range(len(texts))], owner, margin=pairs.LOGIT_ROUNDING)
    counter.add(scores_IT)
    result = evaluate.evaluate_model(fusion, corpus.subset(6), options=EvalOptions(compute=Compute(batch_size=16)))
    assert ranks_of(result) == tuple(counter.rankings().of(direction).ranks.tolist() for direction in Direction)


@pytest.mark.parametrize("kind", ["fusion", "dual", "cascade"])
def test_the_precision_is_that_of_the_options(scenes_corpus_dir, kind):
    corpus = Corpus.open(scenes_corpus_dir, "test").subset(4)
    fusion, dual = make_models(corpus.captions)
    model, rerank = (fusion, None) if kind == "fusion" else (dual, fusion if kind == "cascade" else None)
    scores = []
    for precision in ("float32", "bfloat16"):
        options = EvalOptions(compute=Compute(precision=precision))
        scores.append(
            evaluate.evaluate_model(model, corpus, rerank=rerank, options=options).rankings.image.positive_score_Q
        )
    assert 0 < np.abs(scores[0] - scores[1]).max() < 0.1
