"""A fusion scorer that puts the first answers of a text in order: it looks at each of their pictures together with the text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from dcdctl.core import models
from dcdctl.core.errors import ConfigError
from dcdctl.core.index import Index
from dcdctl.core.models.protocols import States
from dcdctl.core.search_answers import Answer, Hit, picture_of

DEPTH = 50
"""Candidates of a query that are put in order."""
PICTURES_AT_A_TIME = 16
"""Decoded and encoded together: a photograph of 12 megapixels takes 36 MB until it is."""


@dataclass(frozen=True)
class Reranker:
    """The second model of a search."""

    ref: str
    scorer: models.FusionScorer
    depth: int
    device: torch.device

    @staticmethod
    def open(ref: str, *, depth: int, device: torch.device) -> Reranker:
        """The scorer that `models.load` knows by this name; ModelError where it is none, ConfigError for a depth below 1."""
        if depth < 1:
            raise ConfigError(f"a depth of {depth} re-ranks nothing, at least 1 is wanted")
        return Reranker(ref, models.load_fusion(ref).to(device).eval(), depth, device)

    def apply(self, text: str, answer: Answer, index: Index) -> Answer:
        """The answer with its first `depth` hits ordered by the scorer's logits; those of equal logits keep their order.

        Below them come those whose picture is gone or damaged, then those beyond the depth, as they stood.
        """
        started = time.perf_counter()
        first, rest = answer.hits[: self.depth], answer.hits[self.depth :]
        logits = self._logits(text, first, index)
        scored = [replace(hit, reranked=logits[hit.row]) for hit in first if hit.row in logits]
        scored.sort(key=lambda hit: -logits[hit.row])
        unseen = [hit for hit in first if hit.row not in logits]
        notes = [f"{len(unseen)} of {len(first)} candidates are not re-ranked: their pictures are gone or damaged"] if unseen else []
        return replace(
            answer,
            hits=(*scored, *unseen, *rest),
            rerank_seconds=time.perf_counter() - started,
            notes=(*answer.notes, *notes),
        )

    @torch.inference_mode()
    def _logits(self, text: str, hits: Sequence[Hit], index: Index) -> dict[int, float]:
        """By row, of those hits whose picture can be read."""
        texts = self.scorer.encode_texts(self.scorer.preprocess.texts([text]).to(self.device))
        logits: dict[int, float] = {}
        for start in range(0, len(hits), PICTURES_AT_A_TIME):
            seen = {hit.row: picture for hit in hits[start : start + PICTURES_AT_A_TIME] if (picture := picture_of(index, hit.row))}
            if seen:
                images = self.scorer.encode_images(self.scorer.preprocess.images(list(seen.values())).to(self.device))
                logits |= zip(seen, self._score(images, texts), strict=True)
        return logits

    def _score(self, images: States, texts: States) -> list[float]:
        image_ix = torch.arange(len(images), device=self.device)
        return self.scorer.score_pairs(images, texts, image_ix, torch.zeros_like(image_ix)).float().tolist()
