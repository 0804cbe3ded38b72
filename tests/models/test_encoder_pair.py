"""Co-attention scorers over any two pretrained encoders, with the class, students and scoring of METER."""

from __future__ import annotations

import sys

import pytest
import torch
from encoders import SIDE, VISION, make_pair, save_text, save_vision
from torch.testing import assert_close

from dcdctl.core import models
from dcdctl.core.errors import MissingError, ModelError
from dcdctl.core.models import FusionSize
from dcdctl.core.models.networks import backbones
from dcdctl.core.models.preprocess import square_image_processor

SMALL = FusionSize(hidden_size=16, num_layers=1, num_heads=2)


@pytest.fixture(params=[(vision, "bert") for vision in VISION] + [("tokens", "distilbert")], ids=" and ".join)
def pair(request, captions, tmp_path):
    return make_pair(captions, tmp_path, *request.param)


def test_with_frozen_encoders_the_transforms_are_trained(pair):
    pair.encoders.freeze()
    trained = {name.split(".")[0] for name, parameter in pair.network.named_parameters() if parameter.requires_grad}
    layers = {"text_layers", "image_layers", "text_pooler", "image_pooler", "rank_output"}
    assert trained == layers | {"image_transform", "text_transform", "modality"}


@pytest.mark.parametrize("is_frozen", [False, True])
def test_features_of_an_image_do_not_depend_on_the_batch_in_train_mode(captions, pil_images, tmp_path, is_frozen):
    pair = make_pair(captions, tmp_path, "map")
    if is_frozen:
        pair.encoders.freeze()
    before = pair.encoders.digest
    pair.train()
    together = pair.encoders.image_features(pair.preprocess.images(pil_images)).tokens
    alone = pair.encoders.image_features(pair.preprocess.images(pil_images[:1])).tokens
    assert_close(alone[0], together[0], rtol=1e-5, atol=1e-5)
    assert pair.encoders.digest == before


def test_the_digest_of_encoders_includes_batch_norm_statistics(captions, tmp_path):
    pair = make_pair(captions, tmp_path, "timm map")
    digest = pair.encoders.digest
    next(buffer for name, buffer in pair.network.vision.named_buffers() if name.endswith("running_mean")).add_(1)
    assert pair.encoders.digest != digest


def test_images_for_a_timm_encoder_are_preprocessed_by_timm(captions, pil_images, tmp_path):
    pair = make_pair(captions, tmp_path, "timm map")
    assert pair.preprocess.image_size_px == SIDE
    transform = pair.preprocess.image_processor.val_transforms
    expected = torch.stack([transform(image.convert("RGB")) for image in pil_images])
    assert torch.equal(pair.preprocess.images(pil_images).pixel_values, expected)


def test_feature_maps_and_square_token_grids_get_their_mean_as_first_token():
    map_ICHW = torch.arange(12.0).view(1, 3, 2, 2)
    tokens = backbones.to_tokens(map_ICHW, width=3)
    assert tokens[0].tolist() == [[1.5, 5.5, 9.5], [0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]
    assert torch.equal(backbones.to_tokens(map_ICHW.permute(0, 2, 3, 1), width=3), tokens)
    assert torch.equal(backbones.to_tokens(tokens[:, 1:], width=3), tokens)
    assert backbones.to_tokens(tokens, width=3) is tokens


def test_a_feature_map_is_averaged_to_a_grid_and_keeps_its_mean():
    map_ICHW = torch.arange(48.0).view(1, 3, 4, 4)
    tokens = backbones.to_tokens(map_ICHW, width=3, grid=2)
    assert tokens[0, :, 0].tolist() == [7.5, 2.5, 4.5, 10.5, 12.5]
    assert torch.equal(backbones.to_tokens(map_ICHW.permute(0, 2, 3, 1), width=3, grid=2), tokens)
    assert torch.equal(backbones.to_tokens(map_ICHW.flatten(2).transpose(1, 2), width=3, grid=2), tokens)
    assert backbones.to_tokens(torch.rand(1, 3, 5, 5), width=3, grid=2).shape == (1, 5, 3)


def test_another_image_size_is_refused_for_encoders_other_than_meters(captions, tmp_path):
    models.save(make_pair(captions, tmp_path, "clip"), tmp_path / "saved")
    with pytest.raises(ModelError, match="clip_vision_model vision encoder, whose image size cannot be changed"):
        models.load(tmp_path / "saved", {"image_size": 64})


def test_an_encoder_that_does_not_fit_is_refused_and_named(captions, tmp_path):
    vision, text = save_vision("tokens", tmp_path / "vision"), save_text("bert", captions, tmp_path / "text")
    (tmp_path / "text" / "tokenizer.json").unlink()
    with pytest.raises(
        ModelError,
        match=r"text holds no tokenizer's vocabulary; model\.text names a text model with its tokenizer",
    ):
        models.new_coattention(vision, text, SMALL)
    square_image_processor(SIDE + 8).save_pretrained(vision)
    with pytest.raises(
        ModelError, match=r"vision cannot be the vision side of a model: .*doesn't match.*; take a backbone"
    ):
        models.new_coattention(vision, save_text("bert", captions, tmp_path / "text"), SMALL)


def test_without_timm_the_error_says_how_to_install_it(captions, tmp_path, monkeypatch):
    vision, text = save_vision("timm map", tmp_path / "vision"), save_text("bert", captions, tmp_path / "text")

    def missing(*arguments, **options):
        raise ImportError("TimmWrapperModel requires the timm library")

    monkeypatch.setattr(backbones.AutoModel, "from_pretrained", missing)
    with pytest.raises(ImportError, match="TimmWrapperModel"):
        models.new_coattention(vision, text, SMALL)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingError, match=r"a timm model, needs timm, which is not installed; pip install 'timm>="):
        models.new_coattention(vision, text, SMALL)
