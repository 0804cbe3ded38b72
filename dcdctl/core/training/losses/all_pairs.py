"""Losses on all pairs of a batch, over the pairs of each query; shape letters in `losses`.

The values of `teacher_QG` and `student_QG` outside `scored_QG` have no influence on any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from dcdctl.core.training.losses.masked import in_full_precision, kl_of_rows, mean_of_known
from dcdctl.core.training.losses.weights import decisiveness


def infonce(logits_QG: Tensor, same_mask: Tensor | None = None, *, label_smoothing: float = 0.0) -> Tensor:
    """Softmax cross-entropy over a batch, mean of both directions; the diagonal is the positive.

    Rows below the diagonal are images without a caption in the batch: negatives of each caption, and no queries.

    Pairs in `same_mask` (Q x G, True where a pair off the diagonal matches too) are left out of both directions, as
    false negatives. With `label_smoothing` e, each of the K_i pairs in the denominator of row i gets the target e /
    K_i, and the positive 1 - e more:

        loss = mean_i [ (1 - e) * -log q_ii + e * mean over j of -log q_ij ],   q_i = softmax of s_i over its K_i pairs

    This is the convention of `torch.nn.functional.cross_entropy` (Szegedy et al. 2016, arXiv 1512.00567).

    When to use it: for dual students, alone as their baseline or beside a distillation loss (as in CLIP).

    >>> infonce(torch.zeros(4, 4))  # log 4
    tensor(1.3863)
    """
    logits_QG = in_full_precision(logits_QG)
    num_positives = logits_QG.shape[1]
    if same_mask is not None:
        on_diagonal = torch.eye(*logits_QG.shape, dtype=torch.bool, device=logits_QG.device)
        # A mask that covers the diagonal would remove the positive and make the loss infinite.
        logits_QG = logits_QG.masked_fill(same_mask & ~on_diagonal, -torch.inf)
    target_G = torch.arange(num_positives, device=logits_QG.device)
    queries = logits_QG[:num_positives], logits_QG.T
    loss = (functional.cross_entropy(queries[0], target_G) + functional.cross_entropy(queries[1], target_G)) / 2
    if label_smoothing == 0:
        return loss
    uniform = (_uniform_cross_entropy(queries[0]) + _uniform_cross_entropy(queries[1])) / 2
    return (1 - label_smoothing) * loss + label_smoothing * uniform


def _uniform_cross_entropy(logits_QG: Tensor) -> Tensor:
    """Cross-entropy with equal targets for all pairs of a row; a pair with logit -inf is left out. A mean over rows."""
    # torch's own label smoothing would give a masked pair a target too, and its loss is infinite.
    in_denominator_QG = logits_QG != -torch.inf
    return mean_of_known(-logits_QG.log_softmax(dim=1), in_denominator_QG).mean()


def sigmoid(logits_QG: Tensor, same_mask: Tensor | None = None) -> Tensor:
    """SigLIP's loss: each pair of a batch by itself is a match (the diagonal) or not, and no softmax compares pairs.

        loss = -(1 / Q) sum_ij log sigmoid(z_ij s_ij),   z_ij = 1 if i = j else -1

    Equation 1 of Zhai et al., ICCV 2023, arXiv 2303.15343: a sum over pairs, divided by the number of positives. `s` is
    the logit with the model's scale and bias. Pairs in `same_mask` (as in `infonce`) are left out as false negatives.

    When to use it: for SigLIPs and new dual students whose logits are to stand for probabilities, alone or beside
    `sigmoid_kl`.

    >>> sigmoid(torch.zeros(4, 4))  # 16 log 2 / 4
    tensor(2.7726)
    """
    logits_QG = in_full_precision(logits_QG)
    label_QG = torch.eye(*logits_QG.shape, dtype=logits_QG.dtype, device=logits_QG.device)
    error_QG = functional.binary_cross_entropy_with_logits(logits_QG, label_QG, reduction="none")
    if same_mask is not None:
        # A mask that covers the diagonal would remove the positive.
        error_QG = error_QG.masked_fill(same_mask & (label_QG == 0), 0)
    return error_QG.sum() / logits_QG.shape[1]


def sigmoid_kl(student_QG: Tensor, teacher_QG: Tensor, scored_QG: Tensor, *, temperature: float) -> Tensor:
    """Distillation of `sigmoid`: the teacher's probability that a pair matches is the label of each scored pair.

        p_ij = sigmoid(t_ij / T),   q_ij = sigmoid(s_ij)
        loss = (1 / n) sum over scored ij of p_ij log(p_ij / q_ij) + (1 - p_ij) log((1 - p_ij) / (1 - q_ij))

    with the n images that have a scored pair. This is the binary cross-entropy of q with the label p, less the
    teacher's entropy, which has no gradient: 0 where both agree. A loss of dcdctl. `t` must be log-odds, 0 where the
    teacher hesitates; a temperature changes how sure it is, and not on which side it is.

    When to use it: beside `sigmoid`, or alone on a pool, with a SigLIP or a classifier of pairs as teacher. Not with
    scores that are above 0 for every pair, as a CLIP's.

    >>> # p = 3/4 and q = 1/2: log 2 - (log 4 - 3/4 log 3); the pair without a score has no influence
    >>> student, teacher = torch.tensor([[0.0, 9.0]]), torch.tensor([[3.0, torch.nan]]).log()
    >>> sigmoid_kl(student, teacher, torch.tensor([[True, False]]), temperature=1.0)
    tensor(0.1308)
    """
    # Filled with equal scores, an unscored pair has loss and gradient 0, also where it is NaN.
    student_QG, teacher_QG = (
        in_full_precision(scores_QG).masked_fill(~scored_QG, 0) for scores_QG in (student_QG, teacher_QG.detach())
    )
    teacher_QG = teacher_QG / temperature
    label_QG = teacher_QG.sigmoid()
    cross, entropy = (
        functional.binary_cross_entropy_with_logits(scores_QG, label_QG, reduction="sum")
        for scores_QG in (student_QG, teacher_QG)
    )
    return (cross - entropy) / scored_QG.any(dim=1).sum().clamp(min=1)


def kl(student_QG: Tensor, teacher_QG: Tensor, scored_QG: Tensor, *, temperature: float) -> Tensor:
    """Listwise distillation over all pairs of a batch with a teacher score, mean of both directions.

        p_i = softmax over scored j of t_ij / T,   q_i = softmax over scored j of s_ij
        loss = mean over i of KL(p_i || q_i)      the same over columns (Hinton et al. 2015, arXiv 1503.02531)

    A row or column with fewer than two scored pairs has no order to teach and is left out of the mean.

    When to use it: beside `infonce` for a pretrained dual student, with a teacher whose softmax is not one-hot.
    """
    return _both_ways(_listwise, student_QG, teacher_QG, scored_QG, temperature)


def dcd_kl(student_QG: Tensor, teacher_QG: Tensor, scored_QG: Tensor, *, temperature: float) -> Tensor:
    """`kl` with each row and column weighted by the teacher's certainty. A loss of dcdctl, not of DCD.

    It brings dynamic distillation to students that see all pairs of a batch, such as dual encoders. The weight of a row
    is its `decisiveness` at temperature T, divided by the mean over the B rows that count, so the mean weight is 1;
    columns likewise.

    DCD's own weights (`sureness`) would have no effect here: a share w_i of a batch's entropy is about 1 / B, and
    softmax over (1 - w_i)^2 then differs from 1 / B by a few percent at B = 64 and by less than one percent at B = 256.

    When to use it: to compare dynamic weights with `kl`; three seeds show no difference (docs/evidence/results.md).
    """
    return _both_ways(partial(_listwise, is_dynamic=True), student_QG, teacher_QG, scored_QG, temperature)


def margin_mse(student_QG: Tensor, teacher_QG: Tensor, scored_QG: Tensor, *, temperature: float) -> Tensor:
    """Squared error of the margins between any two scored pairs of a query.

        d_ij = s_ij - t_ij / T,   loss = mean over i of (1 / 2n_i^2) sum_jk (d_ij - d_ik)^2 = mean over i of the
            variance of d_i

    over the n_i scored pairs of row i; the same over columns, and the mean of both. From Hofstaetter et al. 2020, arXiv
    2010.02666, for a positive and one negative; here for all margins. Unlike `kl`, which gives little weight to
    candidates that the teacher finds unlikely, it also teaches how far down they are. A row with fewer than two scored
    pairs is left out of the mean.

    When to use it: for a dual student with random weights, or a teacher whose scores are grades.

    >>> # margins 3 and 1: (3 - 1)^2 / 4, and no column
    >>> student, teacher = torch.tensor([[3.0, 0.0]]), torch.tensor([[2.0, 1.0]])
    >>> margin_mse(student, teacher, torch.tensor([[True, True]]), temperature=1.0)
    tensor(0.5000)
    """
    return _both_ways(_margins, student_QG, teacher_QG, scored_QG, temperature)


def _both_ways(
    loss: Callable[..., Tensor], student_QG: Tensor, teacher_QG: Tensor, scored_QG: Tensor, temperature: float
) -> Tensor:
    """The mean of a loss over rows and over columns."""
    rows = loss(student_QG, teacher_QG, scored_QG, temperature)
    return (rows + loss(student_QG.T, teacher_QG.T, scored_QG.T, temperature)) / 2


def _margins(student_QG: Tensor, teacher_QG: Tensor, scored_QG: Tensor, temperature: float) -> Tensor:
    """One direction of `margin_mse`."""
    num_scored_Q = scored_QG.sum(dim=1)
    distance_QG = in_full_precision(student_QG) - in_full_precision(teacher_QG.detach()) / temperature
    # Masked before the mean: an unscored pair may be NaN, and a NaN masked afterwards still makes the gradient NaN.
    distance_QG = distance_QG.masked_fill(~scored_QG, 0)
    mean_Q1 = distance_QG.sum(dim=1, keepdim=True) / num_scored_Q.clamp(min=1)[:, None]
    variance_Q = mean_of_known((distance_QG - mean_Q1).square(), scored_QG)
    # A row with one scored pair has variance 0, so only the count must leave it out.
    return variance_Q.sum() / (num_scored_Q >= 2).sum().clamp(min=1)


def _listwise(
    student_QG: Tensor, teacher_QG: Tensor, scored_QG: Tensor, temperature: float, *, is_dynamic: bool = False
) -> Tensor:
    """One direction of `kl` or `dcd_kl`: the (weighted) mean over rows with at least two scored pairs; 0 without such
    rows."""
    is_counted_Q = scored_QG.sum(dim=1) >= 2
    kl_Q = kl_of_rows(student_QG, teacher_QG, scored_QG, temperature, 1.0)
    num_rows = is_counted_Q.sum().clamp(min=1)
    if not is_dynamic:
        return kl_Q.sum() / num_rows
    decisiveness_Q = decisiveness(
        in_full_precision(teacher_QG.detach()) / temperature, scored_QG & is_counted_Q[:, None]
    )
    # Every row that counts has at least 1, so the clamp acts only where none counts.
    decisiveness_Q = decisiveness_Q * num_rows / decisiveness_Q.sum().clamp(min=1)
    return (decisiveness_Q * kl_Q).sum() / num_rows
