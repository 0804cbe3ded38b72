"""Candidates within a budget of pairs, and random candidates beside mined ones, against numbers worked out by hand and
plain loops."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from command_line import run
from task_work import plan
from tiny import make_corpus, make_pool, make_teacher, make_wide_dual

from dcdctl.core import models
from dcdctl.core.data import Corpus, Direction, RaggedArray
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ConfigError, StaleError
from dcdctl.core.scoring import CorpusSource, embed_with_model
from dcdctl.core.teacher import (
    CacheJob,
    CandidateConfig,
    Candidates,
    budget,
    cache_scores,
    candidates,
)

TEXTS = [[f"a {word} of thing {image}" for word in ("view", "photo")[: 1 + image % 2]] for image in range(12)]
CPU = torch.device("cpu")
NO_PAIRS = np.empty(0, np.int64)
Lists = tuple[list[list[int]], list[list[int]]]


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Corpus:
    """Twelve images and 18 texts that belong to none of them."""
    return make_pool(tmp_path_factory.mktemp("pool") / "pool", TEXTS, has_colors=True)


@pytest.fixture(scope="module")
def captioned(tmp_path_factory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("captioned") / "corpus", TEXTS, has_colors=True)


@pytest.fixture(scope="module")
def dual(pool, tmp_path_factory) -> str:
    """A saved dual encoder whose vectors differ."""
    folder = tmp_path_factory.mktemp("dual") / "dual"
    models.save(make_wide_dual(pool.captions), folder)
    return str(folder)


@pytest.fixture(scope="module")
def reranker(pool, tmp_path_factory) -> str:
    """A saved teacher."""
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    models.save(make_teacher(pool.captions), folder)
    return str(folder)


@pytest.fixture(scope="module")
def similarity(pool, dual) -> np.ndarray:
    """The cosine of each image with each text of the pool."""
    model = models.load_dual(dual)
    vectors = embed_with_model(model, CorpusSource(pool, model.preprocess), CPU)
    return (vectors.images_ID @ vectors.texts_TD.T).numpy()


def lists_of(drawn: Candidates) -> Lists:
    """The candidates of every image and of every text."""
    lists = drawn.texts_of_image, drawn.images_of_text
    return tuple([part[i].tolist() for i in range(len(part))] for part in lists)  # type: ignore[return-value]


def drawn_by_hand(texts_of_image: list[list[int]], num_texts: int) -> Candidates:
    """Candidates of images, best first."""
    order = [np.argsort(texts) for texts in texts_of_image]
    rows = np.repeat(np.arange(len(order)), [len(texts) for texts in texts_of_image])
    values = np.array([texts[i] for texts, ranks in zip(texts_of_image, order, strict=True) for i in ranks])
    lists = RaggedArray.from_sorted(rows, values, len(order))
    return Candidates(lists, RaggedArray.empty(num_texts), {}, {Direction.TEXT: np.concatenate(order) + 0.5})


def test_a_budget_takes_every_querys_best_before_the_next_ones():
    drawn = drawn_by_hand([[4, 0, 2], [3, 1, 0], [5]], num_texts=6)
    weights = {Direction.TEXT: np.ones(3)}
    kept = [lists_of(budget.within_budget(drawn, count, NO_PAIRS, weights, seed=0))[0] for count in (3, 5, 7, 9)]
    assert kept == [[[4], [3], [5]], [[0, 4], [1, 3], [5]], [[0, 2, 4], [0, 1, 3], [5]], [[0, 2, 4], [0, 1, 3], [5]]]
    dropped = [budget.within_budget(drawn, count, NO_PAIRS, weights, seed=0).dropped for count in (3, 9)]
    assert dropped == [{"--max-pairs": 4}, {"--max-pairs": 0}]


def test_a_budget_is_shared_in_proportion_to_weights_by_websters_method():
    # Priorities of image 0: 3, 1, 0.6, 0.43; of image 1: 1, 0.33; of image 2: 0.
    drawn = drawn_by_hand([[7, 0, 2, 1], [3, 1, 0], [5, 6]], num_texts=8)
    weights = {Direction.TEXT: np.array([3.0, 1.0, 0.0])}
    kept = lists_of(budget.within_budget(drawn, 4, NO_PAIRS, weights, seed=0))[0]
    assert kept == [[0, 2, 7], [3], []]
    assert lists_of(budget.within_budget(drawn, 7, NO_PAIRS, weights, seed=0))[0] == [[0, 1, 2, 7], [0, 1, 3], []]


def test_scored_pairs_are_free_and_others_take_their_places():
    drawn = drawn_by_hand([[4, 0, 2], [3, 1, 0]], num_texts=6)
    # The teacher has scored the best candidate of image 0: its next one is now the first to be paid for.
    kept = budget.within_budget(drawn, 2, np.array([0 * 6 + 4]), {Direction.TEXT: np.ones(2)}, seed=0)
    assert lists_of(kept)[0] == [[0, 4], [3]]
    assert kept.dropped == {"--max-pairs": 3}


def test_a_pair_of_two_queries_is_paid_for_once():
    # Image 0 with text 1 is the best of both; image 0 with text 0 is the second of the image, the first of the text.
    lists = RaggedArray.from_sorted(np.array([0, 0]), np.array([0, 1]), 1)
    of_texts = RaggedArray.from_sorted(np.array([0, 1]), np.array([0, 0]), 2)
    ranks = {Direction.TEXT: np.array([1.5, 0.5]), Direction.IMAGE: np.array([0.5, 0.5])}
    weights = {Direction.TEXT: np.ones(1), Direction.IMAGE: np.array([0.5, 1.0])}
    kept = budget.within_budget(Candidates(lists, of_texts, {}, ranks), 1, NO_PAIRS, weights, seed=0)
    assert lists_of(kept) == ([[1]], [[], [0]])
    kept = budget.within_budget(Candidates(lists, of_texts, {}, ranks), 2, NO_PAIRS, weights, seed=0)
    assert lists_of(kept) == ([[0, 1]], [[0], [0]])


def test_pairs_of_equal_priority_are_chosen_by_the_seed_and_not_by_position():
    drawn = drawn_by_hand([[image] for image in range(100)], num_texts=100)
    weights = {Direction.TEXT: np.ones(100)}

    def chosen(seed: int) -> list[int]:
        lists = lists_of(budget.within_budget(drawn, 50, NO_PAIRS, weights, seed))[0]
        return [image for image, texts in enumerate(lists) if texts]

    assert chosen(0) == chosen(0) != chosen(1)
    assert 15 < len([image for image in chosen(0) if image < 50]) < 35


def test_disagreement_is_the_divergence_of_the_softmax_of_a_querys_pairs():
    rng = np.random.default_rng(0)
    query_P = rng.integers(0, 5, 40)
    teacher_P, student_P = rng.normal(size=(2, 40)) * 3
    weights = budget.disagreement(query_P, teacher_P, student_P, num_queries=7)
    for query in range(5):
        log_p, log_q = (torch.tensor(x[query_P == query]).log_softmax(0) for x in (teacher_P, student_P))
        expected = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="sum")
        assert weights[query] == pytest.approx(expected.item(), rel=1e-9)
    # Queries that nobody scored get the mean of the others.
    assert weights[5] == weights[6] == pytest.approx(weights[:5].mean())
    assert budget.disagreement(query_P, teacher_P, teacher_P, 7).tolist() == [1.0] * 7


def test_mixed_candidates_are_the_nearest_and_random_others(pool, dual, similarity):
    config = CandidateConfig(kind="embedding", model=dual, per_query=7, random_per_query=3)
    drawn = lists_of(candidates.draw_candidates(pool, config))
    for lists, scores in zip(drawn, (similarity, similarity.T), strict=True):
        others = []
        for query, found in enumerate(lists):
            nearest = set(np.argsort(-scores[query])[:4].tolist())
            assert len(set(found)) == 7
            assert nearest <= set(found)
            others.append(sorted(set(found) - nearest))
        assert len({tuple(other) for other in others}) > len(others) // 2  # drawn for each query
    assert lists_of(candidates.draw_candidates(pool, replace(config, seed=1))) != drawn


def test_a_budget_keeps_the_shares_of_mined_and_random_candidates(pool, dual, similarity):
    config = CandidateConfig(
        kind="embedding", model=dual, per_query=9, random_per_query=3, directions=(Direction.TEXT,)
    )
    drawn = candidates.draw_candidates(pool, config, max_pairs=12 * 3)
    for found, scores in zip(lists_of(drawn)[0], similarity, strict=True):
        # Two of six mined ones, and one of three random ones.
        assert len(found) == 3
        assert len(set(found) & set(np.argsort(-scores)[:6].tolist())) == 2
        assert set(np.argsort(-scores)[:2].tolist()) <= set(found)


def test_a_budget_keeps_the_positives_of_captioned_images(captioned, dual):
    config = CandidateConfig(kind="embedding", model=dual, per_query=5)
    drawn = candidates.draw_candidates(captioned, config, max_pairs=18 + 7)
    image, text, role = drawn.pairs(captioned.caption_image)
    assert len(image) == 25
    assert (role & 1).sum() == 18
    assert (captioned.caption_image[text[role & 1 > 0]] == image[role & 1 > 0]).all()
    with pytest.raises(ConfigError, match=r"--max-pairs is 18, and 18 pairs .* are always scored"):
        candidates.draw_candidates(captioned, config, max_pairs=18)


@pytest.mark.parametrize("name", ["pool", "captioned"])
def test_blocks_are_kept_whole(request, name):
    corpus = request.getfixturevalue(name)
    own = 0 if corpus.is_pool else 18
    config = CandidateConfig(kind="blocks", block_size=4, captions_per_image=1, group_size=1, rounds=3)
    whole = candidates.draw_candidates(corpus, config)
    one_round = candidates.draw_candidates(corpus, replace(config, rounds=1))
    num_pairs = len(one_round.texts_of_image.values)
    kept = candidates.draw_candidates(corpus, config, max_pairs=own + num_pairs)
    assert lists_of(kept) == lists_of(one_round)
    assert kept.dropped["--max-pairs"] == len(whole.texts_of_image.values) - num_pairs
    # One pair less, and the last block of the round is left out: its images have no candidates.
    fewer = candidates.draw_candidates(corpus, config, max_pairs=own + num_pairs - 1)
    lengths = fewer.texts_of_image.lengths
    assert sorted(np.unique(lengths, return_counts=True)[1].tolist()) == [4, 8]
    assert lengths.min() == 0
    with pytest.raises(ConfigError, match=r"leaves 3 pairs for blocks, and the first has 1[26] to score"):
        candidates.draw_candidates(corpus, config, max_pairs=own + 3)


def test_blocks_whose_pairs_are_scored_cost_nothing():
    assert budget.num_blocks(5, np.array([0, 0, 0, 2, 2, 2]), total=5) == (2, 3)
    assert budget.num_blocks(6, np.array([0, 0, 0, 2, 2, 2]), total=5) == (5, 0)


def test_rounds_spend_the_budget_where_the_student_of_the_last_one_disagrees(
    pool, dual, reranker, similarity, tmp_path
):
    config = CandidateConfig(kind="embedding", model=dual, per_query=9)
    job = CacheJob(
        data=pool.folder, out=tmp_path / "1", candidates=config, teacher=reranker, max_pairs=60, compute=Compute()
    )
    first = cache_scores(job)
    assert first is not None
    assert first.num_pairs == 60
    assert first.plan["max_pairs"] == 60
    costs = []
    second = cache_scores(replace(job, out=tmp_path / "2", extend=job.out, max_pairs=40), on_estimate=costs.append)
    assert second is not None
    assert (second.num_pairs, costs[0].num_to_score) == (100, 40)
    assert costs[0].num_left_out == second.seal["dropped"]["--max-pairs"] > 0
    np.testing.assert_array_equal(second.lookup(*first.scored_pairs), first.score_P)
    # The oracle: every unscored candidate with its priority, by loops.
    scale = models.load_dual(dual).logit_scale.item()
    priorities: dict[tuple[int, int], float] = {}
    scored = set(zip(first.image_P.tolist(), first.text_P.tolist(), strict=True))
    for direction, scores in ((Direction.TEXT, similarity), (Direction.IMAGE, similarity.T)):
        query_P = direction.query_first(first.image_P, first.text_P.astype(np.int64))[0]
        logits = scale * similarity[first.image_P, first.text_P]
        weights = budget.disagreement(query_P, first.score_P, logits, len(scores))
        assert len(set(weights.tolist())) > 5
        for query, order in enumerate(np.argsort(-scores, axis=1)[:, :9].tolist()):
            pairs = [direction.query_first(query, other) for other in order]
            for place, pair in enumerate(pair for pair in pairs if pair not in scored):
                priorities[pair] = max(priorities.get(pair, 0), weights[query] / (2 * place + 1))
    best = sorted(priorities, key=lambda pair: -priorities[pair])[:40]
    new = set(zip(second.image_P.tolist(), second.text_P.tolist(), strict=True)) - scored
    assert new == set(best)


@pytest.mark.parametrize("other", [31, None])
def test_a_budget_is_part_of_the_plan(pool, reranker, tmp_path, other):
    config = CandidateConfig(per_query=3)
    job = CacheJob(data=pool.folder, out=tmp_path / "cache", candidates=config, teacher=reranker, max_pairs=30)
    assert plan(replace(job, out=tmp_path / "plan"))[0] == 30
    assert cache_scores(job).num_pairs == cache_scores(job).num_pairs == 30
    with pytest.raises(StaleError, match="max_pairs"):
        cache_scores(replace(job, max_pairs=other))


def test_the_command_takes_a_budget_and_its_dry_run_shows_it(pool, reranker, tmp_path):
    command = f"cache-teacher --data {pool.folder} --recipe tiny-student --max-pairs 20 --device cpu"
    # No query would have the candidates of a list: to be extended, or for another recipe.
    refused = run(f"{command} --teacher {reranker} --out {tmp_path / 'cache'}", code=1)
    assert (
        "batch.random_negatives is 15, and the candidates are 2 at most for each image; set --max-pairs"
        in refused.stderr
    )
    command += " --set batch.random_negatives=1 --set batch.hard_negatives=1"
    result = run(f"{command} --teacher {reranker} --out {tmp_path / 'cache'} --dry-run --json")
    document = json.loads(result.stdout)
    assert (document["pairs"], document["to_score"]) == (20, 20)
    assert f"20 to score ({document['left_out']:,} more exceed --max-pairs)" in result.stderr
    result = run(f"{command} --out {tmp_path / 'plan'} --engine files:{tmp_path / 'tasks'}")
    assert result.stdout.startswith("20 pairs without a score in 1 task -> ")
