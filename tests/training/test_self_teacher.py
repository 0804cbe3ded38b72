"""A student whose teacher is the average of its own weights: by hand, in micro-batches, killed and resumed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from duals import save_dual
from safetensors.torch import load_file
from torch.nn import functional
from torch.testing import assert_close

from dcdctl.core import models
from dcdctl.core.data import Corpus
from dcdctl.core.errors import ConfigError
from dcdctl.core.scoring import CorpusSource
from dcdctl.core.training import Inputs, TrainingJob, TrainingOptions, distill, recipe, runs
from dcdctl.core.training.batches.make import make_batches

DECAY = 0.75
SETS = [
    "model.kind=dual",
    "model.layers=[]",
    "batch.size=8",
    "loss.terms={ infonce = 1.0, kl = 2.0 }",
    "optimizer.lr=1e-3",
]
SETS += ["optimizer.warmup_share=0.0", "optimizer.weight_decay=0.0", "optimizer.save_every=1", f"teachers.ema={DECAY}"]


@pytest.fixture(scope="module")
def starts(corpus, tmp_path_factory) -> dict[str, Path]:
    """A CLIP, which has no dropout, and a Chinese-CLIP, which has some, saved again by us."""
    folder = tmp_path_factory.mktemp("starts")
    for kind in ("CLIP", "Chinese-CLIP"):
        models.save(models.load_dual(save_dual(kind, corpus.captions, folder / kind)), folder / kind)
    return {kind: folder / kind for kind in ("CLIP", "Chinese-CLIP")}


def train(
    corpus: Corpus, start: Path, folder: Path, *sets: str, resume: bool = False, watch: Any = None, **options: Any
) -> runs.Run:
    job = TrainingJob("distill", "tiny-student", [*SETS, f"model.start={start}", *sets], folder, resume)
    return distill.train(job, Inputs(corpus, [], None), options=TrainingOptions(**options), watch=watch)


def weights(run: runs.Run, step: int, part: str) -> dict[str, torch.Tensor]:
    """The weights of the student (network) or of its teacher (average) after a step."""
    tensors = load_file(run.folder / "checkpoints" / f"step-{step}" / "weights.safetensors")
    return {name.removeprefix(f"{part}."): tensor for name, tensor in tensors.items() if name.startswith(f"{part}.")}


@torch.no_grad()
def all_logits(start: Path, loaded: dict[str, torch.Tensor], batch: Any) -> torch.Tensor:
    model = models.load_dual(start)
    model.network.load_state_dict(loaded, strict=False)
    return model.logit_scale * model.embed_images(batch.images) @ model.embed_texts(batch.texts).T


@pytest.mark.parametrize("kind", ["CLIP", "Chinese-CLIP"])
def test_the_teacher_of_a_step_is_the_average_of_the_weights_before_it(kind, corpus, starts, tmp_path):
    start = starts[kind]
    run = train(corpus, start, tmp_path / "run", "optimizer.steps=4", "validation.every=4")
    initial = {
        name: tensor
        for name, tensor in models.load_dual(start).network.state_dict().items()
        if tensor.is_floating_point()
    }
    students = [initial, *(weights(run, step, "network") for step in (2, 3))]
    teachers = [weights(run, step, "average") for step in (2, 3)]
    for name, tensor in teachers[1].items():
        if tensor.is_floating_point():
            # The student of step 3 is the network after three updates.
            assert_close(tensor, DECAY * teachers[0][name] + (1 - DECAY) * students[2][name], rtol=1e-6, atol=1e-7)
    assert any(not torch.equal(teachers[1][name], students[2][name]) for name in teachers[1])
    loaded = recipe.load_recipe("tiny-student", [*SETS, f"model.start={start}"])
    batch = make_batches(CorpusSource(corpus, models.load_dual(start).preprocess), loaded, None)[3]
    teacher_QQ, student_QQ = all_logits(start, teachers[1], batch), all_logits(start, students[2], batch)
    found = {line["step"]: line for line in run.metrics()}[3]["kl"]
    if kind == "CLIP":
        # Pairs that match off the diagonal are never negatives, and are still taught.
        both = (teacher_QQ, student_QQ), (teacher_QQ.T, student_QQ.T)
        expected = [
            functional.kl_div(s.log_softmax(1), t.log_softmax(1), log_target=True, reduction="batchmean")
            for t, s in both
        ]
        assert found == pytest.approx(2 * float(sum(expected)) / 2, rel=1e-4)
        assert run.metrics()[0]["kl"] == pytest.approx(0, abs=1e-6)  # the first teacher is the student
    else:
        assert run.metrics()[0]["kl"] > 1e-3  # the student has dropout, and its teacher has none


@pytest.mark.parametrize("trained", ["all", "lora"])
def test_micro_batches_have_the_teacher_of_the_whole(corpus, starts, trained, tmp_path):
    sets = ["optimizer.steps=3", "optimizer.save_every=3", "validation.every=2", f"model.trained={trained}"]
    whole, split = (
        train(corpus, starts["CLIP"], tmp_path / "whole", *sets),
        train(corpus, starts["CLIP"], tmp_path / "split", *sets, micro_batches=3),
    )
    for before, after in zip(whole.metrics(), split.metrics(), strict=True):
        assert (after["loss"], after["kl"]) == pytest.approx((before["loss"], before["kl"]), rel=1e-4, abs=1e-6)
    assert whole.metrics()[-1]["kl"] > 1e-6


def test_a_saved_model_is_the_student_without_its_teacher(corpus, starts, tmp_path):
    run = train(corpus, starts["CLIP"], tmp_path / "run", "optimizer.steps=2")
    saved = load_file(run.model_folder / "model.safetensors")
    assert saved.keys() == load_file(starts["CLIP"] / "model.safetensors").keys()
    model = models.load_dual(run.model_folder)
    with_teacher = copy.deepcopy(model)
    with_teacher.add_average()
    assert with_teacher.digest == model.digest
    with pytest.raises(ValueError, match="add_average comes before averaged"):
        model.averaged()


def test_the_teacher_has_no_dropout_and_no_gradient(starts):
    model = models.load_dual(starts["Chinese-CLIP"])
    model.add_average()
    model.train()
    assert model.network.text_model.embeddings.dropout.training
    assert not any(module.training for module in model.average.modules())
    assert not model.averaged().training
    assert not any(parameter.requires_grad for parameter in model.average.parameters())


class StoppedError(Exception):
    """A run is killed."""


def test_a_killed_run_resumes_with_its_teacher(corpus, starts, tmp_path):
    sets = ["optimizer.steps=4", "optimizer.save_every=2"]

    @contextmanager
    def stopping(**_: Any) -> Iterator[Any]:
        def on_step(done: int, _: Any) -> None:
            if done == 3:
                raise StoppedError

        yield on_step

    with pytest.raises(StoppedError):
        train(corpus, starts["Chinese-CLIP"], tmp_path / "killed", *sets, watch=stopping)
    resumed = train(corpus, starts["Chinese-CLIP"], tmp_path / "killed", *sets, resume=True)
    whole = train(corpus, starts["Chinese-CLIP"], tmp_path / "whole", *sets)
    files = [run.model_folder / "model.safetensors" for run in (resumed, whole)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["teachers.ema=1.0"], r"teachers\.ema must lie in \(0, 1\), got 1"),
        (["loss.terms={ dcd = 1.0 }"], "teachers.ema is for dual encoders and losses on all pairs"),
        (
            ["loss.terms={ infonce = 1.0 }"],
            "teachers.ema gives scores, and loss.terms has infonce; add a loss that has a teacher, such as kl",
        ),
        (
            ["loss.terms={ kl = 1.0, embedding-cosine = 1.0 }"],
            "teachers.ema gives scores, and loss.terms has kl, embedding-cosine",
        ),
    ],
)
def test_a_recipe_that_an_average_cannot_teach_is_refused(sets, message):
    with pytest.raises(ConfigError, match=message):
        recipe.load_recipe("tiny-student", [*SETS, "model.start=owner/clip", *sets])


def test_a_second_teacher_is_refused(corpus, starts, tmp_path):
    job = TrainingJob("distill", "tiny-student", [*SETS, f"model.start={starts['CLIP']}"], tmp_path / "run")
    inputs = Inputs(corpus, [], None, [models.load_dual(starts["CLIP"])])
    with pytest.raises(
        ConfigError, match=r"teachers\.ema makes the student its own teacher, and --cache or --teacher names another"
    ):
        distill.train(job, inputs, options=TrainingOptions())
