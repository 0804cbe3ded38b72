"""ViLT: scores equal those of the official code and of transformers in any batch, and do not change the random
state."""

from __future__ import annotations

import pytest
import torch
from plain_scores import plain_score
from torch.testing import assert_close

from dcdctl.core import models
from dcdctl.core.models import ImageBatch, States, ViltSize

TOLERANCE = {"rtol": 0.0, "atol": 1e-5}


def _all_pairs(num_images, num_texts):
    return torch.arange(num_images).repeat_interleave(num_texts), torch.arange(num_texts).repeat(num_images)


@torch.no_grad()
def test_without_a_pixel_mask_zero_pixels_count_as_padding(official_model):
    images, texts = official_model.inputs()
    scorer = official_model.scorer()
    with_mask, without = scorer.encode_images(images), scorer.encode_images(ImageBatch(images.pixel_values))
    assert torch.equal(with_mask.mask, without.mask)
    assert torch.equal(with_mask.tokens, without.tokens)
    scores = plain_score(scorer, images.pixel_values, texts.input_ids, texts.attention_mask)
    assert_close(scores, official_model.tensors["out.rank_score"], **TOLERANCE)


@torch.no_grad()
def test_a_patch_of_zero_pixels_is_masked_as_in_transformers(vilt, pil_images, captions):
    images, texts = vilt.preprocess.images(pil_images[:1]), vilt.preprocess.texts(captions[:1])
    images.pixel_values[0, :, 8:16, 16:24] = 0
    scores = vilt(ImageBatch(images.pixel_values), texts, torch.tensor([0]), torch.tensor([0]))
    assert vilt.encode_images(ImageBatch(images.pixel_values)).mask.sum() == 1 + 16 - 1
    assert_close(scores, plain_score(vilt, images.pixel_values, texts.input_ids, texts.attention_mask), **TOLERANCE)


@torch.no_grad()
def test_image_tokens_equal_those_of_transformers_up_to_order(vilt, pil_images):
    images = vilt.preprocess.images(pil_images)
    states = vilt.encode_images(images)
    embeddings = vilt.network.vilt.embeddings
    tokens, mask, (patch_index, (_, width)) = embeddings.visual_embed(
        images.pixel_values, images.pixel_mask, max_image_length=-1
    )
    tokens = tokens + embeddings.token_type_embeddings.weight[1]
    assert_close(states.tokens[:, 0], tokens[:, 0])
    for i in range(len(images)):
        real = mask[i, 1:].bool()
        position = patch_index[i, real, 0] * width + patch_index[i, real, 1]
        assert_close(states.tokens[i, 1:][states.mask[i, 1:]], tokens[i, 1:][real][position.argsort()])


@pytest.mark.parametrize("num_layers", range(1, 7))
@pytest.mark.parametrize(("width", "num_heads"), [(8, 1), (24, 3), (48, 12)])
@torch.no_grad()
def test_pairs_score_as_each_alone_for_any_shape(num_layers, width, num_heads, tokenizer, pil_images, captions):
    size = ViltSize(
        hidden_size=width,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
    )
    vilt = models.new_vilt(size, tokenizer, seed=num_layers)
    for parameter in vilt.parameters():
        parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(num_layers))
    images, texts = vilt.preprocess.images(pil_images), vilt.preprocess.texts(captions)
    image_ix, text_ix = torch.tensor([2, 0, 1, 2, 0, 2]), torch.tensor([3, 0, 3, 1, 2, 3])
    inputs = (
        images.pixel_values[image_ix],
        texts.input_ids[text_ix],
        texts.attention_mask[text_ix],
        images.pixel_mask[image_ix],
    )
    expected = plain_score(vilt, *inputs)
    assert_close(vilt(images, texts, image_ix, text_ix), expected, **TOLERANCE)
    assert_close(vilt(images, texts, image_ix[:1], text_ix[:1]), expected[:1], **TOLERANCE)


@torch.no_grad()
def test_scores_from_fused_tokens_equal_those_of_score_pairs(vilt, pil_images, captions):
    images, texts = (
        vilt.encode_images(vilt.preprocess.images(pil_images)),
        vilt.encode_texts(vilt.preprocess.texts(captions)),
    )
    image_ix, text_ix = _all_pairs(3, 4)
    fused = vilt.fuse(images, texts, image_ix, text_ix)
    scores = vilt.network.rank_output(vilt.network.vilt.pooler(fused)).squeeze(-1)
    assert_close(scores, vilt.score_pairs(images, texts, image_ix, text_ix), **TOLERANCE)


def test_gradients_of_pairs_equal_those_of_the_reference_forward(vilt, pil_images, captions):
    images, texts = vilt.preprocess.images(pil_images), vilt.preprocess.texts(captions[:3])
    diagonal = torch.arange(3)
    plain_score(
        vilt, images.pixel_values, texts.input_ids, texts.attention_mask, images.pixel_mask
    ).square().sum().backward()
    expected = {
        name: parameter.grad.clone() for name, parameter in vilt.named_parameters() if parameter.grad is not None
    }
    vilt.zero_grad()
    vilt(images, texts, diagonal, diagonal).square().sum().backward()
    ours = {name: parameter.grad for name, parameter in vilt.named_parameters() if parameter.grad is not None}
    assert expected.keys() == ours.keys()
    for name, gradient in expected.items():
        assert_close(ours[name], gradient, rtol=1e-3, atol=1e-4)


def test_take_trims_to_the_longest_row_and_may_repeat_rows():
    states = States(torch.arange(12.0).view(2, 3, 2), torch.tensor([[True, False, False], [True, True, False]]))
    taken = states.take(torch.tensor([1, 0, 1]))
    assert taken.tokens.tolist() == [[[6, 7], [8, 9]], [[0, 1], [2, 3]], [[6, 7], [8, 9]]]
    assert taken.mask.tolist() == [[True, True], [True, False], [True, True]]


def test_pinned_states_are_the_same_states(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone())
    states = States(torch.arange(12.0).view(2, 3, 2), torch.ones(2, 3, dtype=torch.bool))
    copied = states.pin_memory()
    assert torch.equal(copied.tokens, states.tokens)
    assert torch.equal(copied.mask, states.mask)
    assert len(pinned) == 2


def test_a_new_model_depends_on_the_seed_alone_and_keeps_the_random_state(tokenizer):
    size = ViltSize(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    before = torch.get_rng_state()
    digests = [models.new_vilt(size, tokenizer, seed).digest for seed in (1, 1, 2)]
    assert torch.equal(before, torch.get_rng_state())
    assert digests[0] == digests[1] != digests[2]
