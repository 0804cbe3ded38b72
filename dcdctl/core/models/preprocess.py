"""Images and captions to tensors: equal to the Pillow processors of transformers, and faster; loading and training of
tokenizers.

A normalized pixel depends only on its channel and its gray level. So it is looked up in a table of 3 x 256 values,
which the processor itself has computed: the result is equal to the last bit. Processors with other steps (crops, other
resizing rules) are called themselves.

Shape letters: I images, T texts, H and W pixels, L text tokens.
"""

from __future__ import annotations

import contextlib
import copy
import logging as stdlib_logging
import warnings
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
    BaseImageProcessor,
    BertTokenizer,
    CLIPImageProcessorPil,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Siglip2Tokenizer,
    ViltImageProcessorPil,
    ViTImageProcessorPil,
)
from transformers.utils import logging

from dcdctl.core.errors import DcdError, ModelError, as_user_error, first_line, is_memory_short, require_extra
from dcdctl.core.models.fingerprint import processor_settings, tokenizer_settings
from dcdctl.core.models.inputs import ImageBatch, TextBatch
from dcdctl.core.models.protocols import Table
from dcdctl.core.models.references import folders, hub
from dcdctl.core.models.references.config_sizes import check_sizes

METER: Literal["meter"] = "meter"
"""The `image_transform` of METER."""
VILT_LONGER_PER_SHORTER = 1333 / 800
"""Largest ratio of the longer to the shorter side of a resized image, as in ViLT's official code."""
VILT_SIZE_DIVISOR = 32
"""ViLT cuts the sides of a resized image to multiples of its patch size."""
_SQUARE_PROCESSORS = ("ViTImageProcessor", "DeiTImageProcessor", "BlipImageProcessor")
AFTER_PADDING = ("roberta", "xlm-roberta", "bridgetower_text_model")
"""Text encoders whose positions are counted from their padding id, as in RoBERTa."""
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""Special tokens of a new tokenizer, in the order of their ids."""


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


FOLDER_HINT = "give a folder that holds config.json, model.safetensors, tokenizer and preprocessor_config.json"
TOKENIZER_HINT = "name a tokenizer with `--model-set tokenizer=FOLDER`"


def load_tokenizer(
    ref: str, hint: str = TOKENIZER_HINT, use: str = "", config: PreTrainedConfig | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hub id; ModelError if there is none.

    `use` is that of `hub.reading`. `config` is the configuration of transformers in the same place, if it has been
    read.
    """
    # A folder may hold code for transformers (`dcdctl export`). Without the second argument transformers would ask
    # whether to run it.
    source = {**hub.hub_source(ref), "trust_remote_code": False}
    with hub_errors(ref, hint=hint, use=use):
        try:
            tokenizer = AutoTokenizer.from_pretrained(**source, config=config)
        except ImportError:
            require_extra("siglip", "sentencepiece", needed_by=f"the tokenizer of {ref}")
            raise
        # A SigLIP 2 of one resolution has the type of SigLIP and names Gemma's tokenizer, which ignores do_lower_case.
        # The model has read lower case only, and loses 4 to 7 points of R@1 without (big_vision, issue 166).
        is_lower = getattr(config, "model_type", "") == "siglip" or tokenizer.init_kwargs.get("do_lower_case")
        if is_lower and type(tokenizer).__name__ == "GemmaTokenizer":
            tokenizer = Siglip2Tokenizer.from_pretrained(**source)
    check_words(tokenizer, ref, hint)
    return tokenizer


def check_words(tokenizer: PreTrainedTokenizerBase, ref: str, hint: str) -> None:
    """ModelError for a tokenizer without words, which transformers makes for a folder without a vocabulary."""
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ModelError(f"{ref} holds no tokenizer's vocabulary", hint=hint)


def load_image_processor(ref: str) -> BaseImageProcessor:
    """The image processor of a folder or Hub id, the Pillow version if there is one."""
    with hub_errors(ref, hint="a model needs its preprocessor_config.json"):
        # The torchvision version differs by one gray level in some pixels.
        return AutoImageProcessor.from_pretrained(**hub.hub_source(ref), backend="pil", trust_remote_code=False)


