"""The models of a search that need torch: the model of an index, and a re-ranker.

Shape letters: T texts, L tokens, D length of the vectors.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dcdctl.core import machine, models
from dcdctl.core.arguments import Settings
from dcdctl.core.errors import ConfigError, ModelError
from dcdctl.core.models import PATIENCE_S
from dcdctl.core.search.answers import SearchAnswer, image_of
from dcdctl.core.search.protocol import Hit, ImageIndex

T = TypeVar("T")

DEPTH = 50
"""Candidates per query that are re-ranked."""
IMAGE_BATCH = 16
"""Images decoded and encoded together for the re-ranker: a photo of 12 megapixels takes 36 MB until it is resized."""


class DualVectors:
    """A model on a device: the methods of a `models.TextTower`, and vectors of images. Safe to call from threads."""

    probes = None

    def __init__(self, model: models.Searchable, device: torch.device) -> None:
        self.model, self.device = model, device
        # A tokenizer changes its state while it works, so two threads must not use it at once.
        self._tokenizing = threading.Lock()
        self._workers = machine.Workers(PATIENCE_S)

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
            batch = self._do(lambda: self.model.preprocess.texts(texts))
        masked = zip(batch.input_ids, batch.attention_mask, strict=True)
        return batch, [ids_L[mask_L.bool()].tolist() for ids_L, mask_L in masked]

    def num_tokens(self, text: str) -> int:
        with self._tokenizing:
            # verbose=False, because transformers would warn about the length.
            return len(self._do(lambda: self.model.preprocess.tokenizer(text, verbose=False)["input_ids"]))

    def _do(self, work: Callable[[], T]) -> T:
        """What tokenizing gives; ModelError if it does not end, as the regular expression of a stranger may."""
        try:
            return self._workers.do(work)
        except TimeoutError as error:
            message = f"the tokenizer of the model reads a text for more than {PATIENCE_S} s"
            raise ModelError(message, hint="use an index of another model") from error

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


@dataclass(frozen=True)
class Reranker:
    """A scorer of pairs, or a dual encoder as one, that re-ranks the first hits of a search."""

    ref: str
    scorer: models.Scorer
    depth: int
    device: torch.device

    @staticmethod
    def open(ref: str, *, depth: int | None, device: torch.device, settings: Settings | None = None) -> Reranker:
        """The model that `models.load` knows by this name, with settings such as "dtype=bfloat16"; ConfigError for a
        depth below 1."""
        depth = DEPTH if depth is None else depth
        if depth < 1:
            raise ConfigError(f"a depth of {depth} re-ranks nothing, it must be at least 1")
        scorer = models.load_scorer(ref, models.parse_overrides(settings, "rerank-set"))
        return Reranker(ref, scorer.to(device).eval(), depth, device)

    def apply(self, text: str, answer: SearchAnswer, index: ImageIndex) -> SearchAnswer:
        """The answer with its first `depth` hits ordered by logits; equal logits keep their order.

        Hits whose image is gone or damaged follow, then the hits beyond the depth, both in their old order.
        """
        started = time.perf_counter()
        first, rest = answer.hits[: self.depth], answer.hits[self.depth :]
        logits = self._logits(text, first, index)
        scored = [replace(hit, reranked=logits[hit.row]) for hit in first if hit.row in logits]
        # Stable: equal logits keep the order by cosine.
        scored.sort(key=lambda hit: -logits[hit.row])
        unscored = [hit for hit in first if hit.row not in logits]
        notes = list(answer.notes)
        if unscored:
            notes.append(
                f"{len(unscored)} of {len(first)} candidates are not re-ranked: their images are gone or damaged"
            )
        return replace(
            answer,
            hits=(*scored, *unscored, *rest),
            rerank_seconds=time.perf_counter() - started,
            notes=tuple(notes),
        )

    @torch.inference_mode()
    def _logits(self, text: str, hits: Sequence[Hit], index: ImageIndex) -> dict[int, float]:
        """Logits by row; hits whose image cannot be read have none."""
        texts = self.scorer.encode_texts(self.scorer.preprocess.texts([text]).to(self.device))
        logits: dict[int, float] = {}
        for start in range(0, len(hits), IMAGE_BATCH):
            found = ((hit.row, image_of(index, hit.row)) for hit in hits[start : start + IMAGE_BATCH])
            images = {row: image for row, image in found if image is not None}
            if images:
                states = self.scorer.encode_images(self.scorer.preprocess.images(list(images.values())).to(self.device))
                image_ix = torch.arange(len(images))
                scores = self.scorer.score_pairs(states, texts, image_ix, torch.zeros_like(image_ix)).float()
                if not bool(scores.isfinite().all()):
                    raise ModelError(
                        f"{self.ref} gives scores that are NaN or infinite",
                        hint="its training diverged: re-rank with another model",
                    )
                logits |= zip(images, scores.tolist(), strict=True)
        return logits
