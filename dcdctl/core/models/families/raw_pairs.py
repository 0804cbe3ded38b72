"""The base of scorers that read whole images and captions, such as another library's cross-encoder.

Such a scorer has no part that depends on an image or a caption alone. Its "encoded" images are the pixels and its
"encoded" captions are the UTF-8 bytes, so every caller that scores pairs of a corpus works unchanged, and the scorer
gets back the same pixels and strings.

Shape letters: I images, T texts, P pairs, B aligned pairs, H and W pixels, L bytes, N tokens of an encoded input.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Never, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dcdctl.core.errors import ModelError
from dcdctl.core.models.checkpoint import check_complete
from dcdctl.core.models.fingerprint import processor_settings, tokenizer_settings
from dcdctl.core.models.fusion import FusionScorer
from dcdctl.core.models.inputs import ImageBatch, RefusedTextError, States, TextBatch, unencoded
from dcdctl.core.models.protocols import Table

HEADER = 2
"""Tokens before the pixels of an encoded image: its width and its height, each a number of three bytes."""


@dataclass(frozen=True, kw_only=True)
class RawPreprocess:
    """Images as uint8 RGB pixels and captions as UTF-8 bytes. The scorer preprocesses them itself."""

    tokenizer: Any = None
    """A fast tokenizer of transformers that counts the tokens of a caption; without one, characters are counted."""
    image_processor: Any = None
    max_text_len: int = 0
    """Maximum number of tokens or characters of a caption; 0 for no limit."""
    refused: Sequence[str] = ()
    """Texts that stand for an image in the model's prompt, so that no caption may hold one."""
    image_size_px: int = 0
    """0, because images keep their size."""

    def images(self, images: Sequence[Image.Image]) -> ImageBatch:
        """The pixels of the images, I x 3 x H x W, uint8, with a mask."""
        width, height = max(image.width for image in images), max(image.height for image in images)
        pixels = np.zeros((len(images), 3, height, width), dtype=np.uint8)
        mask = np.zeros((len(images), height, width), dtype=np.bool_)
        for i, image in enumerate(images):
            pixels[i, :, : image.height, : image.width] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
            mask[i, : image.height, : image.width] = True
        return ImageBatch(torch.from_numpy(pixels), torch.from_numpy(mask))

    def texts(self, texts: Sequence[str]) -> TextBatch:
        """The bytes of the captions, T x L, uint8; each caption is cut to `max_text_len`, if that is not 0.

        RefusedTextError for a caption that holds a text of `refused`.
        """
        cut = [self._cut(text) for text in texts]
        for position, text in enumerate(cut):
            if token := next((token for token in self.refused if token in text), None):
                raise RefusedTextError(position, f"holds {token}, by which the model marks an image or a video")
        encoded = [text.encode() for text in cut]
        # One byte for empty captions, because a batch of width 0 has no states.
        ids = np.zeros((len(texts), max(1, *map(len, encoded))), dtype=np.uint8)
        mask = np.zeros_like(ids, dtype=np.int64)
        for t, content in enumerate(encoded):
            ids[t, : len(content)] = np.frombuffer(content, dtype=np.uint8)
            mask[t, : len(content)] = 1
        return TextBatch(torch.from_numpy(ids), torch.from_numpy(mask))

    def _cut(self, text: str) -> str:
        if not self.max_text_len:
            return text
        if self.tokenizer is None:
            return text[: self.max_text_len]
        # verbose=False, because transformers warns about texts that are longer than the model's own limit.
        tokens = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ends = tokens["offset_mapping"]
        return text if len(ends) <= self.max_text_len else text[: ends[self.max_text_len - 1][1]]

    @property
    def settings(self) -> Table:
        """All that decides what the scorer is given. What it does with it is in its own settings."""
        return {"max_text_len": self.max_text_len, "counts": "characters" if self.tokenizer is None else "tokens"}

    def save(self, folder: Path) -> None:
        """No files, because this has no settings of its own."""

    def self_contained(self) -> Self:
        """This object: it adds no step to a saved tokenizer or image processor."""
        return self


