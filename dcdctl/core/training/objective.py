"""From a batch to the parts of a loss, for fusion and dual models alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dcdctl.core.models import DualModel, select_rows
from dcdctl.core.training.batch import Batch, Pairs
from dcdctl.core.training.losses.table import LOSSES, TermInputs
from dcdctl.core.training.losses.weights import Weights, confidence, confidence_pairs
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
    """The weighted loss terms of a batch, whose sum is minimized: everything after the logits.

    `calibration` and `all_IT`, the logits of all images of the batch with all its captions, are those of a dual model; a fusion model has
    neither. Only losses that compare logits with logits see calibrated logits (`Loss.calibrated`).
    """
    logits_RC = logits_RC.float()
    calibrated_RC = logits_RC if calibration is None else calibration(logits_RC)

    def term(name: str) -> Tensor:
        loss = LOSSES[name]
        student_RC = calibrated_RC if loss.calibrated else logits_RC
        return loss.term(TermInputs(student_RC, batch, config, _query_weights(name, config, logits_RC, batch), all_IT))

    return {name: weight * term(name) for name, weight in terms_at(config, progress).items()}


def _query_weights(name: str, config: LossConfig, logits_RC: Tensor, batch: Batch) -> Weights | None:
    """The weights of a batch's queries if the term's schedule is `confidence`; on lists both directions are those of the lists."""
    if config.schedules.get(name) != "confidence":
        return None
    teacher_RC, scored_RC = batch.teacher_RC.nan_to_num(), ~batch.teacher_RC.isnan()
    if config.on_lists:
        weight_B = confidence(logits_RC, teacher_RC, scored_RC)
        return Weights(weight_B, weight_B)
    return confidence_pairs(logits_RC, teacher_RC, scored_RC, batch.same_RC)
