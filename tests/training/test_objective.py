"""From logits to weighted loss terms: weights, calibration, and what a dual model gets for nothing."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from batches import list_batches, pair_batches
from encoders import make_pair
from loss_inputs import draw
from paths import DOCS
from tiny import make_teacher
from torch import Tensor
from torch.testing import assert_close

from dcdctl.core import models
from dcdctl.core.models.dual import Calibration
from dcdctl.core.scoring import CorpusSource
from dcdctl.core.training import checkpoints, runs
from dcdctl.core.training.batches.batch import Batch
from dcdctl.core.training.grad_cache import UNSCALED
from dcdctl.core.training.losses.table import LOSSES, LossConfig
from dcdctl.core.training.objective import PairObjective, loss_terms
from dcdctl.core.training.recipe import BatchConfig, Recipe

SIZE = models.DualSize(
    hidden_size=16,
    num_vision_layers=1,
    num_text_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    projection_dim=8,
)


@pytest.fixture
def dual(corpus) -> models.DualEncoder:
    return models.new_dual(SIZE, models.word_piece(corpus.captions, 200))


def made_batch(teacher_RC: Tensor) -> Batch:
    """A batch of which a loss sees the teacher's scores alone."""
    nothing = torch.zeros(teacher_RC.shape, dtype=torch.bool)
    return Batch(None, None, nothing.long(), nothing.long(), teacher_RC, teacher_RC, nothing)  # type: ignore[arg-type]


def test_only_losses_of_a_teacher_are_calibrated():
    assert all(loss.teacher for loss in LOSSES.values() if loss.calibrated)


def test_the_page_on_losses_has_a_row_for_each_loss_with_what_the_table_says():
    page = (DOCS / "losses.md").read_text(encoding="utf-8")
    row = r"^\| `([a-z-]+)` \| ([a-z ]+) \| (yes|no) \| (yes|no) \|"
    rows = [(name, *columns) for name, *columns in re.findall(row, page, re.MULTILINE)]
    flags = [(name, loss.on, loss.teacher, loss.calibrated) for name, loss in LOSSES.items()]
    assert rows == [(name, on, *("yes" if flag else "no" for flag in rest)) for name, on, *rest in flags]


