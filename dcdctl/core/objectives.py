"""From a batch to the parts of a loss, for fusion and dual models alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from dcdctl.core import losses
from dcdctl.core.batches import Batch
from dcdctl.core.models import DualModel
from dcdctl.core.recipe import LossConfig
from dcdctl.core.training import Objective


def make_objective(config: LossConfig) -> Objective:
    """The loss terms of a recipe, for fusion and dual models alike."""

    def objective(model: Any, batch: Batch) -> dict[str, Tensor]:
        logits_RC = pair_logits(model, batch).float()
        return {name: weight * TERMS[name](logits_RC, batch, config) for name, weight in config.terms.items()}

    return objective


def pair_logits(model: Any, batch: Batch) -> Tensor:
    """The model's logits of a batch's pairs, R x C; every image and caption is encoded once."""
    if isinstance(model, DualModel):
        images_ID, texts_TD = model(batch.images, batch.texts)
        all_IT = model.logit_scale * images_ID @ texts_TD.T
        return all_IT[batch.image_ix_RC, batch.text_ix_RC]
    images, texts = model.encode_images(batch.images), model.encode_texts(batch.texts)
    logits_P: Tensor = model.score_pairs(images, texts, batch.image_ix_RC.flatten(), batch.text_ix_RC.flatten())
    return logits_P.view(batch.image_ix_RC.shape)


Term = Callable[[Tensor, Batch, LossConfig], Tensor]
TERMS: dict[str, Term] = {
    "dcd": lambda logits, batch, config: losses.dcd(logits, batch.teacher_RC, alpha=config.alpha, temperature=config.temperature),
    "dcd-released": lambda logits, batch, config: losses.dcd_released(logits, batch.released_teacher_RC, alpha=config.alpha),
    "ground-truth": lambda logits, batch, config: losses.ground_truth(logits, "bce"),
    "ranking": lambda logits, batch, config: losses.ground_truth(logits, "softmax"),
    "infonce": lambda logits, batch, config: losses.infonce(logits, batch.same_RC),
    "kl": lambda logits, batch, config: losses.kl(
        logits, batch.teacher_RC.nan_to_num(), ~batch.teacher_RC.isnan(), temperature=config.temperature
    ),
    "dcd-kl": lambda logits, batch, config: losses.dcd_kl(
        logits, batch.teacher_RC.nan_to_num(), ~batch.teacher_RC.isnan(), temperature=config.temperature
    ),
    "margin-mse": lambda logits, batch, config: losses.margin_mse(
        logits, batch.teacher_RC.nan_to_num(), ~batch.teacher_RC.isnan(), temperature=config.temperature
    ),
}
