"""Losses on all pairs of a batch that compare pairs with pairs: which negative is the harder one, which images are alike; shape letters in
`losses`. A pair that is not in `scored_QG` has no influence on either."""

from __future__ import annotations

import torch
from torch import Tensor

from dcdctl.core.training.losses.masked import full, kl_of_rows, log_softmax, weighted
from dcdctl.core.training.losses.weights import Weights

LEAST_VARIANCE = 1e-6
"""Of a row over what it shares with another, beside the square of its largest distance from its mean: below it a correlation is noise."""


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
    """Contrastive partial ranking: the order of the hard negatives, each of them the positive among all that the teacher puts below it.

        P_i = the scored negatives j of i with t_ij / T >= t_ii / T - margin          those the teacher finds plausible
        l_ij = -log( exp s_ij / (exp s_ij + sum over scored negatives k of i with t_ik < t_ij of exp s_ik) )      for j in P_i
        loss = mean of l_ij over rows i and j in P_i that have any k below them; the same over columns, and the mean of both

    From Chen et al., "How to Make Cross Encoder a Good Teacher for Efficient Image-Text Retrieval?", CVPR 2024, arXiv 2407.07479: only the
    order among valid hard negatives is taught, by a contrastive loss of each valid one against all that rank below it; those that are not
    valid stand in the denominators alone, where they are pushed down. Ours: what is valid (within `margin` of the positive's own logit,
    so that a query without hard negatives teaches nothing), a mean for a sum, hard negatives from the batch in place of the student's
    top K, that of equal teacher scores neither is below the other, both directions. The positive takes no part: it is for `infonce`, to
    which this is added.

    Pairs in `same_mask` (True where a pair off the diagonal matches too) are nobody's negatives; a row whose positive is not scored is left
    out. It takes memory for (plausible pairs) x G numbers. With an infinite margin each row's loss is that of ListMLE (Xia et al. 2008).
    """
    if student_QG.shape[0] != student_QG.shape[1]:
        raise ValueError(f"logits must be square, positives on the diagonal, got {tuple(student_QG.shape)}")
    negative_QG = scored_QG & ~torch.eye(*scored_QG.shape, dtype=torch.bool, device=scored_QG.device)
    if same_mask is not None:
        negative_QG = negative_QG & ~same_mask
    # Nothing comes near to a positive that is not scored, not even within an infinite margin.
    positive_Q = teacher_QG.detach().diagonal().masked_fill(~scored_QG.diagonal(), torch.inf)
    by_row, by_column = (None, None) if weights is None else weights
    rows = _partial_ranking(student_QG, teacher_QG, negative_QG, positive_Q, margin * temperature, by_row)
    return (rows + _partial_ranking(student_QG.T, teacher_QG.T, negative_QG.T, positive_Q, margin * temperature, by_column)) / 2


def _partial_ranking(
    student_QG: Tensor, teacher_QG: Tensor, negative_QG: Tensor, positive_Q: Tensor, margin: float, weight_Q: Tensor | None
) -> Tensor:
    """One direction of `cprd`; `margin` is in the teacher's logits. P are the plausible pairs with anything below them."""
    teacher_QG = full(teacher_QG.detach())
    is_plausible_QG = negative_QG & (teacher_QG >= (full(positive_Q) - margin)[:, None])
    row_P, column_P = is_plausible_QG.nonzero(as_tuple=True)
    below_PG = negative_QG[row_P] & (teacher_QG[row_P] < teacher_QG[row_P, column_P][:, None])
    has_any_P = below_PG.any(dim=1)
    row_P, column_P, below_PG = row_P[has_any_P], column_P[has_any_P], below_PG[has_any_P]
    candidate_PG = below_PG.scatter(1, column_P[:, None], True)
    nll_P = -log_softmax(full(student_QG)[row_P], candidate_PG).gather(1, column_P[:, None]).squeeze(1)
    return weighted(nll_P, None if weight_Q is None else weight_Q[row_P]).sum() / max(len(row_P), 1)


