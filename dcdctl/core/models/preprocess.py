"""Pictures and captions to tensors, exactly as transformers' Pillow processors do it, and faster.

A normalized pixel depends only on its channel and its grey level, so it is looked up in a table of 3 x 256 values that the
processor itself has computed: equal to the last bit. Processors with steps unknown here (crops, other resizing rules) are called as
they are.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from tokenizers import Tokenizer, normalizers, pre_tokenizers, trainers
from tokenizers.models import WordPiece
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BertTokenizer,
    CLIPImageProcessorPil,
    TimmWrapperImageProcessor,
    ViltImageProcessorPil,
    ViTImageProcessorPil,
)
from transformers.utils import logging

from dcdctl.core.errors import ModelError
from dcdctl.core.models.protocols import ImageBatch, TextBatch

METER: Literal["meter"] = "meter"
VILT_LONGER_PER_SHORTER = 1333 / 800
VILT_SIZE_DIVISOR = 32
"""Sides are cut to multiples of this, as in the released transform."""
_SETTINGS = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor"),
    *("do_normalize", "image_mean", "image_std", "do_pad", "size_divisor", "data_config"),
)


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """A tokenizer, an image processor, and how many tokens of a caption are read."""

    tokenizer: Any
    image_processor: Any
    max_text_len: int
    image_transform: Literal["", "meter"] = ""
    """meter: pictures are resized and cropped as in METER's code, which no processor of transformers does to the pixel."""

    def images(self, images: Sequence[Image.Image]) -> ImageBatch:
        """Pictures of any size and mode as one batch: pixel values I x 3 x H x W, and the mask where sizes may differ."""
        if not images:
            raise ValueError("no images to preprocess")
        if self.image_transform == METER:
            cropped = [_meter_crop(image, self.image_size_px, self._resample) for image in images]
            return ImageBatch(self._normalize_and_pad(cropped).pixel_values)
        pictures = [image if image.mode == "RGB" else image.convert("RGB") for image in images]
        if self._is_vilt:
            return self._normalize_and_pad([_resize(picture, self._vilt_size(picture.size), self._resample) for picture in pictures])
        if self._is_square:
            size = self.image_processor.size
            side = (int(size["width"]), int(size["height"]))
            batch = self._normalize_and_pad([_resize(picture, side, self._resample) for picture in pictures])
            return ImageBatch(batch.pixel_values)
        return ImageBatch(self.image_processor(images=pictures, return_tensors="pt")["pixel_values"])

    def texts(self, texts: Sequence[str]) -> TextBatch:
        """Captions as token ids T x L, cut to `max_text_len` with specials counted, padded to the longest."""
        if not texts:
            raise ValueError("no texts to preprocess")
        found = self.tokenizer(list(texts), padding="longest", truncation=True, max_length=self.max_text_len, return_tensors="pt")
        return TextBatch(found["input_ids"], found["attention_mask"])

    @property
    def image_size_px(self) -> int:
        """The shorter side of a resized image."""
        if self._is_timm:
            return int(self.image_processor.data_config["input_size"][-1])
        size = dict(self.image_processor.size)
        return int(size.get("shortest_edge") or size.get("height") or min(value for value in size.values() if value))

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides what the model sees of an image and a caption, as plain values."""
        told = self.image_processor.to_dict()
        image = {name: _plain(told[name]) for name in _SETTINGS if told.get(name) is not None}
        if self.image_transform:
            image["transform"] = self.image_transform
        return {"image": image, "max_text_len": self.max_text_len, "vocabulary": sorted(self.tokenizer.get_vocab().items())}

    def save(self, folder: Path) -> None:
        """Write the tokenizer's and the image processor's files."""
        self.tokenizer.save_pretrained(folder)
        if not self._is_timm:  # it follows from the vision encoder's configuration, and has no file
            self.image_processor.save_pretrained(folder)

    def self_contained(self) -> Self:
        """A copy whose saved files also convert images to RGB and cut captions to `max_text_len`, which otherwise this class does."""
        tokenizer, processor = copy.deepcopy(self.tokenizer), copy.deepcopy(self.image_processor)
        tokenizer.model_max_length = self.max_text_len
        processor.do_convert_rgb = True
        return replace(self, tokenizer=tokenizer, image_processor=processor)

    @property
    def _is_timm(self) -> bool:
        return isinstance(self.image_processor, TimmWrapperImageProcessor)

    @cached_property
    def _is_vilt(self) -> bool:
        told = self.image_processor.to_dict()
        return told["image_processor_type"] == "ViltImageProcessor" and self._resizes_and_normalizes(told)

    @cached_property
    def _is_square(self) -> bool:
        told = self.image_processor.to_dict()
        known = told["image_processor_type"] in ("ViTImageProcessor", "DeiTImageProcessor") and not told.get("do_center_crop")
        return (
            known
            and {name for name, value in dict(told["size"]).items() if value} == {"height", "width"}
            and self._resizes_and_normalizes(told)
        )

    @staticmethod
    def _resizes_and_normalizes(told: dict[str, Any]) -> bool:
        return bool(told.get("do_resize") and told.get("do_rescale") and told.get("do_normalize"))

    @property
    def _resample(self) -> Image.Resampling:
        return Image.Resampling(int(self.image_processor.resample))

    @cached_property
    def _lookup(self) -> np.ndarray[Any, Any]:
        """3 x 256: the normalized value of each channel's grey levels."""
        processor = self.image_processor
        levels = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(1, 16, 16), (3, 16, 16))
        values = processor.normalize(processor.rescale(levels, processor.rescale_factor), processor.image_mean, processor.image_std)
        return np.ascontiguousarray(values.reshape(3, 256), dtype=np.float32)

    def _vilt_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height after resizing: shorter side as set, longer side at most 1333/800 of it, both cut to the divisor."""
        width, height = size
        shorter, divisor = self.image_size_px, int(self.image_processor.size_divisor)
        longest = int(VILT_LONGER_PER_SHORTER * shorter)
        scale = shorter / min(height, width)
        new_height, new_width = (shorter, scale * width) if height < width else (scale * height, shorter)
        if max(new_height, new_width) > longest:
            scale = longest / max(new_height, new_width)
            new_height, new_width = scale * new_height, scale * new_width
        # The released transform gives a very long image a side of 0 and crashes; here it keeps one patch.
        cut = [max(int(side + 0.5) // divisor * divisor, divisor) for side in (new_width, new_height)]
        return cut[0], cut[1]

    def _normalize_and_pad(self, pictures: Sequence[Image.Image]) -> ImageBatch:
        sizes = {picture.size for picture in pictures}
        width, height = max(size[0] for size in sizes), max(size[1] for size in sizes)
        values = np.empty if len(sizes) == 1 else np.zeros
        pixels = values((len(pictures), 3, height, width), dtype=np.float32)
        mask = np.ones((len(pictures), height, width), dtype=np.bool_)
        for i, picture in enumerate(pictures):
            across, down = picture.size
            levels = np.asarray(picture)
            for channel in range(3):
                pixels[i, channel, :down, :across] = self._lookup[channel][levels[:, :, channel]]
            mask[i, down:, :] = False
            mask[i, :, across:] = False
        return ImageBatch(torch.from_numpy(pixels), torch.from_numpy(mask))


def vilt_image_processor(image_size: int = 384, size_divisor: int = VILT_SIZE_DIVISOR, mean: float = 0.5, std: float = 0.5) -> Any:
    """The released ViLT transform at this shorter side; `mean` and `std` of a channel, white being 1."""
    return ViltImageProcessorPil(size={"shortest_edge": image_size}, size_divisor=size_divisor, image_mean=[mean] * 3, image_std=[std] * 3)


def meter_image_processor(image_size: int = 384) -> Any:
    """CLIP's processor at this size: the nearest that transformers has to METER's transform, which `Preprocess` completes."""
    size, crop = {"shortest_edge": image_size}, {"height": image_size, "width": image_size}
    return CLIPImageProcessorPil(size=size, crop_size=crop, resample=Image.Resampling.BICUBIC)


def square_image_processor(image_size: int, mean: float = 0.5, std: float = 0.5) -> Any:
    """Resize to a square whatever the shape, then normalize; `mean` and `std` of a channel, white being 1."""
    size = {"height": image_size, "width": image_size}
    return ViTImageProcessorPil(size=size, resample=Image.Resampling.BICUBIC, image_mean=[mean] * 3, image_std=[std] * 3)


def load_tokenizer(ref: str, hint: str = "name a tokenizer with `--model-set tokenizer=FOLDER`") -> Any:
    """The tokenizer of a folder or a Hub id; ModelError where there is none."""
    with hub_errors(ref, hint=hint):
        # A folder may hold code for transformers (`dcdctl export`): nothing is run, and nobody is asked whether it may be.
        tokenizer = AutoTokenizer.from_pretrained(ref, trust_remote_code=False)
    # Of a folder without a vocabulary transformers makes a tokenizer that knows no word.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ModelError(f"{ref} holds no tokenizer's vocabulary", hint=hint)
    return tokenizer


def load_image_processor(ref: str) -> Any:
    """The image processor of a folder or a Hub id, the Pillow one where there is one."""
    with hub_errors(ref, hint="a model needs its preprocessor_config.json"):
        return AutoImageProcessor.from_pretrained(ref, backend="pil", trust_remote_code=False)


def check_text_length(wanted: int, most: int) -> int:
    """`wanted`, if the model has positions for it."""
    if wanted > most:
        raise ModelError(f"max_text_len is {wanted}, but the model has {most} text positions", hint=f"use at most {most}")
    return wanted


def num_text_positions(config: Any) -> int:
    """Tokens of a caption that a text encoder has positions for."""
    if not hasattr(config, "max_position_embeddings"):
        raise ModelError(
            f"a {config.model_type} text encoder does not say how many tokens it reads", hint="take one such as BERT or RoBERTa"
        )
    # RoBERTa counts positions from behind the padding's.
    reserved = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta") else 0
    return int(config.max_position_embeddings) - reserved


def check_vocabulary(tokenizer: Any, vocab_size: int) -> None:
    """ModelError if the tokenizer can give ids that the model has no embedding for."""
    if len(tokenizer) > vocab_size:
        found = f"the tokenizer has {len(tokenizer):,} tokens, but the model's embedding table has {vocab_size:,} rows"
        raise ModelError(found, hint="use the tokenizer the model was trained with: `--model-set tokenizer=FOLDER`")


@contextlib.contextmanager
def hub_errors(ref: str, *, hint: str) -> Iterator[None]:
    """Turn what transformers raises for absent or broken files and an unreachable Hub into a ModelError."""
    is_local = Path(ref).exists()
    try:
        with silence_transformers() if is_local else contextlib.nullcontext():
            yield
    except (OSError, ValueError, SafetensorError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        kind = "" if is_local else " (no such file or folder here, so it was looked up as a Hugging Face Hub id)"
        raise ModelError(f"cannot load {ref}{kind}: {lines[0]}", hint=hint) from error


@contextlib.contextmanager
def silence_transformers() -> Iterator[None]:
    """transformers shows a bar whenever it reads or writes weights, and says which entries it had no use for; downloads keep their bar,
    local files need none, and what is missing we say ourselves."""
    was_shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if was_shown:
            logging.enable_progress_bar()


def _resize(picture: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    return picture if picture.size == size else picture.resize(size, resample=resample)


def _meter_crop(image: Image.Image, side: int, resample: Image.Resampling) -> Image.Image:
    """The middle of a picture whose shorter side has been made `side` long.

    As in METER's code the picture is resized with its transparency and loses it afterwards, the longer side is cut down to whole pixels
    and a half pixel of crop origin goes to the even side.
    """
    width, height = image.size
    shorter = min(width, height)
    size = (side, int(side * height / width)) if width == shorter else (int(side * width / height), side)
    resized = image.convert("RGBA").resize(size, resample=resample)
    left, top = (round((length - side) / 2) for length in size)
    return resized.crop((left, top, left + side, top + side)).convert("RGB")


def _plain(value: Any) -> Any:
    if isinstance(value, int | float | str | bool | None):
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in sorted(dict(value).items()) if item is not None}


SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def word_piece(captions: Iterable[str], vocab_size: int = 2000) -> BertTokenizer:
    """A lower-casing WordPiece tokenizer of at most `vocab_size` tokens ([PAD] is 0); the same for the same captions."""
    texts = list(captions)
    trained = Tokenizer(WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer(lowercase=True)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    letters = sorted({letter for text in texts for letter in trained.normalizer.normalize_str(text) if not letter.isspace()})
    # The trainer numbers "##x" pieces in the order of a randomly seeded hash map, and equal counts are decided by number;
    # naming these pieces beforehand is what makes the vocabulary reproducible.
    pieces = [*SPECIALS, *(f"##{letter}" for letter in letters)]
    trainer = trainers.WordPieceTrainer(vocab_size=max(vocab_size, len(pieces)), special_tokens=pieces, show_progress=False)
    trained.train_from_iterator(texts, trainer)
    return BertTokenizer(vocab=trained.get_vocab(), do_lower_case=True)
