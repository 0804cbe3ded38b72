"""The losses of DCD's released code (commit fbb5ff0), with its numerical failures; shape letters in `losses`.

tests/fixtures holds values that the released code computed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dcdctl.core.training.losses.lists import Parts, ground_truth
from dcdctl.core.training.losses.masked import binary_cross_entropy, in_full_precision


def dcd_official(student_BN: Tensor, teacher_BN: Tensor, *, alpha: float, temperature: float = 1.0) -> Parts:
    """The loss of the released code, with its numerical failures; `teacher_BN` is in the order of `select_as_official`.

        KD  = T^2 * (sum_i r_i) * mean_ij (t_ij/T - s_ij/T)^2 = the plain mean squared error
        NLL = sum_i w_i * mean_j BCE(s_ij, 1 if j = 0 else 0)

    Value and gradient are NaN if a softmax of the teacher underflows to 0, or if the teacher is sure of every query.
    Without a teacher the released loss is `ground_truth` with a softmax.

    When to use it: to reproduce published numbers; otherwise `dcd`.
    """
    teacher_BN, student_BN = in_full_precision(teacher_BN.detach()), in_full_precision(student_BN)
    # The released code takes the logarithm of the softmax, so 0 * log 0 is NaN; log_softmax would be safe and differ.
    p_BN = teacher_BN.softmax(dim=1)
    entropy_B = -(p_BN * p_BN.log()).sum(dim=1)
    share_B = entropy_B / entropy_B.sum()
    weight_B = (1 - share_B).square().softmax(dim=0)
    error = (teacher_BN / temperature - student_BN / temperature).square().mean()
    kd = temperature**2 * (weight_B * error).sum()
    nll = (share_B * binary_cross_entropy(student_BN).mean(dim=1)).sum()
    return Parts(alpha * kd + (1 - alpha) * nll, kd, nll)


def in_groups(
    loss: Callable[..., Parts], student_BN: Tensor, teacher_BN: Tensor, *, alpha: float, group: int | None
) -> Tensor:
    """A released loss of `group` consecutive lists at a time, as of one device's micro-batch: the mean over the lists
    of all groups.

    The released code averages the losses of equal micro-batches over devices and accumulated steps. The last group may
    be smaller here, and counts by its number of lists. Without `group`: the loss of the whole batch.
    """
    size = max(1, len(student_BN)) if group is None else group
    parts = zip(student_BN.split(size), teacher_BN.split(size), strict=True)
    # A Python number as the share keeps the bits of a single group.
    return torch.stack([len(part[0]) / len(student_BN) * loss(*part, alpha=alpha).total for part in parts]).sum()


def wsl_official(student_BN: Tensor, teacher_BN: Tensor, *, alpha: float, temperature: float = 1.0) -> Parts:
    """The other loss in the released code, which never calls it; `teacher_BN` is in the order of `select_as_official`.

    f_i = 1 - exp(-max(a_i / (b_i + 1e-7), 0)),   a_i = -log softmax(s_i)[0],   b_i = -log softmax(t_i)[0]
    KD  = T^2 * (mean_i f_i) * mean_ij (t_ij/T - s_ij/T)^2        the weights multiply a mean over the batch; T cancels
    NLL = mean_i -log softmax(s_i)[0]
    total = alpha * KD + NLL                                      the ground truth is not scaled by 1 - alpha

    When to use it: only to compare with the released code; otherwise `wsl`.
    """
    teacher_BN, student_BN = in_full_precision(teacher_BN.detach()), in_full_precision(student_BN)
    student_B, teacher_B = (-scores_BN.detach().log_softmax(dim=1)[:, 0] for scores_BN in (student_BN, teacher_BN))
    # 1e-7 is a constant of the released code.
    focus_B = 1 - (-(student_B / (teacher_B + 1e-7)).clamp(min=0)).exp()
    error = (teacher_BN / temperature - student_BN / temperature).square().mean()
    kd = temperature**2 * (focus_B * error).mean()
    nll = ground_truth(student_BN, "softmax")
    return Parts(alpha * kd + nll, kd, nll)
