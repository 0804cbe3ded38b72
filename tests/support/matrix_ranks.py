"""Rankings from a whole score matrix, by the counter that takes it in blocks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dcdctl.core.evaluation.ranking import NUM_TOP, Rankings
from dcdctl.core.evaluation.ranks import RankCounter


def rank_matrix(scores_IT: Tensor, caption_image: NDArray[np.int64], *, num_top: int = NUM_TOP) -> Rankings:
    scores = scores_IT.float().numpy()
    counter = RankCounter(scores[caption_image, np.arange(scores.shape[1])], caption_image, num_top=num_top)
    counter.add(scores)
    return counter.rankings()
