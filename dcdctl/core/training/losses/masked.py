"""Arithmetic over the columns that are known, for all losses; shape letters in `losses`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def full(scores: Tensor) -> Tensor:
    """The scores in float32, or float64 if they are."""
    return scores if scores.dtype == torch.float64 else scores.float()


def known_columns(teacher_BK: Tensor, known_BK: Tensor | None) -> Tensor:
    """What is said to be known, B x K; where nothing is said, all that is not NaN."""
    return ~teacher_BK.isnan() if known_BK is None else known_BK


def log_softmax(scores_BK: Tensor, known_BK: Tensor) -> Tensor:
    """Log-softmax over the known columns; the others hold something finite or -inf that is for the caller to leave out.

    The lowest finite number stands for columns that are not known and not -inf, whose gradient in a row without any is NaN.
    """
    scores_BK = full(scores_BK)
    range_ = torch.finfo(scores_BK.dtype)
    return scores_BK.masked_fill(~known_BK, range_.min).clamp(range_.min, range_.max).log_softmax(dim=1)


def mean_of_known(values_BN: Tensor, known_BN: Tensor) -> Tensor:
    """Mean of each row over the known columns, 0 where there are none."""
    return values_BN.masked_fill(~known_BN, 0).sum(dim=1) / known_BN.sum(dim=1).clamp(min=1)


def kl_of_rows(student_QG: Tensor, teacher_QG: Tensor, known_QG: Tensor, temperature: float, student_temperature: float) -> Tensor:
    """KL(p_i || q_i) of each row over its known columns, Q: p = softmax(t / temperature), q = softmax(s / student_temperature).

    A row with fewer than two known columns says nothing about an order and has 0.
    """
    known_QG = known_QG & (known_QG.sum(dim=1) >= 2)[:, None]
    log_p_QG = log_softmax(full(teacher_QG.detach()) / temperature, known_QG)
    log_q_QG = log_softmax(full(student_QG) / student_temperature, known_QG)
    p_QG = log_p_QG.exp()
    matters_QG = known_QG & (p_QG > 0)
    return (p_QG * (log_p_QG - log_q_QG).masked_fill(~matters_QG, 0)).sum(dim=1)


def binary_cross_entropy(student_BK: Tensor) -> Tensor:
    """Binary cross-entropy of each pair, 1 the label of column 0 and 0 of the others."""
    label_BK = torch.zeros_like(student_BK)
    label_BK[:, 0] = 1
    return functional.binary_cross_entropy_with_logits(student_BK, label_BK, reduction="none")


def weighted(values_B: Tensor, weight_B: Tensor | None) -> Tensor:
    """The values times their weights, which are constants; as they are where there are none."""
    return values_B if weight_B is None else weight_B.detach() * values_B
