"""Losses on all pairs of a batch that compare pairs with pairs: the order of hard negatives, the similarity of images
and of captions.

A pair outside `scored_QG` has no influence on either. Shape letters in `losses`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dcdctl.core.training.losses.masked import in_full_precision, kl_of_rows, weighted
from dcdctl.core.training.losses.weights import Weights

MIN_VARIANCE = 1e-6
"""Variance of a row over the columns that it shares with another row, relative to the square of its largest deviation
from its mean. Below this, float32 leaves a correlation that is mostly rounding error."""
MIN_SHARED = 3
"""Columns that two rows must share: over two columns every correlation is 1 or -1."""


def cprd(
    student_QG: Tensor,
    teacher_QG: Tensor,
    scored_QG: Tensor,
    *,
    margin: float,
    temperature: float = 1.0,
    same_mask: Tensor | None = None,
    weights: Weights | None = None,
) -> Tensor:
    """Contrastive partial ranking: each hard negative is the positive among all negatives that the teacher ranks below
    it.

        P_i = the scored negatives j of i with t_ij / T >= t_ii / T - margin          those the teacher finds plausible
        l_ij = -log( exp s_ij / (exp s_ij + sum over scored negatives k of i with t_ik < t_ij of exp s_ik) )
            for j in P_i
        loss = mean of l_ij over rows i and j in P_i that have any k below them; the same over columns, and the mean
            of both

    From Chen et al., "How to Make Cross Encoder a Good Teacher for Efficient Image-Text Retrieval?", CVPR 2024, arXiv
    2407.07479. It teaches only the order among valid hard negatives, by a contrastive loss of each valid one against
    all that rank below it. Invalid ones appear only in the denominators, which push them down. Decisions of dcdctl:
    valid is what lies within `margin` of the positive's own logit, so a query without hard negatives teaches nothing; a
    mean in place of a sum; hard negatives from the batch in place of the student's top K; of equal teacher scores
    neither is below the other; both directions. The positive is not included: `infonce`, to which this loss is added,
    covers it.

    Pairs in `same_mask` (True where a pair off the diagonal matches too) are never negatives; a row whose positive has
    no score is left out. With an infinite margin each row's loss is ListMLE (Xia et al. 2008).
    """
    if student_QG.shape[0] != student_QG.shape[1]:
        raise ValueError(f"logits must be square, positives on the diagonal, got {tuple(student_QG.shape)}")
    negative_QG = scored_QG & ~torch.eye(*scored_QG.shape, dtype=torch.bool, device=scored_QG.device)
    if same_mask is not None:
        negative_QG = negative_QG & ~same_mask
    # A positive without a score is infinitely far above every negative, so that its row has no plausible one.
    positive_Q = teacher_QG.detach().diagonal().masked_fill(~scored_QG.diagonal(), torch.inf)
    by_row, by_column = (None, None) if weights is None else weights
    rows = _partial_ranking(student_QG, teacher_QG, negative_QG, positive_Q, margin * temperature, by_row)
    return (
        rows + _partial_ranking(student_QG.T, teacher_QG.T, negative_QG.T, positive_Q, margin * temperature, by_column)
    ) / 2


def _partial_ranking(
    student_QG: Tensor,
    teacher_QG: Tensor,
    negative_QG: Tensor,
    positive_Q: Tensor,
    margin: float,
    weight_Q: Tensor | None,
) -> Tensor:
    """One direction of `cprd`; `margin` is in units of the teacher's logits."""
    teacher_QG = in_full_precision(teacher_QG.detach())
    is_plausible_QG = negative_QG & (teacher_QG >= (in_full_precision(positive_Q) - margin)[:, None])
    # By the teacher's scores, ascending, and the pairs that are no negatives last: those below a pair are the first of
    # its row.
    ranked_teacher_QG, order_QG = teacher_QG.masked_fill(~negative_QG, torch.inf).sort(dim=1)
    ranked_QG = in_full_precision(student_QG).gather(1, order_QG)
    ranked_QG = ranked_QG.masked_fill(~negative_QG.gather(1, order_QG), torch.finfo(ranked_QG.dtype).min)
    # Of equal scores neither is below the other.
    num_below_QG = torch.searchsorted(ranked_teacher_QG, ranked_teacher_QG)
    below_QG = ranked_QG.logcumsumexp(dim=1).gather(1, (num_below_QG - 1).clamp(min=0))
    counts_QG = is_plausible_QG.gather(1, order_QG) & (num_below_QG > 0)
    nll_QG = (torch.logaddexp(below_QG, ranked_QG) - ranked_QG).masked_fill(~counts_QG, 0)
    # The number of pairs stays on the device: reading it would wait for a GPU.
    return weighted(nll_QG.sum(dim=1), weight_Q).sum() / counts_QG.sum().clamp(min=1)


