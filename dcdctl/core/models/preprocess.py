"""Images and captions to tensors: equal to the Pillow processors of transformers, and faster.

A normalized pixel depends only on its channel and its gray level. So it is looked up in a table of 3 x 256 values,
which the processor itself has computed: the result is equal to the last bit. Processors with other steps (crops, other
resizing rules) are called themselves.

Shape letters: I images, T texts, H and W pixels, L text tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    BaseImageProcessor,
    CLIPImageProcessorPil,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    ViltImageProcessorPil,
    ViTImageProcessorPil,
)

from dcdctl.core.models.fingerprint import processor_settings, tokenizer_settings
from dcdctl.core.models.inputs import ImageBatch, TextBatch
from dcdctl.core.models.protocols import Table
from dcdctl.core.models.references import hub
from dcdctl.core.models.references.loading import hub_errors
from dcdctl.core.models.tokenizer import check_text_length, check_vocabulary, num_text_positions, save_tokenizer

METER: Literal["meter"] = "meter"
"""The `image_transform` of METER."""
VILT_LONGER_PER_SHORTER = 1333 / 800
"""Largest ratio of the longer to the shorter side of a resized image, as in ViLT's official code."""
VILT_SIZE_DIVISOR = 32
"""ViLT cuts the sides of a resized image to multiples of its patch size."""
_SQUARE_PROCESSORS = ("ViTImageProcessor", "DeiTImageProcessor", "BlipImageProcessor")


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """A tokenizer, an image processor, and the maximum number of tokens of a caption."""

    tokenizer: PreTrainedTokenizerBase
    image_processor: BaseImageProcessor
    max_text_len: int
    image_transform: Literal["", "meter"] = ""
    """meter: images are resized and cropped as in METER's code, which no processor of transformers reproduces to the
    pixel."""
    pads_texts: bool = False
    """Pad every caption to `max_text_len`, and mask no padding, as SigLIP was trained."""

    def images(self, images: Sequence[Image.Image]) -> ImageBatch:
        """Images of any size and mode as one batch: pixel values, I x 3 x H x W, and the mask if sizes may differ."""
        if self.image_transform == METER:
            return self._normalize_and_pad([_meter_crop(image, self.image_size_px, self._resample) for image in images])
        rgb_images = [image if image.mode == "RGB" else image.convert("RGB") for image in images]
        if self._known_steps:
            return self._normalize_and_pad([self._resized(image) for image in rgb_images])
        processed = self.image_processor(images=rgb_images, return_tensors="pt")
        if "spatial_shapes" in processed:  # SigLIP 2 with variable resolution
            return ImageBatch(
                processed["pixel_values"], processed["pixel_attention_mask"].bool(), processed["spatial_shapes"]
            )
        return ImageBatch(processed["pixel_values"])

    def texts(self, texts: Sequence[str]) -> TextBatch:
        """Captions as token ids, T x L, cut to `max_text_len` tokens including special ones, padded to the longest or
        by `pads_texts`."""
        tokens = self.tokenizer(
            list(texts),
            padding="max_length" if self.pads_texts else "longest",
            truncation=True,
            max_length=self.max_text_len,
            return_attention_mask=True,  # SigLIP's tokenizers give none unless asked
            return_tensors="pt",
        )
        ids = tokens["input_ids"]
        return TextBatch(ids, torch.ones_like(ids) if self.pads_texts else tokens["attention_mask"])

    @property
    def image_size_px(self) -> int:
        """The shorter side of a resized image."""
        if self._is_timm:
            return int(self.image_processor.data_config["input_size"][-1])
        if self.image_processor.size is None:  # a number of patches in place of a size
            return int(self.image_processor.max_num_patches**0.5) * int(self.image_processor.patch_size)
        size = dict(self.image_processor.size)
        return int(size.get("shortest_edge") or size.get("height") or min(value for value in size.values() if value))

    @cached_property
    def settings(self) -> Table:
        """Everything that decides the tensors of an image and a caption, JSON-able; part of a model's digest."""
        settings = {
            "image": processor_settings(self.image_processor),
            "image_transform": self.image_transform,
            "max_text_len": self.max_text_len,
            "tokenizer": tokenizer_settings(self.tokenizer),
        }
        # An entry only where it is true, so that the digests of all other models stay as they were.
        return {**settings, "pads_texts": True} if self.pads_texts else settings

    def save(self, folder: Path) -> None:
        """Write the files of the tokenizer and the image processor."""
        save_tokenizer(self.tokenizer, folder)
        if not self._is_timm:  # timm's processor follows from the vision encoder's configuration and has no file
            self.image_processor.save_pretrained(folder)

    def self_contained(self) -> Self:
        """A copy whose saved files also convert images to RGB and cut captions to `max_text_len`, as this class
        does."""
        # Copies, because an export is compared with the original model, which must stay as it is.
        tokenizer, processor = copy.deepcopy(self.tokenizer), copy.deepcopy(self.image_processor)
        tokenizer.model_max_length = self.max_text_len
        # Processors of transformers read this entry of tokenizer_config.json instead, if there is one, or a number of
        # their class.
        tokenizer.init_kwargs["max_length"] = self.max_text_len
        processor.do_convert_rgb = True
        return replace(self, tokenizer=tokenizer, image_processor=processor)

    @property
    def _is_timm(self) -> bool:
        # By its name: importing the class imports timm, which takes a third of a second.
        return type(self.image_processor).__name__ == "TimmWrapperImageProcessor"

    @cached_property
    def _known_steps(self) -> Literal["vilt", "bridgetower", "square", ""]:
        """The steps that are computed here; empty if the processor is called itself."""
        processor = self.image_processor.to_dict()
        if not all(processor.get(step) for step in ("do_resize", "do_rescale", "do_normalize")):
            return ""
        name, crops = processor["image_processor_type"], processor.get("do_center_crop")
        if name == "ViltImageProcessor":
            return "vilt"
        if name == "BridgeTowerImageProcessor" and crops:
            # The processor itself fails for very long images.
            return "bridgetower"
        if name in _SQUARE_PROCESSORS and not crops:
            sides = {side for side, value in dict(processor["size"]).items() if value}
            return "square" if sides == {"height", "width"} else ""
        return ""

    @property
    def _resample(self) -> Image.Resampling:
        return Image.Resampling(int(self.image_processor.resample))

    @cached_property
    def _lookup(self) -> np.ndarray[Any, Any]:
        """3 x 256: the normalized value of each gray level of each channel."""
        processor = self.image_processor
        # The processor takes images with channels first, so the gray levels are given as an image of 16 x 16 pixels.
        levels = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(1, 16, 16), (3, 16, 16))
        values = processor.normalize(
            processor.rescale(levels, processor.rescale_factor), processor.image_mean, processor.image_std
        )
        return np.ascontiguousarray(values.reshape(3, 256))

    def _resized(self, image: Image.Image) -> Image.Image:
        """An image after the known steps."""
        size = self.image_processor.size
        is_square = self._known_steps == "square"
        side = (int(size["width"]), int(size["height"])) if is_square else self._vilt_size(*image.size)
        if image.size != side:
            image = image.resize(side, resample=self._resample)
        if self._known_steps != "bridgetower":
            return image
        # ViLT's resizing, then a square from the center, black where the image is smaller.
        crop = int(self.image_processor.crop_size["shortest_edge"])
        left, top = (image.width - crop) // 2, (image.height - crop) // 2
        return image.crop((left, top, left + crop, top + crop))

    def _vilt_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after resizing: the shorter side as set, the longer side at most 1333/800 of it, both cut to
        the divisor."""
        shorter, divisor = self.image_size_px, int(self.image_processor.size_divisor)
        # Rounded down as in the official code: 639 for 384, not 640.
        longest = int(VILT_LONGER_PER_SHORTER * shorter)
        scale = shorter / min(height, width)
        new_height, new_width = (shorter, scale * width) if height < width else (scale * height, shorter)
        if max(new_height, new_width) > longest:
            scale = longest / max(new_height, new_width)
            new_height, new_width = scale * new_height, scale * new_width
        # The official transform gives a very long image a side of 0 and crashes; here the side is one patch.
        cut = [max(int(side + 0.5) // divisor * divisor, divisor) for side in (new_width, new_height)]
        return cut[0], cut[1]

    def _normalize_and_pad(self, images: Sequence[Image.Image]) -> ImageBatch:
        """The batch, with a mask only for ViLT, whose images keep their aspect ratio."""
        sizes = {image.size for image in images}
        width, height = max(size[0] for size in sizes), max(size[1] for size in sizes)
        # ViLT's official code recognizes padding by zeros after normalization; images of one size have none.
        values = np.empty if len(sizes) == 1 else np.zeros
        pixels = values((len(images), 3, height, width), dtype=np.float32)
        mask = np.ones((len(images), height, width), dtype=np.bool_)
        for i, image in enumerate(images):
            own_width, own_height = image.size
            levels = np.asarray(image)
            for channel in range(3):
                pixels[i, channel, :own_height, :own_width] = self._lookup[channel][levels[:, :, channel]]
            mask[i, own_height:, :] = False
            mask[i, :, own_width:] = False
        return ImageBatch(torch.from_numpy(pixels), torch.from_numpy(mask) if self._known_steps == "vilt" else None)


def _meter_crop(image: Image.Image, side: int, resample: Image.Resampling) -> Image.Image:
    """The central square of an image whose shorter side has been resized to `side`.

    As in METER's code, the image is resized with its alpha channel and loses it afterwards, the longer side is rounded
    down, and a crop origin of half a pixel is rounded to the even number.
    """
    width, height = image.size
    shorter = min(width, height)
    size = (side, int(side * height / width)) if width == shorter else (int(side * width / height), side)
    # Pillow multiplies RGBA by alpha while it resizes, so transparent images would differ if they were made RGB first.
    resized = image.convert("RGBA").resize(size, resample=resample)
    # CLIP's processor in transformers rounds down here, one pixel off for some sizes.
    left, top = (round((length - side) / 2) for length in size)
    return resized.crop((left, top, left + side, top + side)).convert("RGB")


def vilt_image_processor(
    image_size: int = 384, size_divisor: int = VILT_SIZE_DIVISOR, mean: float = 0.5, std: float = 0.5
) -> ViltImageProcessorPil:
    """The official ViLT transform for this shorter side; `mean` and `std` normalize pixel values from 0 to 1."""
    return ViltImageProcessorPil(
        size={"shortest_edge": image_size}, size_divisor=size_divisor, image_mean=[mean] * 3, image_std=[std] * 3
    )


def meter_image_processor(image_size: int = 384) -> CLIPImageProcessorPil:
    """CLIP's processor at this size: the closest one in transformers to METER's transform, which `Preprocess`
    completes."""
    size, crop = {"shortest_edge": image_size}, {"height": image_size, "width": image_size}
    return CLIPImageProcessorPil(size=size, crop_size=crop, resample=Image.Resampling.BICUBIC)


def square_image_processor(image_size: int, mean: float = 0.5, std: float = 0.5) -> ViTImageProcessorPil:
    """Resize to a square, whatever the aspect ratio, then normalize pixel values from 0 to 1 by `mean` and `std`."""
    size = {"height": image_size, "width": image_size}
    return ViTImageProcessorPil(
        size=size, resample=Image.Resampling.BICUBIC, image_mean=[mean] * 3, image_std=[std] * 3
    )


def load_image_processor(ref: str) -> BaseImageProcessor:
    """The image processor of a folder or Hub id, the Pillow version if there is one."""
    with hub_errors(ref, hint="a model needs its preprocessor_config.json"):
        # The torchvision version differs by one gray level in some pixels.
        return AutoImageProcessor.from_pretrained(**hub.hub_source(ref), backend="pil", trust_remote_code=False)


def fitted_preprocess(
    tokenizer: PreTrainedTokenizerBase,
    image_processor: BaseImageProcessor,
    text_config: PreTrainedConfig,
    *,
    max_text_len: int | None = None,
    default: int | None = None,
) -> Preprocess:
    """The preprocessing of a model, after a comparison with its text encoder; ModelError if the two do not fit.

    Captions have `max_text_len` tokens; if it is None, `default`, and at most as many as there are text positions.
    """
    check_vocabulary(tokenizer, text_config.vocab_size)
    num_positions = num_text_positions(text_config)
    length = max_text_len or min(default or num_positions, num_positions)
    return Preprocess(
        tokenizer=tokenizer, image_processor=image_processor, max_text_len=check_text_length(length, num_positions)
    )
