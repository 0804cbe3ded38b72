"""Losses on lists beside DCD's: WSL, squared distance and InfoNCE with hard negatives, by golden values, by hand and by
properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_inputs import CLOSE, GOLDEN, SEEDS, draw, tensor
from torch.nn import functional
from torch.testing import assert_close

from dcdctl.core.training.losses import lists, official, weights

LIST_LOSSES = {
    "dcd": lambda student, teacher: lists.dcd(student, teacher, alpha=0.3, temperature=2.0).total,
    "mse": lambda student, teacher: lists.mse(student, teacher, temperature=2.0),
    "wsl": lambda student, teacher: lists.wsl(student, teacher, temperature=2.0),
}


@pytest.mark.parametrize(
    "case", GOLDEN["loss_cases"], ids=lambda case: f"{case['batch']}x{case['columns']}-T{case['T']}"
)
@pytest.mark.parametrize(("part", "name"), [("total", "total"), ("kd", "d_loss"), ("nll", "nll")])
def test_the_other_released_loss_and_its_gradient_are_those_of_the_released_code(case, part, name):
    student_BN = tensor(case["student_scores"]).requires_grad_()
    parts = official.wsl_official(
        student_BN, tensor(case["teacher_scores"]), alpha=case["alpha"], temperature=case["T"]
    )
    value = getattr(parts, part)
    assert_close(value.detach(), tensor(case["WSLDistiller"][name]), equal_nan=True, **CLOSE)
    (gradient_BN,) = torch.autograd.grad(value, student_BN)
    assert_close(gradient_BN, tensor(case["WSLDistiller"][f"grad_{name}"]), equal_nan=True, **CLOSE)


@pytest.mark.parametrize(
    "case", GOLDEN["loss_cases"], ids=lambda case: f"{case['batch']}x{case['columns']}-T{case['T']}"
)
def test_the_other_released_loss_in_float64(case):
    student_BN, teacher_BN = (tensor(case[f"{who}_scores"], torch.float64) for who in ("student", "teacher"))
    parts = official.wsl_official(student_BN, teacher_BN, alpha=case["alpha"], temperature=case["T"])
    golden = case["WSLDistiller"]["float64"]
    assert_close(
        torch.stack(parts), tensor([golden["total"], golden["d_loss"], golden["nll"]], torch.float64), rtol=1e-7, atol=0
    )


def test_confidence_by_hand():
    # Rows: student 1/2 and teacher 1/4 for the positive: a/b = log 2 / log 4. Student 3/4, teacher 1/2: log(4/3) / log
    # 2.
    student_BK = torch.tensor([[0.0, 0.0, -99.0, -99.0], [math.log(3.0), 0.0, -99.0, -99.0]])
    teacher_BK = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, -99.0, -99.0]])
    by_hand = [1 - math.exp(-0.5), 1 - math.exp(-math.log(4 / 3) / math.log(2))]
    assert weights.confidence(student_BK, teacher_BK, torch.ones_like(teacher_BK).bool()).tolist() == pytest.approx(
        by_hand, rel=1e-5
    )
    # Row 0 without its third column: log 2 / log 3. The positive of row 1 is not known.
    known_BK = torch.tensor([[True, True, False, True], [False, True, True, True]])
    result = weights.confidence(student_BK, teacher_BK, known_BK)
    assert result.tolist() == pytest.approx([1 - math.exp(-math.log(2) / math.log(3)), 0], rel=1e-5)


def test_confidence_at_its_limits():
    right, wrong, even = [60.0, 0.0], [0.0, 60.0], [0.0, 0.0]
    # Right already; as unsure as the teacher; far worse than a sure teacher; both as wrong as each other.
    scores = torch.tensor([right, even, wrong, wrong]), torch.tensor([even, even, right, wrong])
    result = weights.confidence(*scores, ~scores[1].isnan())
    assert result.tolist() == pytest.approx([0, 1 - 1 / math.e, 1, 1 - 1 / math.e], abs=1e-6)


def test_wsl_by_hand():
    # T = 2. Row 0: p = (3/4, 1/4), q even: KL = log 2 - H(p). CE at T = 1: student log 2, teacher log(10/9). Row 1: one
    # score: left out.
    student_BN, teacher_BN = (
        torch.tensor([[1.0, 1.0], [0.0, 5.0]]),
        torch.tensor([[2 * math.log(3.0), 0.0], [1.0, math.nan]]),
    )
    focus = 1 - math.exp(-math.log(2) / math.log(10 / 9))
    kl = math.log(2) - (math.log(4) - 0.75 * math.log(3))
    assert lists.wsl(student_BN, teacher_BN, temperature=2.0).item() == pytest.approx(4 * focus * kl, rel=1e-5)


def test_wsl_is_the_weighted_kl_div_of_torch_and_the_weight_is_a_constant():
    student_BN, teacher_BN = draw(0, 5, 7).requires_grad_(), draw(1, 5, 7)
    rows = []
    for student, teacher in zip(student_BN, teacher_BN, strict=True):
        ratio = functional.cross_entropy(student.detach(), torch.tensor(0)) / functional.cross_entropy(
            teacher, torch.tensor(0)
        )
        soft = functional.kl_div(
            (student / 3).log_softmax(0), (teacher / 3).log_softmax(0), reduction="sum", log_target=True
        )
        rows.append(9 * (1 - (-ratio).exp()) * soft)
    oracle = torch.stack(rows).mean()
    value = lists.wsl(student_BN, teacher_BN, temperature=3.0)
    assert_close(value, oracle)
    assert_close(*(torch.autograd.grad(tensor, student_BN)[0] for tensor in (value, oracle)))


def test_mse_leaves_out_what_is_missing():
    student_BN, teacher_BN = draw(0, 4, 6).requires_grad_(), draw(1, 4, 6)
    teacher_BN[0, 3:] = math.nan
    teacher_BN[3] = math.nan
    rows = [functional.mse_loss(student_BN[0, :3], teacher_BN[0, :3] / 2)]
    rows += [functional.mse_loss(student_BN[row], teacher_BN[row] / 2) for row in (1, 2)]
    value = lists.mse(student_BN, teacher_BN, temperature=2.0)
    assert_close(value, torch.stack(rows).mean())


def test_infonce_over_the_batch_by_hand():
    # Image 0 over captions 0, 2, 3 (1 is its own too): log(1 + e + e^2) - 0. Caption 3 over images 0 and 2: log(e^2 +
    # e^3) - 3.
    all_IT = torch.tensor([[0.0, 50.0, 1.0, 2.0], [9.0, 0.0, 0.0, 60.0], [1.0, 2.0, 3.0, 3.0]])
    true_IT = torch.tensor([[True, True, False, False], [False, False, True, True], [False, False, False, True]])
    image_ix_BN, text_ix_BN = torch.tensor([[0, 0, 0], [2, 0, 0]]), torch.tensor([[0, 2, 3], [3, 3, 3]])
    rows = [math.log(1 + math.e + math.e**2), math.log(math.e**2 + math.e**3) - 3]
    result = lists.infonce_hard(all_IT, true_IT, image_ix_BN, text_ix_BN)
    assert result.item() == pytest.approx(sum(rows) / 2)


def test_a_true_pair_elsewhere_in_the_batch_has_no_influence_on_infonce_over_the_batch():
    all_IT, true_IT = (
        draw(0, 2, 4).requires_grad_(),
        torch.tensor([[True, False, True, False], [False, True, False, False]]),
    )
    lists.infonce_hard(all_IT, true_IT, torch.tensor([[0, 0], [1, 1]]), torch.tensor([[0, 3], [1, 0]])).backward()
    assert all_IT.grad[0, 2] == 0
    assert (all_IT.grad[~true_IT] > 0).all()  # every false pair is pushed down, those of no list too


@pytest.mark.parametrize("loss", LIST_LOSSES.values(), ids=LIST_LOSSES)
@given(seed=SEEDS, order=st.permutations(range(1, 6)), rows=st.permutations(range(4)))
@settings(max_examples=30, deadline=None)
def test_neither_the_order_of_negatives_nor_that_of_queries_changes_a_loss(loss, seed, order, rows):
    student_BN, teacher_BN = draw(seed, 4, 6), draw(seed + 1, 4, 6)
    teacher_BN[2, 3] = math.nan
    columns = [0, *order]
    moved = loss(student_BN[rows][:, columns], teacher_BN[rows][:, columns])
    assert_close(moved, loss(student_BN, teacher_BN), **CLOSE)


@pytest.mark.parametrize("loss", LIST_LOSSES.values(), ids=LIST_LOSSES)
@given(seed=SEEDS, scale=st.sampled_from([0.0, 1.0, 1e3, 1e15]))
@settings(max_examples=40, deadline=None)
def test_no_list_loss_is_ever_nan_and_a_missing_score_has_no_gradient(loss, seed, scale):
    student_BN, teacher_BN = draw(seed, 4, 5, scale=scale).requires_grad_(), draw(seed + 1, 4, 5, scale=scale)
    teacher_BN[0] = math.nan
    teacher_BN[1, 0] = math.nan
    teacher_BN[2, 1:4] = math.nan
    value = loss(student_BN, teacher_BN)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student_BN.grad).all()
    assert (student_BN.grad[teacher_BN.isnan()] == 0).all()


@pytest.mark.parametrize("loss", LIST_LOSSES.values(), ids=LIST_LOSSES)
def test_half_precision_is_computed_in_float32(loss):
    student_BN, teacher_BN = draw(0, 4, 8).bfloat16(), draw(1, 4, 8).bfloat16()
    assert_close(loss(student_BN, teacher_BN), loss(student_BN.float(), teacher_BN.float()), rtol=0, atol=0)
