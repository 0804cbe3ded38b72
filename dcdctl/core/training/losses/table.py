"""Every loss that a recipe can name: those of scores (`LOSSES`), with the batches that they need, and those of vectors
(`VECTOR_LOSSES`).

To add one: a function in this package, an entry here, and a row in docs/losses.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from dcdctl.core.training.batches.batch import Batch
from dcdctl.core.training.losses import all_pairs, lists, official, relations, vectors
from dcdctl.core.training.losses.weights import Weights

if TYPE_CHECKING:
    from dcdctl.core.training.losses.config import LossConfig


@dataclass(frozen=True)
class TermInputs:
    """What a loss term is computed from."""

    student_RC: Tensor
    """The student's logits; on the teacher's scale for losses that are `calibrated`."""
    batch: Batch
    config: LossConfig
    weights: Weights | None = None
    """Weights of the queries, where the term's schedule is `confidence`; on lists `rows_Q` are those of the lists."""
    all_IT: Tensor | None = None
    """A dual model's logits of all images of the batch with all its captions."""

    @property
    def temperature(self) -> float:
        """`loss.temperature` as a number; a training puts one in the place of auto."""
        assert self.config.temperature != "auto"
        return self.config.temperature

    @property
    def teacher_RC(self) -> Tensor:
        """The teacher's logits, 0 where it has not scored a pair."""
        return self.batch.teacher_RC.nan_to_num()

    @property
    def scored_RC(self) -> Tensor:
        """True where the teacher has scored a pair."""
        return ~self.batch.teacher_RC.isnan()

    @property
    def weight_B(self) -> Tensor | None:
        """The weights of the lists."""
        return None if self.weights is None else self.weights.rows_Q


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss of the table."""

    term: Callable[[TermInputs], Tensor]
    on: Literal["lists", "all pairs"]
    teacher: bool = False
    """Whether it needs the teacher's scores."""
    calibrated: bool = False
    """Whether it compares logits with logits: then it sees a dual model's on the teacher's scale
    (`DualEncoder.calibration`)."""
    confidence: bool = False
    """Whether the schedule `confidence` can weigh it query by query; `wsl` and `wsl-pairs` do so by themselves."""
    options: frozenset[str] = frozenset()
    """Fields of `LossConfig` that only some losses have and that this one reads; a recipe may set them only for such a
    loss."""


def _infonce_hard(t: TermInputs) -> Tensor:
    if t.all_IT is None:  # a fusion model's logits of the other lists' candidates would need a forward pass per pair
        return lists.ground_truth(t.student_RC, "softmax")
    assert t.batch.true_IT is not None
    return lists.infonce_hard(t.all_IT, t.batch.true_IT, t.batch.image_ix_RC, t.batch.text_ix_RC)


def _in_groups(t: TermInputs, loss: Callable[..., Tensor]) -> Tensor:
    """A released loss, of groups of `weight_group` lists."""
    alpha, group = t.config.alpha, t.config.weight_group
    return official.in_groups(functools.partial(loss, alpha=alpha), t.student_RC, t.batch.official_teacher_RC, group)


