"""The last stage of the built-in teacher: scores that say how wrong a caption is.

A teacher that has only learned to tell the true caption from the others is sure of all of them, so that its scores hold no more than
the ground truth. Here its logits also follow how much of a caption holds, as those of a teacher of real photos do, whose captions are
true by degrees. Shape letters as in `pretraining`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from dcdctl.core import drawing, runs, scenes, training
from dcdctl.core.devices import moved
from dcdctl.core.gradients import Objective
from dcdctl.core.models import ImageBatch, Preprocess, TextBatch
from dcdctl.core.pretraining import compared_logits, compared_texts, matching_loss, num_steps
from dcdctl.core.progress import Track, silent, watched_by
from dcdctl.core.recipe import OptimizerConfig
from dcdctl.core.runs import Run

MIDDLE = 4.5
"""Half of the highest agreement: logits lie about 0."""


@dataclass(frozen=True, kw_only=True)
class GradingConfig:
    """Everything that can change the last stage of the built-in teacher."""

    seed: int = 2
    families: int = 10
    other_negatives: int = 6
    agreement_weight: float = 0.2
    """Weight of the squared distance between logits and agreements."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            lr=4e-4, weight_decay=0.05, steps=500, warmup_share=0.05, schedule="cosine", max_grad_norm=1.0, save_every=100
        )
    )

    def __post_init__(self) -> None:
        num_steps(self.optimizer)


@dataclass(frozen=True)
class GradedBatch:
    images: ImageBatch
    texts: TextBatch
    text_ix_BK: Tensor
    agreement_BK: Tensor
    """How much of each caption holds of its picture, from 0 to 9."""

    def to(self, device: torch.device) -> GradedBatch:
        return moved(self, device)


class GradedSteps(Dataset[GradedBatch]):
    """Batches of scenes nobody has seen before; a function of seed and step."""

    def __init__(self, preprocess: Preprocess, config: GradingConfig) -> None:
        self.preprocess, self.config = preprocess, config

    def __getitem__(self, step: int) -> GradedBatch:
        rng = np.random.default_rng([self.config.seed, step])
        count = self.config.families
        family = range(step * count, (step + 1) * count)
        described = [one for index in family for one in scenes.describe_family(self.config.seed, "train", index)]
        said = [one.statements[rng.integers(len(one.statements))] for one in described]
        text_ix_BK = compared_texts(rng, count, self.config.other_negatives)
        agreements = [[said[text].agreement(one.scene) for text in row] for one, row in zip(described, text_ix_BK.tolist(), strict=True)]
        return GradedBatch(
            self.preprocess.images([drawing.draw(one.scene) for one in described]),
            self.preprocess.texts([statement.text for statement in said]),
            text_ix_BK,
            torch.tensor(agreements, dtype=torch.float32),
        )


def objective(config: GradingConfig) -> Objective:
    """Matching, and the agreement of logits with what holds."""

    def parts(scorer: Any, batch: GradedBatch) -> dict[str, Tensor]:
        images, texts = scorer.encode_images(batch.images), scorer.encode_texts(batch.texts)
        logits_BK = compared_logits(scorer, images, texts, batch.text_ix_BK)
        return {
            "matching": matching_loss(logits_BK, batch.text_ix_BK),
            "agreement": config.agreement_weight * functional.mse_loss(logits_BK, batch.agreement_BK - MIDDLE),
        }

    return parts


def grade(run: Run, scorer: Any, config: GradingConfig, *, options: training.TrainingOptions, track: Track = silent) -> None:
    """Train a pretrained teacher on, in place, and leave it, in half precision, in the run's model folder."""
    if run.is_finished:
        return
    training.train(
        run,
        scorer.requires_grad_(True),
        GradedSteps(scorer.preprocess, config),
        objective(config),
        config.optimizer,
        num_steps=num_steps(config.optimizer),
        seed=config.seed,
        options=options,
        watch=watched_by(track),
    )
    runs.finish(run, scorer, half=True)
