"""The pretraining of the built-in teacher."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scripts
import torch
from torch.testing import assert_close

from dcdctl.core import models
from dcdctl.core.data import scenes
from dcdctl.core.training import TrainingOptions, runs
from dcdctl.core.training.recipe import OptimizerConfig

scenes_teacher = scripts.load("scenes_teacher")

SMALL = scenes_teacher.PretrainingConfig(
    families=3,
    other_negatives=2,
    words_only_steps=2,
    model=models.ViltSize(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, hidden_dropout_prob=0.0
    ),
    optimizer=OptimizerConfig(lr=1e-3, steps=4, save_every=2),
)


def test_matching_compares_a_caption_with_the_images_that_drew_it() -> None:
    text_ix_BK = torch.tensor([[0, 1], [1, 2], [2, 0]])
    logits_BK = torch.tensor([[2.0, 0.5], [1.0, 3.0], [0.0, -1.0]])
    score = {
        (image, text): logits_BK[image, k].item()
        for image, row in enumerate(text_ix_BK.tolist())
        for k, text in enumerate(row)
    }
    drew = {text: image for image, (_, text) in enumerate(text_ix_BK.tolist())}
    rows = [np.logaddexp(*row) - row[0] for row in logits_BK.tolist()]
    columns = [np.logaddexp(score[text, text], score[drew[text], text]) - score[text, text] for text in range(3)]
    loss = scenes_teacher.matching_loss(logits_BK, text_ix_BK)
    assert loss.item() == pytest.approx((np.mean(rows) + np.mean(columns)) / 2, abs=1e-6)


def test_pretraining_leaves_a_half_precision_model_that_scores(tmp_path: Path) -> None:
    run = runs.start_run(tmp_path / "run", SMALL, "pretrain-teacher", {}, resume=True)
    scenes_teacher.pretrain(run, SMALL, options=TrainingOptions())
    teacher = models.load_fusion(run.folder)
    assert {"words", "objects", "places", "matching"} <= set(run.metrics()[-1])
    assert "matching" not in run.metrics()[0]
    described = scenes.describe_family(5, "val", 0)
    images = teacher.encode_images(teacher.preprocess.images([scenes.draw_scene(item.scene) for item in described]))
    texts = teacher.encode_texts(teacher.preprocess.texts([item.statements[0].text for item in described]))
    text_ix_BK = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0]])
    logits_BK = scenes_teacher.candidate_logits(teacher, images, texts, text_ix_BK)
    for image, row in enumerate(text_ix_BK):
        expected = teacher.score_pairs(images, texts, torch.tensor([image, image]), row)
        assert_close(logits_BK[image], expected)
