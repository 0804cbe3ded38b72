"""Scoring pairs of a part of a corpus, and the estimate of the time."""

from __future__ import annotations

import numpy as np
import pytest
from tables import OWNER, Numbers, make_dual, make_fusion

from dcdctl.core.engines import Compute
from dcdctl.core.evaluation import EvalOptions, evaluate
from dcdctl.core.models import vector_states
from dcdctl.core.scoring import CorpusSource, PairScorer, folds, pairs
from dcdctl.core.scoring.sources import EmbeddedImages


def scorer_on(images: range, texts: range) -> PairScorer:
    fusion = make_fusion()
    source = CorpusSource(Numbers(OWNER), fusion.preprocess)
    return PairScorer(scorer=fusion, source=source, images=images, texts=texts, compute=Compute(batch_size=4))


@pytest.mark.parametrize("image_chunk", [1, 2, 64])
def test_pairs_are_counted_from_the_first_image_and_caption_of_the_part(monkeypatch, image_chunk):
    monkeypatch.setattr(pairs, "IMAGE_CHUNK", image_chunk)
    image_P, text_P = np.array([0, 0, 1, 3, 3]), np.array([4, 0, 1, 2, 2])
    scores = scorer_on(range(3, 8), range(6, 13)).score(image_P, text_P)
    assert scores.tolist() == make_fusion().table_IT[image_P + 3, text_P + 6].tolist()


def test_a_workload_is_the_rate_of_a_trial_times_the_counts(monkeypatch):
    opened, now = scorer_on(range(10), range(18)), 0.0

    def takes(name, seconds_each):
        work = getattr(opened.scorer, name)

        def timed(*arguments):
            nonlocal now
            now += seconds_each * len(arguments[-1])
            return work(*arguments)

        monkeypatch.setattr(opened.scorer, name, timed)

    monkeypatch.setattr("time.perf_counter", lambda: now)
    takes("encode_images", 0.5), takes("encode_texts", 0.1), takes("score_pairs", 0.02)
    workload = opened.workload(num_pairs=1000, num_images=20, num_texts=18)
    assert workload.num_pairs == 1000
    assert workload.pairs_per_s == pytest.approx(50)
    assert workload.seconds == pytest.approx(1000 / 50 + 20 * 0.5 + 18 * 0.1)


def test_images_that_a_teacher_has_embedded_are_its_states_in_the_order_given():
    vectors_ID = make_dual().image_ID
    source = EmbeddedImages(Numbers(OWNER), make_fusion().preprocess, vector_states(vectors_ID))
    assert source.images([7, 0, 7]).vectors.tolist() == vectors_ID[[7, 0, 7]].tolist()
    assert len(source.texts([4, 5])) == 2


def test_two_workloads_are_estimated_by_the_same_pairs(monkeypatch):
    monkeypatch.setattr(folds, "TRIAL_S", 1e-9)
    scored = []
    for _ in range(2):
        opened = scorer_on(range(2, 10), range(4, 18))
        opened.workload(num_pairs=9, num_images=8, num_texts=14)
        scored.append(opened.scorer.pairs)
    assert scored[0] == scored[1]
    assert len(set(scored[0])) > 1


@pytest.mark.parametrize(
    ("num_pairs", "counts"),
    # At a hundredth of a second each, 4 x 64 pairs are the first that take two seconds.
    [(10_000, [4, 16, 64, 256]), (100, [4, 16, 64, 100]), (3, [3])],
)
def test_trials_grow_by_four_until_one_takes_two_seconds_or_all_pairs(monkeypatch, num_pairs, counts):
    now, tried = 0.0, []

    def trial(scale):
        count = min(4 * scale, num_pairs)

        def work():
            nonlocal now
            # The first trial warms up, and only the last one counts.
            now += count / (10 if not tried else 100)
            tried.append(count)

        return count, work

    monkeypatch.setattr("time.perf_counter", lambda: now)
    assert folds.measure_rate(trial, num_pairs) == pytest.approx(100 if len(counts) > 1 else 10)
    assert tried == counts


@pytest.mark.parametrize(("asked", "expected"), [(None, [5, 3]), (2, [2, 2, 2, 2])])
def test_the_model_sets_the_batch_size_unless_the_user_does(asked, expected):
    fusion = make_fusion()
    fusion.pairs_per_batch = 5
    source = CorpusSource(Numbers(OWNER), fusion.preprocess)
    pairs.score_pairs(fusion, source, np.zeros(8, dtype=int), np.arange(8), compute=Compute(batch_size=asked))
    assert list(map(len, fusion.batches)) == expected


def test_pairs_of_an_image_share_a_batch_of_a_model_that_groups_them(monkeypatch):
    monkeypatch.setattr(pairs, "IMAGE_CHUNK", 2)
    fusion, done = make_fusion(), []
    fusion.groups_by_image = True
    # By image: 4 pairs of 1, 1 of 3, 2 of 5, 1 of 8; the chunks are 1 with 3, and 5 with 8.
    image_P, text_P = np.array([5, 1, 3, 1, 8, 1, 5, 1]), np.array([2, 7, 0, 3, 17, 12, 9, 7])
    source, compute = CorpusSource(Numbers(OWNER), fusion.preprocess), Compute(batch_size=3)
    scores = pairs.score_pairs(fusion, source, image_P, text_P, compute=compute, advance=done.append)
    assert scores.tolist() == fusion.table_IT[image_P, text_P].tolist()
    assert [[image for image, _ in batch] for batch in fusion.batches] == [[1, 1, 1], [1, 3], [5, 5, 8]]
    assert done == [3, 2, 3]


@pytest.mark.parametrize("rerank", [False, True])
def test_the_workload_is_told_before_anything_is_scored(rerank):
    fusion, heard = make_fusion(), []
    options = EvalOptions(depths=(3,))

    def on_workload(workload) -> None:
        heard.append((workload.num_pairs, len(fusion.pairs)))

    model = {"model": make_dual(), "rerank": fusion} if rerank else {"model": fusion}
    evaluation = evaluate.evaluate_model(**model, corpus=Numbers(OWNER), options=options, on_workload=on_workload)
    num_trial = len(fusion.pairs) - evaluation.pairs_scored
    assert heard == [(evaluation.pairs_scored, num_trial)]
    assert num_trial > 0
