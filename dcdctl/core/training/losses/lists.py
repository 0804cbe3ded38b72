"""Losses on lists of candidates, column 0 the positive; shape letters in `losses`.

`dcd` is that of Rao et al., "Dynamic Contrastive Distillation for Image-Text Retrieval", IEEE TMM 2023, arXiv 2207.01426, in the
equations of the code released with it; `released` holds that code's losses as they are.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dcdctl.core.training.losses.masked import binary_cross_entropy, full, kl_of_rows, known_columns, mean_of_known, weighted
from dcdctl.core.training.losses.weights import confidence, entropy_share, sureness


class Parts(NamedTuple):
    """A loss and the two terms it is mixed from: total = alpha * kd + (1 - alpha) * nll, or as its function says."""

    total: Tensor
    kd: Tensor
    nll: Tensor


def dcd(
    student_BN: Tensor,
    teacher_BN: Tensor,
    *,
    alpha: float,
    temperature: float,
    known_BN: Tensor | None = None,
    weight_B: Tensor | None = None,
) -> Tensor:
    """Dynamic contrastive distillation with each query weighted by how sure the teacher is of it; `dcd_parts` has the equations."""
    return dcd_parts(student_BN, teacher_BN, alpha=alpha, temperature=temperature, known_BN=known_BN, weight_B=weight_B).total


def dcd_parts(
    student_BN: Tensor,
    teacher_BN: Tensor,
    *,
    alpha: float,
    temperature: float,
    known_BN: Tensor | None = None,
    weight_B: Tensor | None = None,
) -> Parts:
    """The terms of `dcd`; teacher and student columns are of the same pairs.

        KD  = T^2 * sum_i r_i * mean_j (t_ij/T - s_ij/T)^2      r as in `sureness`, w as in `entropy_share`
        NLL = sum_i w_i * mean_j BCE(s_ij, 1 if j = 0 else 0)
        total = alpha * KD + (1 - alpha) * NLL

    A pair not in `known_BN` (default: those whose teacher score is NaN) is left out altogether: of the means, of the weights and of
    the ground truth. For finite scores neither the value nor the gradient is ever NaN. `weight_B` multiplies each query's part of KD.
    """
    teacher_BN, student_BN = full(teacher_BN.detach()), full(student_BN)
    known_BN = known_columns(teacher_BN, known_BN)
    teacher_BN, student_BN = teacher_BN.masked_fill(~known_BN, 0), student_BN.masked_fill(~known_BN, 0)
    counts_B = known_BN.any(dim=1)
    share_B = entropy_share(teacher_BN, known_BN)
    # The released code weights the mean over the whole batch, so that weights and temperature cancel; we weight each query by itself.
    error_B = mean_of_known((teacher_BN / temperature - student_BN / temperature).square(), known_BN)
    kd = temperature**2 * (sureness(share_B, counts_B) * weighted(error_B, weight_B)).sum()
    nll = (share_B * mean_of_known(binary_cross_entropy(student_BN), known_BN)).sum()
    return _mix(kd, nll, alpha)


def mse(
    student_BN: Tensor, teacher_BN: Tensor, *, temperature: float, known_BN: Tensor | None = None, weight_B: Tensor | None = None
) -> Tensor:
    """Squared distance of the logits, a mean over queries: mean_i mean_j (s_ij - t_ij/T)^2. (Ba and Caruana 2014, arXiv 1312.6184.)

    A pair not in `known_BN` (default: those whose teacher score is NaN) has no influence, a query without any is left out of the mean.

    >>> mse(torch.tensor([[1.0, 0.0], [5.0, 5.0]]), torch.tensor([[6.0, 2.0], [8.0, torch.nan]]), temperature=2.0)  # (4 + 1) / 2 and 1
    tensor(1.7500)
    """
    teacher_BN, student_BN = full(teacher_BN.detach()), full(student_BN)
    known_BN = known_columns(teacher_BN, known_BN)
    error_B = mean_of_known((student_BN.masked_fill(~known_BN, 0) - teacher_BN.masked_fill(~known_BN, 0) / temperature).square(), known_BN)
    return weighted(error_B, weight_B).sum() / known_BN.any(dim=1).sum().clamp(min=1)


def wsl(student_BN: Tensor, teacher_BN: Tensor, *, temperature: float, known_BN: Tensor | None = None) -> Tensor:
    """Soft labels, each query weighted by how much of it the student has still to learn; a mean over queries.

        loss = T^2 * mean_i f_i * KL(softmax(t_i/T) || softmax(s_i/T)),   f as in `confidence`

    over the known columns (default: those whose teacher score is not NaN); a query with fewer than two is left out. (Zhou et al. 2021,
    arXiv 2102.00650, whose cross-entropy with soft labels has the same gradient; they add 2.5 times this to the cross-entropy with the
    positive, which is `ground_truth`.)
    """
    known_BN = known_columns(teacher_BN, known_BN)
    kl_B = kl_of_rows(student_BN, teacher_BN, known_BN, temperature, temperature)
    num_rows = (known_BN.sum(dim=1) >= 2).sum().clamp(min=1)
    return temperature**2 * weighted(kl_B, confidence(student_BN, teacher_BN, known_BN)).sum() / num_rows


def ground_truth(student_BK: Tensor, kind: Literal["bce", "softmax"]) -> Tensor:
    """Loss from the positives alone, a mean over queries: "bce" asks of each pair whether it matches, "softmax" which candidate does.

    >>> ground_truth(torch.zeros(3, 4), "bce"), ground_truth(torch.zeros(3, 4), "softmax")  # log 2, log 4
    (tensor(0.6931), tensor(1.3863))
    """
    student_BK = full(student_BK)
    if kind == "bce":
        return binary_cross_entropy(student_BK).mean()
    if kind == "softmax":
        return -student_BK.log_softmax(dim=1)[:, 0].mean()
    raise ValueError(f'kind must be "bce" or "softmax", got {kind!r}')


def infonce_hard(all_IT: Tensor, true_IT: Tensor, image_ix_BN: Tensor, text_ix_BN: Tensor) -> Tensor:
    """Softmax cross-entropy of each list's query over everything in the batch it could be matched with, a mean over queries.

    `all_IT` are the logits of all images of the batch with all its captions, `true_IT` is True where they belong together, and the indices
    say which pairs the lists hold. A list's query is what its pairs share: an image goes over all captions of the batch (its own
    candidates, hard negatives among them, and those of the other lists), a caption over all images. Others that are true are left out.
    Hard negatives added to in-batch ones are those of DPR (Karpukhin et al. 2020, arXiv 2004.04906).

    >>> all_IT, true_IT = torch.zeros(2, 3), torch.tensor([[True, False, False], [False, True, True]])
    >>> infonce_hard(all_IT, true_IT, torch.tensor([[1, 1]]), torch.tensor([[1, 0]]))  # caption 2 is true too: log 2
    tensor(0.6931)
    """
    all_IT = full(all_IT)
    is_image_B = (image_ix_BN == image_ix_BN[:, :1]).all(dim=1)
    image_B, text_B = image_ix_BN[:, 0], text_ix_BN[:, 0]
    of_images = _over_the_batch(all_IT, true_IT, image_B[is_image_B], text_B[is_image_B])
    of_texts = _over_the_batch(all_IT.T, true_IT.T, text_B[~is_image_B], image_B[~is_image_B])
    return (of_images + of_texts) / len(image_B)


def _over_the_batch(all_QG: Tensor, true_QG: Tensor, query_B: Tensor, positive_B: Tensor) -> Tensor:
    """The sum of the queries' cross-entropies, the true ones but the positive left out."""
    left_out_BG = true_QG[query_B].scatter(1, positive_B[:, None], False)
    return functional.cross_entropy(all_QG[query_B].masked_fill(left_out_BG, -torch.inf), positive_B, reduction="sum")


def _mix(kd: Tensor, nll: Tensor, alpha: float) -> Parts:
    """The parts; a term of no share is left out, so that one which overflows cannot make 0 * inf."""
    terms = [share * term for share, term in ((alpha, kd), (1 - alpha, nll)) if share != 0]
    return Parts(torch.stack(terms).sum(), kd, nll)
