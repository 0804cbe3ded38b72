"""Arithmetic over the columns that have a teacher score, for all losses; shape letters in `losses`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def in_full_precision(scores: Tensor) -> Tensor:
    """The scores in float32, or in float64 if that is their type: losses are never computed in half precision."""
    return scores if scores.dtype == torch.float64 else scores.float()


def log_softmax(scores_BK: Tensor, known_BK: Tensor) -> Tensor:
    """Log-softmax over the known columns. The others hold finite values or -inf, which the caller must mask.

    Unknown columns get the lowest finite number, because -inf in every column of a row makes the gradient NaN.
    """
    scores_BK = in_full_precision(scores_BK)
    limits = torch.finfo(scores_BK.dtype)
    # Clamped too, because a difference of infinite scores is NaN.
    return scores_BK.masked_fill(~known_BK, limits.min).clamp(limits.min, limits.max).log_softmax(dim=1)


def mean_of_known(values_BN: Tensor, known_BN: Tensor) -> Tensor:
    """Mean of each row over its known columns; 0 for a row without any."""
    # At least 1: a row without known columns is 0 / 1 and not NaN.
    return values_BN.masked_fill(~known_BN, 0).sum(dim=1) / known_BN.sum(dim=1).clamp(min=1)


def kl_of_rows(
    student_QG: Tensor, teacher_QG: Tensor, known_QG: Tensor, temperature: float, student_temperature: float
) -> Tensor:
    """KL(p_i || q_i) of each row i over its known columns; a vector of length Q.

    p = softmax(t / temperature), q = softmax(s / student_temperature), for the scores t of the teacher and s of the
    student. A row with fewer than two known columns has no order to teach; its KL is 0.
    """
    known_QG = known_QG & (known_QG.sum(dim=1) >= 2)[:, None]
    log_p_QG = log_softmax(in_full_precision(teacher_QG.detach()) / temperature, known_QG)
    log_q_QG = log_softmax(in_full_precision(student_QG) / student_temperature, known_QG)
    p_QG = log_p_QG.exp()
    # Where p underflows to 0 its logarithm may be -inf, and 0 * inf is NaN.
    matters_QG = known_QG & (p_QG > 0)
    return (p_QG * (log_p_QG - log_q_QG).masked_fill(~matters_QG, 0)).sum(dim=1)


def binary_cross_entropy(student_BK: Tensor) -> Tensor:
    """Binary cross-entropy of each pair, B x K; the label is 1 in column 0 and 0 elsewhere."""
    label_BK = torch.zeros_like(student_BK)
    label_BK[:, 0] = 1
    return functional.binary_cross_entropy_with_logits(student_BK, label_BK, reduction="none")
