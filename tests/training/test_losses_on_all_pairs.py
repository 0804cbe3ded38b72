"""Losses on all pairs beside InfoNCE and listwise ones: by hand, against loops and by properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_inputs import CLOSE, SEEDS, draw
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from dcdctl.core.training.losses import all_pairs, relations
from dcdctl.core.training.losses.weights import Weights, confidence_pairs

PAIR_LOSSES = {
    "mse_pairs": lambda s, t, scored, weights: all_pairs.mse_pairs(s, t, scored, temperature=2.0, weights=weights),
    "margin_mse": lambda s, t, scored, weights: all_pairs.margin_mse(s, t, scored, temperature=2.0, weights=weights),
    "kl": lambda s, t, scored, weights: all_pairs.kl(s, t, scored, temperature=2.0, weights=weights),
    "dcd_kl": lambda s, t, scored, weights: all_pairs.dcd_kl(s, t, scored, temperature=2.0, weights=weights),
    "cprd": lambda s, t, scored, weights: relations.cprd(s, t, scored, margin=3.0, weights=weights),
    "affinity": lambda s, t, scored, weights: relations.affinity(s, t, scored, temperature=0.5, weights=weights),
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


def test_cprd_by_hand():
    # Row 0, its positive at 0: negatives at 2, -2, -4 of which 2 and -2 are within 3 of it; student even. 2 is above
    # two: log 3; -2 above one: log 2. Other rows, and columns 1 to 3: positives at 9, nothing within 3. Column 0: three
    # negatives at 0, none
    # above another.
    teacher_QG = torch.tensor(
        [[0.0, 2.0, -2.0, -4.0], [0.0, 9.0, 0.0, 0.0], [0.0, 0.0, 9.0, 0.0], [0.0, 0.0, 0.0, 9.0]]
    )
    scored_QG, same = torch.ones(4, 4, dtype=torch.bool), torch.zeros(4, 4, dtype=torch.bool)

    def loss(**settings) -> float:
        return relations.cprd(torch.zeros(4, 4), teacher_QG, scored_QG, **settings).item()

    assert loss(margin=3.0) == pytest.approx((math.log(3) + math.log(2)) / 2 / 2)
    # With 5 the third is plausible too, but has none below it and teaches nothing. With 1 the first alone is.
    assert loss(margin=5.0) == loss(margin=3.0)
    assert loss(margin=1.0) == pytest.approx(math.log(3) / 2)
    # At half the teacher's scale -2 is 1 away.
    assert loss(margin=1.0, temperature=2.0) == loss(margin=3.0)
    # The best negative is true: only -2 above -4 is left.
    same[0, 1] = True
    assert loss(margin=3.0, same_mask=same) == pytest.approx(math.log(2) / 2)
    # The positive of row 0 is not scored: no negative of it is taught.
    scored_QG[0, 0] = False
    assert loss(margin=3.0) == 0


def test_cprd_against_the_loop_over_pairs():
    student, teacher, scored = draw(0, 6, 6), draw(1, 6, 6), scored_some(2, 6)
    teacher[0, 3] = teacher[0, 4]

    def one_way(student: Tensor, teacher: Tensor, scored: Tensor) -> Tensor:
        terms = []
        for i in range(6):
            negatives = [j for j in range(6) if j != i and scored[i, j]]
            for j in negatives if scored[i, i] else []:
                below = [k for k in negatives if teacher[i, k] < teacher[i, j]]
                if teacher[i, j] >= teacher[i, i] - 4 and below:
                    terms.append(functional.cross_entropy(student[i, [j, *below]], torch.tensor(0)))
        return torch.stack(terms).mean()

    student.requires_grad_()
    found, expected = relations.cprd(student, teacher, scored, margin=4.0), both_ways(one_way, student, teacher, scored)
    assert_close(found, expected)
    assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (found, expected)))


def test_cprd_and_its_gradient_read_no_number_of_their_device():
    student_QG, teacher_QG = (torch.zeros(4, 4, device="meta") for _ in range(2))
    relations.cprd(
        student_QG.requires_grad_(), teacher_QG, torch.ones(4, 4, dtype=torch.bool, device="meta"), margin=1.0
    ).backward()
    with pytest.raises(RuntimeError, match="meta"):
        student_QG.nonzero()


def test_cprd_with_everything_plausible_is_the_likelihood_of_the_teachers_order():
    student, teacher = draw(0, 5, 5), draw(1, 5, 5)

    def one_way(student: Tensor, teacher: Tensor, _: Tensor) -> Tensor:
        rows = []
        for i in range(5):
            order = [int(j) for j in teacher[i].argsort(descending=True) if j != i]
            ranked = student[i, order]
            # Plackett and Luce: each in turn is drawn from those that are left.
            rows.append(sum(ranked[place:].logsumexp(0) - ranked[place] for place in range(3)))
        return torch.stack(rows).mean() / 3

    result = relations.cprd(student, teacher, ALL, margin=math.inf)
    assert_close(result, both_ways(one_way, student, teacher, ALL))


def test_cprd_pushes_the_implausible_down_and_leaves_the_positive_alone():
    teacher_QG = torch.tensor([[5.0, 4.0, 0.0, -9.0]] * 4)
    teacher_QG.fill_diagonal_(5.0)
    student_QG, scored = draw(0, 4, 4).requires_grad_(), torch.ones(4, 4, dtype=torch.bool)
    relations.cprd(student_QG, teacher_QG, scored, margin=2.0).backward()
    assert (student_QG.grad.diagonal() == 0).all()
    assert student_QG.grad[0, 1] < 0  # the plausible one
    assert (student_QG.grad[0, 2:] > 0).all()
    with pytest.raises(ValueError, match="square"):
        relations.cprd(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), margin=1.0)


@given(seed=SEEDS, factor=st.floats(0.5, 3))
@settings(max_examples=30, deadline=None)
def test_cprd_sees_of_the_teacher_its_order_alone(seed, factor):
    student, teacher = draw(seed, 5, 5), draw(seed + 1, 5, 5)
    stretched = torch.where(teacher > 0, factor * teacher, teacher)
    assert_close(
        relations.cprd(student, stretched, ALL, margin=math.inf), relations.cprd(student, teacher, ALL, margin=math.inf)
    )


def test_affinity_by_hand():
    # Rows of the teacher: 0 and 1 go together (correlation 1), 2 goes the other way (-1). The student's: 0 and 2
    # together.
    up, down = [0.0, 1.0, 2.0], [2.0, 1.0, 0.0]
    teacher_QG, student_QG = torch.tensor([up, [5.0, 7.0, 9.0], down]), torch.tensor([up, down, [1.0, 4.0, 7.0]])
    scored = torch.ones(3, 3, dtype=torch.bool)
    # T = 2, u = softmax(1/2, -1/2). Row 0 (others 1 and 2): u against u turned round: tanh(1/2). Row 1 (0 and 2): u
    # against even, for the student's row 1 goes against both. Row 2 (0 and 1): even against u.
    more, less = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))
    row_1 = more * math.log(2 * more) + less * math.log(2 * less)
    row_2 = (math.log(0.5 / more) + math.log(0.5 / less)) / 2
    rows = (math.tanh(0.5) + row_1 + row_2) / 3
    # Columns of the teacher: (0, 5, 2), (1, 7, 1), (2, 9, 0); of the student: (0, 2, 1), (1, 1, 4), (2, 0, 7).
    columns = _row_affinity(student_QG.T, teacher_QG.T, scored, 2.0).item()
    assert relations.affinity(student_QG, teacher_QG, scored, temperature=2.0).item() == pytest.approx(
        (rows + columns) / 2, rel=1e-5
    )


def _row_affinity(student: Tensor, teacher: Tensor, scored: Tensor, temperature: float) -> Tensor:
    """One side of `affinity` by torch.corrcoef, pair by pair."""
    rows = []
    for i in range(len(student)):
        student_R, teacher_R = [], []
        for k in range(len(student)):
            both = scored[i] & scored[k]
            if k != i and both.sum() >= 3:
                student_R.append(torch.corrcoef(student[[i, k]][:, both])[0, 1])
                teacher_R.append(torch.corrcoef(teacher[[i, k]][:, both])[0, 1])
        if len(student_R) >= 2:
            q, p = ((torch.stack(tensor) / temperature).log_softmax(0) for tensor in (student_R, teacher_R))
            rows.append(functional.kl_div(q, p, reduction="sum", log_target=True))
    return torch.stack(rows).mean()


def test_affinity_is_that_of_pairwise_correlations():
    student, teacher, scored = draw(0, 7, 7).requires_grad_(), draw(1, 7, 7), draw(2, 7, 7) > -1.5
    shared = scored.float() @ scored.float().T
    assert {2, 3, 4} <= set(shared.flatten().tolist())
    value = relations.affinity(student, teacher, scored, temperature=0.3)
    oracle = both_ways(lambda s, t, known: _row_affinity(s, t, known, 0.3), student, teacher, scored)
    assert_close(value, oracle, rtol=1e-4, atol=1e-5)
    assert_close(*(torch.autograd.grad(tensor, student)[0] for tensor in (value, oracle)), rtol=1e-3, atol=1e-5)


@given(seed=SEEDS, factor=st.floats(0.1, 10), offset=st.floats(-20, 20))
@settings(max_examples=30, deadline=None)
def test_a_factor_and_an_offset_change_no_affinity(seed, factor, offset):
    student, teacher = draw(seed, 5, 5), draw(seed + 1, 5, 5)
    moved = relations.affinity(factor * student + offset, teacher - offset, ALL, temperature=0.5)
    assert_close(moved, relations.affinity(student, teacher, ALL, temperature=0.5), rtol=1e-3, atol=1e-4)


def test_rows_that_do_not_vary_say_nothing_of_affinity():
    student = torch.full((5, 5), 3.0, requires_grad=True)
    value = relations.affinity(student, draw(0, 5, 5), ALL, temperature=0.1)
    value.backward()
    assert value.item() == 0
    assert (student.grad == 0).all()


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
            p, log_q = (teacher[row, known] / 2).softmax(0), (student[row, known] / 3).log_softmax(0)
            divergences.append((p * (p.log() - log_q)).sum())
            certainties.append(len(known) * (p * p.log()).sum().exp())
        weights = torch.stack(certainties) / torch.stack(certainties).mean()
        return 9 * (weights * torch.stack(divergences)).mean()

    loss = all_pairs.dcd_kl(student, teacher, scored, temperature=2.0, student_temperature=3.0)
    assert_close(loss, both_ways(one_way, student, teacher, scored), **CLOSE)


def test_mse_pairs_is_the_mean_over_the_scored_pairs_and_weighs_each_by_its_row_and_column():
    student, teacher, scored = draw(0, 5, 5), draw(1, 5, 5), scored_some(2)
    error = (student - teacher / 2).square()
    assert_close(all_pairs.mse_pairs(student, teacher, scored, temperature=2.0), error[scored].mean())
    rows, columns = torch.rand(5), torch.rand(5)
    weighted = error * (rows[:, None] + columns) / 2
    result = all_pairs.mse_pairs(student, teacher, scored, temperature=2.0, weights=Weights(rows, columns))
    assert_close(result, weighted[scored].mean())


def test_wsl_pairs_is_the_weighted_kl_div_of_torch():
    student, teacher, same = draw(0, 5, 5).requires_grad_(), draw(1, 5, 5), torch.zeros(5, 5, dtype=torch.bool)
    same[0, 3] = same[2, 2] = True

    def one_way(student: Tensor, teacher: Tensor, same: Tensor) -> Tensor:
        rows = []
        for i in range(5):
            rivals = [i, *(j for j in range(5) if j != i and not same[i, j])]
            student_nll, teacher_nll = (
                functional.cross_entropy(tensor[i, rivals], torch.tensor(0)) for tensor in (student.detach(), teacher)
            )
            soft = functional.kl_div(
                (student[i] / 3).log_softmax(0), (teacher[i] / 3).log_softmax(0), reduction="sum", log_target=True
            )
            rows.append(9 * (1 - (-student_nll / teacher_nll).exp()) * soft)
        return torch.stack(rows).mean()

    value, oracle = (
        all_pairs.wsl_pairs(student, teacher, ALL, temperature=3.0, same_mask=same),
        both_ways(one_way, student, teacher, same),
    )
    assert_close(value, oracle)
    assert_close(*(torch.autograd.grad(tensor, student)[0] for tensor in (value, oracle)))


def test_a_query_whose_positive_is_not_scored_has_no_confidence():
    scored = ALL.clone()
    scored[3, 3] = False
    weights = confidence_pairs(draw(0, 5, 5), draw(1, 5, 5), scored)
    assert [float(weights.rows_Q[3]), float(weights.columns_G[3])] == [0, 0]
    assert (weights.rows_Q[:3] > 0).all()


@each_loss
def test_weights_of_one_change_nothing_and_those_of_zero_leave_nothing(loss):
    student, teacher, scored = draw(0, 5, 5), draw(1, 5, 5), scored_some(2)
    assert_close(
        loss(student, teacher, scored, Weights(torch.ones(5), torch.ones(5))), loss(student, teacher, scored, None)
    )
    assert loss(student, teacher, scored, Weights(torch.zeros(5), torch.zeros(5))).item() == 0


@each_loss
def test_rows_are_weighted_by_rows_and_columns_by_columns(loss):
    student, teacher, scored = draw(0, 5, 5), draw(1, 5, 5), scored_some(2)
    rows, columns = torch.rand(5), torch.rand(5)
    result = loss(student, teacher, scored, Weights(rows, columns))
    assert_close(result, loss(student.T, teacher.T, scored.T, Weights(columns, rows)))
    twice = loss(student, teacher, scored, Weights(2 * rows, 2 * columns))
    assert_close(twice, 2 * result)
    assert abs(result - loss(student, teacher, scored, Weights(columns, rows))) > 1e-6


@each_loss
@given(seed=SEEDS, order=st.permutations(range(5)))
@settings(max_examples=30, deadline=None)
def test_the_order_of_the_batch_changes_no_loss(loss, seed, order):
    student, teacher, scored, rows = draw(seed, 5, 5), draw(seed + 1, 5, 5), scored_some(seed + 2), torch.rand(5)
    moved = loss(*(tensor[order][:, order] for tensor in (student, teacher, scored)), Weights(rows[order], rows[order]))
    assert_close(moved, loss(student, teacher, scored, Weights(rows, rows)), rtol=1e-4, atol=1e-5)


@each_loss
@given(seed=SEEDS, scale=st.sampled_from([0.0, 1.0, 1e3, 1e15]))
@settings(max_examples=40, deadline=None)
def test_pairs_that_are_not_scored_have_no_influence_and_no_value_is_nan(loss, seed, scale):
    student, teacher = draw(seed, 5, 5, scale=scale), draw(seed + 1, 5, 5, scale=scale)
    scored, weights = scored_some(seed + 2), Weights(torch.rand(5), torch.rand(5))
    scored[0] = False
    odd = student.masked_fill(~scored, math.nan).requires_grad_()
    value = loss(odd, teacher.masked_fill(~scored, math.nan), scored, weights)
    assert_close(value.detach(), loss(student, teacher, scored, weights), rtol=0, atol=0)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(odd.grad).all()
    assert (odd.grad[~scored] == 0).all()


@each_loss
def test_nothing_scored_is_zero_with_a_zero_gradient(loss):
    student = draw(0, 5, 5).requires_grad_()
    value = loss(student, torch.full((5, 5), math.nan), torch.zeros(5, 5, dtype=torch.bool), None)
    value.backward()
    assert value.item() == 0
    assert (student.grad == 0).all()


@each_loss
def test_autocast_changes_no_loss(loss):
    student, teacher, scored = draw(0, 5, 5), draw(1, 5, 5), scored_some(2)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(student, teacher, scored, None)
    assert torch.equal(value, loss(student, teacher, scored, None))


@each_loss
def test_half_precision_is_computed_in_float32(loss):
    student, teacher = draw(0, 5, 5).bfloat16(), draw(1, 5, 5).bfloat16()
    assert_close(loss(student, teacher, ALL, None), loss(student.float(), teacher.float(), ALL, None), **CLOSE)
