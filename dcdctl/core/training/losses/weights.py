"""Which negatives a query keeps, and how much each query counts: by the teacher's certainty (DCD), or by what is left
to learn (WSL).

Shape letters in `losses`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dcdctl.core.training.losses.masked import in_full_precision, log_softmax


def select_hardest(teacher_BK: Tensor, num_hard: int) -> Tensor:
    """Columns to keep, B x (num_hard + 1): column 0, then the negatives with the highest teacher scores, in descending
    order.

    Equal scores are ordered by column; missing scores (NaN) come last.

    >>> select_hardest(torch.tensor([[0.0, 3.0, 1.0, 2.0]]), num_hard=2)
    tensor([[0, 1, 3]])
    """
    negatives_BK = teacher_BK[:, 1:].nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    # The released code leaves the order of ties to the sort; a stable one is the same on every device.
    hardest_BN = negatives_BK.argsort(dim=1, descending=True, stable=True)[:, :num_hard] + 1
    return functional.pad(hardest_BN, (1, 0), value=0)


def select_as_official(teacher_BK: Tensor, num_hard: int) -> tuple[Tensor, Tensor]:
    """Columns that the student scores, and the teacher's scores for the loss, as in the released code.

    The columns are those of `select_hardest`. The scores are the num_hard + 1 highest of the row in descending order,
    the positive's among them or not: they belong to these columns only if the positive has the highest score.

    >>> columns, scores = select_as_official(torch.tensor([[0.0, 3.0, 1.0, 2.0]]), num_hard=2)
    >>> columns.tolist(), scores.tolist()
    ([[0, 1, 3]], [[3.0, 2.0, 1.0]])
    """
    return select_hardest(teacher_BK, num_hard), teacher_BK.topk(num_hard + 1, dim=1).values


@torch.no_grad()
def entropy(teacher_BK: Tensor, known_BK: Tensor) -> Tensor:
    """Entropy of the softmax of each row, in nats: 0 for a one-hot row, log K for equal scores. Never NaN.

    Columns outside `known_BK` are left out; a row without known columns has entropy 0.

    >>> entropy(torch.tensor([[0.0, 0.0], [9.0, 0.0]]), torch.ones(2, 2).bool())  # log 2, and nearly one-hot
    tensor([0.6931, 0.0012])
    """
    log_p_BK = log_softmax(teacher_BK, known_BK)
    p_BK = log_p_BK.exp().masked_fill(~known_BK, 0)
    # 0 log 0 counts as 0; it is NaN in the released code.
    return -(p_BK * log_p_BK.masked_fill(p_BK == 0, 0)).sum(dim=1)


def entropy_share(entropy_B: Tensor, counts_B: Tensor) -> Tensor:
    """The teacher's uncertainty about each query, as a share of the batch: w_i = H_i / sum_k H_k, along the last
    dimension.

    If every entropy is 0, all rows of `counts_B`, those with a known score, have equal shares. Sums to 1 unless no
    score is known.
    """
    total = entropy_B.sum(dim=-1, keepdim=True)
    equal_B = counts_B / counts_B.sum(dim=-1, keepdim=True).clamp(min=1)
    return torch.where(
        total > 0, entropy_B / total.clamp(min=torch.finfo(total.dtype).tiny), equal_B.to(entropy_B.dtype)
    )


@torch.no_grad()
def sureness(share_B: Tensor, counts_B: Tensor) -> Tensor:
    """r_i = softmax over i of (1 - w_i)^2: about 1/B each, more where the teacher is certain; 0 for rows outside
    `counts_B`.

    The batch is the last dimension.

    >>> sureness(torch.tensor([1.0, 0.0]), torch.tensor([True, True]))
    tensor([0.2689, 0.7311])
    """
    exponent_B = (1 - share_B).square().masked_fill(~counts_B, -torch.inf)
    # The softmax is NaN if no row counts; the second mask makes that 0.
    return exponent_B.softmax(dim=-1).masked_fill(~counts_B, 0)


class DcdWeights(NamedTuple):
    """DCD's weights of the queries of a batch; both sum to 1."""

    nll_B: Tensor
    """w, of the ground truth: `entropy_share`."""
    kd_B: Tensor
    """r, of the distillation: `sureness`."""