def test_calibration_finds_the_scale_and_the_offset_of_a_teacher():
    """Cosines times 20 against logits between -6 and 2: no student's vectors move, and the distance goes to 0."""
    cosine = draw(0, 8, 8, scale=0.2)
    batch, config, calibration = made_batch(0.3 * 20 * cosine - 4), LossConfig(terms={"mse": 1.0}), Calibration()
    optimizer = torch.optim.Adam(calibration.parameters(), lr=0.1)
    for _ in range(300):
        value = loss_terms(20 * cosine, batch, config, calibrate=calibration)["mse"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert [calibration.log_scale.exp().item(), calibration.offset.item()] == pytest.approx([0.3, -4], abs=1e-2)


def test_calibration_is_trained_kept_in_checkpoints_and_no_part_of_the_model(corpus, dual, tmp_path):
    digest = dual.digest
    optimizer = torch.optim.AdamW(dual.parameters(), lr=0.1)
    batches = list_batches(CorpusSource(corpus, dual.preprocess), BatchConfig(size=4, random_negatives=3), 0, None)
    teacher_RC = draw(0, 4, 4)
    batch = replace(batches[0], teacher_RC=teacher_RC)
    before = {name: tensor.clone() for name, tensor in dual.network.state_dict().items()}
    PairObjective(LossConfig(terms={"mse": 1.0}))(dual, batch)["mse"].backward()
    optimizer.step()
    moved = dual.calibration.log_scale.item(), dual.calibration.offset.item()
    assert 0 not in moved
    run = runs.start_run(tmp_path, Recipe(), "distill", {}, resume=False)
    checkpoints.save_checkpoint(run, 1, dual, optimizer, UNSCALED)
    fresh = models.new_dual(SIZE, models.word_piece(corpus.captions, 200))
    checkpoints.load_checkpoint(run, fresh, torch.optim.AdamW(fresh.parameters(), lr=0.1), UNSCALED)
    assert (fresh.calibration.log_scale.item(), fresh.calibration.offset.item()) == moved
    assert dual.digest != digest  # the weights have moved
    dual.network.load_state_dict(before)
    assert dual.digest == digest
    runs.finish(run, dual)
    again = models.load_dual(tmp_path / "model")
    assert again.digest == digest
    assert (again.calibration.log_scale.item(), again.calibration.offset.item()) == (0, 0)
    assert "calibration" not in (tmp_path / "model" / "model.safetensors").read_bytes()[:100_000].decode("latin-1")


def test_a_dual_models_hard_negatives_join_those_of_the_batch(corpus, dual):
    config = BatchConfig(size=6, random_negatives=3)
    batch = list_batches(CorpusSource(corpus, dual.preprocess), config, 0, None)[0]
    objective = PairObjective(LossConfig(terms={"infonce-hard": 1.0}))
    value = objective(dual, batch)["infonce-hard"]
    images, texts = dual(batch.images, batch.texts)
    logits_IT, rows = dual.logit_scale * images @ texts.T, []
    for row in range(6):
        image, text = int(batch.image_ix_RC[row, 0]), int(batch.text_ix_RC[row, 0])
        line, true, positive = (
            (logits_IT[image], batch.true_IT[image], text)
            if row % 2 == 0
            else (logits_IT[:, text], batch.true_IT[:, text], image)
        )
        rivals = [positive, *(j for j in range(len(line)) if not true[j])]
        assert len(rivals) > 4
        rows.append(line[rivals].logsumexp(0) - line[positive])
    assert_close(value, torch.stack(rows).mean())


def test_a_fusion_models_hard_negatives_stay_in_their_lists():
    student, batch = draw(0, 4, 8), made_batch(draw(1, 4, 8))
    parts = loss_terms(student, batch, LossConfig(terms={"infonce-hard": 1.0, "ranking": 1.0}))
    assert torch.equal(parts["infonce-hard"], parts["ranking"])


def test_a_batch_of_lists_knows_which_of_its_images_and_captions_belong_together(corpus, dual):
    batches = list_batches(CorpusSource(corpus, dual.preprocess), BatchConfig(size=8, random_negatives=7), 3, None)
    batch = batches[0]
    rows = [batches.pairs._list(sample) for sample in range(8)]
    images, texts = np.unique([row[0] for row in rows]), np.unique([row[1] for row in rows])
    for i, image in enumerate(images):
        words = {corpus.captions[caption] for caption in corpus.captions_of(int(image))}
        assert batch.true_IT[i].tolist() == [corpus.captions[text] in words for text in texts]
    assert batch.true_IT[batch.image_ix_RC[:, 0], batch.text_ix_RC[:, 0]].all()
    assert not batch.true_IT[batch.image_ix_RC[:, 1:], batch.text_ix_RC[:, 1:]].any()


def in_half(on: bool = True) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=on)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_under_autocast_the_gradient_of_infonce_is_that_of_float32(corpus, dual, scale):
    dual.network.logit_scale.data.fill_(math.log(scale))
    batch = pair_batches(CorpusSource(corpus, dual.preprocess), BatchConfig(size=24), 0, None)[0]
    objective = PairObjective(LossConfig(terms={"infonce": 1.0}))
    with in_half(), torch.no_grad():
        vectors = dual.outputs(batch)
    assert_close([part.norm(dim=1) for part in vectors], [torch.ones(24)] * 2, rtol=1e-6, atol=0)

    def gradient(half: bool) -> list[Tensor]:
        leaves = [part.clone().requires_grad_() for part in vectors]
        with in_half(half):
            loss = objective.loss(dual, leaves, batch)["infonce"]
        return list(torch.autograd.grad(loss, [*leaves, dual.network.logit_scale]))

    assert_close(gradient(half=True), gradient(half=False), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_under_autocast_losses_are_those_of_float32(name):
    student, teacher = draw(1, 6, 6, scale=30.0), draw(2, 6, 6)
    config = LossConfig(terms={name: 1.0})
    with in_half():
        half = loss_terms(student, made_batch(teacher), config)
    assert half == loss_terms(student, made_batch(teacher), config)


@torch.no_grad()
@pytest.mark.parametrize("family", ["vilt", "co-attention"])
def test_under_autocast_the_head_of_a_fusion_model_does_not_round_its_logits(corpus, family, tmp_path):
    model = make_teacher(corpus.captions) if family == "vilt" else make_pair(corpus.captions, tmp_path)
    batch = list_batches(CorpusSource(corpus, model.preprocess), BatchConfig(size=8, random_negatives=3), 0, None)[0]
    with in_half():
        (logits,) = model.eval().outputs(batch)
    assert logits.dtype == torch.float32
    assert (logits != logits.bfloat16().float()).float().mean() > 0.9
