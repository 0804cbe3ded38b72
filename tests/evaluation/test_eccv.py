"""ECCV Caption and CrissCrossed Captions: the package on a small corpus against the definitions, and its own numbers of
COCO."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matrix_ranks import rank_matrix

from dcdctl.core.errors import CorpusError
from dcdctl.core.evaluation import eccv, ranks
from dcdctl.core.evaluation.eccv import Judge
from dcdctl.core.evaluation.ranking import Ranking

NUM_IMAGES = 40


def corpus_of(images: np.ndarray, texts: np.ndarray, owner: np.ndarray) -> SimpleNamespace:
    """A corpus with COCO's names of pictures and these numbers of captions."""
    names = [f"val2014/COCO_val2014_{number:012}.jpg" for number in images.tolist()]
    return SimpleNamespace(image_ids=names, caption_ids=texts, caption_image=owner, folder=Path("coco"))


@pytest.fixture(scope="module")
def metrics():
    return eccv.load_package()()


@pytest.fixture
def small(metrics, monkeypatch):
    """40 pictures with five captions each, every eighth with a sixth that the package does not know, and judgements
    drawn at random."""
    rng = np.random.default_rng(0)
    owner = np.sort(np.concatenate([np.repeat(np.arange(NUM_IMAGES), 5), np.arange(0, NUM_IMAGES, 8)]))
    images, texts = 1000 + np.arange(NUM_IMAGES), 7000 + np.arange(len(owner))
    is_sixth = np.concatenate([np.arange(count) == 5 for count in np.bincount(owner)])
    known = texts[~is_sixth]
    own = {int(image): [int(text) for text in texts[(images[owner] == image) & ~is_sixth]] for image in images}
    coco = {"i2t": own, "t2i": {text: [image] for image, mine in own.items() for text in mine}}
    truths = {"coco_gts": coco}
    for name, num_queries, most in (("eccv_gts", 15, 14), ("cxc_gts", NUM_IMAGES, 4)):
        i2t = {
            int(q): [*own[int(q)], *rng.choice(known, most).tolist()]
            for q in rng.choice(images, num_queries, replace=False)
        }
        t2i = {
            int(q): [*coco["t2i"][int(q)], *rng.choice(images, most).tolist()]
            for q in rng.choice(known, num_queries, replace=False)
        }
        truths[name] = {"i2t": i2t, "t2i": t2i}
    for name, truth in truths.items():
        monkeypatch.setattr(metrics, name, truth)
    return corpus_of(images, texts, owner), truths, known


def places(scores: dict[int, float], own: set[int]) -> list[int]:
    """Where the positives stand among all candidates; a tie counts against them."""
    others = [score for candidate, score in scores.items() if candidate not in own]
    best_first = sorted((scores[candidate] for candidate in own), reverse=True)
    return [1 + nth + sum(other >= score for other in others) for nth, score in enumerate(best_first)]


def expected(scores_IT: np.ndarray, corpus, truths, known) -> dict:
    """The definitions, on whole rows of the captions that the package knows."""
    images = [int(name[-16:-4]) for name in corpus.image_ids]
    rows = {
        image: {int(t): float(s) for t, s in zip(corpus.caption_ids, row, strict=True) if t in known}
        for image, row in zip(images, scores_IT, strict=True)
    }
    columns = {
        int(text): dict(zip(images, column.tolist(), strict=True))
        for text, column in zip(corpus.caption_ids, scores_IT.T, strict=True)
    }
    measures: dict = {"eccv_caption": {}, "cxc": {}}
    for direction, key, scores in (("text_retrieval", "i2t", rows), ("image_retrieval", "t2i", columns)):
        of_eccv = [(places(scores[query], set(own)), len(set(own))) for query, own in truths["eccv_gts"][key].items()]
        measures["eccv_caption"][direction] = {
            "R@1": 100 * np.mean([where[0] == 1 for where, _ in of_eccv]),
            "R-Precision": 100 * np.mean([sum(place <= r for place in where) / r for where, r in of_eccv]),
            "mAP@R": 100
            * np.mean(
                [sum((nth + 1) / place for nth, place in enumerate(where) if place <= r) / r for where, r in of_eccv]
            ),
        }
        best = [places(scores[query], set(own))[0] for query, own in truths["cxc_gts"][key].items()]
        measures["cxc"][direction] = {f"R@{k}": 100 * np.mean(np.array(best) <= k) for k in (1, 5, 10)}
    return measures


def measured(judge: Judge, scores_IT: np.ndarray, owner: np.ndarray) -> dict:
    return judge.measure(rank_matrix(torch.from_numpy(scores_IT), owner, num_top=judge.num_top))


def flat(measures: dict) -> list[float]:
    return [value for judgment in measures.values() for measures in judgment.values() for value in measures.values()]


