"""Dual encoders over two frozen encoders of any family, from pixels or from stored features."""

from __future__ import annotations

import json

import pytest
import torch
from encoders import VISION, save_text, save_vision
from open_inputs import OpenInputs
from torch.testing import assert_close

from dcdctl.core import models
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ModelError
from dcdctl.core.evaluation import EvalOptions, evaluate
from dcdctl.core.models import FeatureSpec, FrozenDual, ProjectionSize
from dcdctl.core.training import TrainingJob, TrainingOptions, train_model

SIZE = ProjectionSize(projection_dim=8, dropout=0.5)


def make_dual(captions, folder, vision: str = "map", text: str = "bert", seed: int = 0) -> FrozenDual:
    refs = save_vision(vision, folder / "vision"), save_text(text, captions, folder / "text")
    return models.new_frozen_dual(*refs, SIZE, max_text_len=12, seed=seed)


@pytest.fixture(params=[*((vision, "bert") for vision in VISION), ("tokens", "distilbert")], ids=" and ".join)
def dual(request, captions, tmp_path):
    return make_dual(captions, tmp_path, *request.param)


@torch.no_grad()
def test_a_caption_embedding_projects_the_mean_of_its_tokens_without_padding(captions, tmp_path):
    dual = make_dual(captions, tmp_path)
    text = dual.preprocess.texts(captions[:1])
    tokens_LW = dual.network.text(input_ids=text.input_ids, attention_mask=text.attention_mask).last_hidden_state[0]
    mean = tokens_LW.mean(dim=0)
    normed = (mean - mean.mean()) / (mean.var(unbiased=False) + 1e-5).sqrt()
    expected = dual.network.projections.text_projection(normed)
    assert_close(dual.embed_texts(text)[0], expected / expected.norm(), rtol=1e-5, atol=1e-6)
    assert_close(dual.embed_texts(dual.preprocess.texts(captions))[0], expected / expected.norm(), rtol=1e-4, atol=1e-5)


def test_only_projections_are_trained_and_encoders_stay_in_eval_mode(dual, pil_images, captions):
    dual.train()
    images_ID, texts_TD = dual(dual.preprocess.images(pil_images), dual.preprocess.texts(captions))
    (images_ID.sum() + texts_TD.sum()).backward()
    trained = {name for name, parameter in dual.network.named_parameters() if parameter.grad is not None}
    projections = {"projections.image_projection", "projections.text_projection"}
    assert trained == {f"{projection}.{part}" for projection in projections for part in ("weight", "bias")}
    assert not dual.network.vision.training
    assert dual.network.projections.dropout.training


@pytest.mark.parametrize("vision", ["timm map", "tokens"])
def test_an_export_has_the_architecture_of_an_encoder_of_timm(vision, captions, tmp_path):
    dual = make_dual(captions, tmp_path, vision)
    spec = dual.export_spec()
    assert (spec.code, spec.model_class) == ("modeling_encoder_dual", "EncoderDualModel")
    if vision == "tokens":
        assert spec.timm_config is None
    else:
        saved = json.loads((tmp_path / "vision" / "config.json").read_text())
        assert spec.timm_config.architecture == saved["architecture"]


def test_training_and_evaluation_run_from_features_on_disk(corpus, tmp_path):
    refs = save_vision("map", tmp_path / "vision"), save_text("bert", corpus.captions, tmp_path / "text")
    recipe = tmp_path / "dual.toml"
    recipe.write_text(
        f'[model]\nkind = "dual"\nstart = "new"\nvision = "{refs[0]}"\ntext = "{refs[1]}"\nfrozen_encoders = '
        "true\nprojection_dim = 8\n"
        "max_text_len = 12\n[loss]\nterms = { infonce = 1.0 }\n[batch]\nsize = 8\n[optimizer]\nlr = 1e-2\nsteps = 30\n"
    )
    options = TrainingOptions(compute=Compute(features=tmp_path / "features"))
    run = train_model(
        TrainingJob("distill", str(recipe), [], tmp_path / "run"), OpenInputs(corpus, [], None), options=options
    )
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]
    student = models.load_dual(run.folder)
    from_features = evaluate.evaluate_model(
        student, corpus, options=EvalOptions(compute=Compute(features=tmp_path / "features"))
    )
    from_images = evaluate.evaluate_model(student, corpus)
    assert from_features.protocol.features == "float16"
    assert abs(from_features.rsum - from_images.rsum) < 15  # of 32 images, each hit is 3 points
    assert len(list((tmp_path / "features").iterdir())) == 1