LOSSES: dict[str, Loss] = {
    "dcd": Loss(
        term=lambda t: lists.dcd(
            t.student_RC,
            t.batch.teacher_RC,
            alpha=t.config.alpha,
            temperature=t.temperature,
            weight_B=t.weight_B,
            group=t.config.weight_group,
        ),
        on="lists",
        teacher=True,
        calibrated=True,
        confidence=True,
        options=frozenset({"weight_group"}),
    ),
    "dcd-released": Loss(
        term=lambda t: _in_groups(t, official.dcd_official),
        on="lists",
        teacher=True,
        options=frozenset({"weight_group"}),
    ),
    "mse": Loss(
        term=lambda t: lists.mse(t.student_RC, t.batch.teacher_RC, temperature=t.temperature, weight_B=t.weight_B),
        on="lists",
        teacher=True,
        calibrated=True,
        confidence=True,
    ),
    "wsl": Loss(
        term=lambda t: lists.wsl(t.student_RC, t.batch.teacher_RC, temperature=t.temperature),
        on="lists",
        teacher=True,
    ),
    "wsl-released": Loss(
        term=lambda t: _in_groups(t, official.wsl_official),
        on="lists",
        teacher=True,
        options=frozenset({"weight_group"}),
    ),
    "ground-truth": Loss(term=lambda t: lists.ground_truth(t.student_RC, "bce"), on="lists"),
    "ranking": Loss(term=lambda t: lists.ground_truth(t.student_RC, "softmax"), on="lists"),
    "infonce-hard": Loss(term=_infonce_hard, on="lists"),
    "infonce": Loss(
        term=lambda t: all_pairs.infonce(t.student_RC, t.batch.same_RC, label_smoothing=t.config.label_smoothing),
        on="all pairs",
        options=frozenset({"label_smoothing"}),
    ),
    "kl": Loss(
        term=lambda t: all_pairs.kl(
            t.student_RC, t.teacher_RC, t.scored_RC, temperature=t.temperature, weights=t.weights
        ),
        on="all pairs",
        teacher=True,
        confidence=True,
    ),
    "dcd-kl": Loss(
        term=lambda t: all_pairs.dcd_kl(
            t.student_RC, t.teacher_RC, t.scored_RC, temperature=t.temperature, weights=t.weights
        ),
        on="all pairs",
        teacher=True,
        confidence=True,
    ),
    "wsl-pairs": Loss(
        term=lambda t: all_pairs.wsl_pairs(
            t.student_RC, t.teacher_RC, t.scored_RC, temperature=t.temperature, same_mask=t.batch.same_RC
        ),
        on="all pairs",
        teacher=True,
    ),
    "mse-pairs": Loss(
        term=lambda t: all_pairs.mse_pairs(
            t.student_RC, t.teacher_RC, t.scored_RC, temperature=t.temperature, weights=t.weights
        ),
        on="all pairs",
        teacher=True,
        calibrated=True,
        confidence=True,
    ),
    "margin-mse": Loss(
        term=lambda t: all_pairs.margin_mse(
            t.student_RC, t.teacher_RC, t.scored_RC, temperature=t.temperature, weights=t.weights
        ),
        on="all pairs",
        teacher=True,
        calibrated=True,
        confidence=True,
    ),
    "cprd": Loss(
        term=lambda t: relations.cprd(
            t.student_RC,
            t.teacher_RC,
            t.scored_RC,
            margin=t.config.plausible_margin,
            temperature=t.temperature,
            same_mask=t.batch.same_RC,
            weights=t.weights,
        ),
        on="all pairs",
        teacher=True,
        confidence=True,
    ),
    "affinity": Loss(
        term=lambda t: relations.affinity(
            t.student_RC, t.teacher_RC, t.scored_RC, temperature=t.config.affinity_temperature, weights=t.weights
        ),
        on="all pairs",
        teacher=True,
        confidence=True,
    ),
}


@dataclass(frozen=True)
class VectorInputs:
    """What a loss of vectors is computed from: the vectors of the images of a batch, or of its captions, each once."""

    student_ND: Tensor
    projected_NE: Tensor
    """The same after the learned projection to the width of the teacher's."""
    teacher_NE: Tensor
    config: LossConfig


VECTOR_LOSSES: dict[str, Callable[[VectorInputs], Tensor]] = {
    "embedding-cosine": lambda v: vectors.embedding_cosine(v.projected_NE, v.teacher_NE),
    "embedding-l2": lambda v: vectors.embedding_l2(v.projected_NE, v.teacher_NE),
    "embedding-affinity": lambda v: vectors.embedding_affinity(
        v.student_ND, v.teacher_NE, temperature=v.config.affinity_temperature
    ),
}
"""Losses that compare a dual student's vectors with a dual teacher's, on the batches of the other terms. The mean of
the images' term and of the captions' term enters the loss."""
