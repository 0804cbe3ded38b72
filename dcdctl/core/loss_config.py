"""The `[loss]` table of a recipe: which losses there are, and what they are set to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dcdctl.core.errors import ConfigError

LIST_LOSSES = ("dcd", "dcd-released", "mse", "wsl", "wsl-released", "ground-truth", "ranking", "infonce-hard")
MATRIX_LOSSES = ("infonce", "kl", "dcd-kl", "wsl-pairs", "mse-pairs", "margin-mse", "cprd", "affinity")
CONFIDENCE_LOSSES = ("dcd", "mse", "kl", "dcd-kl", "mse-pairs", "margin-mse", "cprd", "affinity")
"""Those that the schedule `confidence` can weigh query by query; `wsl` and `wsl-pairs` do so by themselves."""
TEACHER_LOSSES = (*CONFIDENCE_LOSSES, "dcd-released", "wsl", "wsl-released", "wsl-pairs")
CALIBRATED_LOSSES = ("dcd", "mse", "mse-pairs", "margin-mse")
"""Those that compare logits with logits: they see a dual model's on the teacher's scale (`DualModel.calibration`)."""
Schedule = Literal["constant", "linear-up", "linear-down", "confidence"]


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The `[loss]` table: the terms that are added, and what they are set to."""

    terms: dict[str, float] = field(default_factory=lambda: {"dcd": 1.0})
    """Loss name -> weight. dcd, dcd-released, mse, wsl, wsl-released, ground-truth, ranking and infonce-hard work on lists of candidates;
    infonce, kl, dcd-kl, wsl-pairs, mse-pairs, margin-mse, cprd and affinity on all pairs of a batch. The two kinds are not mixed."""
    alpha: float = 0.2
    """dcd, dcd-released: share of the distillation term, in [0, 1]; the ground truth gets the rest. wsl-released: its factor."""
    temperature: float = 1.0
    """Divides the teacher's logits in kl, dcd-kl, mse, mse-pairs, margin-mse and cprd, and both sides in dcd, wsl and wsl-pairs."""
    schedules: dict[str, Schedule] = field(default_factory=dict)
    """Loss name -> how its weight goes over the training: constant (the default), linear-up from 0 to its weight, linear-down from its
    weight to 0, or confidence: each query's distillation term counts by what the student has still to learn of it, as in wsl."""
    plausible_margin: float = 5.0
    """cprd: the order of those negatives is taught whose logit, divided by the temperature, is at most this far below the positive's."""
    affinity_temperature: float = 0.1
    """affinity: divides the correlations, teacher's and student's, which lie between -1 and 1."""

    def __post_init__(self) -> None:
        known = LIST_LOSSES + MATRIX_LOSSES
        unknown = [name for name in self.terms if name not in known]
        if unknown or not self.terms:
            raise ConfigError(f"loss.terms has {', '.join(unknown) or 'nothing'}", hint=f"known losses: {', '.join(known)}")
        for name, weight in self.terms.items():
            if not 0 < weight < float("inf"):
                raise ConfigError(f"loss.terms.{name} must be above 0, got {weight}", hint="leave a loss out to do without it")
        if {name in LIST_LOSSES for name in self.terms} == {True, False}:
            raise ConfigError(
                f"loss.terms mixes losses on candidate lists with losses on all pairs of a batch: {', '.join(self.terms)}",
                hint=f"lists: {', '.join(LIST_LOSSES)}; all pairs: {', '.join(MATRIX_LOSSES)}",
            )
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"loss.alpha must lie in [0, 1], got {self.alpha}")
        for name in ("temperature", "affinity_temperature"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"loss.{name} must be above 0, got {getattr(self, name)}")
        if not self.plausible_margin >= 0:
            raise ConfigError(f"loss.plausible_margin must be at least 0, got {self.plausible_margin}")
        self._check_schedules()

    def _check_schedules(self) -> None:
        for name, schedule in self.schedules.items():
            if name not in self.terms:
                raise ConfigError(f"loss.schedules.{name} has no loss: loss.terms has {', '.join(self.terms)}")
            if schedule == "confidence" and name not in CONFIDENCE_LOSSES:
                hint = f"confidence is for {', '.join(CONFIDENCE_LOSSES)}"
                raise ConfigError(f"loss.schedules.{name} cannot be confidence", hint=hint)

    @property
    def on_lists(self) -> bool:
        return next(iter(self.terms)) in LIST_LOSSES

    @property
    def needs_teacher(self) -> bool:
        return any(name in TEACHER_LOSSES for name in self.terms)

    @property
    def is_calibrated(self) -> bool:
        """Whether a dual model's calibration is trained."""
        return any(name in CALIBRATED_LOSSES for name in self.terms)
