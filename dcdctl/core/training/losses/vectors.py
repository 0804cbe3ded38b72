"""The loss on the vectors of the images, or of the captions, of a batch: the student's against a dual teacher's.

Shape letters: N images or captions, E width of the teacher's vectors. Row i of both is the vector of the same item.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dcdctl.core.training.losses.masked import in_full_precision


def embedding_cosine(projected_NE: Tensor, teacher_NE: Tensor) -> Tensor:
    """One minus the cosine of the projected vector and the teacher's, a mean over items: mean_i (1 - cos(W v_i, t_i)).

    `projected_NE` are the student's vectors v after the learned projection W of `DualEncoder.project`. Embedding
    distillation with a projection where the widths differ, as in Yang et al., "CLIP-KD", CVPR 2024, arXiv 2307.12732,
    which compares by the squared error; here lengths have no influence.

    When to use it: beside `infonce` and `kl`, for a dual student that is much smaller than its dual teacher.

    >>> # (1 - 3/5 + 1 - 1) / 2
    >>> embedding_cosine(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor(0.2000)
    """
    cosine_N = torch.nn.functional.cosine_similarity(
        in_full_precision(projected_NE), in_full_precision(teacher_NE.detach()), dim=1
    )
    return (1 - cosine_N).mean()
