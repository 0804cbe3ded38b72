"""The losses on the vectors of the images, or of the captions, of a batch: the student's against a dual teacher's, or
a query encoder's tokens against those of a late-interaction teacher.

Shape letters: N images or captions, L tokens of a caption, E width of the teacher's vectors. Row i of both is the
vector of the same item. With tokens, N x L x E, the loss of an item is the mean over its tokens; zeros of the teacher
are padding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dcdctl.core.training.losses.masked import in_full_precision, mean_of_known


def embedding_cosine(projected_NE: Tensor, teacher_NE: Tensor) -> Tensor:
    """One minus the cosine of the projected vector and the teacher's, a mean over items: mean_i (1 - cos(W v_i, t_i)).

    `projected_NE` are the student's vectors v after the learned projection W of `DualEncoder.project`. Embedding
    distillation with a projection where the widths differ, as in Yang et al., "CLIP-KD", CVPR 2024, arXiv 2307.12732,
    which compares by the squared error; here lengths have no influence.

    When to use it: beside `infonce` and `kl`, for a dual student that is much smaller than its dual teacher; alone for
    a query encoder.

    >>> # (1 - 3/5 + 1 - 1) / 2
    >>> embedding_cosine(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor(0.2000)
    """
    cosine_N = torch.nn.functional.cosine_similarity(
        in_full_precision(projected_NE), in_full_precision(teacher_NE.detach()), dim=-1
    )
    return _mean_over_items(1 - cosine_N, teacher_NE)


def embedding_mse(projected_NE: Tensor, teacher_NE: Tensor) -> Tensor:
    """The squared distance of the projected vector and the teacher's, a mean over items: mean_i |W v_i - t_i|^2.

    As in CLIP-KD (above). Lengths count, so W learns to give unit vectors; of a query encoder, whose vectors have
    length 1 and no W, it is twice `embedding_cosine`.

    When to use it: in place of `embedding_cosine`, to compare with published work.

    >>> # (2^2 + 4^2 + 0) / 2
    >>> embedding_mse(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor(10.)
    """
    distance_NE = in_full_precision(projected_NE) - in_full_precision(teacher_NE.detach())
    return _mean_over_items(distance_NE.square().sum(dim=-1), teacher_NE)


def _mean_over_items(loss_N: Tensor, teacher_NE: Tensor) -> Tensor:
    if loss_N.ndim == 2:
        loss_N = mean_of_known(loss_N, (teacher_NE != 0).any(dim=-1))
    return loss_N.mean()
