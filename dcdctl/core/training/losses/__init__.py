"""Losses of distillation and of ground truth: pure functions of tensors, and which negatives they see.

Shape letters: B queries; K candidates of a query, column 0 the positive; N the candidates kept, column 0 the positive;
Q x G all pairs of a batch, positives on the diagonal; I x T its images and captions, each once. Scores are raw logits; what a teacher
says is a constant, nothing flows into it. Half precision is computed in float32.

`selection` chooses negatives, `weights` weighs queries; `lists` and `released` hold the losses on lists, `all_pairs` and `relations` those
on all pairs. docs/losses.md has them in one table.
"""

from dcdctl.core.training.losses.all_pairs import dcd_kl, infonce, kl, margin_mse, mse_pairs, wsl_pairs
from dcdctl.core.training.losses.lists import Parts, dcd, dcd_parts, ground_truth, infonce_hard, mse, wsl
from dcdctl.core.training.losses.official import dcd_released, dcd_released_parts, wsl_released, wsl_released_parts
from dcdctl.core.training.losses.relations import affinity, cprd
from dcdctl.core.training.losses.weights import (
    Weights,
    confidence,
    confidence_pairs,
    decisiveness,
    entropy,
    entropy_share,
    select_as_released,
    select_hardest,
    sureness,
)

__all__ = [
    "Parts",
    "Weights",
    "affinity",
    "confidence",
    "confidence_pairs",
    "cprd",
    "dcd",
    "dcd_kl",
    "dcd_parts",
    "dcd_released",
    "dcd_released_parts",
    "decisiveness",
    "entropy",
    "entropy_share",
    "ground_truth",
    "infonce",
    "infonce_hard",
    "kl",
    "margin_mse",
    "mse",
    "mse_pairs",
    "select_as_released",
    "select_hardest",
    "sureness",
    "wsl",
    "wsl_pairs",
    "wsl_released",
    "wsl_released_parts",
]
