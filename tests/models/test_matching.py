"""BLIP, BLIP-2 and BridgeTower: scores equal those of transformers for any pairs, and the right row of the head is the
match."""

from __future__ import annotations

import copy
import random
import shutil
from functools import cache
from typing import Any

import pytest
import torch
from families import with_noise
from hypothesis import given, settings
from hypothesis import strategies as st
from matching import (
    LENGTH,
    blip2_config,
    blip_config,
    crop_processor,
    make_blip,
    make_blip2,
    make_bridgetower,
    square_processor,
)
from plain_scores import plain_score
from torch import nn
from torch.nn import functional
from torch.testing import assert_close
from transformers import (
    Blip2Model,
    BlipForConditionalGeneration,
    BlipModel,
    BridgeTowerForImageAndTextRetrieval,
    BridgeTowerImageProcessorPil,
)

from dcdctl.core import models
from dcdctl.core.errors import ModelError
from dcdctl.core.models.networks.attention import Groups, Heads, attend_and_project

SENTENCE = (
    "a large red circle is left of small blue square the tiny green star sits above big pink heart there moon "
    "below brown arrow"
)
WORDS = SENTENCE.split()
MAKERS = {
    "BLIP": make_blip,
    "BLIP-2": make_blip2,
    "BLIP-2 with image tokens": lambda captions: make_blip2(captions, image_token_index=3),
    "BridgeTower": make_bridgetower,
    "BridgeTower, a transform for each layer": lambda captions: make_bridgetower(
        captions, share_cross_modal_transformer_layers=False, link_tower_type="interpolate"
    ),
}
HEADS = {"BLIP": "itm_head", "BLIP-2": "itm_head", "BridgeTower": "itm_score.fc"}


@cache
def made(name: str) -> Any:
    """A scorer whose logits spread over several units, so that a wrong one differs."""
    model = with_noise(MAKERS[name]([SENTENCE]))
    with torch.no_grad():
        model.network.get_submodule(model.head).weight.mul_(4)
    return model


def plain(
    model: Any, images: models.ImageBatch, texts: models.TextBatch, image_ix: torch.Tensor, text_ix: torch.Tensor
) -> torch.Tensor:
    return plain_score(model, images.pixel_values[image_ix], texts.input_ids[text_ix], texts.attention_mask[text_ix])


