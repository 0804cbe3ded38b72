"""Preprocessing: pixels are bit-identical to the official transforms and to the Pillow processors of transformers."""

from __future__ import annotations

import json
import pickle
from functools import partial

import pytest
import torch
from paths import FIXTURES
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    BlipImageProcessorPil,
    BridgeTowerImageProcessorPil,
    CLIPImageProcessorPil,
    ViTImageProcessorPil,
)

from dcdctl.core.models import Preprocess
from dcdctl.core.models.preprocess import meter_image_processor, square_image_processor, vilt_image_processor

OFFICIAL = json.loads((FIXTURES / "preprocess_a.json").read_text())


def _with(image_processor, tokenizer=None):
    return Preprocess(tokenizer=tokenizer, image_processor=image_processor, max_text_len=40)


def _official_images(transform="pixelbert96"):
    tensors = load_file(FIXTURES / "preprocess_a.safetensors")
    for i in range(len(OFFICIAL["images"])):
        pixels = tensors[f"in.{i}"].numpy()
        yield Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels), tensors[f"out.{transform}.{i}"]


def test_pixels_equal_those_of_the_official_meter_transform():
    preprocess = Preprocess(
        tokenizer=None, image_processor=meter_image_processor(64), max_text_len=40, image_transform="meter"
    )
    examples = list(_official_images("clip64"))
    batch = preprocess.images([image for image, _ in examples])
    assert batch.pixel_mask is None
    assert torch.equal(batch.pixel_values, torch.stack([expected for _, expected in examples]))


@pytest.mark.parametrize(
    "processor",
    [
        vilt_image_processor(96),
        vilt_image_processor(64, size_divisor=16),
        square_image_processor(64),
        BlipImageProcessorPil(size={"height": 64, "width": 48}),
        BridgeTowerImageProcessorPil(size={"shortest_edge": 96}, crop_size={"shortest_edge": 64}),
        BridgeTowerImageProcessorPil(
            size={"shortest_edge": 70}, crop_size={"shortest_edge": 71}
        ),  # resized to 64, black around it
    ],
)
def test_a_batch_equals_that_of_transformers(processor):
    images = [image.convert("RGB") for image, _ in _official_images()]
    ours, theirs = _with(processor).images(images), processor(images=images, return_tensors="pt")
    assert torch.equal(ours.pixel_values, theirs["pixel_values"])
    if ours.pixel_mask is not None:
        assert torch.equal(ours.pixel_mask.long(), theirs["pixel_mask"])
        assert not ours.pixel_mask.all()


@pytest.mark.parametrize("processor_of", [square_image_processor, partial(vilt_image_processor, size_divisor=16)])
def test_white_and_black_are_normalized_by_the_given_mean_and_deviation(processor_of):
    preprocess = _with(processor_of(32, mean=0.3, std=0.2))
    for color, expected in (("white", (1 - 0.3) / 0.2), ("black", -0.3 / 0.2)):
        values = preprocess.images([Image.new("RGB", (32, 32), color)]).pixel_values
        assert values.dtype == torch.float32
        assert values.unique().tolist() == pytest.approx([expected])


def test_a_very_long_image_keeps_at_least_one_patch_row():
    assert _with(vilt_image_processor(64)).images([Image.new("RGB", (4000, 20))]).pixel_values.shape[2:] == (32, 96)


def test_a_very_long_image_is_cropped_to_a_square():
    processor = BridgeTowerImageProcessorPil(size={"shortest_edge": 64}, crop_size={"shortest_edge": 64})
    pixels = _with(processor).images([Image.new("RGB", (4000, 20), "white")]).pixel_values[0, 0]
    assert pixels.shape == (64, 64)
    black, white = pixels[0, 0], pixels[32, 32]
    assert (pixels[16:48] == white).all()  # the long side is 96 px, the short one is one patch of 32
    assert (torch.cat([pixels[:16], pixels[48:]]) == black).all()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA", "I;16"])
def test_any_mode_becomes_rgb(mode, make_image):
    image = make_image(40, 30, 0, "L" if mode == "I;16" else mode).convert(mode)
    preprocess = _with(square_image_processor(32))
    assert torch.equal(preprocess.images([image]).pixel_values, preprocess.images([image.convert("RGB")]).pixel_values)


def test_other_processors_are_called_unchanged(make_image):
    images = [make_image(40, 30, 0), make_image(30, 50, 1)]
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 24, "width": 24})
    assert torch.equal(
        _with(processor).images(images).pixel_values, processor(images=images, return_tensors="pt")["pixel_values"]
    )
    no_scale = ViTImageProcessorPil(size={"height": 16, "width": 16}, do_normalize=False)
    assert torch.equal(
        _with(no_scale).images(images).pixel_values, no_scale(images=images, return_tensors="pt")["pixel_values"]
    )


def test_captions_are_padded_to_the_longest_and_truncated_including_special_tokens(tokenizer):
    preprocess = Preprocess(tokenizer=tokenizer, image_processor=square_image_processor(32), max_text_len=6)
    batch = preprocess.texts(["a", "a large red circle is left of a small blue square"])
    begin, end, pad = tokenizer.cls_token_id, tokenizer.sep_token_id, 0
    assert batch.input_ids.shape == (2, 6)
    assert batch.input_ids[0].tolist()[-3:] == [pad, pad, pad]
    assert batch.attention_mask.sum(dim=1).tolist() == [3, 6]
    assert batch.input_ids[1, 0] == begin
    assert batch.input_ids[1, -1] == end


def test_preprocessing_survives_pickling(vilt, pil_images, captions):
    copy = pickle.loads(pickle.dumps(vilt.preprocess))
    assert torch.equal(copy.images(pil_images).pixel_values, vilt.preprocess.images(pil_images).pixel_values)
    assert torch.equal(copy.texts(captions).input_ids, vilt.preprocess.texts(captions).input_ids)
