"""What a recipe and a batch hand to each loss of the table: the loss of a step equals a direct call with the same
values.

The settings are far from their defaults, and each of them must move exactly the losses that read it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from loss_inputs import draw
from torch import Tensor

from dcdctl.core.models.dual import Calibration
from dcdctl.core.training.batches.batch import Batch
from dcdctl.core.training.losses import all_pairs, lists, official
from dcdctl.core.training.losses.table import LOSSES, LossConfig
from dcdctl.core.training.objective import PairObjective
from dcdctl.core.training.recipe import load_recipe

NUM_ROWS, NUM_COLUMNS = 6, 6
ALPHA, T, SMOOTHING, GROUP, WEIGHT = 0.35, 2.5, 0.3, 4, 0.7
OPTIONS = {"alpha": ALPHA, "label_smoothing": SMOOTHING, "weight_group": GROUP}
"""Settings that only some losses have: a recipe may set them for these alone."""
FACTOR, OFFSET = 1.7, -0.4
"""Of the calibration."""

Direct = Callable[[Tensor, Tensor, Batch, Tensor], Tensor]
"""The student's logits, the same on the teacher's scale, the batch, and a dual model's logits of all images and
captions."""


def scored(batch: Batch) -> tuple[Tensor, Tensor]:
    return batch.teacher_RC.nan_to_num(), ~batch.teacher_RC.isnan()


def of_both_groups(loss: Callable[..., Any], student_BN: Tensor, teacher_BN: Tensor) -> Tensor:
    """The mean over six lists, of a group of four and a group of two."""
    return torch.stack(
        [
            len(s) / 6 * loss(s, t, alpha=ALPHA).total
            for s, t in zip(student_BN.split(4), teacher_BN.split(4), strict=True)
        ]
    ).sum()


DIRECT: dict[str, Direct] = {
    "dcd": lambda s, c, b, a: lists.dcd(c, b.teacher_RC, alpha=ALPHA, temperature=T, group=GROUP).total,
    "dcd-released": lambda s, c, b, a: of_both_groups(official.dcd_official, s, b.official_teacher_RC),
    "mse": lambda s, c, b, a: lists.mse(c, b.teacher_RC, temperature=T),
    "wsl": lambda s, c, b, a: lists.wsl(s, b.teacher_RC, temperature=T),
    "wsl-released": lambda s, c, b, a: of_both_groups(official.wsl_official, s, b.official_teacher_RC),
    "ground-truth": lambda s, c, b, a: lists.ground_truth(s, "bce"),
    "ranking": lambda s, c, b, a: lists.ground_truth(s, "softmax"),
    "infonce-hard": lambda s, c, b, a: lists.infonce_hard(a, b.true_IT, b.image_ix_RC, b.text_ix_RC),
    "infonce": lambda s, c, b, a: all_pairs.infonce(s, b.same_RC, label_smoothing=SMOOTHING),
    "sigmoid": lambda s, c, b, a: all_pairs.sigmoid(s, b.same_RC),
    "sigmoid-kl": lambda s, c, b, a: all_pairs.sigmoid_kl(s, *scored(b), temperature=T),
    "kl": lambda s, c, b, a: all_pairs.kl(s, *scored(b), temperature=T),
    "dcd-kl": lambda s, c, b, a: all_pairs.dcd_kl(s, *scored(b), temperature=T),
    "margin-mse": lambda s, c, b, a: all_pairs.margin_mse(c, *scored(b), temperature=T),
}
LISTS = {"dcd", "dcd-released", "mse", "wsl", "wsl-released", "ground-truth", "ranking", "infonce-hard"}
TEACHER = LOSSES.keys() - {"ground-truth", "ranking", "infonce-hard", "infonce", "sigmoid"}
READERS = {
    "alpha": {"dcd", "dcd-released", "wsl-released"},
    # Not dcd, whose equation multiplies by the square of what it divides both sides by.
    "temperature": {"mse", "wsl", "sigmoid-kl", "kl", "dcd-kl", "margin-mse"},
    "label_smoothing": {"infonce"},
    "weight_group": {"dcd", "dcd-released", "wsl-released"},
    "calibration": {"dcd", "mse", "margin-mse"},
    "a teacher's score": TEACHER - {"dcd-released", "wsl-released"},
    "which pairs are scored": TEACHER - {"dcd-released", "wsl-released"},
    "the official order": {"dcd-released", "wsl-released"},
    "other matches": {"infonce", "sigmoid"},
    "logits of all pairs": {"infonce-hard"},
    "matches of all pairs": {"infonce-hard"},
}
"""Setting or part of a batch -> the losses that depend on it."""


class Given:
    """Stands for a dual model that gives these logits."""

    def __init__(self, student_RC: Tensor, all_IT: Tensor, calibration: Calibration) -> None:
        self.student_RC, self.all_IT, self.calibrate = student_RC, all_IT, calibration

    def logits(self, outputs: Sequence[Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        return self.student_RC, self.all_IT


def calibration(factor: float = FACTOR, offset: float = OFFSET) -> Calibration:
    made = Calibration()
    with torch.no_grad():
        made.log_scale.fill_(math.log(factor))
        made.offset.fill_(offset)
    return made


def made_batch() -> Batch:
    """A batch that serves lists and all pairs: unscored pairs, an official order of its own, and pairs that match off
    the diagonal."""
    teacher_RC = draw(1, NUM_ROWS, NUM_COLUMNS)
    teacher_RC[0, 3] = teacher_RC[4, 1] = torch.nan
    same_RC = torch.zeros(NUM_ROWS, NUM_COLUMNS, dtype=torch.bool)
    same_RC[1, 2] = same_RC[5, 0] = True
    # Lists: images 0, 2, 4 with captions, captions 1, 3, 5 with images.
    row, column = torch.arange(NUM_ROWS)[:, None], torch.arange(NUM_COLUMNS)[None, :]
    ix_RC = (row + column) % NUM_ROWS
    is_image = row % 2 == 0
    image_ix_RC, text_ix_RC = torch.where(is_image, row, ix_RC), torch.where(is_image, ix_RC, row)
    true_IT = torch.eye(NUM_ROWS, dtype=torch.bool)
    true_IT[0, 4] = True
    official_RC = draw(3, NUM_ROWS, NUM_COLUMNS).sort(dim=1, descending=True).values
    return Batch(None, None, image_ix_RC, text_ix_RC, teacher_RC, official_RC, same_RC, true_IT=true_IT)  # type: ignore[arg-type]


STUDENT_RC, ALL_IT = draw(0, NUM_ROWS, NUM_COLUMNS), draw(2, NUM_ROWS, NUM_ROWS)


def config_of(name: str, *sets: str) -> LossConfig:
    """The loss of a recipe, as the command line sets it."""
    options = [f"loss.{option}={OPTIONS[option]}" for option in LOSSES[name].options]
    terms = f"loss.terms={{ {name} = {WEIGHT} }}"
    return load_recipe("tiny-student", [f"loss.temperature={T}", *options, terms, *sets]).loss


def loss_of(
    name: str,
    config: LossConfig,
    batch: Batch,
    *,
    all_IT: Tensor = ALL_IT,
    calibrate: Calibration | None = None,
) -> Tensor:
    """The weighted term of a step."""
    model = Given(STUDENT_RC, all_IT, calibrate or calibration())
    (value,) = PairObjective(config).loss(model, (), batch).values()  # type: ignore[arg-type]
    return value.detach()


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_a_recipe_is_a_direct_call_with_the_recipes_values(name):
    batch, calibrated_RC = made_batch(), calibration()(STUDENT_RC).detach()
    expected = WEIGHT * DIRECT[name](STUDENT_RC, calibrated_RC, batch, ALL_IT)
    assert torch.equal(loss_of(name, config_of(name), batch), expected)
    assert LOSSES[name].on == ("lists" if name in LISTS else "all pairs")


@pytest.mark.parametrize("name", LOSSES)
def test_each_setting_and_part_of_a_batch_moves_the_losses_that_read_it_and_no_other(name):
    batch, config, defaults = made_batch(), config_of(name), LossConfig()
    before = loss_of(name, config, batch)
    more_scores, fewer_scores = batch.teacher_RC.clone(), batch.teacher_RC.clone()
    more_scores[2, 4] += 4.0
    fewer_scores[2, 4] = torch.nan
    other_true = batch.true_IT.clone()
    other_true[2, 5] = True
    moved = {
        **{
            field: loss_of(name, replace(config, **{field: getattr(defaults, field)}), batch)
            for field in ("temperature", *OPTIONS)
        },
        "calibration": loss_of(name, config, batch, calibrate=calibration(1, 0)),
        "a teacher's score": loss_of(name, config, replace(batch, teacher_RC=more_scores)),
        "which pairs are scored": loss_of(name, config, replace(batch, teacher_RC=fewer_scores)),
        "the official order": loss_of(
            name, config, replace(batch, official_teacher_RC=batch.official_teacher_RC.flip(1))
        ),
        "other matches": loss_of(name, config, replace(batch, same_RC=torch.zeros_like(batch.same_RC))),
        "logits of all pairs": loss_of(name, config, batch, all_IT=ALL_IT + torch.eye(NUM_ROWS)),
        "matches of all pairs": loss_of(name, config, replace(batch, true_IT=other_true)),
    }
    readers = {what for what, value in moved.items() if not torch.allclose(value, before, rtol=1e-5)}
    assert readers == {what for what, names in READERS.items() if name in names}


def test_every_loss_of_the_table_is_here():
    assert list(DIRECT) == list(LOSSES)
    assert READERS["calibration"] == {name for name, loss in LOSSES.items() if loss.calibrated}
    assert {name for name, loss in LOSSES.items() if loss.teacher} == TEACHER
    assert all(
        READERS[option] == {name for name, loss in LOSSES.items() if option in loss.options} for option in OPTIONS
    )