@st.composite
def batches(draw: Any) -> tuple[list[tuple[int, int]], list[str], list[tuple[int, int]]]:
    """Image sizes, captions and pairs of them; images and captions repeat, in any order, and some are in no pair."""
    sizes = draw(st.lists(st.tuples(st.integers(4, 90), st.integers(4, 90)), min_size=1, max_size=3))
    captions = draw(
        st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=30).map(" ".join), min_size=1, max_size=4)
    )
    pair = st.tuples(st.integers(0, len(sizes) - 1), st.integers(0, len(captions) - 1))
    return sizes, captions, draw(st.lists(pair, min_size=1, max_size=9))


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(batch=batches())
def test_pairs_score_as_in_the_forward_pass_of_transformers(name, make_image, batch):
    sizes, captions, pairs = batch
    model = made(name)
    images = model.preprocess.images([make_image(*size, seed) for seed, size in enumerate(sizes)])
    texts = model.preprocess.texts(captions)
    image_ix, text_ix = torch.tensor(pairs).unbind(dim=1)
    with torch.no_grad():
        expected = plain(model, images, texts, image_ix, text_ix)
        scores = model.score_pairs(model.encode_images(images), model.encode_texts(texts), image_ix, text_ix)
        # In another batch: one pair, the caption without its padding.
        alone = model.preprocess.texts([captions[pairs[0][1]]])
        first = plain(model, images, alone, image_ix[:1], torch.tensor([0]))
    assert ((scores - expected).abs() <= 1e-5 * expected.abs().clamp(min=1)).all()
    assert ((scores[:1] - first).abs() <= 1e-5 * first.abs().clamp(min=1)).all()


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_the_logit_is_the_second_row_of_the_head_minus_the_first(name, make_image):
    model = copy.deepcopy(made(name))
    head = model.network.get_submodule(HEADS[name])
    head.weight.zero_()
    head.bias.copy_(torch.tensor([0.25, 3.0]))
    images, texts = model.preprocess.images([make_image(40, 30, 0)]), model.preprocess.texts(["a moon"])
    first = torch.tensor([0])
    assert model(images, texts, first, first).item() == 2.75
    assert plain(model, images, texts, first, first).item() == 2.75


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_of_pairs_equal_those_of_the_forward_pass_of_transformers(name, make_image):
    model = copy.deepcopy(made(name))
    images = model.preprocess.images([make_image(40, 30, seed) for seed in range(2)])
    texts = model.preprocess.texts([" ".join(WORDS[:5]), "a moon"])
    image_ix, text_ix = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1])
    plain(model, images, texts, image_ix, text_ix).square().sum().backward()
    expected = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad()
    model(images, texts, image_ix, text_ix).square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert_close(parameter.grad, expected[parameter_name], rtol=1e-3, atol=1e-4, msg=parameter_name)
        else:
            assert parameter_name not in expected or not expected[parameter_name].any(), parameter_name


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_bfloat16_autocast_keeps_the_logit_in_float32(name, make_image):
    model = made(name)
    batch = (
        model.preprocess.images([make_image(40, 30, 0)]),
        model.preprocess.texts(["a moon"]),
        torch.tensor([0]),
        torch.tensor([0]),
    )
    exact = model(*batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(*batch)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs() < 0.1 * exact.abs().clamp(min=1)


@torch.no_grad()
def test_a_student_of_a_blip_has_the_chosen_layers_in_transformers_too(make_image):
    teacher = made("BLIP")
    student = teacher.student([0, 2])
    assert student.network.config.text_config.num_hidden_layers == 2
    for new, old in ((0, 0), (1, 2)):
        for name, weight in student.layers[new].state_dict().items():
            assert torch.equal(weight, teacher.layers[old].state_dict()[name])
    assert (
        student.layers[0].intermediate.dense.weight.data_ptr() != teacher.layers[0].intermediate.dense.weight.data_ptr()
    )
    check_plain(student, make_image)


@pytest.mark.parametrize("name", ["BridgeTower", "BridgeTower, a transform for each layer"])
@pytest.mark.parametrize("layers", [[0, 2], [1, 2], [2]])
@torch.no_grad()
def test_a_student_of_a_bridgetower_takes_the_link_towers_of_its_layers(name, layers, make_image):
    teacher = made(name)
    # By transformers alone: a smaller network, and the weights of the teacher under new names. Layer k has link tower k
    # - 1.
    renamed = {}
    for key, weight in teacher.network.state_dict().items():
        part, *rest = key.removeprefix("bridgetower.").split(".")
        if part.startswith("cross_modal_") and rest[0].isdigit():
            index = int(rest[0]) + part.endswith("link_tower")
            if index not in layers or (part.endswith("link_tower") and index == layers[0]):
                continue
            new = layers.index(index) - part.endswith("link_tower")
            renamed[".".join(["bridgetower", part, str(new), *rest[1:]])] = weight
        else:
            renamed[key] = weight
    config = copy.deepcopy(teacher.network.config)
    config.num_hidden_layers = len(layers)
    expected = BridgeTowerForImageAndTextRetrieval(config).eval()
    expected.load_state_dict(renamed, strict=True)
    student = teacher.student(layers).eval()
    check_plain(student, make_image)
    images, texts = student.preprocess.images([make_image(40, 30, 0)]), student.preprocess.texts(["a moon"])
    logits = expected(
        pixel_values=images.pixel_values, input_ids=texts.input_ids, attention_mask=texts.attention_mask
    ).logits
    assert_close(
        student(images, texts, torch.tensor([0]), torch.tensor([0])), logits[:, 1] - logits[:, 0], rtol=1e-5, atol=1e-5
    )


def check_plain(student: Any, make_image: Any) -> None:
    images = student.preprocess.images([make_image(40, 30, seed) for seed in range(2)])
    texts = student.preprocess.texts([" ".join(WORDS[:5]), "a moon"])
    image_ix, text_ix = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1])
    assert_close(
        student(images, texts, image_ix, text_ix),
        plain(student, images, texts, image_ix, text_ix),
        rtol=1e-5,
        atol=1e-5,
    )


def folder_of(network: Any, processor: Any, tokenizer: Any, folder: Any) -> Any:
    """A folder as transformers writes it, without the files of dcdctl."""
    for part in (network, processor, tokenizer):
        part.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("name", "length"), [("BLIP", 35), ("BLIP-2", 32), ("BridgeTower", 40)])
def test_a_folder_of_transformers_loads_with_the_text_length_of_the_official_code(name, length, tmp_path):
    model = made(name)
    folder = folder_of(model.network, model.preprocess.image_processor, model.preprocess.tokenizer, tmp_path / "plain")
    loaded = models.load_fusion(folder)
    assert type(loaded) is type(model)
    assert loaded.preprocess.max_text_len == length
    assert loaded.unused_keys == ()
    assert models.load_fusion(folder, {"max_text_len": LENGTH}).digest == model.digest
    for setting in ("image_size", "num_attention_heads"):
        with pytest.raises(ModelError, match=f"takes no {setting}; it takes max_text_len, tokenizer"):
            models.load_fusion(folder, {setting: 64})
    with pytest.raises(ModelError, match="max_text_len is 49, but the model has 48 text positions"):
        models.load_fusion(folder, {"max_text_len": 49})


def other_heads() -> dict[str, tuple[Any, str]]:
    blip, blip2 = blip_config(60), blip2_config(60)
    blip2.qformer_config.use_qformer_text_input = False
    return {
        "BlipForConditionalGeneration": (
            BlipForConditionalGeneration(blip),
            "use a BlipForImageTextRetrieval, such as Salesforce/blip-itm",
        ),
        "BlipModel": (BlipModel(blip), "use a BlipForImageTextRetrieval"),
        "Blip2Model": (Blip2Model(blip2), "use a Blip2ForImageTextRetrieval, such as Salesforce/blip2-itm-vit-g"),
    }


