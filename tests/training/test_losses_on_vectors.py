"""Embedding distillation: the losses by hand and by plain loops, and trainings of dual students that compare
vectors."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batches import recipe_batches
from made_caches import build_cache
from open_inputs import OpenInputs
from paths import DOCS
from safetensors.torch import load_file
from tiny import make_teacher, make_wide_dual, model_contents
from torch.testing import assert_close
from training_steps import KilledError, distill, killed_after
from typer.testing import CliRunner

from dcdctl.cli.app import app
from dcdctl.core import models, training
from dcdctl.core.engines import Compute
from dcdctl.core.scoring import CorpusSource
from dcdctl.core.teacher import CandidateConfig, EmbeddedTeacher, embed_corpus
from dcdctl.core.training import TrainingJob, TrainingOptions, initial_model, load_recipe, runs
from dcdctl.core.training.batches.batch import MicroBatchPlan
from dcdctl.core.training.grad_cache import Step, backward
from dcdctl.core.training.losses import vectors
from dcdctl.core.training.losses.table import VECTOR_LOSSES
from dcdctl.core.training.objective import PairObjective

DUAL = [
    *(
        "model.kind=dual",
        "model.start=new",
        "model.layers=[]",
        "model.hidden_size=16",
        "model.num_layers=1",
        "model.num_text_layers=1",
    ),
    *(
        "model.num_heads=2",
        "model.projection_dim=5",
        "model.vocab_size=200",
        "batch.size=8",
        "batch.random_negatives=7",
    ),
    *(
        "batch.hard_negatives=3",
        "optimizer.steps=6",
        "optimizer.lr=1e-2",
        "optimizer.warmup_share=0.0",
        "optimizer.save_every=2",
    ),
]
ALL = "{ infonce = 1.0, kl = 0.5, embedding-cosine = 0.7 }"


def terms(table: str) -> list[str]:
    return [*DUAL, f"loss.terms={table}", "loss.temperature=4.0"]


@pytest.fixture(scope="module")
def dual(corpus) -> models.DualEncoder:
    """The teacher, whose vectors have eight numbers."""
    return make_wide_dual(corpus.captions)


@pytest.fixture(scope="module")
def embedded(corpus, dual) -> EmbeddedTeacher:
    teacher = embed_corpus([("dual", dual)], corpus, Compute())
    return teacher


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_loops(student_ND: np.ndarray, weight_ED: np.ndarray, teacher_NE: np.ndarray) -> float:
    """The loss of one side, item by item."""
    total = 0.0
    for vector, teacher in zip(student_ND, teacher_NE, strict=True):
        projected = weight_ED @ vector
        total += 1 - projected @ teacher / math.sqrt(projected @ projected) / math.sqrt(teacher @ teacher)
    return total / len(student_ND)


def test_the_loss_and_its_gradient_equal_plain_loops():
    student_ND, weight_ED, teacher_NE = drawn(0, 6, 3), drawn(1, 4, 3), drawn(2, 6, 4)
    arrays = student_ND.numpy(), weight_ED.numpy(), teacher_NE.numpy()
    value = float(vectors.embedding_cosine(student_ND @ weight_ED.T, teacher_NE))
    assert value == pytest.approx(by_loops(*arrays), rel=1e-12)
    student_ND.requires_grad_()
    vectors.embedding_cosine(student_ND @ weight_ED.T, teacher_NE).backward()
    for i, d in ((0, 0), (3, 2), (5, 1)):
        values = []
        for step in (1e-6, -1e-6):
            moved = arrays[0].copy()
            moved[i, d] += step
            values.append(by_loops(moved, *arrays[1:]))
        assert float(student_ND.grad[i, d]) == pytest.approx((values[0] - values[1]) / 2e-6, abs=1e-7)


def test_a_student_with_the_teachers_vectors_has_no_loss():
    teacher_NE = torch.nn.functional.normalize(drawn(3, 5, 4), dim=1)
    assert float(vectors.embedding_cosine(teacher_NE, teacher_NE)) == pytest.approx(0, abs=1e-9)


def test_in_half_precision_the_loss_is_that_of_float32():
    student_ND, teacher_NE = drawn(0, 6, 4).bfloat16(), drawn(2, 6, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        half = vectors.embedding_cosine(student_ND, teacher_NE)
    assert half.dtype == torch.float32
    assert_close(half, vectors.embedding_cosine(student_ND.float(), teacher_NE.float()))


def test_the_page_on_losses_has_a_row_for_each_loss_of_vectors():
    page = (DOCS / "losses.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| vectors \| (yes|no) \|", page, re.MULTILINE)
    assert rows == [(name, "yes") for name in VECTOR_LOSSES]


def made(corpus: Any, recipe: Any, teachers: Any) -> tuple[Any, Any]:
    """The initial model of a recipe with its projection, and its batches."""
    model = initial_model.make_model(recipe, corpus.captions, None)
    model.add_projection(8)
    batches = recipe_batches(
        CorpusSource(corpus, model.preprocess),
        recipe,
        teachers if recipe.loss.needs_teacher else None,
        vectors=teachers,
    )
    return model, batches


@pytest.mark.parametrize("shape", ["infonce", "ranking"])
def test_a_batch_compares_the_vectors_of_its_own_images_and_captions(corpus, dual, embedded, shape):
    """Lists name an image several times, and a batch has each image once."""
    recipe = load_recipe(
        "tiny-student",
        terms(f"{{ {shape} = 1.0, embedding-cosine = 0.7 }}"),
    )
    model, batches = made(corpus, recipe, embedded)
    model.eval()
    with torch.no_grad():
        model.projection.weight += 0.2 * torch.randn(
            model.projection.weight.shape, generator=torch.Generator().manual_seed(1)
        )
        found = PairObjective(recipe.loss)(model, batch := batches[1])
        sides = []
        for index, items, embed in (
            (batch.image_ix_RC, batch.images, "embed_images"),
            (batch.text_ix_RC, batch.texts, "embed_texts"),
        ):
            assert sorted(set(index.flatten().tolist())) == list(range(len(items)))
            sides.append(getattr(model, embed)(items).double().numpy())
        chosen = batches.pairs
        image_RC, text_RC = (
            np.broadcast_arrays(*chosen._pairs(1)) if shape == "infonce" else chosen.kept(range(8, 16))[:2]
        )
        read = CorpusSource(corpus, dual.preprocess)
        taught = [
            dual.embed_images(read.images(np.unique(image_RC))).double().numpy(),
            dual.embed_texts(read.texts(np.unique(text_RC))).double().numpy(),
        ]
    arrays = model.projection.weight.detach().double().numpy()
    expected = 0.7 * np.mean([by_loops(side, arrays, teacher) for side, teacher in zip(sides, taught, strict=True)])
    assert float(found["embedding-cosine"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("count", [2, 3])
def test_the_gradient_of_micro_batches_is_that_of_the_whole(corpus, embedded, count):
    recipe, gradients = load_recipe("tiny-student", [*terms(ALL), "model.dropout=0.0"]), []
    for plan in (MicroBatchPlan(), MicroBatchPlan(count, range(count))):
        model = initial_model.make_model(recipe, corpus.captions, None).train()
        model.add_projection(8)
        batches = recipe_batches(CorpusSource(corpus, model.preprocess), recipe, embedded, plan, vectors=embedded)
        step = Step(number=1, seed=0, micro_batch_plan=plan)
        values = backward(model, PairObjective(recipe.loss), batches[1], step)
        gradients.append(
            (values, {name: each.grad for name, each in model.named_parameters() if each.grad is not None})
        )
    (whole, expected), (split, found) = gradients
    assert split == pytest.approx(whole, rel=1e-5)
    assert found.keys() == expected.keys() > {"projection.weight"}
    for name, gradient in expected.items():
        assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def trained(corpus: Any, dual: Any, folder: Path, table: str = ALL, *, caches: Any = (), **options: Any) -> runs.Run:
    job = TrainingJob("distill", "tiny-student", terms(table), folder, resume=folder.exists())
    return training.train_model(job, OpenInputs(corpus, caches, None, [dual]), options=TrainingOptions(), **options)


def test_a_training_learns_from_vectors_and_leaves_no_projection_in_the_model(corpus, dual, tmp_path):
    run = trained(corpus, dual, tmp_path / "run")
    first, *_, last = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert {"infonce", "kl", "embedding-cosine"} <= first.keys()
    assert last["embedding-cosine"] < first["embedding-cosine"]
    assert "projection.weight" not in load_file(run.model_folder / "model.safetensors")
    student = models.load_dual(run.folder)
    before = student.digest
    student.add_projection(8)
    assert student.digest == before
    assert json.loads((run.folder / "run.json").read_text())["inputs"]["teachers"]["teacher"] == dual.digest


def test_a_killed_training_resumes_with_its_projection_to_the_same_weights(corpus, dual, tmp_path):
    whole = trained(corpus, dual, tmp_path / "whole")
    with pytest.raises(KilledError):
        trained(corpus, dual, tmp_path / "killed", watch=killed_after(5))
    weights = load_file(tmp_path / "killed" / "checkpoints" / "step-4" / "weights.safetensors")
    assert weights["projection.weight"].shape == (8, 5)
    assert not torch.equal(weights["projection.weight"], torch.eye(8, 5))
    killed = trained(corpus, dual, tmp_path / "killed")
    assert model_contents(killed.model_folder) == model_contents(whole.model_folder)
    assert [line["embedding-cosine"] for line in killed.metrics()] == [
        line["embedding-cosine"] for line in whole.metrics()
    ]


def test_a_cache_gives_the_scores_and_a_dual_teacher_the_vectors(corpus, dual, tmp_path):
    fusion = make_teacher(corpus.captions)
    cache = build_cache(corpus, fusion, tmp_path / "cache", CandidateConfig(kind="blocks", block_size=8))
    table = "{ kl = 1.0, embedding-cosine = 1.0 }"
    inputs = json.loads(
        (trained(corpus, dual, tmp_path / "both", table, caches=[cache]).folder / "run.json").read_text()
    )["inputs"]
    assert (inputs["cache"]["teacher"], inputs["teachers"]["teacher"]) == (fusion.digest, dual.digest)
    steps = [json.loads(line) for line in (tmp_path / "both" / "metrics.jsonl").read_text().splitlines()]
    alone = distill(OpenInputs(corpus, [cache], None), tmp_path / "alone", *terms("{ kl = 1.0 }"))
    assert steps[0]["kl"] == pytest.approx(
        json.loads((alone.folder / "metrics.jsonl").read_text().splitlines()[0])["kl"], rel=1e-5
    )


@pytest.mark.parametrize(
    ("sets", "words", "message"),
    [
        ([], [], "loss embedding-cosine needs the vectors of one dual teacher; name one dual encoder with --teacher"),
        ([], ["--teacher", "FUSION"], "loss embedding-cosine needs the vectors of one dual teacher"),
        (
            ["model.kind=fusion", "model.num_text_layers=2", "model.projection_dim=256"],
            ["--teacher", "DUAL"],
            "embedding-cosine is for vectors, and a fusion model has none; set model.kind",
        ),
    ],
)
def test_what_a_loss_of_vectors_lacks_is_named(corpus, dual, scenes_corpus_dir, tmp_path, sets, words, message):
    models.save(dual, tmp_path / "DUAL")
    models.save(make_teacher(corpus.captions), tmp_path / "FUSION")
    named = [str(tmp_path / word) if word.isupper() else word for word in words]
    assignments = [word for each in [*terms("{ embedding-cosine = 1.0 }"), *sets] for word in ("--set", each)]
    command = [
        "distill",
        "tiny-student",
        "--data",
        str(scenes_corpus_dir),
        "--out",
        str(tmp_path / "run"),
        "--device",
        "cpu",
    ]
    result = CliRunner().invoke(app, [*command, *assignments, *named], catch_exceptions=False)
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (tmp_path / "run").exists()
