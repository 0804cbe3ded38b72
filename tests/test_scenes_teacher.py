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
IGNORED, OBJECT_WORDS = scenes_teacher.IGNORED, scenes_teacher.OBJECT_WORDS
PretrainingBatches = scenes_teacher.PretrainingBatches

SMALL = scenes_teacher.PretrainingConfig(
    families=3,
    other_negatives=2,
    words_only_steps=2,
    model=models.ViltSize(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, hidden_dropout_prob=0.0
    ),
    optimizer=OptimizerConfig(lr=1e-3, steps=4, save_every=2),
)


@pytest.fixture(scope="module")
def captions() -> list[str]:
    return [
        line.text
        for index in range(300)
        for item in scenes.describe_family(1, "train", index)
        for line in item.statements
    ]


@pytest.fixture(scope="module")
def batches(captions: list[str]) -> PretrainingBatches:
    return PretrainingBatches(scenes_teacher.new_teacher(SMALL, captions).preprocess, SMALL)


def test_a_step_is_the_same_whenever_it_is_asked_for_and_no_scene_comes_twice(batches: PretrainingBatches) -> None:
    first, again = batches[3], batches[3]
    assert_close(first.images.pixel_values, again.images.pixel_values, rtol=0, atol=0)
    assert first.masked_ids_BL.equal(again.masked_ids_BL)
    pictures = torch.cat([batches[step].images.pixel_values for step in range(4)]).flatten(1)
    assert len(pictures.unique(dim=0)) == len(pictures)


def test_only_words_that_say_something_are_masked_and_the_rest_is_as_it_was(batches: PretrainingBatches) -> None:
    batch = batches[0]
    tokenizer = batches.preprocess.tokenizer
    is_masked_BL = batch.masked_ids_BL == tokenizer.mask_token_id
    hidden = batch.texts.input_ids[is_masked_BL].tolist()
    assert hidden
    assert set(tokenizer.convert_ids_to_tokens(hidden)) <= set(scenes_teacher.CONTENT_WORDS)
    assert batch.masked_ids_BL[~is_masked_BL].equal(batch.texts.input_ids[~is_masked_BL])


def test_in_half_of_the_captions_the_relation_is_masked_and_nothing_else(batches: PretrainingBatches) -> None:
    tokenizer = batches.preprocess.tokenizer
    drawn = [batches[step] for step in range(4)]
    relations = 0
    for batch in drawn:
        for ids, masked_ids in zip(batch.texts.input_ids, batch.masked_ids_BL, strict=True):
            words = tokenizer.convert_ids_to_tokens(ids[ids != masked_ids].tolist())
            said = [
                word for word in tokenizer.convert_ids_to_tokens(ids.tolist()) if word in scenes_teacher.RELATION_WORDS
            ]
            relations += words == said
    captions = sum(len(batch.texts) for batch in drawn)
    assert 0.3 * captions < relations < 0.75 * captions


def test_places_are_those_of_the_objects_that_the_caption_names(batches: PretrainingBatches) -> None:
    described = [
        item for index in range(4) for item in scenes.describe_family(SMALL.seed, "train", index)
    ]  # those of step 0
    batch = batches[0]
    tokenizer = batches.preprocess.tokenizer
    for item, ids, places in zip(described, batch.texts.input_ids, batch.patches_BL, strict=True):
        patches = {
            tokenizer.convert_ids_to_tokens(int(ids[k])): int(places[k])
            for k in (places != IGNORED).nonzero().flatten()
        }
        assert len(patches) == 2
        cells = {
            drawn_object.shape: drawn_object.row * scenes.GRID + drawn_object.column
            for drawn_object in item.scene.objects
        }
        assert patches == {shape: cells[shape] for shape in patches}


def test_every_content_word_is_one_token(captions: list[str]) -> None:
    tokenizer = models.word_piece(captions)
    assert not [word for word in scenes_teacher.CONTENT_WORDS if tokenizer.tokenize(word) != [word]]


def test_object_labels_name_what_lies_in_each_cell(batches: PretrainingBatches) -> None:
    drawn_object = scenes.SceneObject("heart", "teal", "large", column=2, row=1, shift=(0.0, 0.0))
    labels, _ = batches._labels(torch.zeros(3), scenes.Scene((drawn_object,), scenes.BACKGROUNDS[0]))
    assert [known[index] for known, index in zip(OBJECT_WORDS, labels[1 * 4 + 2].tolist(), strict=True)] == [
        "heart",
        "teal",
        "large",
    ]
    assert (labels == IGNORED).sum() == 15 * 3


def test_each_picture_is_compared_with_its_family_and_other_families_and_each_column_is_a_permutation() -> None:
    text_ix_BK = scenes_teacher.candidate_texts(np.random.default_rng(0), 5, 3)
    assert text_ix_BK.shape == (20, 4 + 3)
    assert text_ix_BK[:, 0].equal(torch.arange(20))
    for picture, row in enumerate(text_ix_BK.tolist()):
        assert {text // 4 for text in row[:4]} == {picture // 4}
        assert len(set(row)) == 7
        assert picture // 4 not in {text // 4 for text in row[4:]}
    assert (text_ix_BK.sort(dim=0).values == torch.arange(20)[:, None]).all()


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
