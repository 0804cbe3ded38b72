"""Losses on all pairs beside InfoNCE: against loops and other libraries, and by properties."""

from __future__ import annotations

import math

import pytest
import torch
from duals import save_dual
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_inputs import CLOSE, SEEDS, draw
from open_clip.loss import SigLipLoss
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModel

from dcdctl.core import models
from dcdctl.core.training.losses import all_pairs

PAIR_LOSSES = {
    "margin_mse": lambda s, t, scored: all_pairs.margin_mse(s, t, scored, temperature=2.0),
    "kl": lambda s, t, scored: all_pairs.kl(s, t, scored, temperature=2.0),
    "sigmoid_kl": lambda s, t, scored: all_pairs.sigmoid_kl(s, t, scored, temperature=2.0),
    "dcd_kl": lambda s, t, scored: all_pairs.dcd_kl(s, t, scored, temperature=2.0),
}
ALL = torch.ones(5, 5, dtype=torch.bool)
each_loss = pytest.mark.parametrize("loss", PAIR_LOSSES.values(), ids=PAIR_LOSSES)


def scored_some(seed: int, size: int = 5) -> Tensor:
    """Most pairs, the diagonal among them but for its last."""
    scored = (draw(seed, size, size) > -3) | torch.eye(size, dtype=torch.bool)
    scored[-1, -1] = False
    return scored


def both_ways(one_way, student: Tensor, teacher: Tensor, scored: Tensor) -> Tensor:
    """The mean of a loss written for rows over rows and columns."""
    return (one_way(student, teacher, scored) + one_way(student.T, teacher.T, scored.T)) / 2


def test_dcd_kl_against_the_loop_over_rows():
    student, teacher, scored = draw(0, 6, 6), 3 * draw(1, 6, 6), scored_some(2, 6)
    scored[4] = False
    scored[4, 4] = True  # a row with one scored pair does not count

    def one_way(student: Tensor, teacher: Tensor, scored: Tensor) -> Tensor:
        divergences, certainties = [], []
        for row in range(6):
            known = scored[row].nonzero().flatten()
            if len(known) < 2:
                continue
            p, log_q = (teacher[row, known] / 2).softmax(0), student[row, known].log_softmax(0)
            divergences.append((p * (p.log() - log_q)).sum())
            certainties.append(len(known) * (p * p.log()).sum().exp())
        weights = torch.stack(certainties) / torch.stack(certainties).mean()
        return (weights * torch.stack(divergences)).mean()

    loss = all_pairs.dcd_kl(student, teacher, scored, temperature=2.0)
    assert_close(loss, both_ways(one_way, student, teacher, scored), **CLOSE)


def unit(seed: int) -> Tensor:
    return torch.nn.functional.normalize(draw(seed, 6, 4), dim=1)


@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (117.33, -12.93), (0.5, 0.75)])
def test_sigmoid_is_the_loss_of_open_clip(scale, bias):
    images, texts = unit(0).requires_grad_(), unit(1)
    losses = all_pairs.sigmoid(scale * images @ texts.T + bias), SigLipLoss()(images, texts, scale, bias)
    assert_close(*losses, rtol=1e-6, atol=1e-6)
    assert_close(*(torch.autograd.grad(loss, images)[0] for loss in losses), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["SigLIP", "SigLIP 2"])
def test_sigmoid_is_the_loss_of_transformers_also_with_the_logits_of_our_model(kind, corpus, tmp_path):
    folder = save_dual(kind, corpus.captions, tmp_path / "siglip")
    model = models.load_dual(folder)
    inputs = model.preprocess.images(corpus.images(range(4))), model.preprocess.texts(corpus.captions[:8:2])
    grid = {} if inputs[0].grid is None else {"spatial_shapes": inputs[0].grid}
    grid |= {} if inputs[0].pixel_mask is None else {"pixel_attention_mask": inputs[0].pixel_mask}
    with torch.no_grad():
        logits_IT = model.logit_scale * model.embed_images(inputs[0]) @ model.embed_texts(inputs[1]).T
        own = AutoModel.from_pretrained(folder).eval()(
            pixel_values=inputs[0].pixel_values, input_ids=inputs[1].input_ids, return_loss=True, **grid
        )
    assert_close(all_pairs.sigmoid(own.logits_per_image), own.loss, rtol=1e-6, atol=1e-6)
    assert_close(all_pairs.sigmoid(logits_IT + model.logit_bias), own.loss, rtol=1e-6, atol=1e-6)