class RawPairScorer(FusionScorer):
    """A scorer that a subclass defines by `_score`, from images and strings to logits.

    It is a teacher and a re-ranker. It can be neither trained nor saved here, and has no student of fewer layers.
    """

    # Whole images are large: only a chunk of them is in memory when pairs are grouped.
    groups_by_image = True
    preprocess: RawPreprocess

    def __init__(self, network: nn.Module, preprocess: RawPreprocess | None = None) -> None:
        """`network` has the weights; an empty nn.Module for a scorer without any."""
        super().__init__(network, preprocess or RawPreprocess())

    @abstractmethod
    def _score(self, images: list[Image.Image], texts: list[str], image_ix: list[int], text_ix: list[int]) -> Tensor:
        """Raw logits of P pairs, given as positions in RGB images and captions that all occur in a pair."""

    @property
    def config(self) -> Table:
        """Settings of the network; none unless a subclass has them."""
        return {}

    def encode_images(self, images: ImageBatch | States) -> States:
        """The images as tokens, uint8, I x N x 3 on the CPU: width, height, and then the pixels row by row."""
        pictures = pictures_of(unencoded(images))
        lengths_I = torch.tensor([HEADER + picture.width * picture.height for picture in pictures])
        tokens_IN3 = torch.zeros(len(pictures), int(lengths_I.max()), 3, dtype=torch.uint8)
        for tokens_N3, length, picture in zip(tokens_IN3, lengths_I, pictures, strict=True):
            header = [list(side.to_bytes(3, "big")) for side in picture.size]
            tokens_N3[:HEADER] = torch.tensor(header, dtype=torch.uint8)
            # A copy, because torch warns of arrays that cannot be written, as those of Pillow.
            tokens_N3[HEADER:length] = torch.from_numpy(np.array(picture)).reshape(-1, 3)
        return States(tokens_IN3, torch.arange(tokens_IN3.shape[1]) < lengths_I[:, None])

    def encode_texts(self, texts: TextBatch | States) -> States:
        """The captions as tokens, uint8, T x L x 1 on the CPU: their bytes."""
        texts = unencoded(texts)
        return States(texts.input_ids.cpu()[..., None], texts.attention_mask.cpu().bool())

    def score_pairs(self, images: States, texts: States, image_ix_P: Tensor, text_ix_P: Tensor) -> Tensor:
        """Logits of P pairs, given as positions in `images` and `texts`; each image and caption is unpacked once."""
        # Not `States.distinct`, which would copy whole images.
        used_images, image_at_P = image_ix_P.cpu().unique(return_inverse=True)
        used_texts, text_at_P = text_ix_P.cpu().unique(return_inverse=True)
        pictures = [_image(images.tokens[image]) for image in used_images.tolist()]
        captions = [_text(texts.tokens[text], texts.mask[text]) for text in used_texts.tolist()]
        return self._score(pictures, captions, image_at_P.tolist(), text_at_P.tolist())

    def save_network(self, folder: Path, *, half: bool = False) -> Never:
        """ModelError: such a scorer is used where it is."""
        raise ModelError(
            f"{self.noun} cannot be saved or exported", hint="give its own reference wherever it is needed"
        )

    def export_copy(self) -> Never:
        """ModelError: such a scorer is used where it is."""
        self.save_network(Path())


def check_read(network: nn.Module, ref: str, what: str) -> None:
    """ModelError if the files of `ref` lacked a weight of the network, which transformers fills with random numbers."""
    # transformers marks the weights that it has read.
    missing = {name for name, value in network.named_parameters() if not getattr(value, "_is_hf_initialized", False)}
    check_complete(ref, missing, what)


def processor_table(processor: Any) -> Table:
    """All settings of a processor of transformers that decide a score."""
    return {
        "processor": [type(processor).__name__, processor_settings(processor) if hasattr(processor, "to_dict") else {}],
        # The classes with and without torchvision have the same settings and differ in some pixels.
        "image_processor": type(getattr(processor, "image_processor", None)).__name__,
        "tokenizer": tokenizer_settings(getattr(processor, "tokenizer", processor)),
    }


def pictures_of(images: ImageBatch) -> list[Image.Image]:
    """The images of a batch that `RawPreprocess` made."""
    assert images.pixel_mask is not None
    pictures = []
    for mask_HW, pixels_HW3 in zip(images.pixel_mask.cpu(), images.pixel_values.cpu().permute(0, 2, 3, 1), strict=True):
        width, height = int(mask_HW[0].sum()), int(mask_HW[:, 0].sum())
        pictures.append(Image.fromarray(pixels_HW3[:height, :width].numpy()))
    return pictures


def captions_of(texts: TextBatch) -> list[str]:
    """The captions of a batch that `RawPreprocess` made."""
    rows = zip(texts.input_ids.cpu(), texts.attention_mask.cpu().bool(), strict=True)
    return [_text(ids[:, None], mask) for ids, mask in rows]


def _image(tokens_N3: Tensor) -> Image.Image:
    width, height = (int.from_bytes(bytes(side), "big") for side in tokens_N3[:HEADER].tolist())
    pixels = tokens_N3[HEADER : HEADER + width * height].reshape(height, width, 3)
    return Image.fromarray(pixels.numpy())


def _text(tokens_L1: Tensor, mask_L: Tensor) -> str:
    return bytes(tokens_L1[mask_L, 0].tolist()).decode()