@pytest.mark.parametrize("name", ["BlipForConditionalGeneration", "BlipModel", "Blip2Model"])
def test_a_model_without_the_head_is_refused_by_name(name, tokenizer, tmp_path):
    network, instead = other_heads()[name]
    folder = folder_of(network, square_processor(), tokenizer, tmp_path / "other")
    with pytest.raises(ModelError, match=f"is a {name}, which has no image-text matching head") as error:
        models.load(folder)
    assert instead in str(error.value)


def test_an_image_processor_of_another_size_is_refused(tmp_path):
    model = made("BLIP")
    folder = folder_of(model.network, square_processor(), model.preprocess.tokenizer, tmp_path / "plain")
    processor = square_processor()
    processor.size = {"height": 48, "width": 48}
    processor.save_pretrained(folder)
    with pytest.raises(
        ModelError, match=r"resizes to \{'height': 48, 'width': 48\}, but the vision encoder takes 32 x 32 pixels"
    ):
        models.load(folder)


@pytest.mark.parametrize("crop", [None, {"height": 32, "width": 32}, {"shortest_edge": 24}])
def test_a_bridgetower_crops_to_the_size_of_its_vision_encoder(crop, make_image, tmp_path):
    model = made("BridgeTower")
    processor = crop_processor()
    folder = folder_of(model.network, processor, model.preprocess.tokenizer, tmp_path / "plain")
    processor.crop_size = crop
    processor.save_pretrained(folder)
    images = [make_image(50, 40, 0), make_image(33, 70, 1)]
    pixels = models.load(folder).preprocess.images(images).pixel_values
    assert_close(pixels, crop_processor()(images=images, return_tensors="pt")["pixel_values"])


def test_a_bridgetower_whose_processor_does_not_crop_is_refused(tmp_path):
    model = made("BridgeTower")
    processor = BridgeTowerImageProcessorPil(size={"shortest_edge": 32}, do_center_crop=False)
    folder = folder_of(model.network, processor, model.preprocess.tokenizer, tmp_path / "plain")
    with pytest.raises(ModelError, match="does not crop images to a square"):
        models.load(folder)


def test_a_bridgetower_that_transformers_cannot_compute_is_refused(tmp_path):
    model = made("BridgeTower")
    folder = folder_of(model.network, crop_processor(), model.preprocess.tokenizer, tmp_path / "plain")
    config = copy.deepcopy(model.network.config)
    config.num_hidden_layers = 9
    config.save_pretrained(folder)
    with pytest.raises(ModelError, match="9 fusion layers over encoders of 4 and 4 layers"):
        models.load(folder)


def test_a_caption_that_contains_the_image_token_of_a_blip2_is_refused(tmp_path):
    model = made("BLIP-2 with image tokens")
    tokenizer = copy.deepcopy(model.preprocess.tokenizer)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    loaded = models.load(folder_of(model.network, square_processor(), tokenizer, tmp_path / "plain"))
    assert loaded.encode_texts(loaded.preprocess.texts(["a moon"])).tokens.shape[0] == 1
    with pytest.raises(ModelError, match="a caption contains <image>, for which BLIP-2 has no embedding"):
        loaded.encode_texts(loaded.preprocess.texts(["a moon", "a <image>"]))
    shutil.rmtree(tmp_path / "plain")
    tokenizer.add_tokens(["moon-shaped"])
    with pytest.raises(ModelError, match="rows"):
        models.load(folder_of(model.network, square_processor(), tokenizer, tmp_path / "plain"))


@pytest.mark.parametrize(("num_images", "num_pairs"), [(1, 1), (1, 7), (5, 5), (4, 9), (6, 2)])
@torch.no_grad()
def test_attention_of_grouped_pairs_equals_that_of_each_pair(num_images, num_pairs):
    generator = torch.Generator().manual_seed(num_images)
    torch.manual_seed(num_pairs)
    heads = Heads(query=nn.Linear(12, 12), key=nn.Linear(8, 12), value=nn.Linear(8, 12), num_heads=3, dropout=0.0)
    dense = nn.Linear(12, 12)
    tokens, images = (
        torch.randn(num_pairs, 4, 12, generator=generator),
        torch.randn(num_images, 6, 8, generator=generator),
    )
    image_ix = torch.tensor([random.Random(num_pairs).randrange(num_images) for _ in range(num_pairs)])
    groups = Groups.of(image_ix)
    assert torch.equal(groups.image_ix_G.repeat_interleave(groups.pair_ix_GR.shape[1])[groups.cell_P], image_ix)
    grouped = groups.attend(heads, dense, tokens, images[groups.image_ix_G])
    split = [
        heads.split(linear(source))
        for linear, source in zip((heads.query, heads.key, heads.value), (tokens, images, images), strict=True)
    ]
    context = functional.scaled_dot_product_attention(split[0], split[1][image_ix], split[2][image_ix])
    assert_close(grouped, dense(context.transpose(1, 2).flatten(2)), rtol=1e-5, atol=1e-6)
    assert_close(attend_and_project(heads, dense, tokens, images[image_ix], None), grouped, rtol=1e-5, atol=1e-6)