def affinity(
    student_QG: Tensor, teacher_QG: Tensor, scored_QG: Tensor, *, temperature: float, weights: Weights | None = None
) -> Tensor:
    """Similarity of images, and of captions, by their scores: KL between softmaxed correlations of rows, and of
    columns; their mean.

        R_ik = correlation of rows i and k of the scores over the captions that are scored for both images     (k != i)
        loss = mean over i of KL(softmax_k(R^teacher_ik / T) || softmax_k(R^student_ik / T));  the same for columns,
            and the mean of both

    Affinity mimicking (Wu et al., "TinyCLIP", ICCV 2023, arXiv 2309.12314) compares softmaxed image-text affinities of
    two dual encoders in both directions. A cross-encoder's affinities are its scores, and the loss is then `kl`. It has
    no image-image affinities, but its scores contain them: two images are similar if the same captions fit them. The
    student's similarities come from its own scores in the same way, so a factor or an offset of a row changes nothing.
    Two rows are not compared if they share fewer than three scored columns or if one of them is constant over these; a
    row that is compared with fewer than two others is left out.
    """
    by_row, by_column = (None, None) if weights is None else weights
    rows = _similarity(student_QG, teacher_QG, scored_QG, temperature, by_row)
    return (rows + _similarity(student_QG.T, teacher_QG.T, scored_QG.T, temperature, by_column)) / 2


def _similarity(
    student_QG: Tensor, teacher_QG: Tensor, scored_QG: Tensor, temperature: float, weight_Q: Tensor | None
) -> Tensor:
    """One side of `affinity`."""
    teacher_QQ, is_defined_QQ = _correlations(teacher_QG.detach(), scored_QG)
    student_QQ, varies_QQ = _correlations(student_QG, scored_QG)
    is_defined_QQ = is_defined_QQ & varies_QQ
    kl_Q = kl_of_rows(student_QQ, teacher_QQ, is_defined_QQ, temperature, temperature)
    return weighted(kl_Q, weight_Q).sum() / (is_defined_QQ.sum(dim=1) >= 2).sum().clamp(min=1)


def _correlations(scores_QG: Tensor, known_QG: Tensor) -> tuple[Tensor, Tensor]:
    """Pearson correlations of all rows over the columns known in both, Q x Q, and the mask of the defined ones."""
    # Autocast would compute the matrix products in half precision, and variances are small differences of them.
    with torch.autocast(scores_QG.device.type, enabled=False):
        return _full_correlations(scores_QG, known_QG)


def _full_correlations(scores_QG: Tensor, known_QG: Tensor) -> tuple[Tensor, Tensor]:
    known = known_QG.to(in_full_precision(scores_QG).dtype)
    scores_QG = in_full_precision(scores_QG).masked_fill(~known_QG, 0)
    mean_Q1 = (scores_QG / known.sum(dim=1, keepdim=True).clamp(min=1)).sum(dim=1, keepdim=True)
    centered_QG = (scores_QG - mean_Q1) * known
    # Scaling a row changes no correlation, so treating the scale as a constant loses no gradient.
    largest_Q1 = centered_QG.detach().abs().amax(dim=1, keepdim=True)
    centered_QG = centered_QG / largest_Q1.clamp(min=torch.finfo(known.dtype).tiny)
    shared_QQ = known @ known.T
    sum_QQ, num_QQ = centered_QG @ known.T, shared_QQ.clamp(min=1)  # entry i, k: row i over what it shares with row k
    variance_QQ = centered_QG.square() @ known.T - sum_QQ.square() / num_QQ
    covariance_QQ = centered_QG @ centered_QG.T - sum_QQ * sum_QQ.T / num_QQ
    varies_QQ = (variance_QQ > MIN_VARIANCE) & (variance_QQ.T > MIN_VARIANCE)
    # The root of 0 has an infinite gradient, which the mask below would turn into NaN.
    correlation_QQ = covariance_QQ / (variance_QQ * variance_QQ.T).clamp(min=MIN_VARIANCE**2).sqrt()
    is_other_QQ = ~torch.eye(len(known), dtype=torch.bool, device=known.device)
    return correlation_QQ, varies_QQ & (shared_QQ >= MIN_SHARED) & is_other_QQ
