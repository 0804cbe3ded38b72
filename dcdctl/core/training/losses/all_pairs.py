"""Losses on all pairs of a batch, each pair by itself or by its place among the others of its query; shape letters in `losses`.

What stands in `teacher_QG` or `student_QG` at a pair that is not in `scored_QG` has no influence on any of them. `weights` multiply each
query's part, rows and columns; they are not normalised.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dcdctl.core.training.losses.masked import full, kl_of_rows, mean_of_known, weighted
from dcdctl.core.training.losses.weights import Weights, confidence_pairs, decisiveness


def infonce(logits_QG: Tensor, same_mask: Tensor | None = None) -> Tensor:
    """Softmax cross-entropy over a batch, mean of both directions; the diagonal is the positive.

    Pairs in `same_mask` (Q x G, True where a pair off the diagonal matches too) are left out of both directions.

    >>> infonce(torch.zeros(4, 4))  # log 4
    tensor(1.3863)
    """
    if logits_QG.shape[0] != logits_QG.shape[1]:
        raise ValueError(f"logits must be square, positives on the diagonal, got {tuple(logits_QG.shape)}")
    logits_QG = full(logits_QG)
    if same_mask is not None:
        on_diagonal = torch.eye(len(logits_QG), dtype=torch.bool, device=logits_QG.device)
        logits_QG = logits_QG.masked_fill(same_mask & ~on_diagonal, -torch.inf)
    target_Q = torch.arange(len(logits_QG), device=logits_QG.device)
    return (functional.cross_entropy(logits_QG, target_Q) + functional.cross_entropy(logits_QG.T, target_Q)) / 2


def kl(
    student_QG: Tensor,
    teacher_QG: Tensor,
    scored_QG: Tensor,
    *,
    temperature: float,
    student_temperature: float = 1.0,
    weights: Weights | None = None,
) -> Tensor:
    """Listwise distillation over every pair of a batch that the teacher has scored, mean of both directions.

        p_i = softmax over scored j of t_ij / T,   q_i = softmax over scored j of s_ij / S
        loss = S^2 * mean over i of KL(p_i || q_i)      the same over columns; S^2 keeps the size of the gradient (Hinton et al. 2015)

    A row or column with fewer than two scored pairs says nothing about an order and is left out. What stands in `teacher_QG` or
    `student_QG` at a pair that is not in `scored_QG` has no influence.
    """
    by_row, by_column = (None, None) if weights is None else weights
    rows = _listwise(student_QG, teacher_QG, scored_QG, temperature, student_temperature, by_row)
    columns = _listwise(student_QG.T, teacher_QG.T, scored_QG.T, temperature, student_temperature, by_column)
    return (rows + columns) / 2


def dcd_kl(
    student_QG: Tensor,
    teacher_QG: Tensor,
    scored_QG: Tensor,
    *,
    temperature: float,
    student_temperature: float = 1.0,
    weights: Weights | None = None,
) -> Tensor:
    """`kl` with each row and column weighted by how sure the teacher is of it. Ours: it is in neither the paper nor its code.

    It carries the idea of dynamic distillation over to students that see all pairs of a batch, such as dual encoders. The weight of
    a row is its `decisiveness` at temperature T over the mean of the B rows that count, so that the mean weight is 1; columns likewise.

    The paper's own weights (`sureness`) would say nothing here: a share w_i of a batch's entropy is about 1 / B, and softmax over
    (1 - w_i)^2 then differs from 1 / B by a few percent at B = 64 and by less than one at B = 256.
    """
    by_row, by_column = (None, None) if weights is None else weights
    rows = _listwise(student_QG, teacher_QG, scored_QG, temperature, student_temperature, by_row, is_dynamic=True)
    columns = _listwise(student_QG.T, teacher_QG.T, scored_QG.T, temperature, student_temperature, by_column, is_dynamic=True)
    return (rows + columns) / 2


def wsl_pairs(student_QG: Tensor, teacher_QG: Tensor, scored_QG: Tensor, *, temperature: float, same_mask: Tensor | None = None) -> Tensor:
    """`kl` with both sides at temperature T, and each row and column weighted by how much of it the student has still to learn.

        loss = T^2 * mean over i of f_i * KL(p_i || q_i)        f as in `confidence_pairs`; the same over columns, and the mean of both

    (Zhou et al. 2021, arXiv 2102.00650, for one classification; here for two, which are one each way.)
    """
    weights = confidence_pairs(student_QG, teacher_QG, scored_QG, same_mask)
    return kl(student_QG, teacher_QG, scored_QG, temperature=temperature, student_temperature=temperature, weights=weights)


def mse_pairs(student_QG: Tensor, teacher_QG: Tensor, scored_QG: Tensor, *, temperature: float, weights: Weights | None = None) -> Tensor:
    """Squared distance of the logits, a mean over the scored pairs: mean_ij (s_ij - t_ij/T)^2. (Ba and Caruana 2014, arXiv 1312.6184.)

    With `weights` f and g each pair counts (f_i + g_j) / 2 times.

    >>> scored_QG = torch.tensor([[True, True], [False, True]])
    >>> mse_pairs(torch.tensor([[1.0, 0.0], [9.0, 1.0]]), torch.zeros(2, 2), scored_QG, temperature=1.0)  # (1 + 0 + 1) / 3
    tensor(0.6667)
    """
    teacher_QG = full(teacher_QG.detach()).masked_fill(~scored_QG, 0) / temperature
    error_QG = (full(student_QG).masked_fill(~scored_QG, 0) - teacher_QG).square()
    if weights is not None:
        error_QG = weighted(error_QG, (weights.rows_Q[:, None] + weights.columns_G[None, :]) / 2)
    return error_QG.sum() / scored_QG.sum().clamp(min=1)


def margin_mse(student_QG: Tensor, teacher_QG: Tensor, scored_QG: Tensor, *, temperature: float, weights: Weights | None = None) -> Tensor:
    """Squared differences between the student's margins and the teacher's, over every pair of scored pairs of a query.

        d_ij = s_ij - t_ij / T,   loss = mean over i of (1 / 2n_i^2) sum_jk (d_ij - d_ik)^2 = mean over i of the variance of d_i

    over the n_i scored pairs of row i; the same over columns, and the mean of both. (Hofstaetter et al. 2020, arXiv 2010.02666, for a
    positive and one negative; here for all.) Unlike `kl`, which hardly looks at what the teacher finds unlikely, it also teaches how
    wrong the wrong ones are. What stands at a pair that is not scored has no influence, and a row with fewer than two none.

    >>> student, teacher = torch.tensor([[3.0, 0.0]]), torch.tensor([[2.0, 1.0]])  # margins 3 and 1: (3 - 1)^2 / 4, and no column
    >>> margin_mse(student, teacher, torch.tensor([[True, True]]), temperature=1.0)
    tensor(0.5000)
    """
    by_row, by_column = (None, None) if weights is None else weights
    rows = _margins(student_QG, teacher_QG, scored_QG, temperature, by_row)
    return (rows + _margins(student_QG.T, teacher_QG.T, scored_QG.T, temperature, by_column)) / 2


def _margins(student_QG: Tensor, teacher_QG: Tensor, scored_QG: Tensor, temperature: float, weight_Q: Tensor | None) -> Tensor:
    """One direction of `margin_mse`."""
    counts_Q = scored_QG.sum(dim=1)
    distance_QG = (full(student_QG) - full(teacher_QG.detach()) / temperature).masked_fill(~scored_QG, 0)
    mean_Q1 = distance_QG.sum(dim=1, keepdim=True) / counts_Q.clamp(min=1)[:, None]
    variance_Q = mean_of_known((distance_QG - mean_Q1).square(), scored_QG)
    return weighted(variance_Q, weight_Q).sum() / (counts_Q >= 2).sum().clamp(min=1)


def _listwise(
    student_QG: Tensor,
    teacher_QG: Tensor,
    scored_QG: Tensor,
    temperature: float,
    student_temperature: float,
    weight_Q: Tensor | None,
    *,
    is_dynamic: bool = False,
) -> Tensor:
    """One direction of `kl` or `dcd_kl`: the (weighted) mean over rows with at least two scored pairs, 0 if there are none."""
    counts_Q = scored_QG.sum(dim=1) >= 2
    kl_Q = weighted(kl_of_rows(student_QG, teacher_QG, scored_QG, temperature, student_temperature), weight_Q)
    num_rows = counts_Q.sum().clamp(min=1)
    if not is_dynamic:
        return student_temperature**2 * kl_Q.sum() / num_rows
    sure_Q = decisiveness(full(teacher_QG.detach()) / temperature, scored_QG & counts_Q[:, None])
    sure_Q = sure_Q * num_rows / sure_Q.sum().clamp(min=1)
    return student_temperature**2 * (sure_Q * kl_Q).sum() / num_rows
