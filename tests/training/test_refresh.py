"""A student that looks for new hard candidates of its own: found anew, scored once, the same after a kill."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from encoders import make_pair, save_text, save_vision
from tiny import make_teacher
from torch.testing import assert_close

from dcdctl.core import models
from dcdctl.core.data import Corpus
from dcdctl.core.devices import Compute
from dcdctl.core.errors import ConfigError
from dcdctl.core.scoring import CorpusSource, embed, features, pairs
from dcdctl.core.teacher import CandidateConfig, build, candidates
from dcdctl.core.teacher import cache as teacher_cache
from dcdctl.core.training import Inputs, TrainingJob, TrainingOptions, distill, initial_model, recipe, refresh
from dcdctl.core.training.objective import PairObjective

CPU = torch.device("cpu")
FUSION = [
    "model.layers=[0, 2]",
    "batch.size=4",
    "batch.random_negatives=2",
    "batch.hard_negatives=1",
    "optimizer.steps=6",
]
DUAL = [
    "model.kind=dual",
    "model.start=new",
    "model.layers=[]",
    "model.hidden_size=16",
    "model.num_heads=2",
    "model.num_layers=1",
]
DUAL += ["batch.size=4", "optimizer.steps=6", "loss.terms={infonce = 1.0, kl = 1.0}"]


@pytest.fixture(scope="module")
def corpus(scenes_corpus_dir):
    return Corpus.open(scenes_corpus_dir, "train").subset(16)


@pytest.fixture(scope="module")
def inputs(corpus, teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs") / "cache"
    return Inputs(corpus, [build.build_cache(corpus, teacher, folder, CandidateConfig(per_query=4))], teacher)


def run(sets, inputs, folder, *, resume=False):
    done = distill.train(
        TrainingJob("distill", "tiny-student", sets, folder, resume=resume), inputs, options=TrainingOptions()
    )
    return [json.loads(line)["loss"] for line in (done.folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("student", [FUSION, DUAL], ids=["fusion", "dual"])
def test_each_refresh_adds_the_students_hardest_and_scores_only_what_is_missing(student, inputs, tmp_path, monkeypatch):
    scored = []
    monkeypatch.setattr(
        build,
        "score_pairs",
        lambda job, image, text, advance=None, real=build.score_pairs: (
            scored.append(len(image)) or real(job, image, text)
        ),
    )
    run([*student, "batch.refresh_steps=[2, 4]"], inputs, tmp_path / "run")
    sizes = [cache.num_pairs for cache in inputs.caches]
    sizes += [teacher_cache.read_cache(tmp_path / "run" / "caches" / f"step-{step}").num_pairs for step in (2, 4)]
    assert sizes[0] < sizes[1] < sizes[2]
    assert sum(scored) == sizes[2] - sizes[0]
    assert teacher_cache.read_cache(tmp_path / "run" / "caches" / "step-4").plan["extends"] is not None


def test_a_run_killed_between_refreshes_ends_with_the_same_losses_and_caches(inputs, tmp_path, monkeypatch):
    sets = [*FUSION, "batch.refresh_steps=[2, 4]"]
    run(sets, inputs, tmp_path / "whole")

    class Killed(BaseException):
        pass

    def killed(*arguments, **named):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(build, "score_planned", killed)
        with pytest.raises(Killed):
            run(sets, inputs, tmp_path / "killed")
    run(sets, inputs, tmp_path / "killed", resume=True)
    for step in (2, 4):
        first, second = (
            teacher_cache.read_cache(tmp_path / name / "caches" / f"step-{step}") for name in ("whole", "killed")
        )
        assert np.array_equal(first.text_P, second.text_P)
        assert np.array_equal(first.score_P, second.score_P)
    weights = [
        torch.cat([p.flatten() for p in models.load(tmp_path / name).parameters()]) for name in ("whole", "killed")
    ]
    assert torch.equal(*weights)


def test_a_dual_student_finds_what_is_nearest_by_its_vectors(corpus, teacher, inputs, tmp_path):
    dual = models.dual_student(
        models.DualSize(hidden_size=16, num_attention_heads=2, intermediate_size=16), corpus.captions
    )
    source = CorpusSource(corpus, dual.preprocess)
    refreshed = refresh.refresh_cache(
        inputs.caches[0], tmp_path / "new", dual, teacher, source, compute=Compute(), step=3
    )
    embedded = embed.embed_corpus(embed.dual_embedder(dual, CPU), corpus)
    nearest = candidates.mine_candidates(corpus, CandidateConfig(kind="embedding", model="it", per_query=4), embedded)
    for image in range(corpus.num_images):
        old = inputs.caches[0].candidates.texts_of_image[image].tolist()
        assert set(refreshed.candidates.texts_of_image[image].tolist()) == set(old) | set(
            nearest.texts_of_image[image].tolist()
        )


def test_a_fusion_student_keeps_the_highest_of_a_pool_by_its_own_scores(corpus, teacher):
    source, config = CorpusSource(corpus, teacher.preprocess), CandidateConfig(per_query=3)
    saved = refresh._hardest_of_pool(teacher, source, config, CPU)
    pool = candidates.draw_candidates(corpus, CandidateConfig(per_query=12))
    for image in (0, 7, 15):
        texts = pool.texts_of_image[image]
        scores = pairs.score_pairs(teacher, source, np.full(len(texts), image), texts, compute=Compute())
        assert saved.texts_of_image[image].tolist() == sorted(texts[np.argsort(-scores)[:3]].tolist())


def test_every_refresh_draws_another_pool_and_a_repeated_one_the_same(corpus, teacher, tmp_path):
    few = corpus.subset(12)
    cache = build.build_cache(few, teacher, tmp_path / "cache", CandidateConfig(per_query=1, directions=("text",)))

    student = make_teacher(few.captions, seed=4)

    def candidates_after(name: str, step: int) -> list[list[int]]:
        # A student in the middle of its training has dropout, and mines without.
        source = CorpusSource(few, student.train().preprocess)
        refreshed = refresh.refresh_cache(
            cache, tmp_path / name, student, teacher, source, compute=Compute(), step=step
        )
        return [refreshed.candidates.texts_of_image[image].tolist() for image in range(12)]

    first, again, later = candidates_after("first", 2), candidates_after("again", 2), candidates_after("later", 4)
    assert first == again
    assert sum(a != b for a, b in zip(first, later, strict=True)) > 6


def test_a_refresh_comes_between_its_steps_and_the_later_ones_read_its_cache(inputs, tmp_path, monkeypatch):
    events: list[str] = []

    def make_batches(source, recipe, scores, *rest):
        events.append(f"batches of {scores.num_pairs} pairs")
        return real_make_batches(source, recipe, scores, *rest)

    def refresh_cache(*arguments, step, real=distill.refresh_cache, **named):
        events.append(f"refresh before step {step}")
        return real(*arguments, step=step, **named)

    def outputs(objective, model, pairs, real=PairObjective.outputs):
        events.append("step")
        return real(objective, model, pairs)

    real_make_batches = distill.make_batches
    monkeypatch.setattr(distill, "make_batches", make_batches)
    monkeypatch.setattr(distill, "refresh_cache", refresh_cache)
    monkeypatch.setattr(PairObjective, "outputs", outputs)
    run([*DUAL, "batch.refresh_steps=[1, 3]", "optimizer.steps=4"], inputs, tmp_path / "run")
    sizes = [cache.num_pairs for cache in inputs.caches]
    sizes += [teacher_cache.read_cache(tmp_path / "run" / "caches" / f"step-{step}").num_pairs for step in (1, 3)]
    batches = [f"batches of {size} pairs" for size in sizes]
    assert len(set(batches)) == 3
    expected = [
        batches[0],
        "step",
        "refresh before step 1",
        batches[1],
        "step",
        "step",
        "refresh before step 3",
        batches[2],
        "step",
    ]
    assert events == expected


def test_what_a_refresh_needs_is_said_before_the_run_begins(inputs, corpus, tmp_path):
    sets = [*DUAL, "batch.refresh_steps=[2]"]
    with pytest.raises(ConfigError, match=r"batch\.refresh_steps needs one cache and its teacher"):
        run(sets, Inputs(corpus, inputs.caches, None), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"batch\.refresh_steps must ascend, got \[4, 2\]"):
        run([*DUAL, "batch.refresh_steps=[4, 2]"], inputs, tmp_path / "run")


def test_student_and_teacher_read_the_features_of_their_own_encoders(corpus, tmp_path, monkeypatch):
    pair, root = make_pair(corpus.captions, tmp_path / "pair"), tmp_path / "features"
    saved = features.open_or_build(root, corpus, pair)
    config = CandidateConfig(per_query=4)
    cache = build.build_cache(corpus, pair, tmp_path / "cache", config, compute=Compute(features=root))
    encoders = {
        "vision": save_vision("map", tmp_path / "vision"),
        "text": save_text("distilbert", corpus.captions, tmp_path / "text"),
    }
    over = [
        *(f"model.{side}={ref}" for side, ref in encoders.items()),
        "model.frozen_encoders=true",
        "model.hidden_size=8",
    ]
    sets = [
        "model.kind=dual",
        "model.start=new",
        "model.layers=[]",
        *over,
        *DUAL[6:],
        "batch.refresh_steps=[2]",
        "optimizer.steps=3",
    ]
    student = initial_model.make_model(recipe.load_recipe("tiny-student", sets), corpus.captions, None)
    features.open_or_build(root, corpus, student)
    monkeypatch.setattr(Corpus, "images", lambda *_: pytest.fail("a picture was read"))
    job = TrainingJob("distill", "tiny-student", sets, tmp_path / "run")
    done = distill.train(job, Inputs(corpus, [cache], pair), options=TrainingOptions(compute=Compute(features=root)))
    new = teacher_cache.read_cache(done.folder / "caches" / "step-2")
    assert new.num_pairs > cache.num_pairs
    expected = pairs.score_pairs(pair, saved, new.image_P, new.text_P, compute=Compute())
    assert_close(torch.from_numpy(new.score_P), torch.as_tensor(expected), rtol=1e-5, atol=1e-5)


def test_a_refresh_scores_at_the_precision_of_its_cache(inputs, tmp_path):
    compute = Compute(precision="bfloat16", batch_size=7, features=tmp_path)
    # This cache was scored in float32 without stored features; the student may be trained in bfloat16 with some.
    assert refresh.teacher_compute(inputs.caches[0], compute) == Compute(precision="float32", batch_size=7)


def test_a_refresh_without_the_features_of_its_cache_says_so(corpus, tmp_path):
    pair = make_pair(corpus.captions, tmp_path / "pair")
    config = CandidateConfig(per_query=4)
    cache = build.build_cache(corpus, pair, tmp_path / "cache", config, compute=Compute(features=tmp_path / "features"))
    with pytest.raises(
        ConfigError, match=r"made with --features, and the run has none; name the folder with --features"
    ):
        refresh.teacher_compute(cache, Compute())
