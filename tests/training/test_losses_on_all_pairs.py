"""Losses on all pairs beside InfoNCE: against loops, and by properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_inputs import CLOSE, SEEDS, draw
from torch import Tensor
from torch.testing import assert_close

from dcdctl.core.training.losses import all_pairs

PAIR_LOSSES = {
    "margin_mse": lambda s, t, scored: all_pairs.margin_mse(s, t, scored, temperature=2.0),
    "kl": lambda s, t, scored: all_pairs.kl(s, t, scored, temperature=2.0),
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
