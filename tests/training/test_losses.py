"""Losses: the released ones against golden values of the released code, ours by hand and by their properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_inputs import CLOSE, GOLDEN, SEEDS, draw, tensor
from torch.testing import assert_close

from dcdctl.core.training.losses import all_pairs, lists, official, weights


@pytest.mark.parametrize(
    "case", GOLDEN["loss_cases"], ids=lambda case: f"{case['batch']}x{case['columns']}-T{case['T']}"
)
@pytest.mark.parametrize(("part", "name"), [("total", "total"), ("kd", "d_loss"), ("nll", "nll")])
def test_the_released_loss_and_its_gradient_are_those_of_the_released_code(case, part, name):
    student_BN = tensor(case["student_scores"]).requires_grad_()
    parts = official.dcd_official(
        student_BN, tensor(case["teacher_scores"]), alpha=case["alpha"], temperature=case["T"]
    )
    value = getattr(parts, part)
    assert_close(value.detach(), tensor(case["distillation_loss"][name]), equal_nan=True, **CLOSE)
    (gradient_BN,) = torch.autograd.grad(value, student_BN)
    assert_close(gradient_BN, tensor(case["distillation_loss"][f"grad_{name}"]), equal_nan=True, **CLOSE)


@pytest.mark.parametrize(
    "case", GOLDEN["loss_cases"], ids=lambda case: f"{case['batch']}x{case['columns']}-T{case['T']}"
)
def test_float64_stays_float64(case):
    student_BN, teacher_BN = (tensor(case[f"{who}_scores"], torch.float64) for who in ("student", "teacher"))
    parts = official.dcd_official(student_BN, teacher_BN, alpha=case["alpha"], temperature=case["T"])
    golden = case["distillation_loss"]["float64"]
    assert_close(parts.kd, tensor(golden["d_loss"], torch.float64), rtol=1e-12, atol=0)
    # The golden terms of the NLL are rounded to float32 on their way: that of one query is a float32 number.
    assert_close(parts.nll, tensor(golden["nll"], torch.float64), rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    "case", GOLDEN["selection_cases"], ids=lambda case: "-".join(map(str, case["rank_of_positive"]))
)
def test_selection_is_that_of_the_released_code(case):
    teacher_BK, student_BK = tensor(case["teacher_scores"]), tensor(case["student_scores_all"])
    columns_BN, teacher_BN = weights.select_as_official(teacher_BK, 7)
    assert columns_BN.tolist() == case["selected_for_student"]
    assert_close(teacher_BN, tensor(case["teacher_scores_given_to_loss"]), rtol=0, atol=0)
    student_BN = student_BK.gather(1, columns_BN)
    assert_close(student_BN, tensor(case["student_scores_given_to_loss"]), rtol=0, atol=0)
    parts = official.dcd_official(student_BN, teacher_BN, alpha=0.2)
    assert_close(torch.stack(parts), tensor([case["total"], case["d_loss"], case["nll"]]), **CLOSE)


def test_without_a_teacher_the_released_loss_is_softmax_cross_entropy():
    case = GOLDEN["without_teacher"]
    assert_close(lists.ground_truth(tensor(case["student_scores"]), "softmax"), tensor(case["total"]), **CLOSE)
    assert (case["nll"], case["d_loss"], case["alpha"]) == (case["total"], 0, 0)


def test_the_hardest_negatives_come_in_the_teachers_order_and_ties_from_the_left():
    teacher_BK = torch.tensor([[0.5, 2.0, 7.0, 2.0, -1.0], [9.0, math.nan, -math.inf, 1.0, 0.0]])
    assert weights.select_hardest(teacher_BK, 3).tolist() == [[0, 2, 1, 3], [0, 3, 4, 1]]


def test_entropy_by_hand_and_at_the_edges():
    teacher_BK = torch.tensor(
        [
            [0.0, 0.0, math.log(2.0)],
            [5.0, 5.0, 5.0],
            [300.0, -300.0, 0.0],
            [0.0, -math.inf, 0.0],
            [-math.inf] * 3,
            [3e38, -3e38, 0.0],
        ]
    )
    # p = 1/4, 1/4, 1/2: 2 * log(4)/4 + log(2)/2 = 1.5 log 2. A row without any finite score is even, not NaN.
    by_hand = [1.5 * math.log(2), math.log(3), 0.0, math.log(2), math.log(3), 0.0]
    assert_close(weights.entropy(teacher_BK, ~teacher_BK.isnan()), torch.tensor(by_hand))


def test_where_the_teacher_is_sure_of_all_queries_each_has_the_same_share():
    teacher_BK = torch.tensor([[500.0, 0.0], [0.0, 500.0], [900.0, 0.0]])
    assert weights.dcd_weights(teacher_BK, torch.ones(3, 2).bool()).nll_B.tolist() == pytest.approx([1 / 3] * 3)
    known_BK = torch.tensor([[True, True], [True, True], [False, False]])
    assert weights.dcd_weights(teacher_BK, known_BK).nll_B.tolist() == pytest.approx([0.5, 0.5, 0])


def test_dcd_by_hand():
    # H = log 2 and 0, so w = 1 and 0, r = softmax(0, 1). Errors: (1 + 0)/2 and (0 + 4)/2.
    teacher_BN = torch.tensor([[1.0, 1.0], [1e4, 0.0]])
    student_BN = torch.tensor([[0.0, 1.0], [1e4, 2.0]])
    parts = lists.dcd(student_BN, teacher_BN, alpha=0.25, temperature=2.0)
    weak, strong = 1 / (1 + math.e), math.e / (1 + math.e)
    kd = weak * 0.5 + strong * 2.0  # T squared takes out what dividing by T put in
    nll = (math.log(2) + math.log(1 + math.e)) / 2
    assert [part.item() for part in parts] == pytest.approx([0.25 * kd + 0.75 * nll, kd, nll])


def test_weights_within_groups_by_hand():
    # H = log 2, 0; log 2, log 2; log 2: groups of two, two and one list, which count 2/5, 2/5 and 1/5.
    teacher_BN = torch.tensor([[1.0, 1.0], [1e4, 0.0], [2.0, 2.0], [3.0, 3.0], [4.0, 4.0]])
    by_group = weights.dcd_weights(teacher_BN, ~teacher_BN.isnan(), group=2)
    weak, strong = 1 / (1 + math.e), math.e / (1 + math.e)  # softmax of (1 - 1)^2 and (1 - 0)^2
    assert by_group.nll_B.tolist() == pytest.approx([0.4, 0.0, 0.2, 0.2, 0.2])
    assert by_group.kd_B.tolist() == pytest.approx([0.4 * weak, 0.4 * strong, 0.2, 0.2, 0.2])
    whole = weights.dcd_weights(teacher_BN, ~teacher_BN.isnan())
    assert whole.nll_B.tolist() == pytest.approx([0.25, 0.0, 0.25, 0.25, 0.25])
    assert whole.kd_B.tolist() == pytest.approx(
        [math.exp((1 - w) ** 2) / (math.e + 4 * math.exp(0.75**2)) for w in whole.nll_B.tolist()]
    )
    # An error in the teacher's sure list alone: its weight is 0.4 e / (1 + e) in the distillation, and 0 in the ground
    # truth.
    student_BN = teacher_BN + torch.tensor([[0.0, 0.0], [0.0, 2.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    parts = lists.dcd(student_BN, teacher_BN, alpha=0.25, temperature=1.0, group=2)
    # BCE of (x, x) is log(1 + e^-x) / 2 + log(1 + e^x) / 2.
    bce = [(math.log1p(math.exp(-x)) + math.log1p(math.exp(x))) / 2 for x in (1, 2, 3, 4)]
    nll = 0.4 * bce[0] + 0.2 * sum(bce[1:])
    assert [part.item() for part in parts] == pytest.approx(
        [0.25 * 0.4 * strong * 2 + 0.75 * nll, 0.4 * strong * 2, nll]
    )


@pytest.mark.parametrize("group", [1, 3, 4, 11, 20, None])
def test_a_loss_in_groups_is_the_mean_of_its_groups_over_their_lists(group):
    student_BN, teacher_BN = draw(0, 11, 6), draw(1, 11, 6, scale=3.0)
    groups = list(zip(student_BN.split(group or 11), teacher_BN.split(group or 11), strict=True))

    def mean(loss):
        return sum(len(student) / 11 * loss(student, teacher) for student, teacher in groups)

    ours = mean(lambda student, teacher: lists.dcd(student, teacher, alpha=0.3, temperature=1.0).total)
    assert_close(lists.dcd(student_BN, teacher_BN, alpha=0.3, temperature=1.0, group=group).total, ours)
    for released in (official.dcd_official, official.wsl_official):
        found = official.in_groups(released, student_BN, teacher_BN, alpha=0.3, group=group)
        expected = mean(lambda student, teacher, loss=released: loss(student, teacher, alpha=0.3).total)
        assert torch.equal(found, expected) if group is None else torch.allclose(found, expected)


def test_dcd_weights_each_query_and_the_released_loss_does_not():
    teacher_BN = torch.tensor([[1.0, 1.0], [1e1, 0.0]])
    wrong_where_sure = teacher_BN + torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    wrong_where_unsure = teacher_BN + torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    ours = [
        lists.dcd(student, teacher_BN, alpha=0.2, temperature=1.0).kd.item()
        for student in (wrong_where_sure, wrong_where_unsure)
    ]
    released = [
        official.dcd_official(student, teacher_BN, alpha=0.2).kd.item()
        for student in (wrong_where_sure, wrong_where_unsure)
    ]
    assert ours[0] > 2 * ours[1]
    assert released[0] == pytest.approx(released[1])


def test_dcd_is_finite_where_the_released_loss_is_nan():
    case = GOLDEN["loss_cases"][5]
    student_BN = tensor(case["student_scores"]).requires_grad_()
    value = lists.dcd(student_BN, tensor(case["teacher_scores"]), alpha=0.2, temperature=1.0).total
    (gradient_BN,) = torch.autograd.grad(value, student_BN)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient_BN).all()


def test_a_missing_teacher_score_takes_its_pair_out_of_dcd():
    student_BN, teacher_BN = draw(0, 3, 6), draw(1, 3, 6)
    without = lists.dcd(student_BN[:, :4], teacher_BN[:, :4], alpha=0.2, temperature=1.0)
    holes_BN = teacher_BN.clone()
    holes_BN[:, 4:] = math.nan
    odd_BN = student_BN.clone()
    odd_BN[:, 4:] = math.nan
    odd_BN.requires_grad_()
    parts = lists.dcd(odd_BN, holes_BN, alpha=0.2, temperature=1.0)
    assert_close(torch.stack(parts), torch.stack(without))
    (gradient_BN,) = torch.autograd.grad(parts.total, odd_BN)
    assert gradient_BN[:, 4:].abs().sum() == 0
    assert torch.isfinite(gradient_BN).all()


def test_a_query_without_any_teacher_score_counts_for_nothing_in_dcd():
    student_BN, teacher_BN = draw(0, 3, 6), draw(1, 3, 6)
    teacher_BN[2] = math.nan
    parts = lists.dcd(student_BN, teacher_BN, alpha=0.2, temperature=1.0)
    assert_close(torch.stack(parts), torch.stack(lists.dcd(student_BN[:2], teacher_BN[:2], alpha=0.2, temperature=1.0)))
    nothing = lists.dcd(student_BN, torch.full_like(teacher_BN, math.nan), alpha=0.2, temperature=1.0)
    assert torch.stack(nothing).tolist() == [0, 0, 0]


def test_ground_truth_by_hand():
    student_BK = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    # BCE: log(4/3), log 2; log 2, log 2. Softmax: log(4/3), log 2.
    assert lists.ground_truth(student_BK, "bce").item() == pytest.approx((math.log(4 / 3) + 3 * math.log(2)) / 4)
    assert lists.ground_truth(student_BK, "softmax").item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


def test_infonce_by_hand_and_without_pairs_that_match_too():
    logits_QG = torch.tensor([[math.log(3.0), 0.0], [math.log(2.0), 0.0]])
    # Rows: log(4/3), log 3. Columns: log(5/3), log 2.
    rows, columns = math.log(4 / 3) + math.log(3), math.log(5 / 3) + math.log(2)
    assert all_pairs.infonce(logits_QG).item() == pytest.approx((rows + columns) / 4)
    # Pair (1, 0) left out: row 1 and column 0 have their positive alone. The diagonal is never left out.
    same = torch.tensor([[True, False], [True, True]])
    assert all_pairs.infonce(logits_QG, same).item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 4)


def test_an_image_without_a_caption_in_the_batch_is_a_negative_of_each_caption_and_no_query():
    logits_QG = torch.tensor([[math.log(3.0), 0.0], [math.log(2.0), 0.0], [math.log(5.0), math.log(2.0)]])
    # Rows: log(4/3), log 3. Columns: log(10/3), log 4.
    rows, columns = math.log(4 / 3) + math.log(3), math.log(10 / 3) + math.log(4)
    assert all_pairs.infonce(logits_QG).item() == pytest.approx((rows + columns) / 4)
    smoothed = all_pairs.infonce(logits_QG, label_smoothing=0.5)
    uniform_rows = math.log(4) - math.log(3) / 2 + math.log(3) - math.log(2) / 2
    uniform_columns = math.log(10) - math.log(30) / 3 + math.log(4) - math.log(2) / 3
    assert smoothed.item() == pytest.approx((rows + columns + uniform_rows + uniform_columns) / 8)
    # Positives 3/4 and 1/2, negatives 1/2, 1/3, 1/6 and 1/3; divided by two positives.
    factors = (4 / 3, 2, 2, 3, 6, 3)
    assert all_pairs.sigmoid(logits_QG).item() == pytest.approx(math.log(math.prod(factors)) / 2)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_a_masked_pair_has_no_influence_on_infonce(smoothing):
    logits_QG, same = draw(3, 4, 4), torch.zeros(4, 4, dtype=torch.bool)
    same[1, 2] = True
    changed_QG = logits_QG.clone()
    changed_QG[1, 2] = 1e4
    changed_QG.requires_grad_()
    value = all_pairs.infonce(changed_QG, same, label_smoothing=smoothing)
    assert_close(value, all_pairs.infonce(logits_QG, same, label_smoothing=smoothing))
    value.backward()
    assert torch.isfinite(changed_QG.grad).all()
    assert changed_QG.grad[1, 2] == 0


def test_smoothed_labels_are_those_of_torch_where_nothing_is_masked():
    logits_QG, target_Q = 3 * draw(3, 5, 5), torch.arange(5)
    for smoothing in (0.1, 0.6):
        rows, columns = (
            torch.nn.functional.cross_entropy(each, target_Q, label_smoothing=smoothing)
            for each in (logits_QG, logits_QG.T)
        )
        assert_close(all_pairs.infonce(logits_QG, label_smoothing=smoothing), (rows + columns) / 2)
    # Without smoothing the loss keeps every bit.
    assert torch.equal(all_pairs.infonce(logits_QG, label_smoothing=0.0), all_pairs.infonce(logits_QG))


def test_smoothed_labels_by_hand_share_their_mass_among_the_pairs_that_are_not_masked():
    logits_QG = torch.tensor([[math.log(2.0), 0.0, 0.0], [0.0, math.log(2.0), 9.0], [0.0, 0.0, math.log(2.0)]])
    # Pair (1, 2) is masked: row 1 and column 2 have two pairs, with q = (1/3, 2/3) and targets (0.15, 0.85) at
    # smoothing 0.3.
    same = torch.tensor([[False, False, False], [False, False, True], [False, False, False]])
    masked = 0.85 * math.log(3 / 2) + 0.15 * math.log(3)
    # The other two rows and columns have three pairs, with q = (1/2, 1/4, 1/4) and targets (0.8, 0.1, 0.1).
    whole = 0.8 * math.log(2) + 0.2 * math.log(4)
    assert all_pairs.infonce(logits_QG, same, label_smoothing=0.3).item() == pytest.approx((masked + 2 * whole) / 3)


def test_kl_by_hand():
    # Row 0: p = (1/4, 3/4), q = (1/2, 1/2), KL = log 2 - H(p). Row 1 has one scored pair, so has column 1; column 0: p
    # = q.
    teacher_QG, student_QG = (
        torch.tensor([[0.0, 2 * math.log(3.0)], [0.0, 0.0]]),
        torch.tensor([[1.0, 1.0], [1.0, 9.0]]),
    )
    scored_QG = torch.tensor([[True, True], [True, False]])
    row_0 = math.log(2) - (math.log(4) - 0.75 * math.log(3))
    assert all_pairs.kl(student_QG, teacher_QG, scored_QG, temperature=2.0).item() == pytest.approx(row_0 / 2)


@pytest.mark.parametrize("loss", [all_pairs.kl, all_pairs.dcd_kl])
@given(seed=SEEDS, shift=st.floats(-50, 50))
@settings(max_examples=30, deadline=None)
def test_a_constant_added_to_all_scores_changes_no_kl(loss, seed, shift):
    student_QG, teacher_QG, scored_QG = draw(seed, 4, 5), draw(seed + 1, 4, 5), draw(seed + 2, 4, 5) > 0
    moved = loss(student_QG + shift, teacher_QG - shift, scored_QG, temperature=2.0)
    assert_close(moved, loss(student_QG, teacher_QG, scored_QG, temperature=2.0), rtol=1e-3, atol=1e-4)


def test_margin_mse_is_the_mean_squared_difference_of_all_margins():
    """Against the sum over pairs of scored pairs, written out."""
    student_QG, teacher_QG, scored_QG = draw(0, 4, 6), draw(1, 4, 6), draw(2, 4, 6) > -2
    sides = []
    for student, teacher, scored in ((student_QG, teacher_QG, scored_QG), (student_QG.T, teacher_QG.T, scored_QG.T)):
        rows = []
        for s, t, known in zip(student, teacher, scored, strict=True):
            n = int(known.sum())
            if n >= 2:
                gaps = [
                    ((s[j] - s[k]) - (t[j] - t[k]) / 2.0) ** 2
                    for j in range(len(s))
                    for k in range(len(s))
                    if known[j] and known[k]
                ]
                rows.append(torch.stack(gaps).sum() / (2 * n * n))
        sides.append(torch.stack(rows).mean())
    assert_close(all_pairs.margin_mse(student_QG, teacher_QG, scored_QG, temperature=2.0), torch.stack(sides).mean())


def test_the_gradient_of_kl_is_the_difference_of_the_distributions():
    student_QG, teacher_QG = draw(0, 1, 4).requires_grad_(), draw(1, 1, 4)
    all_pairs.kl(student_QG, teacher_QG, torch.ones(1, 4, dtype=torch.bool), temperature=1.0).backward()
    assert_close(student_QG.grad, (student_QG.detach().softmax(1) - teacher_QG.softmax(1)) / 2, **CLOSE)
