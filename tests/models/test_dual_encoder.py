"""Dual encoders: unit embeddings, and saved models that plain transformers loads."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES
from torch.nn import functional
from torch.testing import assert_close
from transformers import (
    BertConfig,
    BertModel,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from dcdctl.core import models
from dcdctl.core.errors import ModelError

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture
def backbones(tmp_path, tokenizer):
    ViTModel(ViTConfig(image_size=16, patch_size=8, **SMALL)).save_pretrained(tmp_path / "vision")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vision")
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=20, **SMALL)).save_pretrained(
        tmp_path / "text"
    )
    tokenizer.save_pretrained(tmp_path / "text")
    return str(tmp_path / "vision"), str(tmp_path / "text")


@torch.no_grad()
def test_the_logit_scale_is_exponential_and_at_most_100(dual):
    dual.network.logit_scale.fill_(1.5)
    assert dual.logit_scale.item() == pytest.approx(4.4816890)
    dual.network.logit_scale.fill_(9.0)
    assert dual.logit_scale.item() == 100


@torch.no_grad()
def test_a_temperature_divides(captions, tmp_path):
    align = FAMILIES["ALIGN"](captions, tmp_path)
    align.network.temperature.fill_(0.25)
    assert align.logit_scale.tolist() == 4


def test_layers_of_towers_are_not_chosen_without_towers_of_transformers(captions, tmp_path):
    frozen = FAMILIES["frozen dual"](captions, tmp_path)
    for vision, text in (([0], []), ([], [0]), ([0], [0])):
        with pytest.raises(ModelError, match=r"model\.vision_layers and model\.text_layers is for dual encoders of"):
            frozen.keep_layers(vision, text)
    frozen.keep_layers([], [])


@torch.no_grad()
def test_plain_transformers_loads_a_saved_model_with_equal_embeddings(dual, pil_images, captions, tmp_path):
    models.save(dual, tmp_path / "dual")
    plain = VisionTextDualEncoderModel.from_pretrained(tmp_path / "dual").eval()
    images, texts = dual.preprocess.images(pil_images), dual.preprocess.texts(captions)
    output = plain(input_ids=texts.input_ids, attention_mask=texts.attention_mask, pixel_values=images.pixel_values)
    images_ID, texts_TD = dual(images, texts)
    assert_close(output.image_embeds, images_ID, rtol=0, atol=1e-6)
    assert_close(output.text_embeds, texts_TD, rtol=0, atol=1e-6)
    assert_close(output.logits_per_image, dual.logit_scale * images_ID @ texts_TD.T, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_dual_encoder_from_two_backbones_has_their_weights(backbones, pil_images, captions):
    model = models.dual_from_backbones(*backbones, projection_dim=8)
    assert model.preprocess.max_text_len == 20
    texts = model.preprocess.texts(captions)
    bert = BertModel.from_pretrained(backbones[1]).eval()
    pooled = bert(input_ids=texts.input_ids, attention_mask=texts.attention_mask).pooler_output
    expected = functional.normalize(model.network.text_projection(pooled), dim=-1)
    assert_close(model.embed_texts(texts), expected)
    assert model.embed_images(model.preprocess.images(pil_images)).shape == (3, 8)