@pytest.mark.parametrize(("vision", "levels"), [("timm map", (1, 3)), ("tokens", (0,)), ("clip", (1, 0))])
@torch.no_grad()
def test_earlier_stages_are_added_to_the_output_and_saved_with_the_model(
    vision, levels, pil_images, captions, tmp_path
):
    plain = make_dual(captions, tmp_path, vision)
    refs = str(tmp_path / "vision"), str(tmp_path / "text")
    spec = FeatureSpec(levels=levels, grid=2 if vision == "timm map" else None)
    dual = models.new_frozen_dual(*refs, SIZE, max_text_len=12, features=spec)
    images = dual.preprocess.images(pil_images)
    tokens_IVW, plain_IVW = dual.encoders.image_features(images).tokens, plain.encoders.image_features(images).tokens
    assert_close(tokens_IVW[:, 0, : plain_IVW.shape[2]], plain_IVW[:, 0])
    assert tokens_IVW.shape[1] == (5 if vision == "timm map" else plain_IVW.shape[1])
    assert tokens_IVW.shape[2] > plain_IVW.shape[2]
    assert dual.encoders.digest != plain.encoders.digest
    if vision == "timm map":
        _, maps = dual.network.vision.timm_model.forward_intermediates(images.pixel_values, indices=list(levels))
        means_IW = torch.cat([map_ICHW.mean(dim=(2, 3)) for map_ICHW in maps], dim=1)
        assert_close(tokens_IVW[:, 0, plain_IVW.shape[2] :], means_IW, rtol=1e-5, atol=1e-5)
    models.save(dual, tmp_path / "saved")
    reloaded = models.load_dual(tmp_path / "saved")
    assert reloaded.digest == dual.digest
    assert_close(reloaded.embed_images(images), dual.embed_images(images), rtol=1e-6, atol=1e-6)
    pair = models.new_coattention(
        *refs, models.FusionSize(hidden_size=12, num_layers=1, num_heads=2), max_text_len=12, features=spec
    )
    assert pair.encoders.digest == dual.encoders.digest


@pytest.mark.parametrize(
    ("vision", "levels", "hint"),
    [
        ("timm map", (9,), "known: 0 to "),
        ("map", (0,), "timm's models with feature maps and transformers have some"),
        ("timm tokens", (0,), "timm's models with feature maps and transformers have some"),
        ("tokens", (1, 1), "known: 0 to "),
    ],
)
def test_invalid_stages_of_an_encoder_are_refused(vision, levels, hint, captions, tmp_path):
    refs = save_vision(vision, tmp_path / "vision"), save_text("bert", captions, tmp_path / "text")
    with pytest.raises(ModelError, match=rf"model.vision_levels is \[.*\], not stages of .*{hint}"):
        models.new_frozen_dual(*refs, SIZE, max_text_len=12, features=FeatureSpec(levels=levels))


def test_a_grid_requires_an_encoder_with_feature_maps(captions, tmp_path):
    refs = save_vision("clip", tmp_path / "vision"), save_text("bert", captions, tmp_path / "text")
    with pytest.raises(
        ModelError, match=r"model\.vision_grid is for encoders with feature maps, and this one gives 17 tokens"
    ):
        models.new_frozen_dual(*refs, SIZE, max_text_len=12, features=FeatureSpec(grid=2))


@torch.no_grad()
def test_a_convolutional_encoder_takes_larger_images_and_saves_the_size(pil_images, captions, tmp_path):
    plain = make_dual(captions, tmp_path, "timm map")
    refs = str(tmp_path / "vision"), str(tmp_path / "text")
    dual = models.new_frozen_dual(*refs, SIZE, max_text_len=12, features=FeatureSpec(size=96))
    assert dual.preprocess.images(pil_images).pixel_values.shape[-2:] == (96, 96)
    assert dual.encoders.digest != plain.encoders.digest
    models.save(dual, tmp_path / "saved")
    reloaded = models.load_dual(tmp_path / "saved")
    assert reloaded.digest == dual.digest
    assert reloaded.preprocess.images(pil_images).pixel_values.shape[-2:] == (96, 96)


@pytest.mark.parametrize("vision", ["map", "timm tokens", "tokens"])
def test_another_image_size_is_refused_for_other_encoders(vision, captions, tmp_path):
    refs = save_vision(vision, tmp_path / "vision"), save_text("bert", captions, tmp_path / "text")
    with pytest.raises(ModelError, match=r"model\.vision_size is for timm's models with feature maps"):
        models.new_frozen_dual(*refs, SIZE, max_text_len=12, features=FeatureSpec(size=96))
