"""Losses on the vectors of the images, or of the captions, of a batch: the student's against those of a dual teacher.

Shape letters: N images or captions, D width of the student's vectors, E width of the teacher's. Row i of both is the
vector of the same item. `projected_NE` are the student's vectors after the learned projection of `DualEncoder.project`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dcdctl.core.training.losses.masked import in_full_precision, kl_of_rows


def embedding_cosine(projected_NE: Tensor, teacher_NE: Tensor) -> Tensor:
    """One minus the cosine of the projected vector and the teacher's, a mean over items: mean_i (1 - cos(W v_i, t_i)).

    Embedding distillation with a projection where the widths differ, as in Yang et al., "CLIP-KD", CVPR 2024, arXiv
    2307.12732, which compares by the squared error (`embedding_l2`). Lengths have no influence.

    >>> # (1 - 3/5 + 1 - 1) / 2
    >>> embedding_cosine(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor(0.2000)
    """
    cosine_N = functional.cosine_similarity(
        in_full_precision(projected_NE), in_full_precision(teacher_NE.detach()), dim=1
    )
    return (1 - cosine_N).mean()


def embedding_l2(projected_NE: Tensor, teacher_NE: Tensor) -> Tensor:
    """Squared distance of the projected vector and the teacher's, a mean over items: mean_i |W v_i - t_i|^2.

    The feature distillation of Yang et al., "CLIP-KD", CVPR 2024, arXiv 2307.12732. For vectors of length 1 it is twice
    `embedding_cosine`; the projection may change lengths.

    >>> # (4 + 16 + 0 + 1) / 2
    >>> embedding_l2(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor(10.5000)
    """
    return (in_full_precision(projected_NE) - in_full_precision(teacher_NE.detach())).square().sum(dim=1).mean()


def embedding_affinity(student_ND: Tensor, teacher_NE: Tensor, *, temperature: float) -> Tensor:
    """KL between softmaxes of the cosines of an item with the other items of the batch, a mean over items.

        loss = mean_i KL(softmax_k(t_i . t_k / A) || softmax_k(v_i . v_k / A)),   k != i;   t, v unit vectors

    It compares images with images and captions with captions, as in Fang et al., "SEED", ICLR 2021, arXiv 2101.04731,
    whose other items come from a queue. No projection is needed, because both sides are similarities within one model.
    The image-text affinities of TinyCLIP (Wu et al. 2023, arXiv 2309.12314) are the scores, which `kl` compares. Fewer
    than three items have no order: the loss is then 0.

    >>> student, teacher = torch.eye(3), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> # items 0 and 1: log 2 - H(e / (1 + e)) = 0.1109; item 2: 0
    >>> embedding_affinity(student, teacher, temperature=1.0)
    tensor(0.0740)
    """
    # Autocast would round the cosines to half precision, and a small temperature multiplies the error.
    with torch.autocast(student_ND.device.type, enabled=False):
        student_NN, teacher_NN = (_cosines(vectors) for vectors in (student_ND, teacher_NE.detach()))
    is_other_NN = ~torch.eye(len(student_NN), dtype=torch.bool, device=student_NN.device)
    return kl_of_rows(student_NN, teacher_NN, is_other_NN, temperature, temperature).mean()


def _cosines(vectors_ND: Tensor) -> Tensor:
    unit_ND = functional.normalize(in_full_precision(vectors_ND), dim=1)
    return unit_ND @ unit_ND.T
