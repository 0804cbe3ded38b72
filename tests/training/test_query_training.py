"""Trainings of query encoders: on texts alone, from a cache of their teacher's vectors, and with its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, late
from made_caches import build_cache
from open_inputs import OpenInputs
from tiny import make_teacher, make_wide_dual, model_contents
from torch.testing import assert_close
from training_steps import KilledError, killed_after

from dcdctl.core import models, training
from dcdctl.core.devices import CPU
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ConfigError, DcdError
from dcdctl.core.teacher import CandidateConfig, TextCacheJob, cache_texts, embed_corpus, read_text_cache, text_cache
from dcdctl.core.training import InputRefs, Run, TrainingJob, TrainingOptions, initial_model, load_recipe, text_data
from dcdctl.core.training.batches import texts
from dcdctl.core.training.batches.batch import UNSPLIT, MicroBatchPlan
from dcdctl.core.training.batches.texts import TextBatches, TextRows
from dcdctl.core.training.grad_cache import Step, backward
from dcdctl.core.training.objective import PairObjective

SMALL = [
    *("model.text=", "model.hidden_size=16", "model.vocab_size=200", "model.max_text_len=24", "batch.size=12"),
    *("optimizer.steps=6", "optimizer.lr=1e-2", "optimizer.warmup_share=0.0", "optimizer.save_every=2"),
    "validation.every=3",
]
NOT_NEW = [
    *("model.text=", "model.hidden_size=128", "model.vocab_size=4000", "model.max_text_len=40"),
    *("model.num_text_layers=2", "model.num_heads=4"),
]
"""The sizes of a new text encoder at their defaults."""
STUDENTS = {"dual": [], "late": [*NOT_NEW, "model.text=teacher", "model.max_text_len=24", "model.dropout=0.0"]}


@pytest.fixture(scope="module")
def folders(corpus, tmp_path_factory) -> Path:
    """The folder of two teachers and, in parts of 30, the vectors that they give the captions of a corpus."""
    folder = tmp_path_factory.mktemp("query")
    models.save(make_wide_dual(corpus.captions), folder / "dual")
    models.save(late(FAMILIES["dual"](corpus.captions, folder), is_pooled=False), folder / "late")
    (folder / "texts.txt").write_text("\n".join(corpus.captions), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_cache, "TEXTS_PER_PART", 30)
        for kind in STUDENTS:
            job = TextCacheJob(
                out=folder / f"{kind}-texts", texts=[str(folder / "texts.txt")], teacher=str(folder / kind)
            )
            cache_texts(job)
    return folder


def job(out: Path, *sets: str, recipe: str = "query-static") -> TrainingJob:
    return TrainingJob("distill", recipe, [*SMALL, *sets], out, resume=out.exists())


def train(folders: Path, out: Path, *sets: str, kind: str = "dual", **options: Any) -> Run:
    """The run of a student of texts alone."""
    refs = InputRefs(caches=[folders / f"{kind}-texts"], teachers=[str(folders / kind)] if kind == "late" else [])
    return training.train_model(job(out, *STUDENTS[kind], *sets), refs, options=TrainingOptions(**options))


@pytest.fixture
def small_windows(monkeypatch) -> None:
    """Windows that hold two or three parts."""
    monkeypatch.setattr(texts, "WINDOW_BYTES", 40_000)


def batches_of(
    folders: Path,
    kind: str = "dual",
    *,
    sets: Sequence[str] = (),
    holds_out: bool = False,
    preprocess: Any = None,
    plan: MicroBatchPlan = UNSPLIT,
) -> TextBatches:
    recipe = load_recipe("query-static", [*SMALL, *sets])
    rows = TextRows(read_text_cache(folders / f"{kind}-texts"), recipe, holds_out=holds_out)
    return TextBatches(rows, preprocess, plan)


def test_no_more_texts_are_held_out_than_a_cosine_needs(folders, monkeypatch):
    monkeypatch.setattr(texts, "MOST_HELD_OUT", 1)
    rows = batches_of(folders, holds_out=True).rows
    assert rows.cache.num_texts > 100
    assert (len(rows.held_out), sum(map(len, rows.trained))) == (1, rows.cache.num_texts - 1)


@pytest.mark.usefixtures("small_windows")
def test_an_epoch_has_each_text_once_with_its_vector_and_holds_out_a_hundredth(folders, corpus):
    batches = batches_of(folders, holds_out=True)
    rows_of = batches.rows
    num_texts = rows_of.cache.num_texts
    assert len(rows_of.windows(0)) > 1
    assert len(rows_of.windows(0)) < len(rows_of.cache.part_sizes)
    held = [text for text, _ in rows_of.held_out]
    assert len(held) == -(-num_texts // 100)
    of_cache = {text: vector for text, _, vector in rows_of.cache.part(0)}
    epochs = []
    for epoch in range(2):
        first = epoch * int(rows_of.batches_per_epoch)
        rows = [row for step in range(int(rows_of.batches_per_epoch)) for row in batches._of_step(first + step)]
        seen = [text for text, _ in rows]
        assert len(set(seen)) == len(seen) == (num_texts - len(held)) // 12 * 12
        assert not set(seen) & set(held)
        assert all(np.array_equal(of_cache[text], vector) for text, vector in rows if text in of_cache)
        epochs.append(seen)
    assert set(epochs[0]) | set(epochs[1]) <= set(corpus.captions)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("window_bytes", [40_000, 2**30])
def test_parts_windows_and_texts_have_another_order_in_each_epoch(folders, monkeypatch, window_bytes):
    monkeypatch.setattr(texts, "WINDOW_BYTES", window_bytes)
    batches = batches_of(folders, sets=["batch.size=2"])
    rows = batches.rows
    windows = [[parts.tolist() for parts in rows.windows(epoch)] for epoch in range(2)]
    assert (windows[0] == windows[1]) == (window_bytes > 40_000)
    of_cache = [text for part in range(len(rows.cache.part_sizes)) for text, *_ in rows.cache.part(part)]
    per_epoch = int(rows.batches_per_epoch)
    epochs = [
        [text for step in range(per_epoch) for text, _ in batches._of_step(epoch * per_epoch + step)]
        for epoch in range(2)
    ]
    for epoch, (order, parts_of_windows) in enumerate(zip(epochs, windows, strict=True)):
        first = [text for text, _ in rows.read(parts_of_windows[0])]
        assert set(order[: len(first)]) == set(first), "a window is read to its end before the next one"
        assert order[: len(first)] != first, f"the texts of a window are shuffled in epoch {epoch}"
    # Of the same texts: where a window has all parts, the epochs differ by its order alone.
    assert epochs[0] != epochs[1]
    assert epochs[0] != of_cache[: len(epochs[0])]


def test_a_batch_larger_than_the_cache_has_all_texts_but_those_held_out(folders):
    batches = batches_of(folders, sets=["batch.size=5000"], holds_out=True)
    rows = batches.rows
    assert rows.batches_per_epoch == 1
    texts_of_step = [text for text, _ in batches._of_step(0)]
    assert len(texts_of_step) == rows.batch.size == rows.cache.num_texts - len(rows.held_out)


@pytest.mark.usefixtures("small_windows")
def test_a_batch_depends_on_the_seed_and_the_step_alone(folders):
    in_order, fresh = batches_of(folders), batches_of(folders)
    expected = {step: [text for text, _ in in_order._of_step(step)] for step in range(20)}
    for step in (17, 3, 12):
        assert [text for text, _ in fresh._of_step(step)] == expected[step]
    assert [text for text, _ in batches_of(folders, sets=["seed=1"])._of_step(3)] != expected[3]


def student_of(folders: Path, kind: str, *sets: str) -> Any:
    recipe = load_recipe("query-static", [*SMALL, *STUDENTS[kind], *sets])
    captions = (folders / "texts.txt").read_text(encoding="utf-8").splitlines()
    return initial_model.make_model(recipe, captions, models.load(folders / kind)).train(), recipe


@pytest.mark.parametrize("kind", STUDENTS)
@pytest.mark.parametrize("count", [2, 5])
def test_the_gradient_of_micro_batches_is_that_of_the_whole(folders, kind, count):
    model, recipe = student_of(folders, kind)
    found = []
    for plan in (MicroBatchPlan(), MicroBatchPlan(count, range(count))):
        model.zero_grad()
        batches = batches_of(folders, kind, preprocess=model.preprocess, plan=plan)
        step = Step(number=1, seed=0, micro_batch_plan=plan)
        values = backward(model, PairObjective(recipe.loss), batches[1], step)
        found.append((values, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}))
    (whole, expected), (split, gradients) = found
    assert split == pytest.approx(whole, rel=1e-5)
    assert gradients.keys() == expected.keys()
    assert "network.projection.weight" in gradients
    for name, gradient in expected.items():
        assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("kind", "sets"), [("dual", []), ("dual", ["loss.dims=[2, 8]"]), ("late", ["loss.terms={ embedding-mse = 0.5 }"])]
)
def test_the_loss_is_that_of_plain_loops(folders, kind, sets):
    model, recipe = student_of(folders, kind, *sets)
    batches = batches_of(folders, kind, preprocess=model.preprocess)
    rows = list(batches._of_step(0))
    losses = []
    with torch.no_grad():
        (found,) = PairObjective(recipe.loss)(model, batches[0]).values()
        for text, vector in rows:
            own = model.encode_texts if kind == "late" else model.embed_texts
            student = own(model.preprocess.texts([text]))
            student = (student.tokens[0] if kind == "late" else student).double().numpy()
            teacher = np.atleast_2d(vector).astype(np.float64)
            assert student.shape == teacher.shape
            for width in recipe.loss.dims or [teacher.shape[1]]:
                pairs = [
                    [side[:width] / (np.linalg.norm(side[:width]) if width < len(side) else 1) for side in pair]
                    for pair in zip(student, teacher, strict=True)
                ]
                if "embedding-mse" in recipe.loss.terms:
                    of_tokens = [0.5 * float(((a - b) ** 2).sum()) for a, b in pairs]
                else:
                    of_tokens = [1 - float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in pairs]
                losses.append(np.mean(of_tokens))
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-4)


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("kind", STUDENTS)
def test_a_killed_training_on_texts_resumes_to_the_same_bytes(folders, kind, tmp_path):
    whole = train(folders, tmp_path / "whole", kind=kind)
    refs = InputRefs(caches=[folders / f"{kind}-texts"], teachers=[str(folders / kind)] if kind == "late" else [])
    with pytest.raises(KilledError):
        training.train_model(
            job(tmp_path / "killed", *STUDENTS[kind]), refs, options=TrainingOptions(), watch=killed_after(5)
        )
    killed = train(folders, tmp_path / "killed", kind=kind)
    assert model_contents(killed.model_folder) == model_contents(whole.model_folder)
    assert [line["loss"] for line in killed.metrics()] == [line["loss"] for line in whole.metrics()]
    lines = [line["val_cosine"] for line in whole.metrics() if "val_cosine" in line]
    assert len(lines) == 2
    assert lines[1] > lines[0]


@pytest.mark.parametrize("kind", STUDENTS)
def test_the_cosine_of_validation_is_the_mean_of_the_held_out_texts(folders, kind):
    """In percent, and of batches of unequal size."""
    student, _ = student_of(folders, kind)
    rows = batches_of(folders, kind, holds_out=True).rows
    rows.held_out = rows.read([0])[:7]
    cosines = []
    with torch.no_grad():
        for text, vectors in rows.held_out:
            own = student.eval().encode_texts if kind == "late" else student.eval().embed_texts
            found = own(student.preprocess.texts([text]))
            found = (found.tokens[0] if kind == "late" else found).double().numpy()
            teacher = np.atleast_2d(vectors).astype(np.float64)
            norms = np.linalg.norm(found, axis=1) * np.linalg.norm(teacher, axis=1)
            cosines.append(((found * teacher).sum(axis=1) / norms).mean())
    assert rows.cosine(student, Compute(device=CPU, batch_size=3)) == pytest.approx(100 * np.mean(cosines), rel=1e-3)


def test_a_finished_student_has_its_result_and_its_space(folders, tmp_path):
    run = train(folders, tmp_path / "run", "optimizer.steps=40")
    training.say_of_query_model(run, pytest.fail)
    document = training.run_document(run)
    teacher = models.load(folders / "dual")
    query = models.load(run, kind="query")
    assert document["model_digest"] == query.digest
    assert document["best"]["cosine"] == document["validation"]["corpora"][0]["saved"] > 80
    assert query.space == models.QuerySpace.of(teacher)
    assert models.with_queries(teacher, run).teacher is teacher
    said = training.command_after_training(
        job(tmp_path / "run"), InputRefs(caches=[folders / "dual-texts"], teachers=[str(folders / "dual")])
    )
    # The model that trains further must be of the same teacher.
    assert said == f"dcdctl eval {folders / 'dual'} --data CORPUS --query-model {tmp_path / 'run'}"
    further = train(folders, tmp_path / "further", *NOT_NEW, f"model.start={run.folder}", "optimizer.lr=1e-4")
    assert further.metrics()[0]["loss"] < 0.5 * run.metrics()[0]["loss"]


@pytest.mark.parametrize("kind", STUDENTS)
def test_validation_embeds_the_images_once_and_has_the_recalls_of_the_joined_model(
    folders, kind, scenes_corpus_dir, tmp_path, monkeypatch
):
    embedded = []
    monkeypatch.setattr(text_data, "embed_corpus", lambda *of, **more: embedded.append(1) or embed_corpus(*of, **more))
    refs = InputRefs(
        caches=[folders / f"{kind}-texts"], teachers=[str(folders / kind)], validation_data=[scenes_corpus_dir]
    )
    run = training.train_model(
        job(tmp_path / "run", *STUDENTS[kind], "validation.split=train"), refs, options=TrainingOptions()
    )
    assert len(embedded) == 1
    recalls = [line["val_rsum"] for line in run.metrics() if "val_rsum" in line]
    assert len(recalls) == 2
    from dcdctl.core import evaluation
    from dcdctl.core.data import Corpus

    joined = models.with_queries(models.load(folders / kind), run)
    measured = evaluation.evaluate_model(joined, Corpus.open(scenes_corpus_dir, "train"))
    assert measured.rsum == pytest.approx(max(recalls), abs=1e-3)


WITH_IMAGES = ["validation.every=0", "batch.size=8"]
BLOCKS = ["candidates.kind=blocks", "candidates.block_size=8"]
ONE_LAYER = {"dual": ["model.num_text_layers=1", "model.num_heads=2"], "late": []}


@pytest.mark.parametrize(
    ("kind", "terms"),
    [
        ("dual", "{ embedding-cosine = 1.0, kl = 1.0 }"),
        ("dual", "{ infonce = 1.0, margin-mse = 0.1, embedding-mse = 1.0 }"),
        ("dual", "{ dcd = 1.0 }"),
        ("late", "{ embedding-cosine = 1.0, kl = 1.0 }"),
    ],
)
def test_a_student_learns_with_the_teachers_images(corpus, folders, kind, terms, tmp_path):
    sets = [
        *STUDENTS[kind],
        *ONE_LAYER[kind],
        *WITH_IMAGES,
        *BLOCKS,
        "optimizer.steps=8",
    ]
    if "dcd" in terms:
        sets += ["batch.random_negatives=7", "batch.hard_negatives=3"]
    inputs = OpenInputs(corpus, [], None, [models.load(folders / kind)])
    run = training.train_model(
        job(tmp_path / "run", *sets, f"loss.terms={terms}", recipe="query-kl"), inputs, options=TrainingOptions()
    )
    first, *_, last = run.metrics()
    assert last["loss"] < first["loss"]
    split = training.train_model(
        job(tmp_path / "split", *sets, f"loss.terms={terms}", recipe="query-kl"),
        inputs,
        options=TrainingOptions(micro_batches=3),
    )
    assert split.metrics()[0]["loss"] == pytest.approx(first["loss"], rel=1e-5)
    assert split.metrics()[-1]["loss"] == pytest.approx(last["loss"], rel=1e-2)


def test_a_cross_encoder_gives_scores_beside_the_frozen_images(corpus, folders, tmp_path):
    """The loss of the first step is the KL to the cached scores, on similarities to the teacher's images."""
    fusion = make_teacher(corpus.captions)
    cache = build_cache(corpus, fusion, tmp_path / "cache", CandidateConfig(kind="blocks", block_size=8))
    teacher = models.load(folders / "dual")
    sets = [*WITH_IMAGES, *BLOCKS, "loss.terms={ kl = 1.0 }"]
    losses = {}
    for name, caches in (("cross-encoder", [cache]), ("teacher", [])):
        inputs = OpenInputs(corpus, caches, None, [teacher])
        run = training.train_model(job(tmp_path / name, *sets, recipe="query-kl"), inputs, options=TrainingOptions())
        losses[name] = run.metrics()[0]["kl"]
        facts = run.facts()["inputs"]
        assert facts["teachers"]["teacher"] == teacher.digest
        assert (facts["cache"] is None) == (not caches)
    assert losses["cross-encoder"] != pytest.approx(losses["teacher"], rel=0.05)