@torch.no_grad()
def dcd_weights(teacher_BK: Tensor, known_BK: Tensor, *, group: int | None = None) -> DcdWeights:
    """w and r, each normalized among `group` consecutive queries; the last group may be smaller. Without `group`, in
    the whole batch.

    A group's weights are multiplied by its share of the queries that have a known score, so a query counts 1 / B on
    average in every group. In a whole batch r is about 1 / B for every query, because w_i is; in a group of n it
    differs between queries as in a batch of n.

    >>> scores = torch.tensor([[0.0, 0.0], [9.0, -9.0], [0.0, 0.0], [0.0, 0.0]])  # unsure, sure, unsure, unsure
    >>> dcd_weights(scores, ~scores.isnan(), group=2).kd_B
    tensor([0.1345, 0.3655, 0.2500, 0.2500])
    """
    num_queries = max(1, len(teacher_BK))
    # A group larger than the batch is the batch: padding it would take memory for queries that are not there.
    size = num_queries if group is None else min(group, num_queries)
    # Groups G x queries S. Padding counts like a query without known scores: for nothing.
    padding = (0, -len(teacher_BK) % size)
    entropy_GS = functional.pad(entropy(teacher_BK, known_BK), padding).view(-1, size)
    counts_GS = functional.pad(known_BK.any(dim=1), padding).view(-1, size)
    of_batch_G1 = counts_GS.sum(dim=1, keepdim=True) / counts_GS.sum().clamp(min=1)
    share_GS = entropy_share(entropy_GS, counts_GS)
    weights_GS = (of_batch_G1 * share_GS, of_batch_G1 * sureness(share_GS, counts_GS))
    return DcdWeights(*(each_GS.flatten()[: len(teacher_BK)] for each_GS in weights_GS))


@torch.no_grad()
def decisiveness(teacher_BK: Tensor, known_BK: Tensor) -> Tensor:
    """Number of known columns over the perplexity of the softmax, K_i / exp(H_i): 1 for a uniform row, K for a one-hot
    one.

    0 for rows without known columns.

    >>> decisiveness(torch.tensor([[0.0, 0.0, 0.0, 0.0], [9.0, 9.0, -9.0, -9.0]]), torch.ones(2, 4).bool())
    tensor([1.0000, 2.0000])
    """
    return known_BK.sum(dim=1) * (-entropy(teacher_BK, known_BK)).exp()


@torch.no_grad()
def confidence(student_BK: Tensor, teacher_BK: Tensor, known_BK: Tensor) -> Tensor:
    """How much the student still has to learn about each query, relative to the teacher's own loss, in [0, 1].

        f_i = 1 - exp(-a_i / b_i),   a_i = -log softmax_j(s_ij)[0],   b_i = -log softmax_j(t_ij)[0]

    over the known columns, with the positive in column 0. Near 0 where the student is already right,
    1 - 1/e where its loss equals the teacher's, near 1 where it is much larger. A query whose positive has no teacher
    score has weight 0. From Zhou et al., "Rethinking Soft Labels for Knowledge Distillation", ICLR 2021, arXiv
    2102.00650.

    >>> # the teacher's loss: 1 - 1/e; a much larger one
    >>> confidence(torch.tensor([[0.0, 0.0], [0.0, 9.0]]), torch.zeros(2, 2), torch.ones(2, 2).bool())
    tensor([0.6321, 1.0000])
    """
    limits = torch.finfo(in_full_precision(student_BK).dtype)
    student_B, teacher_B = (
        -log_softmax(scores_BK, known_BK)[:, 0].clamp(min=limits.min) for scores_BK in (student_BK, teacher_BK)
    )
    # 1e-7, as in the released code of DCD, keeps the ratio finite where the teacher's loss is 0.
    ratio_B = student_B.clamp(max=limits.max) / (teacher_B.clamp(max=limits.max) + 1e-7)
    return (1 - (-ratio_B.clamp(min=0)).exp()).masked_fill(~known_BK[:, 0], 0)
