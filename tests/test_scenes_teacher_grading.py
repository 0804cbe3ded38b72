"""The last stage of the built-in teacher."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import scripts
import torch

from dcdctl.core import models
from dcdctl.core.data import scenes
from dcdctl.core.data.scenes import Mention, SceneObject, Statement
from dcdctl.core.training import TrainingOptions, runs
from dcdctl.core.training.recipe import OptimizerConfig

scenes_teacher = scripts.load("scenes_teacher")
GradingBatch, GradingBatches = scenes_teacher.GradingBatch, scenes_teacher.GradingBatches
GradingConfig = scenes_teacher.GradingConfig

SMALL = GradingConfig(families=3, other_negatives=2, optimizer=OptimizerConfig(lr=1e-3, steps=2))


@pytest.fixture(scope="module")
def teacher() -> models.ViltScorer:
    captions = [
        line.text
        for index in range(100)
        for item in scenes.describe_family(1, "train", index)
        for line in item.statements
    ]
    size = models.ViltSize(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, hidden_dropout_prob=0.0
    )
    return scenes_teacher.new_teacher(scenes_teacher.PretrainingConfig(model=size), captions)


STAR = SceneObject("star", "red", "small", column=0, row=0, shift=(0.0, 0.0))
RING = SceneObject("ring", "blue", "large", column=3, row=0, shift=(0.0, 0.0))
SCENE = scenes.Scene((STAR, RING), scenes.BACKGROUNDS[0])
RED_STAR, BLUE_RING = Mention("star", "red", None, None), Mention("ring", "blue", None, None)


@pytest.mark.parametrize(
    ("subject", "relation", "thing", "expected"),
    [
        (RED_STAR, "left", BLUE_RING, 3 + 3 + 3),
        (RED_STAR, "right", BLUE_RING, 3 + 3),
        (Mention("star", "red", "large", None), "left", BLUE_RING, 2 + 3),
        (Mention("star", "blue", None, None), "left", BLUE_RING, 1 + 3),
        (Mention("heart", "green", None, None), "left", Mention("moon", "blue", None, None), 0 + 1),
    ],
    ids=["true", "wrong-relation", "wrong-size", "wrong-color", "one-color-there"],
)
def test_agreement_counts_what_holds(subject: Mention, relation: str, thing: Mention, expected: int) -> None:
    assert scenes_teacher.agreement(Statement("", subject, relation, thing), SCENE) == expected


def test_the_loss_is_matching_and_the_weighted_squared_distance_to_the_agreement() -> None:
    """Two pictures with two captions each: logits 4.5 and -2.5 on one side of agreements 9 and 1 that are -4.5 about
    the middle."""
    table_IT = torch.tensor([[4.5, -2.5], [-3.5, 4.5]])
    scorer = SimpleNamespace(
        encode_images=lambda images: None,
        encode_texts=lambda texts: None,
        score_pairs=lambda images, texts, image_ix, text_ix: table_IT[image_ix, text_ix],
    )
    text_ix_BK, agreement_BK = torch.tensor([[0, 1], [1, 0]]), torch.tensor([[9.0, 1.0], [9.0, 1.0]])
    batch = GradingBatch(None, None, text_ix_BK, agreement_BK)  # type: ignore[arg-type]
    parts = scenes_teacher.grading_objective(GradingConfig(agreement_weight=0.5))(scorer, batch)
    assert parts["agreement"].item() == pytest.approx(0.5 * (0 + 1 + 0 + 0) / 4)  # -2.5 and -3.5 beside 1 - 4.5 = -3.5
    assert parts["matching"].item() == pytest.approx(
        scenes_teacher.matching_loss(table_IT.gather(1, text_ix_BK), text_ix_BK).item()
    )


def test_grading_moves_the_weights_and_leaves_a_half_precision_model(
    tmp_path: Path, teacher: models.ViltScorer
) -> None:
    before = teacher.digest
    run = runs.start_run(tmp_path / "run", SMALL, "grade-teacher", {"start": before}, resume=True)
    scenes_teacher.grade(run, teacher, SMALL, options=TrainingOptions())
    assert models.load_fusion(run.folder).digest != before
    assert {"matching", "agreement"} <= set(run.metrics()[-1])
    scenes_teacher.grade(run, teacher, SMALL, options=TrainingOptions())  # finished: nothing is done again
