"""Co-attention over encoders that a user already has: any family, the same class, student and scoring as METER's."""

from __future__ import annotations

import sys

import pytest
import torch
from encoders import SIDE, TEXT, VISION, make_pair, save_text, save_vision
from torch.testing import assert_close

from dcdctl.core import models
from dcdctl.core.errors import MissingError, ModelError
from dcdctl.core.models import CoAttentionScorer, FusionSize, backbones
from dcdctl.core.models.preprocess import square_image_processor

IMAGES_P, TEXTS_P = torch.tensor([2, 0, 1, 0, 2, 1]), torch.tensor([0, 3, 1, 2, 3, 0])
SMALL = FusionSize(hidden_size=16, num_layers=1, num_heads=2)


@pytest.fixture(params=[(vision, "bert") for vision in VISION] + [("tokens", "distilbert")], ids=" and ".join)
def pair(request, captions, tmp_path):
    return make_pair(captions, tmp_path, *request.param)


@torch.no_grad()
def test_pairs_score_as_each_alone(pair, pictures, captions):
    images, texts = pair.preprocess.images(pictures), pair.preprocess.texts(captions)
    expected = pair.score(images.pixel_values[IMAGES_P], texts.input_ids[TEXTS_P], texts.attention_mask[TEXTS_P])
    assert_close(pair(images, texts, IMAGES_P, TEXTS_P), expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 1e-2


@torch.no_grad()
def test_a_saved_pair_is_the_same_model(pair, pictures, captions, tmp_path):
    models.save(pair, tmp_path / "saved")
    again = models.load(tmp_path / "saved")
    assert isinstance(again, CoAttentionScorer)
    assert (again.digest, again.encoders.digest) == (pair.digest, pair.encoders.digest)
    assert torch.equal(again.preprocess.images(pictures).pixel_values, pair.preprocess.images(pictures).pixel_values)
    texts = pair.preprocess.texts(captions)
    scores = [scorer(scorer.preprocess.images(pictures), texts, IMAGES_P, TEXTS_P) for scorer in (pair, again)]
    assert_close(scores[1], scores[0], rtol=1e-6, atol=1e-6)


def test_a_student_shares_the_encoders_and_trains_the_rest(pair, pictures, captions):
    student = pair.student([0, 2])
    assert student.encoders.is_frozen
    assert student.encoders.digest == pair.encoders.digest
    student.train()
    student(student.preprocess.images(pictures), student.preprocess.texts(captions), IMAGES_P, TEXTS_P).sum().backward()
    assert all(parameter.grad is None for parameter in student.network.vision.parameters())
    assert all(parameter.grad is not None for layer in student.layers for part in layer for parameter in part.parameters())


def test_frozen_encoders_leave_transforms_to_train(pair):
    pair.encoders.freeze()
    trained = {name.split(".")[0] for name, parameter in pair.network.named_parameters() if parameter.requires_grad}
    layers = {"text_layers", "image_layers", "text_pooler", "image_pooler", "rank_output"}
    assert trained == layers | {"image_transform", "text_transform", "modality"}


@pytest.mark.parametrize("is_frozen", [False, True])
def test_an_image_never_depends_on_its_neighbours_in_training(captions, pictures, tmp_path, is_frozen):
    pair = make_pair(captions, tmp_path, "map")
    if is_frozen:
        pair.encoders.freeze()
    before = pair.encoders.digest
    pair.train()
    together = pair.encoders.image_features(pair.preprocess.images(pictures)).tokens
    alone = pair.encoders.image_features(pair.preprocess.images(pictures[:1])).tokens
    assert_close(alone[0], together[0], rtol=1e-5, atol=1e-5)
    assert pair.encoders.digest == before


def test_statistics_of_batch_norms_are_part_of_the_fingerprint(captions, tmp_path):
    pair = make_pair(captions, tmp_path, "timm map")
    digest = pair.encoders.digest
    next(buffer for name, buffer in pair.network.vision.named_buffers() if name.endswith("running_mean")).add_(1)
    assert pair.encoders.digest != digest


def test_the_same_seed_gives_the_same_weights_and_draws_nothing(captions, tmp_path):
    refs = save_vision("tokens", tmp_path / "vision"), save_text("bert", captions, tmp_path / "text")
    state = torch.get_rng_state()
    digests = [models.new_coattention(*refs, SMALL, seed=seed).digest for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert digests[0] == digests[1] != digests[2]


def test_pictures_of_a_timm_encoder_are_prepared_by_timm(captions, pictures, tmp_path):
    pair = make_pair(captions, tmp_path, "timm map")
    assert pair.preprocess.image_size_px == SIDE
    transform = pair.preprocess.image_processor.val_transforms
    expected = torch.stack([transform(picture.convert("RGB")) for picture in pictures])
    assert torch.equal(pair.preprocess.images(pictures).pixel_values, expected)


def test_maps_and_squares_of_tokens_get_their_mean_as_first_token():
    map_ICHW = torch.arange(12.0).view(1, 3, 2, 2)
    tokens = backbones.to_tokens(map_ICHW, width=3)
    assert tokens[0].tolist() == [[1.5, 5.5, 9.5], [0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]
    assert torch.equal(backbones.to_tokens(map_ICHW.permute(0, 2, 3, 1), width=3), tokens)
    assert torch.equal(backbones.to_tokens(tokens[:, 1:], width=3), tokens)
    assert backbones.to_tokens(tokens, width=3) is tokens


def test_a_map_is_averaged_to_a_grid_and_its_mean_stays_that_of_all_places():
    map_ICHW = torch.arange(48.0).view(1, 3, 4, 4)
    tokens = backbones.to_tokens(map_ICHW, width=3, grid=2)
    assert tokens[0, :, 0].tolist() == [7.5, 2.5, 4.5, 10.5, 12.5]
    assert torch.equal(backbones.to_tokens(map_ICHW.permute(0, 2, 3, 1), width=3, grid=2), tokens)
    assert torch.equal(backbones.to_tokens(map_ICHW.flatten(2).transpose(1, 2), width=3, grid=2), tokens)
    assert backbones.to_tokens(torch.rand(1, 3, 5, 5), width=3, grid=2).shape == (1, 5, 3)


def test_positions_of_other_encoders_are_not_resized(captions, tmp_path):
    models.save(make_pair(captions, tmp_path, "clip"), tmp_path / "saved")
    with pytest.raises(ModelError, match="clip_vision_model vision encoder, whose image size cannot be changed"):
        models.load(tmp_path / "saved", {"image_size": 64})


def test_what_cannot_be_a_side_is_refused_by_name(captions, tmp_path):
    vision, text = save_vision("tokens", tmp_path / "vision"), save_text("bert", captions, tmp_path / "text")
    with pytest.raises(ModelError, match="absent"):
        models.new_coattention(str(tmp_path / "absent"), text, SMALL)
    with pytest.raises(ModelError, match="vision is a vit model and reads pixel_values, expected one that reads input_ids"):
        models.new_coattention(vision, vision, SMALL)
    with pytest.raises(ModelError, match="text is a bert model and reads input_ids, expected one that reads pixel_values"):
        models.new_coattention(text, text, SMALL)
    (tmp_path / "text" / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"text holds no tokenizer's vocabulary; model\.text names a text model with its tokenizer"):
        models.new_coattention(vision, text, SMALL)
    square_image_processor(SIDE + 8).save_pretrained(vision)
    with pytest.raises(ModelError, match=r"vision cannot be one side of a co-attention model: .*doesn't match.*; vision: a backbone"):
        models.new_coattention(vision, save_text("bert", captions, tmp_path / "text"), SMALL)


def test_without_timm_the_error_says_how_to_install_it(captions, tmp_path, monkeypatch):
    vision, text = save_vision("timm map", tmp_path / "vision"), save_text("bert", captions, tmp_path / "text")

    def missing(*arguments, **named):
        raise ImportError("TimmWrapperModel requires the timm library")

    monkeypatch.setattr(backbones.AutoModel, "from_pretrained", missing)
    with pytest.raises(ImportError, match="TimmWrapperModel"):
        models.new_coattention(vision, text, SMALL)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingError, match=r"a timm model, needs timm, which is not installed; pip install 'dcdctl\[timm\]'"):
        models.new_coattention(vision, text, SMALL)


def test_every_text_family_gives_real_tokens_only(captions, tmp_path):
    for kind in TEXT:
        pair = make_pair(captions, tmp_path / kind, text=kind)
        texts = pair.preprocess.texts(captions)
        assert torch.equal(pair.encode_texts(texts).mask, texts.attention_mask.bool())
