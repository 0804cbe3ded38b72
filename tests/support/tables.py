"""Models whose scores are a table, and a corpus of numbers for them."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from dcdctl.core.models import ImageBatch, States, TextBatch

OWNER = [0, 0, 1, 2, 2, 2, 3, 4, 4, 5, 6, 6, 7, 8, 8, 8, 8, 9]
"""The image of each caption."""


class Numbers:
    """A corpus of numbers: an image is its index, a caption the text of its index, padded to some length."""

    def __init__(self, owner: list[int]) -> None:
        self.caption_image = np.array(owner)
        self.num_captions, self.num_images = len(owner), max(owner) + 1
        self.captions = [str(text) + " !" * (text % 5) for text in range(len(owner))]
        self.image_ids = [f"image {image}" for image in range(self.num_images)]
        self.caption_ids = np.arange(len(owner)) + 100
        self.fingerprint = f"numbers {len(owner)}"
        self.captions_by_label: dict[str, dict[str, np.ndarray]] = {}
        self.languages = [None] * len(owner)
        self.folder, self.split, self.is_pool, self.whole = Path("numbers"), "test", False, self

    def images(self, image_ix):
        return list(image_ix)

    def subset(self, max_images: int) -> Numbers:
        return Numbers([image for image in self.caption_image.tolist() if image < max_images])


class Preprocess:
    def images(self, images) -> ImageBatch:
        return ImageBatch(torch.tensor(images)[:, None, None, None])

    def texts(self, texts) -> TextBatch:
        words = [text.split() for text in texts]
        longest = max(map(len, words))
        ids = torch.tensor([[int(text[0])] * longest for text in words])
        return TextBatch(ids, torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in words]))


class TableFusion(nn.Module):
    """Gives the pair (i, t) the score table[i, t]; counts pairs and encoded captions."""

    kind = "fusion"
    encoders = None
    known_images: ClassVar[dict[str, States]] = {}
    pairs_per_batch = 256
    groups_by_image = False
    has_one_vector = keeps_states = False

    def __init__(self, table_IT: Tensor) -> None:
        super().__init__()
        self.preprocess, self.table_IT = Preprocess(), table_IT
        self.pairs: list[tuple[int, int]] = []
        self.num_encoded_texts = 0
        self.batches: list[list[tuple[int, int]]] = []

    def encode_images(self, images: ImageBatch) -> States:
        return States(images.pixel_values[:, :, 0], torch.ones(len(images), 1, dtype=torch.bool))

    def encode_texts(self, texts: TextBatch) -> States:
        self.num_encoded_texts += len(texts)
        return States(texts.input_ids[:, :, None], texts.attention_mask.bool())

    def score_pairs(self, images: States, texts: States, image_ix_P: Tensor, text_ix_P: Tensor) -> Tensor:
        image_P, text_P = images.tokens[image_ix_P, 0, 0], texts.tokens[text_ix_P, 0, 0]
        self.batches.append(list(zip(image_P.tolist(), text_P.tolist(), strict=True)))
        self.pairs += self.batches[-1]
        return self.table_IT[image_P, text_P]


class TableDual(nn.Module):
    kind, has_one_vector, keeps_states = "dual", True, True
    encoders = None
    known_images: ClassVar[dict[str, States]] = {}

    def __init__(self, image_ID: Tensor, text_TD: Tensor) -> None:
        super().__init__()
        self.embedding_dim = image_ID.shape[1]
        self.preprocess, self.image_ID, self.text_TD = Preprocess(), image_ID, text_TD
        self.logit_scale = torch.tensor(10.0)

    def embed_images(self, images: ImageBatch) -> Tensor:
        return self.image_ID[images.pixel_values[:, 0, 0, 0]]

    def embed_texts(self, texts: TextBatch) -> Tensor:
        return self.text_TD[texts.input_ids[:, 0]]


def make_dual() -> TableDual:
    """Vectors for OWNER, captions near their images."""
    generator = torch.Generator().manual_seed(0)
    image_ID = nn.functional.normalize(torch.randn(10, 6, generator=generator), dim=1)
    text_TD = nn.functional.normalize(image_ID[OWNER] + 0.4 * torch.randn(18, 6, generator=generator), dim=1)
    return TableDual(image_ID, text_TD)


def make_fusion() -> TableFusion:
    """Scores for OWNER, mostly higher for own pairs."""
    generator = torch.Generator().manual_seed(1)
    table_IT = torch.randn(10, 18, generator=generator)
    table_IT[OWNER, range(18)] += 1.5
    return TableFusion(table_IT)