@pytest.mark.parametrize(
    ("sets", "given", "message"),
    [
        (
            ["loss.terms={ kl = 1.0 }"],
            {},
            r"loss kl needs images, and no --data is named; leave it out",
        ),
        (
            ["model.kind=dual", "model.num_text_layers=1"],
            {},
            r"no --data is named, and only a query encoder learns from texts alone; name captioned",
        ),
        ([], {"caches": []}, r"--cache names 0 folders, expected one with texts and their vectors; make one"),
        ([], {"teachers": ["other"]}, r"dual-texts speaks the space of the model .*; name its teacher"),
        ([*NOT_NEW, "model.start=other-run"], {}, r"other-run speaks the space of the model .*; name its teacher"),
        (
            [],
            {"validation_data": ["data"]},
            r"--validation-data has images, which the teacher embeds; name it with --te",
        ),
        (["validation.metric=agreement"], {}, r"validation.metric agreement needs images"),
        ([], {"max_images": 3}, r"--max-images needs images, and no --data is named"),
        ([], {"split": "val"}, r"--split val needs images, and no --data is named"),
        (
            [*NOT_NEW, "model.text=teacher"],
            {},
            r"model\.text is teacher, and no teacher is given; name it with --teacher",
        ),
        (["loss.dims=[2, 9]"], {}, r"loss.dims ends with 9, and the vectors of the model have 8 numbers"),
        (["model.pooled=true"], {}, r"model.pooled is unknown in a query model; a late model has it; leave it out"),
        (
            ["model.average_with_start=0.5"],
            {},
            r"unknown in a query model; fusion, dual and late models have it",
        ),
        (["model.trained=lora"], {}, r"model.trained is unknown in a query model; dual and late models have it"),
        (["pool.rounds=2"], {}, r"pool.rounds scores with --teacher, which embeds the images of a query encoder"),
        (
            [],
            {"data": ["a.tar"], "caches": []},
            r"model.kind query needs a prepared corpus, and --data names shards to str",
        ),
        (
            [],
            {"data": ["data"], "caches": []},
            r"a query encoder speaks the space of one model, and --teacher names none",
        ),
    ],
)
def test_what_a_training_of_a_query_encoder_cannot_do_is_named(folders, corpus, tmp_path, sets, given, message):
    models.save(FAMILIES["dual"](corpus.captions, tmp_path), tmp_path / "other")
    if "model.start=other-run" in sets:
        other = models.new_query(
            models.QuerySpace.of(models.load(tmp_path / "other")),
            models.QuerySize(num_layers=0),
            tokenizer=models.word_piece(corpus.captions, 100),
        )
        models.save(other, tmp_path / "other-run")
        sets = [*NOT_NEW, f"model.start={tmp_path / 'other-run'}"]
    given = {"caches": [folders / "dual-texts"], **given}
    if "teachers" in given:
        given["teachers"] = [str(tmp_path / "other")]
    with pytest.raises(DcdError, match=message):
        training.train_model(job(tmp_path / "run", *sets), InputRefs(**given), options=TrainingOptions())
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="only a query encoder learns from texts alone"):
        training.train_model(
            replace(job(tmp_path / "run"), kind="finetune-teacher"), InputRefs(), options=TrainingOptions()
        )
