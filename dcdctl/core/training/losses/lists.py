"""Losses on lists of candidates, column 0 the positive; shape letters in `losses`.

`dcd` is the loss of Rao et al., "Dynamic Contrastive Distillation for Image-Text Retrieval", IEEE TMM 2023, arXiv
2207.01426, with the equations of the code released with it; `official` holds the losses of that code unchanged.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dcdctl.core.training.losses.masked import binary_cross_entropy, in_full_precision, kl_of_rows, mean_of_known
from dcdctl.core.training.losses.weights import confidence, dcd_weights


class Parts(NamedTuple):
    """A loss and its two terms: total = alpha * kd + (1 - alpha) * nll unless its function says otherwise."""

    total: Tensor
    kd: Tensor
    nll: Tensor


def dcd(student_BN: Tensor, teacher_BN: Tensor, *, alpha: float, temperature: float, group: int | None = None) -> Parts:
    """Dynamic contrastive distillation: the teacher's certainty weights each query.

    The columns of teacher and student belong to the same pairs.

        KD  = T^2 * sum_i r_i * mean_j (t_ij/T - s_ij/T)^2      r and w as in `dcd_weights`, within groups of
            `group` lists
        NLL = sum_i w_i * mean_j BCE(s_ij, 1 if j = 0 else 0)
        total = alpha * KD + (1 - alpha) * NLL

    Pairs without a teacher score (NaN) count in no mean, no weight and no ground truth. For finite scores neither the
    value nor the gradient is ever NaN.

    When to use it: for fusion students whose teacher is of the same kind.
    """
    teacher_BN, student_BN = in_full_precision(teacher_BN.detach()), in_full_precision(student_BN)
    known_BN = ~teacher_BN.isnan()
    # Masked before the arithmetic: a NaN that is masked afterwards still makes the gradient NaN.
    teacher_BN, student_BN = teacher_BN.masked_fill(~known_BN, 0), student_BN.masked_fill(~known_BN, 0)
    # Without the temperature, as in the released code.
    weights = dcd_weights(teacher_BN, known_BN, group=group)
    # The released code multiplies the mean over the whole batch, so weights and temperature cancel; here each query has
    # its own weight.
    error_B = mean_of_known((teacher_BN / temperature - student_BN / temperature).square(), known_BN)
    kd = temperature**2 * (weights.kd_B * error_B).sum()
    # The released code classifies each pair by itself; there is no softmax over the candidates.
    nll = (weights.nll_B * mean_of_known(binary_cross_entropy(student_BN), known_BN)).sum()
    # A term with share 0 is left out, because 0 * inf is NaN if the term overflows.
    terms = [share * term for share, term in ((alpha, kd), (1 - alpha, nll)) if share != 0]
    return Parts(torch.stack(terms).sum(), kd, nll)


def mse(student_BN: Tensor, teacher_BN: Tensor, *, temperature: float) -> Tensor:
    """Squared distance of the logits, a mean over queries: mean_i mean_j (s_ij - t_ij/T)^2. (Ba and Caruana 2014, arXiv
    1312.6184.)

    Pairs without a teacher score (NaN) have no influence. A query without known pairs is left out of the mean.

    When to use it: as the plain baseline of `dcd`, beside `ground-truth` or `ranking`.

    >>> # (4 + 1) / 2 and 1
    >>> mse(torch.tensor([[1.0, 0.0], [5.0, 5.0]]), torch.tensor([[6.0, 2.0], [8.0, torch.nan]]), temperature=2.0)
    tensor(1.7500)
    """
    teacher_BN, student_BN = in_full_precision(teacher_BN.detach()), in_full_precision(student_BN)
    known_BN = ~teacher_BN.isnan()
    error_B = mean_of_known(
        (student_BN.masked_fill(~known_BN, 0) - teacher_BN.masked_fill(~known_BN, 0) / temperature).square(), known_BN
    )
    return error_B.sum() / known_BN.any(dim=1).sum().clamp(min=1)


def wsl(student_BN: Tensor, teacher_BN: Tensor, *, temperature: float) -> Tensor:
    """Weighted soft labels: each query counts by how much the student still has to learn about it; a mean over queries.

        loss = T^2 * mean_i f_i * KL(softmax(t_i/T) || softmax(s_i/T)),   f as in `confidence`

    over the columns whose teacher score is not NaN; a query with fewer than two is left out.
    From Zhou et al. 2021, arXiv 2102.00650. Their cross-entropy with soft labels has the same gradient; they add 2.5
    times this term to the cross-entropy with the positive, which is `ground_truth`.

    When to use it: beside `ranking` or `infonce-hard`, with a teacher of wide logits such as a VLM.
    """
    known_BN = ~teacher_BN.isnan()
    kl_B = kl_of_rows(student_BN, teacher_BN, known_BN, temperature, temperature)
    num_rows = (known_BN.sum(dim=1) >= 2).sum().clamp(min=1)
    return temperature**2 * (confidence(student_BN, teacher_BN, known_BN) * kl_B).sum() / num_rows


def ground_truth(student_BK: Tensor, kind: Literal["bce", "softmax"]) -> Tensor:
    """Loss of the labels alone, a mean over queries: "bce" classifies each pair, "softmax" picks the positive among the
    candidates.

    When to use it: "softmax" (`ranking`) to fine-tune a teacher, "bce" (`ground-truth`) for logits that stand for a
    probability.

    >>> ground_truth(torch.zeros(3, 4), "bce"), ground_truth(torch.zeros(3, 4), "softmax")  # log 2, log 4
    (tensor(0.6931), tensor(1.3863))
    """
    student_BK = in_full_precision(student_BK)
    if kind == "bce":
        return binary_cross_entropy(student_BK).mean()
    return -student_BK.log_softmax(dim=1)[:, 0].mean()


def infonce_hard(all_IT: Tensor, true_IT: Tensor, image_ix_BN: Tensor, text_ix_BN: Tensor) -> Tensor:
    """Softmax cross-entropy of each list's query over all captions, or all images, of the batch; a mean over queries.

    `all_IT` holds the logits of all images of the batch with all its captions, `true_IT` is True where they match, and
    the indices give the pairs of the lists. A list's query is what its pairs share: an image is compared with all
    captions of the batch (its own candidates with the hard negatives, and those of the other lists), a caption with all
    images. Other matches of the query are left out. Hard negatives beside in-batch negatives come from DPR (Karpukhin
    et al. 2020, arXiv 2004.04906).

    When to use it: for dual students with mined negatives, or with a cache of few candidates per query.

    >>> all_IT, true_IT = torch.zeros(2, 3), torch.tensor([[True, False, False], [False, True, True]])
    >>> infonce_hard(all_IT, true_IT, torch.tensor([[1, 1]]), torch.tensor([[1, 0]]))  # caption 2 matches too: log 2
    tensor(0.6931)
    """
    all_IT = in_full_precision(all_IT)
    is_image_B = (image_ix_BN == image_ix_BN[:, :1]).all(dim=1)
    image_B, text_B = image_ix_BN[:, 0], text_ix_BN[:, 0]
    image_sum = _sum_over_batch(all_IT, true_IT, image_B[is_image_B], text_B[is_image_B])
    text_sum = _sum_over_batch(all_IT.T, true_IT.T, text_B[~is_image_B], image_B[~is_image_B])
    return (image_sum + text_sum) / len(image_B)


def _sum_over_batch(all_QG: Tensor, true_QG: Tensor, query_B: Tensor, positive_B: Tensor) -> Tensor:
    """The sum of the queries' cross-entropies, without their other matches."""
    other_match_BG = true_QG[query_B].scatter(1, positive_B[:, None], False)
    return functional.cross_entropy(
        all_QG[query_B].masked_fill(other_match_BG, -torch.inf), positive_B, reduction="sum"
    )
