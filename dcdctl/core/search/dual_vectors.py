"""The vectors of texts and images by the model of an index and torch.

Shape letters: T texts, L tokens, D length of the vectors.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dcdctl.core import models


class DualVectors:
    """A model on a device: the methods of a `models.TextTower`, and vectors of images. Safe to call from threads."""

    probes = None

    def __init__(self, model: models.Searchable, device: torch.device) -> None:
        self.model, self.device = model, device
        # A tokenizer changes its state while it works, so two threads must not use it at once.
        self._tokenizing = threading.Lock()

    @property
    def max_text_len(self) -> int:
        return self.model.preprocess.max_text_len

    @property
    def special_ids(self) -> frozenset[int]:
        # The unknown token is a special one for transformers, but it stands for a word of the text.
        return frozenset(self.model.preprocess.tokenizer.all_special_ids) - {self.unknown_id}

    @property
    def unknown_id(self) -> int | None:
        return self.model.preprocess.tokenizer.unk_token_id

    def tokenize(self, texts: Sequence[str]) -> tuple[models.TextBatch, list[list[int]]]:
        with self._tokenizing:
            batch = self.model.preprocess.texts(texts)
        ids = [
            ids_L[mask_L.bool()].tolist() for ids_L, mask_L in zip(batch.input_ids, batch.attention_mask, strict=True)
        ]
        return batch, ids

    def num_tokens(self, text: str) -> int:
        with self._tokenizing:
            # verbose=False, because transformers would warn about the length.
            return len(self.model.preprocess.tokenizer(text, verbose=False)["input_ids"])

    @torch.inference_mode()
    def vectors(self, batch: Any) -> NDArray[np.float32]:
        return _on_cpu(self.model.embed_texts(batch.to(self.device)))

    @torch.inference_mode()
    def of_image(self, image: Image.Image) -> NDArray[np.float32]:
        """The vector of an image, 1 x D."""
        return _on_cpu(self.model.embed_images(self.model.preprocess.images([image]).to(self.device)))


def _on_cpu(vectors_TD: Tensor) -> NDArray[np.float32]:
    # NumPy has no bfloat16.
    array: NDArray[np.float32] = vectors_TD.float().cpu().numpy()
    return array
