"""Re-ranking the first hits of a search by another model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from dcdctl.core import models
from dcdctl.core.errors import ConfigError, ModelError
from dcdctl.core.search.protocol import Hit, ImageIndex
from dcdctl.core.search.query import SearchAnswer, image_of

DEPTH = 50
"""Candidates per query that are re-ranked."""
IMAGE_BATCH = 16
"""Images decoded and encoded together for the re-ranker: a photo of 12 megapixels takes 36 MB until it is resized."""


@dataclass(frozen=True)
class Reranker:
    """A scorer of pairs, or a dual encoder as one, that re-ranks the first hits of a search."""

    ref: str
    scorer: models.Scorer
    depth: int
    device: torch.device

    @staticmethod
    def open(ref: str, *, depth: int | None, device: torch.device, settings: Sequence[str] = ()) -> Reranker:
        """The model that `models.load` knows by this name, with settings such as "dtype=bfloat16"; ConfigError for a
        depth below 1."""
        depth = DEPTH if depth is None else depth
        if depth < 1:
            raise ConfigError(f"a depth of {depth} re-ranks nothing, it must be at least 1")
        return Reranker(
            ref,
            models.load_scorer(ref, models.parse_overrides(settings, "rerank-set")).to(device).eval(),
            depth,
            device,
        )

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
        notes = (
            [f"{len(unscored)} of {len(first)} candidates are not re-ranked: their images are gone or damaged"]
            if unscored
            else []
        )
        return replace(
            answer,
            hits=(*scored, *unscored, *rest),
            rerank_seconds=time.perf_counter() - started,
            notes=(*answer.notes, *notes),
        )

    @torch.inference_mode()
    def _logits(self, text: str, hits: Sequence[Hit], index: ImageIndex) -> dict[int, float]:
        """Logits by row; hits whose image cannot be read have none."""
        texts = self.scorer.encode_texts(self.scorer.preprocess.texts([text]).to(self.device))
        logits: dict[int, float] = {}
        for start in range(0, len(hits), IMAGE_BATCH):
            images = {
                hit.row: image for hit in hits[start : start + IMAGE_BATCH] if (image := image_of(index, hit.row))
            }
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
