"""Training on pools: batches without positives, the losses that they take, and captioned images beside a pool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_inputs import OpenInputs
from score_table import ScoreTable
from tiny import make_corpus, make_pool, make_wide_dual, model_contents
from torch.testing import assert_close
from training_steps import TINY_DUAL, distill

from dcdctl.core import models
from dcdctl.core.data import Corpus
from dcdctl.core.errors import ConfigError
from dcdctl.core.scoring import CorpusSource
from dcdctl.core.teacher import false_negative_filter, picks
from dcdctl.core.training import (
    TrainingJob,
    TrainingOptions,
    checkpoints,
    load_recipe,
    loop,
    picking,
    preview,
)
from dcdctl.core.training.batches.batch import MicroBatchPlan, MixedBatch
from dcdctl.core.training.batches.pool import PoolLists, PoolPairs
from dcdctl.core.training.batches.step_pairs import CorpusBatches, MixedBatches
from dcdctl.core.training.grad_cache import Step, backward
from dcdctl.core.training.inputs import InputRefs
from dcdctl.core.training.losses.table import LOSSES, VECTOR_LOSSES
from dcdctl.core.training.next_step import command_after_training
from dcdctl.core.training.objective import PairObjective
from dcdctl.core.training.settled import choose_pairs

CAPTIONS = [[f"a {color} {thing} {place}" for place in ("here", "there")] for color in ["red", "blue", "tan"]
            for thing in ["car", "dog", "hat", "bus"]]  # fmt: skip
ON_POOL = [*TINY_DUAL[:-1], "loss.terms={ kl = 1.0 }", "optimizer.steps=6", "optimizer.save_every=4"]


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Corpus:
    return make_pool(tmp_path_factory.mktemp("pool") / "pool", CAPTIONS, has_colors=True)


@pytest.fixture(scope="module")
def captioned(tmp_path_factory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("captioned") / "captioned", CAPTIONS[:9], has_colors=True)


@pytest.fixture(scope="module")
def teacher(captioned) -> Any:
    return make_wide_dual([text for texts in CAPTIONS for text in texts])


def scores_of(rng_seed: int = 0, blocks: int = 0) -> ScoreTable:
    """All scores of 12 images and 24 texts or, with `blocks`, those of so many blocks, at places in no order."""
    rng = np.random.default_rng(rng_seed)
    matrix = rng.normal(size=(12, 24)).astype(np.float32)
    if blocks:
        image_block, text_block = (rng.permutation(np.arange(count) % blocks) for count in matrix.shape)
        matrix[image_block[:, None] != text_block] = np.nan
    return ScoreTable(matrix)


def recipe(*sets: str) -> Any:
    return load_recipe("tiny-student", [*ON_POOL, *sets])


def test_a_step_sees_all_pairs_of_some_images_and_texts(pool):
    scores = scores_of()
    pairs = PoolPairs(pool, recipe("pool.images=4", "pool.texts=6"), scores, false_negative_filter(pool, None))
    assert pairs.batches_per_epoch == 3
    steps = [pairs.of_step(step) for step in range(3)]
    for step in steps:
        assert (step.image_RC.shape, step.text_RC.shape) == ((4, 1), (1, 6))
        np.testing.assert_array_equal(step.teacher_RC, scores.matrix[step.image_RC, step.text_RC])
        assert not step.same_RC.any()
    # Each image once in an epoch; another order in the next.
    assert sorted(np.concatenate([step.image_RC.ravel() for step in steps])) == list(range(12))
    assert [step.image_RC.tolist() for step in steps] != [pairs.of_step(step).image_RC.tolist() for step in (3, 4, 5)]


def test_the_batches_of_a_cache_are_its_neighborhoods(pool):
    scores = scores_of(blocks=3)
    pairs = PoolPairs(pool, recipe("pool.images=4", "pool.texts=8"), scores, false_negative_filter(pool, None))
    for step in range(6):
        batch = pairs.of_step(step)
        assert not np.isnan(batch.teacher_RC).any(), "images and texts of one block come together"
    coverage = pairs.coverage(6)
    assert (coverage.queries, coverage.scored) == (1.0, 1.0)
    # Two blocks in a batch: half of its pairs have no score.
    wide = PoolPairs(
        pool, recipe("pool.images=8", "pool.texts=16"), scores, false_negative_filter(pool, None)
    ).coverage(6)
    assert (wide.queries, wide.scored) == (1.0, 0.5)


@pytest.mark.parametrize(("images", "texts"), [(3, 6), (3, 4), (5, 8)])
def test_the_batches_of_a_cache_have_no_image_twice_and_no_text_before_all_were_drawn(pool, images, texts):
    """As large as the rest of an epoch, smaller, and of sizes that leave a rest."""
    sets = f"pool.images={images}", f"pool.texts={texts}"
    pairs = PoolPairs(pool, recipe(*sets), scores_of(blocks=3), false_negative_filter(pool, None))
    per_epoch = int(pairs.batches_per_epoch)
    for epoch in range(2):
        steps = [pairs.of_step(epoch * per_epoch + step) for step in range(per_epoch)]
        image_ix = np.concatenate([step.image_RC.ravel() for step in steps])
        assert len(set(image_ix)) == len(image_ix) == per_epoch * images
        text_ix = np.concatenate([step.text_RC.ravel() for step in steps[: 24 // texts]])
        assert len(set(text_ix)) == len(text_ix)


@pytest.mark.parametrize(
    ("sets", "shape", "adapted"),
    [
        (["pool.images=500"], (12, 12), {"pool.images": 12}),
        (["pool.images=500", "pool.texts=500"], (12, 24), {"pool.images": 12, "pool.texts": 24}),
        (["batch.size=500"], (12, 12), {"pool.images": 12}),
        (["pool.images=12", "pool.texts=24"], (12, 24), {}),
    ],
)
def test_a_batch_is_no_larger_than_the_pool_and_says_so(pool, sets, shape, adapted):
    pairs = PoolPairs(pool, recipe(*sets), scores_of(), false_negative_filter(pool, None))
    assert (pairs.of_step(0).teacher_RC.shape, pairs.adapted) == (shape, adapted)


def test_a_list_of_a_pool_begins_with_the_best_of_the_drawn_candidates(pool):
    scores = scores_of(blocks=3)
    sets = ["loss.terms={ mse = 1.0 }", "batch.size=6", "batch.random_negatives=3", "batch.hard_negatives=2"]
    lists = choose_pairs(pool, recipe(*sets), scores, None)
    assert isinstance(lists, PoolLists)
    seen = set()
    for step in range(12):
        batch = lists.of_step(step)
        assert batch.teacher_RC.shape == (6, 3)
        assert (np.diff(batch.teacher_RC, axis=1) <= 0).all()
        np.testing.assert_array_equal(batch.teacher_RC, scores.matrix[batch.image_RC, batch.text_RC])
        for images, texts in zip(batch.image_RC, batch.text_RC, strict=True):
            is_image = len(set(images)) == 1
            assert is_image != (len(set(texts)) == 1)
            seen.add(("image", images[0]) if is_image else ("text", texts[0]))
    assert len(seen) == 12 + 24, "every image and every text has a list"
    # Each image once in an epoch, in another order in the next.
    drawn = [lists._list(sample) for sample in range(48)]
    images = [int(side[0][0]) for side in drawn if len(set(side[0])) == 1]
    assert sorted(images[:12]) == sorted(images[12:24]) == list(range(12))
    assert images[:12] != images[12:24]


def test_lists_need_enough_candidates(pool):
    sets = ["loss.terms={ mse = 1.0 }", "batch.random_negatives=5", "batch.hard_negatives=2"]
    with pytest.raises(ConfigError, match=r"no caption of the pool has 6 scored candidates \(at most 4\)"):
        choose_pairs(pool, recipe(*sets), scores_of(blocks=3), None)


def test_sure_picks_are_the_best_images_above_a_threshold(pool, monkeypatch):
    monkeypatch.setattr(picks, "TEXTS_AT_ONCE", 5)
    for scores in (scores_of(), scores_of(blocks=3)):
        best_T, score_T = np.nanargmax(scores.matrix, axis=0), np.nanmax(scores.matrix, axis=0)
        chosen = picks.find_picks(scores, pool).above(1.0)
        np.testing.assert_array_equal(chosen, np.where(score_T > 1.0, best_T, -1))
        sets = ["loss.terms={ infonce = 1.0 }", "pool.pseudo_positive_above=1.0", "batch.size=6"]
        pairs = choose_pairs(pool, recipe(*sets), scores, false_negative_filter(pool, None))
        unpicked = set(range(12)) - set(chosen)
        num_unpicked = int(6 * len(unpicked) / 12)
        assert num_unpicked > 0
        seen: set[int] = set()
        for step in range(8):
            batch = pairs.of_step(step)
            images, texts = batch.image_RC.ravel(), batch.text_RC.ravel()
            assert (len(images), len(texts)) == (6, 6 - num_unpicked) == (pairs.size_of_step[0], len(texts))
            np.testing.assert_array_equal(chosen[texts], images[: len(texts)])
            # Images that no text picked are negatives of every text, each once.
            others = set(images[len(texts) :])
            assert others <= unpicked
            assert len(others) == num_unpicked
            seen |= others
            # Another text with this image as its best is no negative of it.
            own = np.eye(*batch.same_RC.shape, dtype=bool)
            np.testing.assert_array_equal(batch.same_RC, (chosen[texts] == images[:, None]) & ~own)
        assert seen == unpicked
    unscored = ScoreTable(np.where(np.arange(24) < 20, scores_of().matrix, np.nan))
    assert picks.find_picks(unscored, pool).above(-1000)[20:].tolist() == [-1] * 4


def test_a_duplicate_of_a_pick_is_no_negative_and_a_text_without_a_pick_has_none(tmp_path):
    pool = make_pool(tmp_path / "pool", [["a"], ["b"], ["c"], ["d"]], copies={2: 0})
    scores = ScoreTable(np.array([[9, 0, 0, -9], [0, 9, 0, -9], [0, 0, 9, -9], [0, 0, 0, -9]], dtype=np.float32))
    sets = ["loss.terms={ infonce = 1.0 }", "pool.pseudo_positive_above=1.0", "batch.size=4"]
    marked = []
    for bits in ("none", "0"):
        settings = recipe(*sets, f"candidates.duplicate_bits={bits}")
        filters = false_negative_filter(pool, settings.candidates.duplicate_bits)
        batch = choose_pairs(pool, settings, scores, filters).of_step(0)
        rows, columns = np.nonzero(batch.same_RC)
        images_of = batch.image_RC.ravel()
        marked.append(sorted(zip(images_of[rows], images_of[columns], strict=True)))
    assert marked == [[], [(0, 2), (2, 0)]]


def test_a_student_learns_from_a_pool_and_resumes(pool, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    inputs = OpenInputs(pool, [], None, [teacher])
    whole = distill(inputs, tmp_path / "whole", *ON_POOL, "pool.texts=500")
    assert whole.facts()["adapted"] == {"pool.texts": pool.num_captions}
    losses = [line["loss"] for line in whole.metrics()]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert [line["scored"] for line in whole.metrics()] == [1.0] * 6
    assert whole.facts()["inputs"]["corpus"] == pool.fingerprint

    def killed(*arguments: Any, save: Any = checkpoints.save_checkpoint) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            distill(inputs, tmp_path / "killed", *ON_POOL, "pool.texts=500")
    resumed = distill(inputs, tmp_path / "killed", *ON_POOL, "pool.texts=500", resume=True)
    assert [line["loss"] for line in resumed.metrics()] == losses
    assert model_contents(resumed.model_folder) == model_contents(whole.model_folder)


@pytest.mark.parametrize("loss", sorted({*LOSSES, *VECTOR_LOSSES}))
def test_each_loss_takes_a_pool_or_says_that_it_needs_a_positive(loss, pool, teacher, tmp_path):
    sets = [*ON_POOL, f"loss.terms={{ {loss} = 1.0 }}", "batch.random_negatives=3", "batch.hard_negatives=2"]
    inputs = OpenInputs(pool, [], None, [teacher] if loss in VECTOR_LOSSES or LOSSES[loss].teacher else [])
    if loss in VECTOR_LOSSES or not LOSSES[loss].positive:
        assert distill(inputs, tmp_path / "run", *sets).is_finished
        return
    with pytest.raises(ConfigError, match=rf"loss {loss} needs a positive, and .* is a pool: no text of it belongs to"):
        distill(inputs, tmp_path / "run", *sets)
    assert not (tmp_path / "run").exists()


MIXED = [*ON_POOL, "loss.terms={ infonce = 1.0, kl = 2.0 }", "batch.size=4", "pool.images=6", "pool.texts=5"]


def test_a_mixed_step_is_the_weighted_sum_of_its_parts(pool, captioned, teacher):
    config = load_recipe("tiny-student", [*MIXED, "pool.weight=0.25"])
    student = make_wide_dual([text for texts in CAPTIONS for text in texts]).eval()
    parts = []
    for corpus, seed in ((captioned, 1), (pool, 2)):
        matrix = np.random.default_rng(seed).normal(size=(corpus.num_images, corpus.num_captions))
        pairs = choose_pairs(corpus, config, ScoreTable(matrix.astype(np.float32)), false_negative_filter(corpus, None))
        parts.append((CorpusSource(corpus, student.preprocess), pairs))

    def gradient(objective: PairObjective, batch: Any, plan: MicroBatchPlan) -> tuple[dict[str, float], list[Any]]:
        student.zero_grad()
        values = backward(student, objective, batch, Step(number=0, seed=0, micro_batch_plan=plan))
        return values, [each.grad.clone() for each in student.parameters() if each.grad is not None]

    def batches(plan: MicroBatchPlan) -> list[CorpusBatches]:
        return [CorpusBatches(source, pairs, plan) for source, pairs in parts]

    loss = config.loss
    mixed = PairObjective(
        loss.with_terms(loss.terms, 0.75), loss.with_terms(loss.terms.keys() - loss.with_positive, 0.25)
    )
    whole = MicroBatchPlan()
    values, actual = gradient(mixed, MixedBatches(*batches(whole))[0], whole)
    assert set(values) == {"loss", "infonce", "kl", "pool_kl"}
    alone = [
        gradient(PairObjective(terms), part[0], whole)
        for terms, part in zip((loss, load_recipe("tiny-student", ON_POOL).loss), batches(whole), strict=True)
    ]
    # The pool's loss is that of its term of weight 2.
    assert values["loss"] == pytest.approx(0.75 * alone[0][0]["loss"] + 0.25 * 2 * alone[1][0]["loss"], rel=1e-5)
    for total, pairs, of_pool in zip(actual, alone[0][1], alone[1][1], strict=True):
        assert_close(total, 0.75 * pairs + 0.5 * of_pool, rtol=1e-4, atol=1e-6)
    split = MicroBatchPlan(3, range(3), by_side=True)
    assert isinstance(MixedBatches(*batches(split))[0], MixedBatch)
    again, in_parts = gradient(mixed, MixedBatches(*batches(split))[0], split)
    assert again == pytest.approx(values, rel=1e-5)
    for total, split_total in zip(actual, in_parts, strict=True):
        assert_close(split_total, total, rtol=1e-4, atol=1e-5)


def test_captioned_images_and_a_pool_are_learned_from_together(pool, captioned, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    said: list[str] = []
    inputs = OpenInputs(captioned, [], None, [teacher], pool=pool)
    run = distill(inputs, tmp_path / "run", *MIXED, "pool.weight=0.3", say=said.append)
    line = run.metrics()[0]
    assert {"infonce", "kl", "pool_kl", "scored", "pool_scored"} <= line.keys()
    assert line["loss"] == pytest.approx(line["infonce"] + line["kl"] + line["pool_kl"], rel=1e-5)
    facts = run.facts()["inputs"]
    assert (facts["corpus"], facts["pool"]["corpus"]) == (captioned.fingerprint, pool.fingerprint)
    # A run with another pool is another run.
    other = OpenInputs(captioned, [], None, [teacher], pool=pool.subset(8))
    with pytest.raises(Exception, match=r"inputs\.pool"):
        distill(other, tmp_path / "run", *MIXED, "pool.weight=0.3", resume=True)
    assert torch.isfinite(torch.tensor(line["loss"]))


def test_sure_picks_are_counted_and_measured_where_there_are_labels(pool, captioned, teacher, tmp_path):
    said: list[str] = []
    inputs = OpenInputs(captioned, [], None, [teacher], pool=pool)
    sets = [*MIXED, "pool.pseudo_positive_above=-1000", "pool.images=2"]
    run = distill(inputs, tmp_path / "run", *sets, say=said.append)
    assert "pool_infonce" in run.metrics()[0]
    lines = [line for line in said if "sure pick" in line]
    assert lines[0].startswith("18 of 18 captions have a sure pick, above -1000, which is the own image of ")
    assert lines[1] == "24 of 24 texts of the pool have a sure pick, above -1000"


def test_a_threshold_that_no_pick_reaches_is_named_with_the_best_score(pool):
    scores = scores_of()
    sets = ["loss.terms={ infonce = 1.0 }", "pool.pseudo_positive_above=1000", "batch.size=3"]
    best = f"{scores.matrix.max():.4g}"
    with pytest.raises(ConfigError, match=rf"above is 1000, and no text has an image .* the highest is {best}; set it"):
        choose_pairs(pool, recipe(*sets), scores, None)


def scored_right(num_images: int, own_image_T: np.ndarray, score: float = 5.0) -> np.ndarray:
    """Scores of 0, and of each text with its own image a higher one."""
    scores = np.zeros((num_images, len(own_image_T)), dtype=np.float32)
    scores[own_image_T, np.arange(len(own_image_T))] = score
    return scores


AUTO = "pool.pseudo_positive_above=auto"


@pytest.mark.parametrize(("num_captions", "expected"), [(18, 0.0), (120, 3.0)])
def test_auto_is_the_threshold_of_the_best_two_scores_or_a_higher_one_by_captions(
    pool, tmp_path, num_captions, expected
):
    """18 captions are too few to say anything; of 120, every fourth scores 4 with an image that is not its own, and
    four of the pool's 24 picks only 3."""
    settings = recipe("loss.terms={ infonce = 1.0 }", AUTO, "pool.precision=0.5")
    of_pool = scored_right(12, np.arange(24) % 12)
    of_pool[of_pool.argmax(axis=0)[:4], np.arange(4)] = 3
    texts = [[f"{image} {number}" for number in range(num_captions // 6)] for image in range(6)]
    captioned = make_corpus(tmp_path / "captioned", texts)
    of_captions = scored_right(6, captioned.caption_image)
    wrong = np.arange(0, num_captions, 4)
    of_captions[(captioned.caption_image[wrong] + 1) % 6, wrong] = 4
    corpora = [captioned, pool]
    assert picking.choose_threshold(settings, corpora, [None, ScoreTable(of_pool)]).value == 0.0
    found = picking.choose_threshold(settings, corpora, [ScoreTable(of_captions), ScoreTable(of_pool)])
    assert found.value == expected
    assert ("and the scores of 120 captions with other images" in found.reason) == (num_captions == 120)


def test_the_precision_is_one_of_auto_and_at_least_a_half(pool, teacher):
    inputs, infonce = OpenInputs(pool, [], None, [teacher]), "loss.terms={ infonce = 1.0 }"
    assert "pool.precision is for pool.pseudo_positive_above auto" in refused(inputs, "pool.precision=0.5")
    assert "pool.precision must lie in [0.5, 1], got 0.4" in refused(inputs, infonce, AUTO, "pool.precision=0.4")


def test_auto_takes_no_pick_where_few_are_right_and_learns_from_the_scores_as_without_picks(
    pool, teacher, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    said: list[str] = []
    inputs = OpenInputs(pool, [], None, [teacher])
    auto = ["loss.terms={ infonce = 1.0, kl = 1.0 }", AUTO]
    run = distill(inputs, tmp_path / "auto", *ON_POOL, *auto, say=said.append)
    (line,) = [each for each in said if "pseudo" in each]
    assert line.startswith("pool.pseudo_positive_above is auto: no pick, because by the best two scores of each text, ")
    by_scores = distill(inputs, tmp_path / "kl", *ON_POOL, "loss.terms={ kl = 1.0 }")
    assert model_contents(run.model_folder) == model_contents(by_scores.model_folder)
    losses = [[row["loss"] for row in each.metrics()] for each in (run, by_scores)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("values", [(0, 1), (0, 0, 0, 1, 2), (3,)])
def test_a_teacher_whose_scores_tie_gives_the_next_step_where_nothing_else_teaches(pool, values):
    """Yes or no, grades whose best is the commonest of the texts' best, and one value."""
    drawn = np.random.default_rng(0).choice(np.array(values, dtype=np.float32), size=(12, 24))
    alone = recipe("loss.terms={ infonce = 1.0 }", AUTO)
    found = picking.choose_threshold(alone, [pool], [ScoreTable(drawn)])
    with pytest.raises(ConfigError) as caught:
        picking.check_teaches(alone, found)
    assert "loss infonce learns from picks alone, and none is taken: by the best two scores" in str(caught.value)
    assert "add a loss that learns from the scores, such as --set loss.terms={infonce=1.0,kl=1.0}" in str(caught.value)
    picking.check_teaches(recipe("loss.terms={ infonce = 1.0, kl = 1.0 }", AUTO), found)


def test_scores_of_any_size_have_a_threshold(pool):
    scores = ScoreTable(scored_right(12, np.arange(24) % 12, 3e38) + np.float32(2.64e37))
    settings = recipe("loss.terms={ infonce = 1.0 }", AUTO)
    found = picking.choose_threshold(settings, [pool], [scores])
    assert found.value == pytest.approx(2.64e37)
    assert picking.with_number(settings, found).pool.pseudo_positive_above == found.value


def test_a_student_may_learn_from_the_picks_of_its_teacher_alone(pool, teacher, tmp_path):
    """Without the scores of other pairs: each pair of the batch that no text picked is a negative."""
    picks = [*ON_POOL, "loss.terms={ infonce = 1.0 }", "pool.pseudo_positive_above=-1000", "batch.size=4"]
    alone = distill(OpenInputs(pool, [], None, [teacher]), tmp_path / "alone", *picks)
    assert set(alone.metrics()[0]) >= {"loss", "infonce"}
    assert "pool.pseudo_positive_above needs the teacher's scores" in refused(OpenInputs(pool, [], None), *picks)


def refused(inputs: OpenInputs, *sets: str) -> str:
    with pytest.raises(ConfigError) as caught:
        preview(TrainingJob("distill", "tiny-student", [*ON_POOL, *sets], Path("unused")), inputs, TrainingOptions())
    return str(caught.value)


def test_what_a_pool_cannot_give_is_named(pool, captioned, teacher, tmp_path):
    assert "no loss of the recipe has scores for it" in refused(
        OpenInputs(captioned, [], None, pool=pool), "loss.terms={ infonce = 1.0 }"
    )
    assert "has captions; --data names captioned images and --pool a pool" in refused(
        OpenInputs(captioned, [], None, [teacher], pool=captioned)
    )
    assert "is a pool; --data names captioned images" in refused(OpenInputs(pool, [], None, [teacher], pool=pool))
    one_side = make_pool(tmp_path / "images", [[] for _ in range(3)])
    assert "has no texts; prepare it with texts" in refused(OpenInputs(one_side, [], None, [teacher]))
    assert "is for losses on all pairs, and loss mse is on lists" in refused(
        OpenInputs(pool, [], None, [teacher]), "loss.terms={ mse = 1.0 }", "pool.pseudo_positive_above=1"
    )


def test_what_comes_after_a_training_on_a_pool_is_the_agreement_because_there_are_no_recalls(
    pool, captioned, teacher, tmp_path
):
    models.save(teacher, tmp_path / "my teacher")
    teachers = [str(tmp_path / "my teacher")]
    job, on_pool = TrainingJob("distill", recipe(), (), tmp_path / "run"), f"--data {pool.folder} --split train"
    said = command_after_training(job, InputRefs(data=pool.folder, teachers=teachers))
    assert said == f"dcdctl eval {tmp_path / 'run'} {on_pool} --against '{teachers[0]}'"
    # A cross-encoder scores the candidates of a cache, here a function.
    for named, taught in ((), "TEACHER"), (["json:dumps"], "json:dumps"):
        scores, evaluation = command_after_training(job, InputRefs(data=pool.folder, teachers=named)).split(" &&\n")
        assert scores.startswith(
            f"dcdctl cache-teacher --data {pool.folder} --teacher {taught} --recipe pool-distilled "
        )
        assert evaluation == f"dcdctl eval {tmp_path / 'run'} {on_pool} --against {scores.split()[-1]}"
    said = command_after_training(job, InputRefs(data=captioned.folder, pool=pool.folder, teachers=teachers))
    assert said == f"dcdctl eval {tmp_path / 'run'} --data {captioned.folder} --split train"
