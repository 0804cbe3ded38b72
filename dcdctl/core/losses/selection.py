"""Which negatives of a list a student sees; shape letters in `losses`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def select_hardest(teacher_BK: Tensor, num_hard: int) -> Tensor:
    """Columns to keep, B x (num_hard + 1): 0, then the negatives the teacher scores highest, best first.

    Of equal scores the lower column comes first; a score that is missing (NaN) comes last.

    >>> select_hardest(torch.tensor([[0.0, 3.0, 1.0, 2.0]]), num_hard=2)
    tensor([[0, 1, 3]])
    """
    _check_num_hard(teacher_BK, num_hard)
    negatives_BK = teacher_BK[:, 1:].nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    hardest_BN = negatives_BK.argsort(dim=1, descending=True, stable=True)[:, :num_hard] + 1
    return functional.pad(hardest_BN, (1, 0), value=0)


def select_as_released(teacher_BK: Tensor, num_hard: int) -> tuple[Tensor, Tensor]:
    """Columns the student is scored on, and the teacher's scores handed to the loss, as the released code has them.

    The columns are those of `select_hardest`. The scores are the num_hard + 1 highest of the row in descending order, positive or not:
    they belong to the columns beside them only where the positive is the teacher's best.

    >>> columns, scores = select_as_released(torch.tensor([[0.0, 3.0, 1.0, 2.0]]), num_hard=2)
    >>> columns.tolist(), scores.tolist()
    ([[0, 1, 3]], [[3.0, 2.0, 1.0]])
    """
    return select_hardest(teacher_BK, num_hard), teacher_BK.topk(num_hard + 1, dim=1).values


def _check_num_hard(teacher_BK: Tensor, num_hard: int) -> None:
    num_negatives = teacher_BK.shape[1] - 1
    if not 1 <= num_hard <= num_negatives:
        raise ValueError(f"num_hard must lie in [1, {num_negatives}], the number of negatives, got {num_hard}")