@pytest.mark.parametrize("seed", [0, 1])
def test_measures_are_those_of_the_definitions_on_whole_lists(metrics, small, seed):
    corpus, truths, known = small
    scores_IT = np.random.default_rng(seed).standard_normal((NUM_IMAGES, len(corpus.caption_ids))).astype(np.float32)
    scores_IT[corpus.caption_image, range(len(corpus.caption_ids))] += 1
    measures, wanted = (
        measured(Judge(metrics, corpus), scores_IT, corpus.caption_image),
        expected(scores_IT, corpus, truths, known),
    )
    assert measures.keys() == wanted.keys()
    assert {name: judgment.keys() for name, judgment in measures.items()} == {
        name: judgment.keys() for name, judgment in wanted.items()
    }
    assert flat(measures) == pytest.approx(flat(wanted))
    assert 5 < np.mean(flat(measures)) < 95


def test_a_tie_counts_against_every_positive(metrics, small):
    corpus, truths, known = small
    scores_IT = np.random.default_rng(0).integers(0, 40, (NUM_IMAGES, len(corpus.caption_ids))).astype(np.float32)
    measures = measured(Judge(metrics, corpus), scores_IT, corpus.caption_image)
    assert flat(measures) == pytest.approx(flat(expected(scores_IT, corpus, truths, known)))


def test_the_order_of_a_cascade_is_kept_though_its_scores_are_on_two_scales(metrics, small):
    corpus, _, _ = small
    scores_IT = np.random.default_rng(0).standard_normal((NUM_IMAGES, len(corpus.caption_ids))).astype(np.float32)
    judge = Judge(metrics, corpus)
    plain = rank_matrix(torch.from_numpy(scores_IT), corpus.caption_image, num_top=judge.num_top)
    shift = np.where(np.arange(judge.num_top) < 5, -100, 0).astype(np.float32)
    shifted = [
        dataclasses.replace(ranking, top_score_QK=ranking.top_score_QK + shift[: ranking.top_QK.shape[1]])
        for ranking in (plain.text, plain.image)
    ]
    assert judge.measure(ranks.Rankings(*shifted)) == judge.measure(plain)


def test_positives_that_tie_with_the_end_of_a_list_may_stand_behind_it(metrics, small):
    corpus, truths, _ = small
    judge, images = Judge(metrics, corpus), 1000 + np.arange(NUM_IMAGES)

    def lists(query_ids: np.ndarray, candidate_ids: np.ndarray, key: str) -> Ranking:
        """Positives first by luck, all scores equal."""
        top = []
        for query in query_ids.tolist():
            true = np.isin(
                candidate_ids, [*truths["eccv_gts"][key].get(query, ()), *truths["cxc_gts"][key].get(query, ())]
            )
            top.append(np.argsort(~true, kind="stable")[: judge.num_top])
        equal = np.ones((len(top), judge.num_top), np.float32)
        return Ranking(
            positions_QR=np.ones((len(top), 1), int),
            positive_score_Q=equal[:, 0],
            top_QK=np.array(top),
            top_score_QK=equal,
        )

    measures = judge.measure(
        ranks.Rankings(lists(images, corpus.caption_ids, "i2t"), lists(corpus.caption_ids, images, "t2i"))
    )
    assert (
        measures["eccv_caption"]["text_retrieval"]["mAP@R"] == measures["eccv_caption"]["image_retrieval"]["mAP@R"] == 0
    )
    assert measures["cxc"]["image_retrieval"]["R@10"] == 0


def coco(metrics) -> SimpleNamespace:
    """COCO's test split by the numbers of the package."""
    texts = metrics.coco_ids
    pictures = [metrics.coco_gts["t2i"][text][0] for text in texts.tolist()]
    images = np.array(list(dict.fromkeys(pictures)))
    return corpus_of(images, texts, np.repeat(np.arange(5000), 5))


def test_as_many_candidates_are_wanted_as_a_query_has_positives_at_most(metrics):
    corpus = coco(metrics)
    assert Judge(metrics, corpus).num_top == 48  # of one image
    owner = np.append(corpus.caption_image, [4999] * 10)
    more = corpus_of(
        np.array([int(name[-16:-4]) for name in corpus.image_ids]),
        np.append(corpus.caption_ids, -1 - np.arange(10)),
        owner,
    )
    assert Judge(metrics, more).num_top == 58


def test_the_judgments_are_opened_for_the_gallery_that_they_are_of(metrics, monkeypatch):
    monkeypatch.setattr(eccv, "load_package", lambda: lambda: metrics)
    assert eccv.open_judge(coco(metrics), SimpleNamespace(name="coco-5k")).num_top == 48


def test_a_corpus_with_numbers_of_its_own_is_refused(metrics):
    corpus = coco(metrics)
    corpus.caption_ids = np.arange(25000)
    with pytest.raises(
        CorpusError, match=r"requires COCO's own numbers: caption .* belongs to image .*--source karpathy"
    ):
        Judge(metrics, corpus)
