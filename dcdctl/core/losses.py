"""Losses of distillation and of ground truth: pure functions of tensors, and which negatives they see.

Shape letters: B queries; K candidates of a query, column 0 the positive; N the candidates kept, column 0 the positive;
Q x G all pairs of a batch, positives on the diagonal. Scores are raw logits; what a teacher says is a constant, nothing flows into it.
Half precision is computed in float32.

Equations are those of the code (commit fbb5ff0) released with Rao et al., "Dynamic Contrastive Distillation for Image-Text
Retrieval", IEEE TMM 2023, arXiv 2207.01426; each is written out at its function.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Parts(NamedTuple):
    """A loss and the two terms it is mixed from: total = alpha * kd + (1 - alpha) * nll."""

    total: Tensor
    kd: Tensor
    nll: Tensor


def select_hardest(teacher_BK: Tensor, num_hard: int) -> Tensor:
    """Columns to keep, B x (num_hard + 1): 0, then the negatives the teacher scores highest, best first.

    Of equal scores the lower column comes first; a score that is missing (NaN) comes last.

    >>> select_hardest(torch.tensor([[0.0, 3.0, 1.0, 2.0]]), num_hard=2)
    tensor([[0, 1, 3]])
    """
    _check_num_hard(teacher_BK, num_hard)
    negatives_BK = teacher_BK[:, 1:].nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    hardest_BN = negatives_BK.argsort(dim=1, descending=True, stable=True)[:, :num_hard] + 1
    return functional.pad(hardest_BN, (1, 0), value=0)


def select_as_released(teacher_BK: Tensor, num_hard: int) -> tuple[Tensor, Tensor]:
    """Columns the student is scored on, and the teacher's scores handed to the loss, as the released code has them.

    The columns are those of `select_hardest`. The scores are the num_hard + 1 highest of the row in descending order, positive or not:
    they belong to the columns beside them only where the positive is the teacher's best.

    >>> columns, scores = select_as_released(torch.tensor([[0.0, 3.0, 1.0, 2.0]]), num_hard=2)
    >>> columns.tolist(), scores.tolist()
    ([[0, 1, 3]], [[3.0, 2.0, 1.0]])
    """
    return select_hardest(teacher_BK, num_hard), teacher_BK.topk(num_hard + 1, dim=1).values


def _check_num_hard(teacher_BK: Tensor, num_hard: int) -> None:
    num_negatives = teacher_BK.shape[1] - 1
    if not 1 <= num_hard <= num_negatives:
        raise ValueError(f"num_hard must lie in [1, {num_negatives}], the number of negatives, got {num_hard}")


@torch.no_grad()
def entropy(teacher_BK: Tensor, known_BK: Tensor | None = None) -> Tensor:
    """Entropy of softmax over each row, in nats: 0 for a row that is all on one column, log K for a row of equal scores. Never NaN.

    Columns not in `known_BK` (default: those that are NaN) are left out; a row without any has entropy 0.

    >>> entropy(torch.tensor([[0.0, 0.0], [9.0, 0.0]]))  # log 2, and nearly sure
    tensor([0.6931, 0.0012])
    """
    known_BK = _known(teacher_BK, known_BK)
    log_p_BK = _log_softmax(teacher_BK, known_BK)
    p_BK = log_p_BK.exp().masked_fill(~known_BK, 0)
    return -(p_BK * log_p_BK.masked_fill(p_BK == 0, 0)).sum(dim=1)


@torch.no_grad()
def entropy_share(teacher_BK: Tensor, known_BK: Tensor | None = None) -> Tensor:
    """How unsure the teacher is of each query, as a share of the batch: w_i = H_i / sum_k H_k.

    Where the teacher is sure of every query, each row with any known score has the same share. Sums to 1 unless nothing is known.

    >>> entropy_share(torch.tensor([[0.0, 0.0], [9.0, 0.0]]))
    tensor([0.9982, 0.0018])
    """
    known_BK = _known(teacher_BK, known_BK)
    entropy_B = entropy(teacher_BK, known_BK)
    counts_B = known_BK.any(dim=1).to(entropy_B.dtype)
    total = entropy_B.sum()
    return torch.where(total > 0, entropy_B / total.clamp(min=torch.finfo(total.dtype).tiny), counts_B / counts_B.sum().clamp(min=1))


@torch.no_grad()
def sureness(share_B: Tensor, counts_B: Tensor) -> Tensor:
    """r_i = softmax over i of (1 - w_i)^2: near 1/B each, more where the teacher is sure; 0 for rows that do not count.

    >>> sureness(torch.tensor([1.0, 0.0]), torch.tensor([True, True]))
    tensor([0.2689, 0.7311])
    """
    exponent_B = (1 - share_B).square().masked_fill(~counts_B, -torch.inf)
    return exponent_B.softmax(dim=0).masked_fill(~counts_B, 0)


def dcd(student_BN: Tensor, teacher_BN: Tensor, *, alpha: float, temperature: float, known_BN: Tensor | None = None) -> Tensor:
    """Dynamic contrastive distillation with each query weighted by how sure the teacher is of it; `dcd_parts` has the equations."""
    return dcd_parts(student_BN, teacher_BN, alpha=alpha, temperature=temperature, known_BN=known_BN).total


def dcd_parts(student_BN: Tensor, teacher_BN: Tensor, *, alpha: float, temperature: float, known_BN: Tensor | None = None) -> Parts:
    """The terms of `dcd`; teacher and student columns are of the same pairs.

        KD  = T^2 * sum_i r_i * mean_j (t_ij/T - s_ij/T)^2      r as in `sureness`, w as in `entropy_share`
        NLL = sum_i w_i * mean_j BCE(s_ij, 1 if j = 0 else 0)
        total = alpha * KD + (1 - alpha) * NLL

    A pair not in `known_BN` (default: those whose teacher score is NaN) is left out altogether: of the means, of the weights and of
    the ground truth. For finite scores neither the value nor the gradient is ever NaN.
    """
    teacher_BN, student_BN = _full(teacher_BN.detach()), _full(student_BN)
    known_BN = _known(teacher_BN, known_BN)
    teacher_BN, student_BN = teacher_BN.masked_fill(~known_BN, 0), student_BN.masked_fill(~known_BN, 0)
    counts_B = known_BN.any(dim=1)
    share_B = entropy_share(teacher_BN, known_BN)
    # The released code weights the mean over the whole batch, so that weights and temperature cancel; we weight each query by itself.
    error_B = _mean_of_known((teacher_BN / temperature - student_BN / temperature).square(), known_BN)
    kd = temperature**2 * (sureness(share_B, counts_B) * error_B).sum()
    nll = (share_B * _mean_of_known(_binary_cross_entropy(student_BN), known_BN)).sum()
    return _mix(kd, nll, alpha)


def dcd_released(student_BN: Tensor, teacher_BN: Tensor | None, *, alpha: float, temperature: float = 1.0) -> Tensor:
    """The loss of the released code, failures included; `dcd_released_parts` has the equations."""
    return dcd_released_parts(student_BN, teacher_BN, alpha=alpha, temperature=temperature).total


def dcd_released_parts(student_BN: Tensor, teacher_BN: Tensor | None, *, alpha: float, temperature: float = 1.0) -> Parts:
    """The terms of the released loss (`teacher_BN` as `select_as_released` gives it).

        KD  = T^2 * (sum_i r_i) * mean_ij (t_ij/T - s_ij/T)^2 = the plain mean squared error
        NLL = sum_i w_i * mean_j BCE(s_ij, 1 if j = 0 else 0)

    NaN in value and gradient where a softmax of the teacher underflows to 0 or the teacher is sure of every query. Without a
    teacher, where alpha must be 0, softmax cross-entropy with the positive as target.
    """
    if teacher_BN is None:
        if alpha != 0:
            raise ValueError(f"without teacher scores alpha must be 0, got {alpha}")
        nll = ground_truth(student_BN, "softmax")
        return Parts(nll, nll.new_zeros(()), nll)
    teacher_BN, student_BN = _full(teacher_BN.detach()), _full(student_BN)
    # Written with a logarithm of the softmax and not safely, as released: 0 * log 0 is NaN there, and here.
    p_BN = teacher_BN.softmax(dim=1)
    entropy_B = -(p_BN * p_BN.log()).sum(dim=1)
    share_B = entropy_B / entropy_B.sum()
    weight_B = (1 - share_B).square().softmax(dim=0)
    error = (teacher_BN / temperature - student_BN / temperature).square().mean()
    kd = temperature**2 * (weight_B * error).sum()
    nll = (share_B * _binary_cross_entropy(student_BN).mean(dim=1)).sum()
    return Parts(alpha * kd + (1 - alpha) * nll, kd, nll)


def ground_truth(student_BK: Tensor, kind: Literal["bce", "softmax"]) -> Tensor:
    """Loss from the positives alone, a mean over queries: "bce" asks of each pair whether it matches, "softmax" which candidate does.

    >>> ground_truth(torch.zeros(3, 4), "bce"), ground_truth(torch.zeros(3, 4), "softmax")  # log 2, log 4
    (tensor(0.6931), tensor(1.3863))
    """
    student_BK = _full(student_BK)
    if kind == "bce":
        return _binary_cross_entropy(student_BK).mean()
    if kind == "softmax":
        return -student_BK.log_softmax(dim=1)[:, 0].mean()
    raise ValueError(f'kind must be "bce" or "softmax", got {kind!r}')


def infonce(logits_QG: Tensor, same_mask: Tensor | None = None) -> Tensor:
    """Softmax cross-entropy over a batch, mean of both directions; the diagonal is the positive.

    Pairs in `same_mask` (Q x G, True where a pair off the diagonal matches too) are left out of both directions.

    >>> infonce(torch.zeros(4, 4))  # log 4
    tensor(1.3863)
    """
    if logits_QG.shape[0] != logits_QG.shape[1]:
        raise ValueError(f"logits must be square, positives on the diagonal, got {tuple(logits_QG.shape)}")
    logits_QG = _full(logits_QG)
    if same_mask is not None:
        on_diagonal = torch.eye(len(logits_QG), dtype=torch.bool, device=logits_QG.device)
        logits_QG = logits_QG.masked_fill(same_mask & ~on_diagonal, -torch.inf)
    target_Q = torch.arange(len(logits_QG), device=logits_QG.device)
    return (functional.cross_entropy(logits_QG, target_Q) + functional.cross_entropy(logits_QG.T, target_Q)) / 2


def kl(student_QG: Tensor, teacher_QG: Tensor, scored_QG: Tensor, *, temperature: float, student_temperature: float = 1.0) -> Tensor:
    """Listwise distillation over every pair of a batch that the teacher has scored, mean of both directions.

        p_i = softmax over scored j of t_ij / T,   q_i = softmax over scored j of s_ij / S
        loss = S^2 * mean over i of KL(p_i || q_i)      the same over columns; S^2 keeps the size of the gradient (Hinton et al. 2015)

    A row or column with fewer than two scored pairs says nothing about an order and is left out. What stands in `teacher_QG` or
    `student_QG` at a pair that is not in `scored_QG` has no influence.
    """
    rows = _listwise(student_QG, teacher_QG, scored_QG, temperature, student_temperature, is_dynamic=False)
    columns = _listwise(student_QG.T, teacher_QG.T, scored_QG.T, temperature, student_temperature, is_dynamic=False)
    return (rows + columns) / 2


def dcd_kl(student_QG: Tensor, teacher_QG: Tensor, scored_QG: Tensor, *, temperature: float, student_temperature: float = 1.0) -> Tensor:
    """`kl` with each row and column weighted by how sure the teacher is of it. Ours: it is in neither the paper nor its code.

    It carries the idea of dynamic distillation over to students that see all pairs of a batch, such as dual encoders. The weight of
    a row is B * r_i over the B rows that count, r as in `sureness`, so that the mean weight is 1; columns likewise. In a large
    batch every share w_i is small and the weights lie close to 1.
    """
    rows = _listwise(student_QG, teacher_QG, scored_QG, temperature, student_temperature, is_dynamic=True)
    columns = _listwise(student_QG.T, teacher_QG.T, scored_QG.T, temperature, student_temperature, is_dynamic=True)
    return (rows + columns) / 2


def margin_mse(student_QG: Tensor, teacher_QG: Tensor, scored_QG: Tensor, *, temperature: float) -> Tensor:
    """Squared differences between the student's margins and the teacher's, over every pair of scored pairs of a query.

        d_ij = s_ij - t_ij / T,   loss = mean over i of (1 / 2n_i^2) sum_jk (d_ij - d_ik)^2 = mean over i of the variance of d_i

    over the n_i scored pairs of row i; the same over columns, and the mean of both. (Hofstaetter et al. 2020, arXiv 2010.02666, for a
    positive and one negative; here for all.) Unlike `kl`, which hardly looks at what the teacher finds unlikely, it also teaches how
    wrong the wrong ones are. What stands at a pair that is not scored has no influence, and a row with fewer than two none.

    >>> student, teacher = torch.tensor([[3.0, 0.0]]), torch.tensor([[2.0, 1.0]])  # margins 3 and 1: (3 - 1)^2 / 4, and no column
    >>> margin_mse(student, teacher, torch.tensor([[True, True]]), temperature=1.0)
    tensor(0.5000)
    """
    rows = _margins(student_QG, teacher_QG, scored_QG, temperature)
    return (rows + _margins(student_QG.T, teacher_QG.T, scored_QG.T, temperature)) / 2


def _margins(student_QG: Tensor, teacher_QG: Tensor, scored_QG: Tensor, temperature: float) -> Tensor:
    """One direction of `margin_mse`."""
    counts_Q = scored_QG.sum(dim=1)
    distance_QG = (_full(student_QG) - _full(teacher_QG.detach()) / temperature).masked_fill(~scored_QG, 0)
    mean_Q1 = distance_QG.sum(dim=1, keepdim=True) / counts_Q.clamp(min=1)[:, None]
    variance_Q = _mean_of_known((distance_QG - mean_Q1).square(), scored_QG)
    return variance_Q.sum() / (counts_Q >= 2).sum().clamp(min=1)


def _listwise(
    student_QG: Tensor, teacher_QG: Tensor, scored_QG: Tensor, temperature: float, student_temperature: float, *, is_dynamic: bool
) -> Tensor:
    """One direction of `kl` or `dcd_kl`: the (weighted) mean over rows with at least two scored pairs, 0 if there are none."""
    counts_Q = scored_QG.sum(dim=1) >= 2
    scored_QG = scored_QG & counts_Q[:, None]
    teacher_QG = _full(teacher_QG.detach())
    log_p_QG = _log_softmax(teacher_QG / temperature, scored_QG)
    log_q_QG = _log_softmax(_full(student_QG) / student_temperature, scored_QG)
    p_QG = log_p_QG.exp()
    matters_QG = scored_QG & (p_QG > 0)
    kl_Q = (p_QG * (log_p_QG - log_q_QG).masked_fill(~matters_QG, 0)).sum(dim=1)
    num_rows = counts_Q.sum().clamp(min=1)
    if not is_dynamic:
        return student_temperature**2 * kl_Q.sum() / num_rows
    weight_Q = num_rows * sureness(entropy_share(teacher_QG, scored_QG), counts_Q)
    return student_temperature**2 * (weight_Q * kl_Q).sum() / num_rows


def _full(scores: Tensor) -> Tensor:
    """The scores in float32, or float64 if they are."""
    return scores if scores.dtype == torch.float64 else scores.float()


def _known(teacher_BK: Tensor, known_BK: Tensor | None) -> Tensor:
    return ~teacher_BK.isnan() if known_BK is None else known_BK


def _log_softmax(scores_BK: Tensor, known_BK: Tensor) -> Tensor:
    """Log-softmax over the known columns; the others hold something finite or -inf that is for the caller to leave out.

    The lowest finite number stands for columns that are not known and not -inf, whose gradient in a row without any is NaN.
    """
    scores_BK = _full(scores_BK)
    range_ = torch.finfo(scores_BK.dtype)
    return scores_BK.masked_fill(~known_BK, range_.min).clamp(range_.min, range_.max).log_softmax(dim=1)


def _mean_of_known(values_BN: Tensor, known_BN: Tensor) -> Tensor:
    """Mean of each row over the known columns, 0 where there are none."""
    return values_BN.masked_fill(~known_BN, 0).sum(dim=1) / known_BN.sum(dim=1).clamp(min=1)


def _binary_cross_entropy(student_BK: Tensor) -> Tensor:
    """Binary cross-entropy of each pair, 1 the label of column 0 and 0 of the others."""
    label_BK = torch.zeros_like(student_BK)
    label_BK[:, 0] = 1
    return functional.binary_cross_entropy_with_logits(student_BK, label_BK, reduction="none")


def _mix(kd: Tensor, nll: Tensor, alpha: float) -> Parts:
    """The parts; a term of no share is left out, so that one which overflows cannot make 0 * inf."""
    terms = [share * term for share, term in ((alpha, kd), (1 - alpha, nll)) if share != 0]
    return Parts(torch.stack(terms).sum(), kd, nll)