def test_sigmoid_by_hand_leaves_out_pairs_that_match_too_but_not_the_diagonal():
    logits_QG = torch.tensor([[math.log(3.0), 0.0], [math.log(2.0), math.log(4.0)]])
    # Positives 3/4 and 4/5, negatives 1/2 and 1/3; divided by two images.
    left, right = math.log(4 / 3) + math.log(5 / 4) + math.log(2), math.log(3)
    assert all_pairs.sigmoid(logits_QG).item() == pytest.approx((left + right) / 2)
    same = torch.tensor([[True, False], [True, True]])
    assert all_pairs.sigmoid(logits_QG, same).item() == pytest.approx(left / 2)


def test_sigmoid_kl_is_the_divergence_of_both_outcomes_and_its_gradient_the_difference_of_probabilities():
    student, teacher, scored = draw(0, 5, 6).requires_grad_(), draw(1, 5, 6), draw(2, 5, 6) > 0
    scored[3] = False  # four images count
    value = all_pairs.sigmoid_kl(student, teacher, scored, temperature=2.0)
    p, q = (torch.stack([odds.sigmoid(), (-odds).sigmoid()])[:, scored] for odds in (teacher / 2, student))
    assert_close(value, (p * (p / q).log()).sum() / 4, **CLOSE)
    value.backward()
    assert_close(student.grad, (student.sigmoid() - (teacher / 2).sigmoid()).detach() * scored / 4, **CLOSE)
    assert abs(all_pairs.sigmoid_kl(teacher / 2, teacher, scored, temperature=2.0).item()) < 1e-6


@each_loss
def test_rows_and_columns_count_alike(loss):
    student, teacher, scored = draw(0, 5, 5), draw(1, 5, 5), scored_some(2)
    assert_close(loss(student, teacher, scored), loss(student.T, teacher.T, scored.T))


@each_loss
@given(seed=SEEDS, order=st.permutations(range(5)))
@settings(max_examples=30, deadline=None)
def test_the_order_of_the_batch_changes_no_loss(loss, seed, order):
    student, teacher, scored = draw(seed, 5, 5), draw(seed + 1, 5, 5), scored_some(seed + 2)
    moved = loss(*(tensor[order][:, order] for tensor in (student, teacher, scored)))
    assert_close(moved, loss(student, teacher, scored), rtol=1e-4, atol=1e-5)


@each_loss
@given(seed=SEEDS, scale=st.sampled_from([0.0, 1.0, 1e3, 1e15]))
@settings(max_examples=40, deadline=None)
def test_pairs_that_are_not_scored_have_no_influence_and_no_value_is_nan(loss, seed, scale):
    student, teacher = draw(seed, 5, 5, scale=scale), draw(seed + 1, 5, 5, scale=scale)
    scored = scored_some(seed + 2)
    scored[0] = False
    odd = student.masked_fill(~scored, math.nan).requires_grad_()
    value = loss(odd, teacher.masked_fill(~scored, math.nan), scored)
    assert_close(value.detach(), loss(student, teacher, scored), rtol=0, atol=0)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(odd.grad).all()
    assert (odd.grad[~scored] == 0).all()


@each_loss
def test_nothing_scored_is_zero_with_a_zero_gradient(loss):
    student = draw(0, 5, 5).requires_grad_()
    value = loss(student, torch.full((5, 5), math.nan), torch.zeros(5, 5, dtype=torch.bool))
    value.backward()
    assert value.item() == 0
    assert (student.grad == 0).all()


@each_loss
def test_half_precision_is_computed_in_float32(loss):
    student, teacher = draw(0, 5, 5).bfloat16(), draw(1, 5, 5).bfloat16()
    assert_close(loss(student, teacher, ALL), loss(student.float(), teacher.float(), ALL), **CLOSE)