def affinity(student_QG: Tensor, teacher_QG: Tensor, scored_QG: Tensor, *, temperature: float, weights: Weights | None = None) -> Tensor:
    """Which images are alike, and which captions, as the teacher's scores tell: KL between softmaxed correlations, mean of both sides.

        R_ik = correlation of rows i and k of the scores over the captions that are scored for both images     (k is not i)
        loss = mean over i of KL(softmax_k(R^teacher_ik / T) || softmax_k(R^student_ik / T));  the same for columns, and the mean of both

    Affinity mimicking (Wu et al., "TinyCLIP", ICCV 2023, arXiv 2309.12314) compares softmaxed image-text affinities of two dual encoders,
    both ways. From a cross-encoder those are its scores, and the loss is `kl`. A cross-encoder has no image-image affinities; ours are in
    its scores: two images are alike if the same captions fit them. The student's are taken from its scores in the same way, so a
    factor or an offset of a row is nothing to it. A pair of rows that shares fewer than three scored columns, or of which one does not vary
    over them, is left out, and a row with fewer than two others.
    """
    by_row, by_column = (None, None) if weights is None else weights
    rows = _alikeness(student_QG, teacher_QG, scored_QG, temperature, by_row)
    return (rows + _alikeness(student_QG.T, teacher_QG.T, scored_QG.T, temperature, by_column)) / 2


def _alikeness(student_QG: Tensor, teacher_QG: Tensor, scored_QG: Tensor, temperature: float, weight_Q: Tensor | None) -> Tensor:
    """One side of `affinity`."""
    teacher_QQ, is_defined_QQ = _correlations(teacher_QG.detach(), scored_QG)
    student_QQ, varies_QQ = _correlations(student_QG, scored_QG)
    is_defined_QQ = is_defined_QQ & varies_QQ
    kl_Q = kl_of_rows(student_QQ, teacher_QQ, is_defined_QQ, temperature, temperature)
    return weighted(kl_Q, weight_Q).sum() / (is_defined_QQ.sum(dim=1) >= 2).sum().clamp(min=1)


def _correlations(scores_QG: Tensor, known_QG: Tensor) -> tuple[Tensor, Tensor]:
    """Pearson's correlations of all rows over the columns known in both, Q x Q, and where they mean something."""
    # Matrix products would be half precision under autocast, and variances are small differences.
    with torch.autocast(scores_QG.device.type, enabled=False):
        return _full_correlations(scores_QG, known_QG)


def _full_correlations(scores_QG: Tensor, known_QG: Tensor) -> tuple[Tensor, Tensor]:
    known = known_QG.to(full(scores_QG).dtype)
    scores_QG = full(scores_QG).masked_fill(~known_QG, 0)
    mean_Q1 = (scores_QG / known.sum(dim=1, keepdim=True).clamp(min=1)).sum(dim=1, keepdim=True)
    centred_QG = (scores_QG - mean_Q1) * known
    # A factor of a row changes no correlation, so none of the gradient is lost.
    largest_Q1 = centred_QG.detach().abs().amax(dim=1, keepdim=True)
    centred_QG = centred_QG / largest_Q1.clamp(min=torch.finfo(known.dtype).tiny)
    shared_QQ = known @ known.T
    sum_QQ, num_QQ = centred_QG @ known.T, shared_QQ.clamp(min=1)  # entry i, k: row i over what it shares with row k
    variance_QQ = centred_QG.square() @ known.T - sum_QQ.square() / num_QQ
    covariance_QQ = centred_QG @ centred_QG.T - sum_QQ * sum_QQ.T / num_QQ
    varies_QQ = (variance_QQ > LEAST_VARIANCE) & (variance_QQ.T > LEAST_VARIANCE)
    correlation_QQ = covariance_QQ / (variance_QQ * variance_QQ.T).clamp(min=LEAST_VARIANCE**2).sqrt()
    is_other_QQ = ~torch.eye(len(known), dtype=torch.bool, device=known.device)
    return correlation_QQ, varies_QQ & (shared_QQ >= 3) & is_other_QQ
