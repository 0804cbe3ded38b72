"""The loss terms of a recipe, from a model's outputs for a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dcdctl.core import models
from dcdctl.core.models import Model
from dcdctl.core.training.batches.batch import Batch, MixedBatch
from dcdctl.core.training.losses.table import LOSSES, VECTOR_LOSSES, LossConfig, TermInputs


@dataclass(frozen=True)
class PairObjective:
    """The loss terms of a recipe, for fusion and dual models alike, on whole batches and on micro-batches
    (`grad_cache`)."""

    config: LossConfig
    of_pool: LossConfig | None = None
    """The terms for the pool of a mixed training, whose batches have both (`MixedBatch`)."""

    def parts(self, batch: Batch | MixedBatch) -> list[tuple[str, PairObjective, Batch]]:
        """What is computed of a step: the batches, each with its loss and what precedes its names in logs."""
        if isinstance(batch, Batch):
            return [("", self, batch)]
        assert self.of_pool is not None
        return [("", self, batch.pairs), ("pool_", PairObjective(self.of_pool), batch.pool)]

    def __call__(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """The weighted loss terms of a whole batch."""
        return self.loss(model, model.outputs(batch), batch)

    def logged(self, batch: Batch | MixedBatch) -> dict[str, float]:
        """What is logged of a batch beside its loss: the share of its negatives with a teacher score, if the loss needs
        these."""
        return {
            f"{prefix}scored": part.scored_share
            for prefix, objective, part in self.parts(batch)
            if objective.config.needs_teacher
        }

    def loss(self, model: Model, outputs: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        """The weighted loss terms, whose sum is minimized, from the model's outputs for a whole batch."""

        def of_width(outputs: Sequence[Tensor]) -> dict[str, Tensor]:
            terms = {}
            if self.config.of_scores:
                logits_RC, all_IT = model.logits(outputs, batch)
                terms = loss_terms(logits_RC, batch, self.config, calibrate=model.calibrate, all_IT=all_IT)
            if self.config.vector_terms and batch.teacher_images_IE is None:
                terms |= self._of_texts(outputs[1], batch)
            return terms

        dims = self.config.dims
        terms = mean_over_widths(outputs, dims, of_width) if dims else of_width(outputs)
        if batch.teacher_images_IE is not None:
            assert model.as_dual is not None
            project = model.as_dual.project
            # Of full width: the teacher's vectors have one width, to which all numbers of the student's are projected.
            teachers = batch.teacher_images_IE, batch.teacher_texts_TE
            sides = [
                (project(student), teacher)
                for student, teacher in zip(outputs, teachers, strict=True)
                if teacher is not None
            ]
            for name in self.config.vector_terms:
                of_sides = torch.stack([VECTOR_LOSSES[name](*side) for side in sides])
                terms[name] = self.config.terms[name] * of_sides.mean()
        return terms

    def _of_texts(self, texts: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The terms that compare the vectors of a query encoder, T x D or T x L x D, with the teacher's first D."""
        teacher = batch.teacher_texts_TE
        assert teacher is not None
        if teacher.ndim == 2:
            teacher = models.prefix_vectors(teacher, texts.shape[1])
        else:
            teacher = functional.pad(teacher, (0, 0, 0, texts.shape[1] - teacher.shape[1]))
        config = self.config
        return {name: config.terms[name] * VECTOR_LOSSES[name](texts, teacher) for name in config.vector_terms}


def loss_terms(
    logits_RC: Tensor,
    batch: Batch,
    config: LossConfig,
    *,
    calibrate: Callable[[Tensor], Tensor] | None = None,
    all_IT: Tensor | None = None,
) -> dict[str, Tensor]:
    """The weighted loss terms of a batch that compare scores, from the logits of its pairs.

    `all_IT` holds a dual encoder's logits of all images of the batch with all its captions. Only losses that compare
    logits with logits see calibrated logits (`Loss.calibrated`).
    """
    # Autocast gives half precision, in which losses are never computed.
    logits_RC = logits_RC.float()
    calibrated_RC = logits_RC if calibrate is None else calibrate(logits_RC)
    terms = {}
    for name, weight in config.terms.items():
        if name in LOSSES:
            student_RC = calibrated_RC if LOSSES[name].calibrated else logits_RC
            terms[name] = weight * LOSSES[name].term(TermInputs(student_RC, batch, config, all_IT))
    return terms


def mean_over_widths(
    outputs: Sequence[Tensor], dims: Sequence[int], terms_of: Callable[[Sequence[Tensor]], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Each term as the mean of its values on the first numbers of the vectors, for each width; all widths weigh the
    same: Matryoshka representation learning (Kusupati et al., NeurIPS 2022, arXiv 2205.13147).

    The paper's sum would multiply the learning rate by the number of widths. `outputs` are the gathered vectors of the
    whole batch, so the widths are exact in micro-batches and several processes too.

    When to use it: for a dual student whose index will store shorter vectors (`loss.dims`).
    """
    of_each: dict[str, list[Tensor]] = {}
    for width in dims:
        prefixes = [models.prefix_vectors(side, width) for side in outputs]
        for name, term in terms_of(prefixes).items():
            of_each.setdefault(name, []).append(term)
    return {name: torch.stack(terms).mean() for name, terms in of_each.items()}
