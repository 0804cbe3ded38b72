"""The `[loss]` table of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from dcdctl.core.config import Above, Ascending, AtLeast, Between, Count, Positive, Share, check_fields
from dcdctl.core.errors import ConfigError
from dcdctl.core.training.losses.table import LOSSES, VECTOR_LOSSES, Loss

Schedule = Literal["constant", "linear-up", "linear-down", "confidence"]


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The `[loss]` table: the terms of the loss, and their settings."""

    terms: dict[str, Positive] = field(default_factory=lambda: {"dcd": 1.0})
    """Loss name (docs/losses.md) -> weight. All of them work on lists of candidates, or all of them on all pairs of a
    batch. Losses of vectors (embedding-...) go with both; alone they take batches of all pairs."""
    # 0.2, and 1 for the temperature, are constants of the released code.
    alpha: Share = 0.2
    """dcd, dcd-released: weight of the distillation term, in [0, 1]; the ground truth gets the rest. wsl-released:
    factor of that term."""
    temperature: float | Literal["auto"] = 1.0
    """T in the equations of docs/losses.md: divides the teacher's logits, and in some losses the student's too. auto:
    the one that `dcdctl inspect` recommends for the cache, or for the average of several."""
    schedules: dict[str, Schedule] = field(default_factory=dict)
    """Loss name -> how its weight changes during the training: constant (the default), linear-up from 0 to its weight,
    linear-down from its weight to 0, or confidence: each query's distillation term counts by how much the student still
    has to learn about it, as in wsl."""
    plausible_margin: Annotated[float, AtLeast(0)] = 5.0
    """cprd: teaches the order of the negatives whose logit, divided by the temperature, is at most this far below the
    positive's."""
    affinity_temperature: Positive = 0.1
    """affinity, embedding-affinity: divides the correlations or cosines of teacher and student, which lie between -1
    and 1."""
    weight_group: Count | None = None
    """dcd, dcd-released, wsl-released: consecutive lists of a batch among which their weights are normalized, as the
    released code does in the micro-batch of one device; the whole batch if not set, in which the weights of the
    distillation fade as it grows."""
    label_smoothing: Annotated[float, Between(0, 1, "[)")] = 0.0
    """infonce: share of the target that all pairs of the denominator get in equal parts, in [0, 1); the positive gets
    the rest."""
    dims: Annotated[tuple[Count, ...], Ascending()] = ()
    """dual: widths at which the vectors must be good (Matryoshka). Each loss of scores is the mean of its values on the
    first numbers of the vectors, for each width. Losses of vectors take all numbers. Empty: the full width alone, which
    a list names as its last."""

    def __post_init__(self) -> None:
        check_fields(self, "loss")
        unknown = [name for name in self.terms if name not in LOSSES and name not in VECTOR_LOSSES]
        if unknown or not self.terms:
            known = ", ".join([*LOSSES, *VECTOR_LOSSES])
            raise ConfigError(f"loss.terms has {', '.join(unknown) or 'nothing'}", hint=f"known losses: {known}")
        if len({loss.on for loss in self._of_scores}) > 1:
            named = {
                on: ", ".join(name for name, loss in LOSSES.items() if loss.on == on) for on in ("lists", "all pairs")
            }
            raise ConfigError(
                "loss.terms mixes losses on candidate lists with losses on all pairs of a batch: "
                f"{', '.join(self.terms)}",
                hint="; ".join(f"{on}: {names}" for on, names in named.items()),
            )
        self._check_temperature()
        self._check_schedules()
        self._check_options()

    def _check_temperature(self) -> None:
        if self.temperature == "auto":
            if not self.needs_teacher:
                raise ConfigError(
                    "loss.temperature is auto, and no loss of the recipe has a teacher: loss.terms has "
                    f"{', '.join(self.terms)}",
                    hint="leave it out, or add a loss that has a teacher, such as kl",
                )
        elif not Above(0).admits(self.temperature):
            raise ConfigError(
                f"loss.temperature must {Above(0)}, got {self.temperature}",
                hint="or auto, which takes it from the cache",
            )

    def _check_schedules(self) -> None:
        for name, schedule in self.schedules.items():
            if name not in self.terms:
                raise ConfigError(f"loss.schedules.{name} has no loss: loss.terms has {', '.join(self.terms)}")
            if schedule == "confidence" and not (name in LOSSES and LOSSES[name].confidence):
                hint = f"confidence is for {', '.join(name for name, loss in LOSSES.items() if loss.confidence)}"
                raise ConfigError(f"loss.schedules.{name} cannot be confidence", hint=hint)

    def _check_options(self) -> None:
        for name, value_if_unset in (("label_smoothing", 0.0), ("weight_group", None)):
            readers = [loss for loss, entry in LOSSES.items() if name in entry.options]
            value = getattr(self, name)
            if value != value_if_unset and not self.terms.keys() & set(readers):
                raise ConfigError(
                    f"loss.{name} is {value}, and no loss of the recipe reads it: loss.terms has "
                    f"{', '.join(self.terms)}",
                    hint=f"set it to {'none' if value_if_unset is None else value_if_unset}, or add one of "
                    f"{', '.join(readers)}",
                )

        if self.dims and not self._of_scores:
            message = (
                f"loss.dims is for losses of scores, and loss.terms has {', '.join(self.terms)}, which take "
                "vectors of full width"
            )
            raise ConfigError(message, hint="leave loss.dims out, or add a loss of scores, such as infonce")

    @property
    def _of_scores(self) -> list[Loss]:
        """The losses of the terms that compare scores."""
        return [LOSSES[name] for name in self.terms if name in LOSSES]

    @property
    def on_lists(self) -> bool:
        """Whether the terms work on candidate lists; otherwise on all pairs of a batch."""
        return any(loss.on == "lists" for loss in self._of_scores)

    @property
    def needs_teacher(self) -> bool:
        """Whether a term needs the teacher's scores."""
        return any(loss.teacher for loss in self._of_scores)

    @property
    def own_terms(self) -> dict[str, float]:
        """The terms that need no teacher, with their weights."""
        return {name: weight for name, weight in self.terms.items() if name in LOSSES and not LOSSES[name].teacher}

    @property
    def vector_terms(self) -> list[str]:
        """The terms that need a dual teacher's vectors."""
        return [name for name in self.terms if name in VECTOR_LOSSES]

    @property
    def is_calibrated(self) -> bool:
        """Whether a dual model's calibration is trained."""
        return any(loss.calibrated for loss in self._of_scores)
