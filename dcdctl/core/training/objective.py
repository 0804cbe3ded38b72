"""From a batch to the parts of a loss, for fusion and dual models alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dcdctl.core.models import DualModel, select_rows
from dcdctl.core.training import losses
from dcdctl.core.training.batch import Batch, Pairs
from dcdctl.core.training.recipe import LossConfig


@dataclass(frozen=True)
class PairObjective:
    """The loss terms of a recipe, for fusion and dual models alike, on whole batches and on slices (`gradients`)."""

    config: LossConfig

    def __call__(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """The parts of the loss at the end of the training."""
        return self.loss(model, self.outputs(model, batch), batch, 1.0)

    def outputs(self, model: Any, pairs: Pairs) -> tuple[Tensor, ...]:
        """The logits of the pairs of a fusion model, R x C; the vectors of all images and captions of a dual one, I x D and T x D."""
        if isinstance(model, DualModel):
            images_ID, texts_TD = model(pairs.images, pairs.texts)
            return images_ID.float(), texts_TD.float()
        images, texts = model.encode_images(pairs.images), model.encode_texts(pairs.texts)
        logits_P: Tensor = model.score_pairs(images, texts, pairs.image_ix_RC.flatten(), pairs.text_ix_RC.flatten())
        return (logits_P.view(pairs.image_ix_RC.shape).float(),)

    def logits(self, model: Any, outputs: Sequence[Tensor], pairs: Pairs) -> tuple[Tensor, Tensor | None]:
        """The logits of the pairs, R x C, and a dual model's of all images with all captions, I x T."""
        if not isinstance(model, DualModel):
            return outputs[0], None
        images_ID, texts_TD = outputs
        all_IT = model.logit_scale * images_ID @ texts_TD.T
        place_RC = pairs.image_ix_RC * all_IT.shape[1] + pairs.text_ix_RC
        return select_rows(all_IT.flatten(), place_RC.flatten()).view(place_RC.shape), all_IT

    def loss(self, model: Any, outputs: Sequence[Tensor], batch: Batch, progress: float) -> dict[str, Tensor]:
        """The weighted loss terms at a share of the training."""
        logits_RC, all_IT = self.logits(model, outputs, batch)
        calibration = model.calibration if isinstance(model, DualModel) else None
        return loss_parts(logits_RC, batch, self.config, progress, calibration=calibration, all_IT=all_IT)


def make_objective(config: LossConfig) -> PairObjective:
    """The loss terms of a recipe."""
    return PairObjective(config)


def terms_at(config: LossConfig, progress: float) -> dict[str, float]:
    """The weight of each loss term at a share of the training in [0, 1]: 0 before the first step, 1 after the last."""
    shares = {"linear-up": progress, "linear-down": 1 - progress}
    return {name: weight * shares.get(config.schedules.get(name, "constant"), 1.0) for name, weight in config.terms.items()}


def loss_parts(
    logits_RC: Tensor,
    batch: Batch,
    config: LossConfig,
    progress: float,
    *,
    calibration: nn.Module | None = None,
    all_IT: Tensor | None = None,
) -> dict[str, Tensor]:
    """The weighted loss terms of a batch, whose sum is minimised: all that comes after the logits.

    `calibration` and `all_IT`, the logits of all images of the batch with all its captions, are those of a dual model; a fusion model has
    neither. Only those terms see calibrated logits that compare logits with logits (`loss_config.CALIBRATED_LOSSES`).
    """
    logits_RC = logits_RC.float()
    seen = Seen(logits_RC, logits_RC if calibration is None else calibration(logits_RC), batch, config, all_IT)
    return {name: weight * TERMS[name](seen, _confidence(name, seen)) for name, weight in terms_at(config, progress).items()}


@dataclass(frozen=True)
class Seen:
    """What a loss term is made from."""

    logits_RC: Tensor
    calibrated_RC: Tensor
    """The logits on the teacher's scale; the same as `logits_RC` for a fusion model."""
    batch: Batch
    config: LossConfig
    all_IT: Tensor | None

    @property
    def teacher_RC(self) -> Tensor:
        """The teacher's logits, 0 where it has not scored a pair."""
        return self.batch.teacher_RC.nan_to_num()

    @property
    def scored_RC(self) -> Tensor:
        return ~self.batch.teacher_RC.isnan()


