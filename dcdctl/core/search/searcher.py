"""Search by text or by image: the nearest images of an index, optionally re-ranked by another model.

Shape letters: Q queries, K answers per query, D width of the vectors.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dcdctl.core import models
from dcdctl.core.errors import ConfigError, InputError, ModelError
from dcdctl.core.models import States
from dcdctl.core.search.index import Index
from dcdctl.core.search.keywords import check_hybrid
from dcdctl.core.search.protocol import Hit, ImageIndex
from dcdctl.core.search.query import Answer, checked_text, image_of, query_image
from dcdctl.core.search.where import Condition

NUM_ANSWERS = 10
DEPTH = 50
"""Candidates per query that are re-ranked."""
TEXT_BATCH = 64
"""Texts encoded together."""
IMAGE_BATCH = 16
"""Images decoded and encoded together for the re-ranker: a photo of 12 megapixels takes 36 MB until it is resized."""


@dataclass(frozen=True)
class Reranker:
    """A fusion scorer, or a dual encoder as one, that re-ranks the first hits of a search."""

    ref: str
    scorer: models.FusionScorer
    depth: int
    device: torch.device

    @staticmethod
    def open(ref: str, *, depth: int | None, device: torch.device, settings: Sequence[str] = ()) -> Reranker:
        """The model that `models.load` knows by this name, with settings such as "dtype=bfloat16"; ConfigError for a depth below 1."""
        depth = DEPTH if depth is None else depth
        if depth < 1:
            raise ConfigError(f"a depth of {depth} re-ranks nothing, it must be at least 1")
        return Reranker(ref, models.load_scorer(ref, models.parse_overrides(settings, "rerank-set")).to(device).eval(), depth, device)

    def apply(self, text: str, answer: Answer, index: ImageIndex) -> Answer:
        """The answer with its first `depth` hits ordered by logits; equal logits keep their order.

        Hits whose image is gone or damaged follow, then the hits beyond the depth, both in their old order.
        """
        started = time.perf_counter()
        first, rest = answer.hits[: self.depth], answer.hits[self.depth :]
        logits = self._logits(text, first, index)
        scored = [replace(hit, reranked=logits[hit.row]) for hit in first if hit.row in logits]
        scored.sort(key=lambda hit: -logits[hit.row])
        unscored = [hit for hit in first if hit.row not in logits]
        notes = [f"{len(unscored)} of {len(first)} candidates are not re-ranked: their images are gone or damaged"] if unscored else []
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
            images = {hit.row: image for hit in hits[start : start + IMAGE_BATCH] if (image := image_of(index, hit.row))}
            if images:
                states = self.scorer.encode_images(self.scorer.preprocess.images(list(images.values())).to(self.device))
                logits |= zip(images, self._score(states, texts), strict=True)
        return logits

    def _score(self, images: States, texts: States) -> list[float]:
        image_ix = torch.arange(len(images), device=self.device)
        logits = self.scorer.score_pairs(images, texts, image_ix, torch.zeros_like(image_ix)).float()
        if not bool(logits.isfinite().all()):
            raise ModelError(f"{self.ref} gives scores that are NaN or infinite", hint="its training diverged: re-rank with another model")
        return logits.tolist()


@dataclass(frozen=True)
class Wanted:
    """What is to be found besides vectors."""

    k: int
    where: Condition | None = None
    texts: Sequence[str] | None = None
    """The texts of the queries, for a hybrid search."""

    def find(self, index: ImageIndex, vectors_QD: NDArray[np.float32]) -> list[tuple[Hit, ...]]:
        if self.texts is None:
            return index.search(vectors_QD, self.k, self.where)
        return index.hybrid(self.texts, vectors_QD, self.k, self.where)

    def notes(self, hits: Sequence[Hit]) -> list[str]:
        if self.where is not None and not hits:
            return ["no image meets the condition"]
        has_words = self.texts is None or any(hit.bm25 is not None for hit in hits)
        return [] if has_words else ["no word of the text is in the captions or names of these images: they are ordered by vectors alone"]


@dataclass(frozen=True)
class Searcher:
    """An index and the models that search it; safe to call from several threads."""

    index: ImageIndex
    model: models.DualEncoder
    device: torch.device
    reranker: Reranker | None = None
    # A tokenizer changes its state while it works, so two threads must not use it at once.
    _tokenizing: Any = field(default_factory=threading.Lock, repr=False)

    @staticmethod
    def open(folder: Path, *, device: torch.device, rerank: str | None = None, depth: int | None = None) -> Searcher:
        """The searcher of the index in a folder; see `for_index`. MissingError and StaleError of `Index.open`."""
        return Searcher.for_index(Index.open(folder), device=device, rerank=rerank, depth=depth)

    @staticmethod
    def for_index(
        index: ImageIndex, *, device: torch.device, rerank: str | None = None, depth: int | None = None, rerank_set: Sequence[str] = ()
    ) -> Searcher:
        """A searcher with the dual encoder of an index.

        `rerank` is a fusion scorer or another dual encoder, named as for `models.load`, and `rerank_set` its settings (`Reranker.open`). It
        orders the first `depth` candidates, `DEPTH` if None.

        MissingError if the index lacks its model, StaleError if another model made its vectors, ModelError if a model cannot be loaded.
        """
        overrides = models.parse_overrides(rerank_set, "rerank-set")
        if rerank is not None:
            models.check_ref(rerank, overrides)
        elif overrides:
            raise ConfigError("--rerank-set sets up a re-ranker, and there is none", hint="add --rerank REF")
        model = models.load_dual(index.model).to(device).eval()
        index.expect(model.digest)
        reranker = None if rerank is None else Reranker.open(rerank, depth=depth, device=device, settings=rerank_set)
        return Searcher(index, model, device, reranker)

    def ask(
        self, question: str | Path | Image.Image, k: int = NUM_ANSWERS, where: Condition | None = None, *, hybrid: bool = False
    ) -> Answer:
        """The answer to a text, to the image in a file, or to an image in memory; ConfigError for a hybrid search by an image."""
        if isinstance(question, str):
            return self.by_text(question, k, where, hybrid=hybrid)
        if hybrid:
            raise ConfigError("a hybrid search compares the words of a text, and an image has none", hint="search by a text")
        return self.by_image(query_image(question), k, where)

    def by_text(self, text: str, k: int = NUM_ANSWERS, where: Condition | None = None, *, hybrid: bool = False) -> Answer:
        """The k images nearest to a text, or all if there are fewer. InputError for a text without a token that the model reads.

        With `hybrid`, the ranks by vectors are fused with those by the words of captions and file names; MissingError for an index without.
        """
        return self.by_texts([text], k, where, hybrid=hybrid)[0]

    def by_texts(self, texts: Sequence[str], k: int = NUM_ANSWERS, where: Condition | None = None, *, hybrid: bool = False) -> list[Answer]:
        """An answer for each text, computed together."""
        if hybrid:
            check_hybrid(self.index)
        checked = [checked_text(text) for text in texts]
        answers: list[Answer] = []
        for start in range(0, len(checked), TEXT_BATCH):
            answers += self._answer_texts(checked[start : start + TEXT_BATCH], k, where, hybrid)
        return answers

    @torch.inference_mode()
    def text_vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(Q, D): the vectors of texts, as they are compared with those of the index."""
        with self._tokenizing:
            batch = self.model.preprocess.texts(texts)
        return _on_cpu(self.model.embed_texts(batch.to(self.device)))[:, : self.index.dim]

    @torch.inference_mode()
    def by_image(self, image: Image.Image, k: int = NUM_ANSWERS, where: Condition | None = None) -> Answer:
        """The k images nearest to an image; ConfigError with a re-ranker, because it compares images with texts only."""
        if self.reranker is not None:
            reason = f"{self.reranker.ref} scores an image with a text, and cannot re-rank images by an image"
            raise ConfigError(reason, hint="leave --rerank out, or search by a text")
        started = time.perf_counter()
        vectors_QD = self.model.embed_images(self.model.preprocess.images([image]).to(self.device))
        return self._nearest(_on_cpu(vectors_QD), Wanted(k, where), started, [()])[0]

    @torch.inference_mode()
    def _answer_texts(self, texts: Sequence[str], k: int, where: Condition | None, hybrid: bool) -> list[Answer]:
        started = time.perf_counter()
        with self._tokenizing:
            batch = self.model.preprocess.texts(texts)
            notes = [
                self._notes(text, ids[mask.bool()]) for text, ids, mask in zip(texts, batch.input_ids, batch.attention_mask, strict=True)
            ]
        vectors_QD = _on_cpu(self.model.embed_texts(batch.to(self.device)))
        words = texts if hybrid else None
        if self.reranker is None:
            return self._nearest(vectors_QD, Wanted(k, where, words), started, notes)
        candidates = self._nearest(vectors_QD, Wanted(max(k, self.reranker.depth), where, words), started, notes)
        answers = [self.reranker.apply(text, answer, self.index) for text, answer in zip(texts, candidates, strict=True)]
        return [replace(answer, hits=answer.hits[:k]) for answer in answers]

    def _nearest(self, vectors_QD: NDArray[np.float32], wanted: Wanted, started: float, notes: Sequence[tuple[str, ...]]) -> list[Answer]:
        """The answers to vectors whose encoding began at `started`."""
        if wanted.k < 1:
            raise ConfigError(f"k must be at least 1, got {wanted.k}")
        # An index of short vectors is searched by the first numbers alone, which may be zero where the others are not.
        vectors_QD = vectors_QD[:, : self.index.dim]
        if not (np.isfinite(vectors_QD).all() and vectors_QD.any(axis=1).all()):
            hint = "its training diverged: index the images with another model"
            raise ModelError("the model gives vectors of queries that are zero, NaN or infinite", hint=hint)
        encoded = time.perf_counter()
        hits_Q = wanted.find(self.index, vectors_QD)
        encode_s, find_s = ((end - begin) / len(hits_Q) for begin, end in ((started, encoded), (encoded, time.perf_counter())))
        return [Answer(hits, encode_s, find_s, notes=(*note, *wanted.notes(hits))) for hits, note in zip(hits_Q, notes, strict=True)]

    def _notes(self, text: str, ids: Tensor) -> tuple[str, ...]:
        """Notes on the tokens of a text; InputError if it has none."""
        tokenizer, limit = self.model.preprocess.tokenizer, self.model.preprocess.max_text_len
        # The unknown token is a special one for transformers, but it stands for a word of the text.
        words = set(ids.tolist()) - (set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})
        if not words:
            raise InputError(f"the model reads nothing in {text!r}", hint="search in words")
        notes = []
        if words == {tokenizer.unk_token_id}:
            notes.append("the model knows none of these words: the hits are random")
        # verbose=False, because transformers would warn about the same length.
        if len(ids) == limit and (length := len(tokenizer(text, verbose=False)["input_ids"])) > limit:
            notes.append(f"the text has {length:,} tokens, and the model reads the first {limit}")
        return tuple(notes)


def _on_cpu(vectors_QD: Tensor) -> NDArray[np.float32]:
    # NumPy has no bfloat16.
    array: NDArray[np.float32] = vectors_QD.float().cpu().numpy()
    return array
