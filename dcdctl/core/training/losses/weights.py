"""How much each query counts: by the teacher's sureness (DCD), or by what is left to learn of it (WSL); shape letters in `losses`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dcdctl.core.training.losses.masked import full, known_columns, log_softmax


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


def select_as_official(teacher_BK: Tensor, num_hard: int) -> tuple[Tensor, Tensor]:
    """Columns the student is scored on, and the teacher's scores handed to the loss, as the released code has them.

    The columns are those of `select_hardest`. The scores are the num_hard + 1 highest of the row in descending order, positive or not:
    they belong to the columns beside them only where the positive is the teacher's best.

    >>> columns, scores = select_as_official(torch.tensor([[0.0, 3.0, 1.0, 2.0]]), num_hard=2)
    >>> columns.tolist(), scores.tolist()
    ([[0, 1, 3]], [[3.0, 2.0, 1.0]])
    """
    return select_hardest(teacher_BK, num_hard), teacher_BK.topk(num_hard + 1, dim=1).values


def _check_num_hard(teacher_BK: Tensor, num_hard: int) -> None:
    num_negatives = teacher_BK.shape[1] - 1
    if not 1 <= num_hard <= num_negatives:
        raise ValueError(f"num_hard must lie in [1, {num_negatives}], the number of negatives, got {num_hard}")


class Weights(NamedTuple):
    """Weights of the queries of both directions of a batch of all pairs."""

    rows_Q: Tensor
    columns_G: Tensor


@torch.no_grad()
def entropy(teacher_BK: Tensor, known_BK: Tensor | None = None) -> Tensor:
    """Entropy of softmax over each row, in nats: 0 for a row that is all on one column, log K for a row of equal scores. Never NaN.

    Columns not in `known_BK` (default: those that are NaN) are left out; a row without any has entropy 0.

    >>> entropy(torch.tensor([[0.0, 0.0], [9.0, 0.0]]))  # log 2, and nearly sure
    tensor([0.6931, 0.0012])
    """
    known_BK = known_columns(teacher_BK, known_BK)
    log_p_BK = log_softmax(teacher_BK, known_BK)
    p_BK = log_p_BK.exp().masked_fill(~known_BK, 0)
    return -(p_BK * log_p_BK.masked_fill(p_BK == 0, 0)).sum(dim=1)


@torch.no_grad()
def entropy_share(teacher_BK: Tensor, known_BK: Tensor | None = None) -> Tensor:
    """How unsure the teacher is of each query, as a share of the batch: w_i = H_i / sum_k H_k.

    Where the teacher is sure of every query, each row with any known score has the same share. Sums to 1 unless nothing is known.

    >>> entropy_share(torch.tensor([[0.0, 0.0], [9.0, 0.0]]))
    tensor([0.9982, 0.0018])
    """
    known_BK = known_columns(teacher_BK, known_BK)
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


@torch.no_grad()
def decisiveness(teacher_BK: Tensor, known_BK: Tensor | None = None) -> Tensor:
    """Known columns of a row over those that the teacher hesitates between, K_i / exp(H_i): 1 where it is of no opinion, K where it is
    sure of one; 0 for rows without a known column. exp(H_i) is the perplexity of its softmax.

    >>> decisiveness(torch.tensor([[0.0, 0.0, 0.0, 0.0], [9.0, 9.0, -9.0, -9.0]]))
    tensor([1.0000, 2.0000])
    """
    known_BK = known_columns(teacher_BK, known_BK)
    return known_BK.sum(dim=1) * (-entropy(teacher_BK, known_BK)).exp()


@torch.no_grad()
def confidence(student_BK: Tensor, teacher_BK: Tensor, known_BK: Tensor | None = None, target_B: Tensor | None = None) -> Tensor:
    """How much of each query the student has still to learn, beside what its teacher leaves open, in [0, 1].

        f_i = 1 - exp(-a_i / b_i),   a_i = -log softmax_j(s_ij)[y_i],   b_i = -log softmax_j(t_ij)[y_i]

    over the known columns, y_i the positive (`target_B`; default column 0). Near 0 where the student is right already, 1 - 1/e where it is
    as good as the teacher, near 1 where it is far worse: there the teacher's word is worth most. A query whose positive the teacher has not
    scored has weight 0. (Zhou et al., "Rethinking Soft Labels for Knowledge Distillation", ICLR 2021, arXiv 2102.00650; 1e-7 is added to
    b_i, as in the code of DCD.)

    >>> confidence(torch.tensor([[0.0, 0.0], [0.0, 9.0]]), torch.zeros(2, 2))  # as good as the teacher: 1 - 1/e; far worse
    tensor([0.6321, 1.0000])
    """
    known_BK = known_columns(teacher_BK, known_BK)
    at_B1 = torch.zeros_like(known_BK[:, :1], dtype=torch.int64) if target_B is None else target_B[:, None]
    range_ = torch.finfo(full(student_BK).dtype)
    student_B, teacher_B = (
        -log_softmax(scores_BK, known_BK).gather(1, at_B1).squeeze(1).clamp(min=range_.min) for scores_BK in (student_BK, teacher_BK)
    )
    ratio_B = student_B.clamp(max=range_.max) / (teacher_B.clamp(max=range_.max) + 1e-7)
    return (1 - (-ratio_B.clamp(min=0)).exp()).masked_fill(~known_BK.gather(1, at_B1).squeeze(1), 0)


def confidence_pairs(student_QG: Tensor, teacher_QG: Tensor, scored_QG: Tensor, same_mask: Tensor | None = None) -> Weights:
    """`confidence` of the queries of both directions of a batch, the diagonal being their positives.

    Pairs in `same_mask` (True where a pair off the diagonal matches too) are nobody's negatives, as in `infonce`.
    """
    target_Q = torch.arange(len(scored_QG), device=scored_QG.device)
    if same_mask is not None:
        on_diagonal = torch.eye(len(scored_QG), dtype=torch.bool, device=scored_QG.device)
        scored_QG = scored_QG & (~same_mask | on_diagonal)
    return Weights(confidence(student_QG, teacher_QG, scored_QG, target_Q), confidence(student_QG.T, teacher_QG.T, scored_QG.T, target_Q))