def _confidence(name: str, seen: Seen) -> losses.Weights | None:
    """The weights of a batch's queries, of its lists in `rows_Q`, where the term's schedule is `confidence`."""
    if seen.config.schedules.get(name) != "confidence":
        return None
    if seen.config.on_lists:
        weight_B = losses.confidence(seen.logits_RC, seen.teacher_RC, seen.scored_RC)
        return losses.Weights(weight_B, weight_B)
    return losses.confidence_pairs(seen.logits_RC, seen.teacher_RC, seen.scored_RC, seen.batch.same_RC)


def _infonce_hard(seen: Seen) -> Tensor:
    """Over all of the batch where every image meets every caption for nothing; over each list by itself for a fusion model."""
    batch = seen.batch
    if seen.all_IT is None:
        return losses.ground_truth(seen.logits_RC, "softmax")
    assert batch.true_IT is not None
    return losses.infonce_hard(seen.all_IT, batch.true_IT, batch.image_ix_RC, batch.text_ix_RC)


def _rows(weights: losses.Weights | None) -> Tensor | None:
    return None if weights is None else weights.rows_Q


Term = Callable[[Seen, losses.Weights | None], Tensor]
TERMS: dict[str, Term] = {
    "dcd": lambda seen, weights: losses.dcd(
        seen.calibrated_RC,
        seen.batch.teacher_RC,
        alpha=seen.config.alpha,
        temperature=seen.config.temperature,
        weight_B=_rows(weights),
    ),
    "dcd-released": lambda seen, _: losses.dcd_released(seen.logits_RC, seen.batch.released_teacher_RC, alpha=seen.config.alpha),
    "mse": lambda seen, weights: losses.mse(
        seen.calibrated_RC, seen.batch.teacher_RC, temperature=seen.config.temperature, weight_B=_rows(weights)
    ),
    "wsl": lambda seen, _: losses.wsl(seen.logits_RC, seen.batch.teacher_RC, temperature=seen.config.temperature),
    "wsl-released": lambda seen, _: losses.wsl_released(seen.logits_RC, seen.batch.released_teacher_RC, alpha=seen.config.alpha),
    "ground-truth": lambda seen, _: losses.ground_truth(seen.logits_RC, "bce"),
    "ranking": lambda seen, _: losses.ground_truth(seen.logits_RC, "softmax"),
    "infonce-hard": lambda seen, _: _infonce_hard(seen),
    "infonce": lambda seen, _: losses.infonce(seen.logits_RC, seen.batch.same_RC),
    "kl": lambda seen, weights: losses.kl(
        seen.logits_RC, seen.teacher_RC, seen.scored_RC, temperature=seen.config.temperature, weights=weights
    ),
    "dcd-kl": lambda seen, weights: losses.dcd_kl(
        seen.logits_RC, seen.teacher_RC, seen.scored_RC, temperature=seen.config.temperature, weights=weights
    ),
    "wsl-pairs": lambda seen, _: losses.wsl_pairs(
        seen.logits_RC, seen.teacher_RC, seen.scored_RC, temperature=seen.config.temperature, same_mask=seen.batch.same_RC
    ),
    "mse-pairs": lambda seen, weights: losses.mse_pairs(
        seen.calibrated_RC, seen.teacher_RC, seen.scored_RC, temperature=seen.config.temperature, weights=weights
    ),
    "margin-mse": lambda seen, weights: losses.margin_mse(
        seen.calibrated_RC, seen.teacher_RC, seen.scored_RC, temperature=seen.config.temperature, weights=weights
    ),
    "cprd": lambda seen, weights: losses.cprd(
        seen.logits_RC,
        seen.teacher_RC,
        seen.scored_RC,
        margin=seen.config.plausible_margin,
        temperature=seen.config.temperature,
        same_mask=seen.batch.same_RC,
        weights=weights,
    ),
    "affinity": lambda seen, weights: losses.affinity(
        seen.logits_RC, seen.teacher_RC, seen.scored_RC, temperature=seen.config.affinity_temperature, weights=weights
    ),
}
