"""Dual encoders over two encoders whose last layers are trained, from pixels or from the stored states below them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from encoders import SIDE, TEXT, VISION
from open_inputs import OpenInputs
from torch import nn
from torch.testing import assert_close
from transformers import AutoModel, TimmWrapperConfig, ViTConfig

from dcdctl.core import models
from dcdctl.core.data import Corpus
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ConfigError, ModelError
from dcdctl.core.models import FeatureSpec, FrozenDual, ProjectionSize
from dcdctl.core.models.networks.lower_layers import LowerLayers
from dcdctl.core.models.networks.towers import TrainedParts
from dcdctl.core.models.preprocess import square_image_processor
from dcdctl.core.training import TrainingJob, TrainingOptions, train_model
from dcdctl.core.training.corpus_data import check_features

ENCODERS: dict[str, Any] = {
    "timm blocks": TimmWrapperConfig(
        architecture="test_efficientnet", num_labels=0, pretrained_cfg=VISION["timm map"].pretrained_cfg
    ),
    "tokens": ViTConfig(
        image_size=SIDE, patch_size=8, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16
    ),
}
AS_IT_IS = FeatureSpec()
LEVELS = FeatureSpec(levels=(3, 4), grid=2)
"""Stages of a timm model: the outputs of its last two blocks."""


def make_dual(
    captions: list[str], folder: Path, vision: str = "timm blocks", spec: FeatureSpec = AS_IT_IS
) -> FrozenDual:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        AutoModel.from_config(ENCODERS[vision]).save_pretrained(folder / "vision")
    if vision == "timm blocks":
        (folder / "vision" / "preprocessor_config.json").write_text(
            '{"image_processor_type": "TimmWrapperImageProcessor"}'
        )
    else:
        square_image_processor(SIDE).save_pretrained(folder / "vision")
    tokenizer = models.word_piece(captions, 120)
    tokenizer.save_pretrained(folder / "text")
    config = TEXT["bert"](len(tokenizer))
    config.num_hidden_layers = 2
    AutoModel.from_config(config).save_pretrained(folder / "text")
    size = ProjectionSize(projection_dim=8, dropout=0.0)
    return models.new_frozen_dual(
        str(folder / "vision"), str(folder / "text"), size, max_text_len=12, features=spec, seed=0
    )


def cut(dual: FrozenDual, num_layers: int = 1) -> LowerLayers:
    """The lower layers of a dual encoder whose last ones are trained."""
    dual.set_trained(TrainedParts(which="last-layers", num_layers=num_layers))
    assert isinstance(dual.encoders, LowerLayers)
    return dual.encoders


@pytest.mark.parametrize("are_recomputed", [False, True])
@pytest.mark.parametrize(("vision", "spec"), [("timm blocks", LEVELS), ("timm blocks", AS_IT_IS), ("tokens", AS_IT_IS)])
def test_vectors_and_gradients_from_stored_states_are_those_from_pixels(
    vision, spec, are_recomputed, captions, pil_images, tmp_path
):
    dual = make_dual(captions, tmp_path, vision, spec)
    lower = cut(dual)
    if are_recomputed:
        # timm then calls the blocks in its stages, and no stage. Encoders of transformers do it in training alone.
        dual.checkpoint_activations()
        dual.train()
        for module in dual.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    images, texts = dual.preprocess.images(pil_images), dual.preprocess.texts(captions)
    with torch.no_grad():
        stored = lower.image_features(images), lower.text_features(texts)
    assert stored[0].tokens.shape[1] == 1
    found: dict[str, tuple[Any, ...]] = {}
    for name, sides in (("pixels", (images, texts)), ("stored", stored)):
        dual.zero_grad()
        image_ID, text_TD = dual(*sides)
        (image_ID @ text_TD.T).square().sum().backward()
        found[name] = (
            image_ID.detach(),
            text_TD.detach(),
            {key: each.grad.clone() for key, each in dual.named_parameters() if each.grad is not None},
        )
    assert_close(found["stored"], found["pixels"], rtol=1e-4, atol=1e-6)
    trained = {key for key, each in dual.named_parameters() if each.requires_grad}
    layers = [tower.layers for tower in dual.towers]
    for prefix, module in layers:
        assert any(key.startswith(f"{prefix}.{len(module) - 1}.") for key in trained)
        assert not any(key.startswith(f"{prefix}.{len(module) - 2}.") for key in trained)
    # Nothing is left of the replacement.
    assert all(type(layer).__name__ != "_Giving" for _, module in layers for layer in module)


def test_what_is_trained_changes_no_fingerprint_and_what_lies_below_does(captions, tmp_path):
    dual = make_dual(captions, tmp_path)
    lower = cut(dual, 1)
    before = lower.digest, lower.text_digest
    changed = {"above": set[int](), "below": set[int]()}
    for name, tensor in dual.network.state_dict().items():
        if not tensor.is_floating_point() or name.startswith("projections."):
            continue
        kept = tensor.clone()
        tensor.add_(1)
        is_below = lower.digest != before[0]
        side = 0 if name.startswith("vision.") else 1
        prefix, layers = dual.towers[side].layers
        is_last = name.startswith(f"{prefix.removeprefix('network.')}.{len(layers) - 1}.")
        is_head = name.startswith(("vision.timm_model.conv_head.", "vision.timm_model.bn2."))
        assert is_below == (not is_last and not is_head), name
        assert (lower.text_digest != before[1]) == (is_below and side == 1), name
        changed["below" if is_below else "above"].add(side)
        tensor.copy_(kept)
    assert changed == {"above": {0, 1}, "below": {0, 1}}


def test_levels_below_the_stored_states_are_refused_with_the_number_that_reads_them(captions, pil_images, tmp_path):
    dual = make_dual(captions, tmp_path, spec=dataclasses.replace(LEVELS, levels=(1, 4)))
    images = dual.preprocess.images(pil_images)
    num_layers = len(dual.towers[0].layers[1])
    with pytest.raises(ModelError, match=rf"reads layers .* not stored; set model.trained_layers to {num_layers - 2}"):
        cut(dual, 1).image_features(images)
    # Without stored states nothing is refused.
    assert dual.embed_images(images).shape == (len(pil_images), 8)


def test_stored_states_of_an_encoder_that_is_trained_as_a_whole_are_refused(captions, tmp_path):
    dual = make_dual(captions, tmp_path)
    compute = Compute(features=tmp_path / "features")
    cut(dual, 1)
    check_features(dual, compute)
    # The text encoder has two layers.
    dual.set_trained(TrainedParts(which="last-layers", num_layers=2))
    with pytest.raises(ConfigError, match=r"are trained; .* fewer model\.trained_layers than each encoder has"):
        check_features(dual, compute)
    dual.set_trained(TrainedParts())
    assert not isinstance(dual.encoders, LowerLayers)


def test_a_training_from_stored_states_is_that_from_pixels_and_reads_no_image(corpus, tmp_path, monkeypatch):
    models.save(make_dual(corpus.captions, tmp_path), tmp_path / "start")
    sets = ["model.kind=dual", "model.layers=[]", "model.trained=last-layers", "model.trained_layers=1"]
    sets += [f"model.start={tmp_path / 'start'}", "loss.terms={ infonce = 1.0 }", "batch.size=4", "optimizer.steps=3"]

    def losses(name: str, features: Path | None) -> list[float]:
        run = train_model(
            TrainingJob("distill", "tiny-student", sets, tmp_path / name),
            OpenInputs(corpus, [], None),
            options=TrainingOptions(compute=Compute(features=features)),
        )
        return [line["loss"] for line in run.metrics()]

    plain = losses("plain", None)
    stored = losses("stored", tmp_path / "features")
    assert stored == pytest.approx(plain, rel=1e-3)
    assert stored != plain  # rounded to float16
    # The start's states serve every run of as many trained layers.
    monkeypatch.setattr(Corpus, "images", lambda *_: pytest.fail("an image was read"))
    assert losses("again", tmp_path / "features") == stored


def test_trained_depthwise_convolutions_compute_in_float32_under_autocast(captions, pil_images, tmp_path):
    dual = make_dual(captions, tmp_path)
    vision, images = dual.encoder_pair.vision, dual.preprocess.images(pil_images)
    depthwise = [layer for layer in vision.modules() if isinstance(layer, nn.Conv2d) and layer.groups > 1]
    types: list[list[torch.dtype]] = []
    for layer in depthwise:
        layer.register_forward_hook(lambda *call: types[-1].append(call[-1].dtype))
    # Only the last of three blocks is trained, and only its training is in float32.
    cut(dual)
    for with_gradient in (True, False):
        types.append([])
        with torch.set_grad_enabled(with_gradient), torch.autocast("cpu", torch.bfloat16):
            vision(pixel_values=images.pixel_values)
    in_training, without = types
    assert [kind for kind in in_training if kind is torch.float32] == in_training[-1:]
    assert set(without) == {torch.bfloat16}
