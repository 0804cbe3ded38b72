"""A teacher whose scores are a matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dcdctl.core.teacher import TeacherScores


@dataclass
class ScoreTable(TeacherScores):
    """The scores of a matrix of images and texts; NaN where there is none."""

    matrix: Any
    plan: Any = None
    has_drawn_pairs: bool = True

    @property
    def scored_pairs(self) -> Any:
        if not np.isnan(self.matrix).any():
            return None
        image_P, text_P = np.nonzero(~np.isnan(self.matrix))
        return image_P, text_P.astype(np.int32)

    def lookup(self, image_ix: Any, text_ix: Any) -> Any:
        return self.matrix[image_ix, text_ix]