def load_own_tokenizer(ref: str, config: PreTrainedConfig, other: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer of a network's folder or Hub id, whose configuration is `config`, or that of `other`, if the user
    names another."""
    return load_tokenizer(ref, config=config) if not other else load_tokenizer(other)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the files of a tokenizer, which do not depend on what it has read."""
    if tokenizer.is_fast:
        # A call leaves its truncation and padding in the backend, and sets them again; the file would have those of the
        # last one.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)


def word_piece(captions: Iterable[str], vocab_size: int = 2000) -> BertTokenizer:
    """A lower-casing WordPiece tokenizer of at most `vocab_size` tokens, trained on these captions; [PAD] is 0.
    Repeatable. ModelError if there is no room for more than their letters: each word would be unknown."""
    texts = list(captions)
    trained = Tokenizer(WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer(lowercase=True)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    characters: set[str] = set().union(*map(trained.normalizer.normalize_str, texts))
    letters = sorted(character for character in characters if not character.isspace())
    # The trainer numbers "##x" pieces in the order of a randomly seeded hash map, and resolves equal counts by number.
    # Pieces that are given to it in advance have a fixed order, which makes the vocabulary reproducible.
    pieces = [*SPECIALS, *(f"##{letter}" for letter in letters)]
    if vocab_size <= len(pieces):
        raise ModelError(
            f"{vocab_size:,} tokens have no room for words", hint=f"raise model.vocab_size above {len(pieces):,}"
        )
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=pieces, show_progress=False)
    trained.train_from_iterator(texts, trainer)
    return BertTokenizer(vocab=trained.get_vocab(), do_lower_case=True)


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


def check_text_length(max_text_len: int, num_positions: int) -> int:
    """`max_text_len`; ModelError if the model has fewer text positions, or if there is no room for a word."""
    # [CLS], a word, [SEP]; the settings of a saved model are not checked as those of --model-set are.
    if not isinstance(max_text_len, int) or max_text_len < 3:
        raise ModelError(f"max_text_len must be at least 3, got {max_text_len!r:.40}")
    if max_text_len > num_positions:
        raise ModelError(
            f"max_text_len is {max_text_len}, but the model has {num_positions} text positions",
            hint=f"use at most {num_positions}",
        )
    return max_text_len


def num_text_positions(config: PreTrainedConfig) -> int:
    """The number of tokens that a text encoder has positions for; ModelError if its configuration does not give it."""
    if not hasattr(config, "max_position_embeddings"):
        raise ModelError(
            f"the configuration of a {config.model_type} text encoder does not give its number of positions",
            hint="take one such as BERT or RoBERTa",
        )
    # RoBERTa's first position comes after its padding id.
    reserved = config.pad_token_id + 1 if config.model_type in AFTER_PADDING else 0
    return int(config.max_position_embeddings) - reserved


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """ModelError if the tokenizer has more tokens than the model has embeddings."""
    if len(tokenizer) > vocab_size:
        problem = (
            f"the tokenizer has {len(tokenizer):,} tokens, but the model's embedding table has {vocab_size:,} rows"
        )
        raise ModelError(problem, hint="use the tokenizer the model was trained with: `--model-set tokenizer=FOLDER`")


@contextlib.contextmanager
def hub_errors(ref: str, *, hint: str, use: str = "") -> Iterator[None]:
    """Turn the errors of libraries for missing or broken files, or an unreachable Hub (`hub.reading`), into a
    ModelError; others pass."""
    path = folders.path_of(ref)
    is_local = path.exists()
    try:
        check_sizes(path)
        with silence_transformers() if is_local else hub.reading(ref, use):
            yield
    except (DcdError, ImportError):  # not about the files; `needing_timm` and `load_tokenizer` name a missing package
        raise
    # transformers raises OSError for missing files, and also where the Hub is unreachable. A setting that it does not
    # know is a KeyError, TypeError or AttributeError, and weights of other shapes are a RuntimeError. For what it
    # cannot read, tokenizers raises a plain Exception, so no list of types is complete.
    except Exception as error:
        is_named = isinstance(error, PermissionError) or is_memory_short(error)
        if is_named and (refusal := as_user_error(error, path, kind=ModelError)) is not None:
            raise refusal from error
        is_clear = isinstance(error, OSError | ValueError | SafetensorError)
        reason = first_line(error) if is_clear else f"{type(error).__name__}: {first_line(error)}"
        kind = "" if is_local else " (no such file or folder here, so it was looked up as a Hugging Face Hub id)"
        raise ModelError(f"cannot load {ref}{kind}: {reason}", hint=hint) from error


@contextlib.contextmanager
def silence_transformers() -> Iterator[None]:
    """Without the progress bar of transformers for weights and its list of unused entries.

    Local files need no bar, and dcdctl reports missing entries itself. Downloads keep their bar.
    """
    had_bar, handlers = logging.is_progress_bar_enabled(), list(logging.get_logger("transformers").handlers)
    levels = [handler.level for handler in handlers]
    logging.disable_progress_bar()
    # The level of a logger would do as well, but each change of it goes through all loggers of the process, which are
    # thousands.
    for handler in handlers:
        handler.setLevel(stdlib_logging.ERROR)
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)
        if had_bar:
            logging.enable_progress_bar()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without warnings and with log messages of errors alone: what other libraries say of their progress, and of what
    dcdctl sets itself, is for their developers."""
    # Without a handler, the functions of `logging` set up one of the root logger.
    silent, before = stdlib_logging.NullHandler(), stdlib_logging.root.manager.disable
    stdlib_logging.root.addHandler(silent)
    stdlib_logging.disable(stdlib_logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        stdlib_logging.disable(before)
        stdlib_logging.root.removeHandler(silent)
