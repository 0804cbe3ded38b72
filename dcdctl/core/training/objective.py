"""The loss terms of a recipe, from a model's outputs for a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dcdctl.core.models import DualEncoder, Model, Pairs, prefix_vectors
from dcdctl.core.training.batches.batch import Batch
from dcdctl.core.training.losses.config import LossConfig
from dcdctl.core.training.losses.table import LOSSES, VECTOR_LOSSES, TermInputs, VectorInputs
from dcdctl.core.training.losses.weights import Weights, confidence, confidence_pairs


@dataclass(frozen=True)
class PairObjective:
    """The loss terms of a recipe, for fusion and dual models alike, on whole batches and on micro-batches
    (`grad_cache`)."""

    config: LossConfig

    def __call__(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """The weighted loss terms at the end of the training."""
        return self.loss(model, self.outputs(model, batch), batch, 1.0)

    def numbers(self, batch: Batch) -> dict[str, float]:
        """What is logged of a batch beside its loss: the share of its negatives with a teacher score, if the loss needs
        these."""
        return {"scored": batch.scored_share} if self.config.needs_teacher else {}

    def outputs(self, model: Model, pairs: Pairs) -> tuple[Tensor, ...]:
        """The model's outputs for a micro-batch, from which `loss` computes the logits."""
        return model.outputs(pairs)

    def loss(self, model: Model, outputs: Sequence[Tensor], batch: Batch, progress: float) -> dict[str, Tensor]:
        """The weighted loss terms; `progress` is the completed share of the training."""
        if not self.config.dims:
            terms = self._terms(model, outputs, batch, progress)
        else:
            # GradCache's outputs are the whole vectors, so the prefixes are exact in micro-batches and several
            # processes too.
            prefixes = ([prefix_vectors(side, dims) for side in outputs] for dims in self.config.dims)
            of_each = [self._terms(model, prefix, batch, progress) for prefix in prefixes]
            terms = {name: torch.stack([of_one[name] for of_one in of_each]).mean() for name in of_each[0]}
        return terms | vector_terms(model, outputs, batch, self.config, progress)

    def _terms(self, model: Model, outputs: Sequence[Tensor], batch: Batch, progress: float) -> dict[str, Tensor]:
        """The weighted terms that compare scores, from the model's outputs or from prefixes of its vectors."""
        logits_RC, all_IT = model.logits(outputs, batch)
        return loss_terms(logits_RC, batch, self.config, progress, calibrate=model.calibrate, all_IT=all_IT)


@dataclass(frozen=True)
class SelfTaughtObjective(PairObjective):
    """The loss terms of a dual model whose teacher is the average of its own weights over the steps before (all pairs
    of a batch).

    A mean teacher (Tarvainen and Valpola, NeurIPS 2017, arXiv 1703.01780): after each step its weights are `decay`
    times themselves plus 1 - `decay` times the student's. At first they are the student's.
    """

    decay: float

    def numbers(self, batch: Batch) -> dict[str, float]:
        """Nothing: every pair gets a score."""
        return {}

    def teacher(self, model: DualEncoder) -> DualEncoder:
        """The model whose outputs score a batch."""
        return model.averaged()

    def taught(self, teacher: DualEncoder, outputs: Sequence[Tensor], batch: Batch) -> Batch:
        """The batch with the logits of the teacher's outputs as scores."""
        logits_RC, _ = teacher.logits(outputs, batch)
        return replace(batch, teacher_RC=logits_RC, official_teacher_RC=logits_RC)

    def after_update(self, model: DualEncoder) -> None:
        """Bring the average up to date."""
        model.update_average(self.decay)


def term_weights(config: LossConfig, progress: float) -> dict[str, float]:
    """The weight of each loss term; `progress` is the completed share of the training, in [0, 1]."""
    shares = {"linear-up": progress, "linear-down": 1 - progress}
    return {
        name: weight * shares.get(config.schedules.get(name, "constant"), 1.0) for name, weight in config.terms.items()
    }


def loss_terms(
    logits_RC: Tensor,
    batch: Batch,
    config: LossConfig,
    progress: float,
    *,
    calibrate: Callable[[Tensor], Tensor] | None = None,
    all_IT: Tensor | None = None,
) -> dict[str, Tensor]:
    """The weighted loss terms of a batch, whose sum is minimized, from the logits of its pairs.

    `all_IT` holds a dual encoder's logits of all images of the batch with all its captions. Only losses that compare
    logits with logits see calibrated logits (`Loss.calibrated`).
    """
    # Autocast gives half precision, in which losses are never computed.
    logits_RC = logits_RC.float()
    calibrated_RC = logits_RC if calibrate is None else calibrate(logits_RC)

    def term(name: str) -> Tensor:
        loss = LOSSES[name]
        student_RC = calibrated_RC if loss.calibrated else logits_RC
        return loss.term(TermInputs(student_RC, batch, config, _query_weights(name, config, logits_RC, batch), all_IT))

    return {name: weight * term(name) for name, weight in term_weights(config, progress).items() if name in LOSSES}


def vector_terms(
    model: Model, outputs: Sequence[Tensor], batch: Batch, config: LossConfig, progress: float
) -> dict[str, Tensor]:
    """The weighted loss terms that compare a dual model's vectors, its `outputs`, with its teacher's: means of images
    and captions."""
    if not config.vector_terms:
        return {}
    assert model.kind == "dual"
    assert batch.teacher_vectors is not None
    teachers = batch.teacher_vectors.images_IE, batch.teacher_vectors.texts_TE
    sides = [
        VectorInputs(student.float(), model.project(student), teacher, config)
        for student, teacher in zip(outputs, teachers, strict=True)
    ]
    weights = term_weights(config, progress)
    return {
        name: weights[name] * torch.stack([VECTOR_LOSSES[name](side) for side in sides]).mean()
        for name in config.vector_terms
    }


def _query_weights(name: str, config: LossConfig, logits_RC: Tensor, batch: Batch) -> Weights | None:
    """The weights of a batch's queries if the term's schedule is `confidence`; for lists, both fields hold the weights
    of the lists."""
    if config.schedules.get(name) != "confidence":
        return None
    teacher_RC, scored_RC = batch.teacher_RC.nan_to_num(), ~batch.teacher_RC.isnan()
    if config.on_lists:
        weight_B = confidence(logits_RC, teacher_RC, scored_RC)
        return Weights(weight_B, weight_B)
    return confidence_pairs(logits_RC, teacher_RC, scored_RC, batch.same_RC)
