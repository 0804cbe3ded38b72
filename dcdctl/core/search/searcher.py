"""Answers from an index: its pictures nearest to a text or to a picture, the first of them put in order by a second model if wanted.

Shape letters: Q queries, K answers of each, D length of the vectors.
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
from dcdctl.core.errors import ConfigError, InputError, MissingError
from dcdctl.core.models import States
from dcdctl.core.search.index import Index
from dcdctl.core.search.query import Answer, Hit, checked_text, image_of, read_image

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
            seen = {hit.row: picture for hit in hits[start : start + PICTURES_AT_A_TIME] if (picture := image_of(index, hit.row))}
            if seen:
                images = self.scorer.encode_images(self.scorer.preprocess.images(list(seen.values())).to(self.device))
                logits |= zip(seen, self._score(images, texts), strict=True)
        return logits

    def _score(self, images: States, texts: States) -> list[float]:
        image_ix = torch.arange(len(images), device=self.device)
        return self.scorer.score_pairs(images, texts, image_ix, torch.zeros_like(image_ix)).float().tolist()


MODEL_FOLDER = "model"
NUM_ANSWERS = 10
TEXTS_AT_A_TIME = 64
"""Texts encoded together."""


@dataclass(frozen=True)
class Searcher:
    """An index and the models that answer from it; several threads may ask at once."""

    index: Index
    model: models.DualEncoder
    device: torch.device
    reranker: Reranker | None = None
    # A tokenizer is changed while it works, and two threads in one are an error.
    _tokenizing: Any = field(default_factory=threading.Lock, repr=False)

    @staticmethod
    def open(folder: Path, *, device: torch.device, rerank: str | None = None, depth: int = DEPTH) -> Searcher:
        """The searcher of an index, with the dual encoder that is in it; `rerank` is a fusion scorer, named as for `models.load`.

        MissingError and StaleError of `Index.open`; MissingError where the index has no model, StaleError where its model is not the
        one that made its vectors; ModelError where a model cannot be loaded or is of another kind.
        """
        index = Index.open(folder)
        # What is not there would be looked up at the Hub.
        if not (folder / MODEL_FOLDER / "config.json").is_file():
            raise MissingError(f"the index {folder} lacks its model, {folder / MODEL_FOLDER}", hint="copy the whole folder, or index again")
        if rerank is not None:
            models.check_ref(rerank, kind="fusion")
        model = models.load_dual(folder / MODEL_FOLDER).to(device).eval()
        index.expect(model.digest)
        return Searcher(index, model, device, None if rerank is None else Reranker.open(rerank, depth=depth, device=device))

    def ask(self, question: str | Path, k: int = NUM_ANSWERS) -> Answer:
        """The answer to a text, or to the picture in a file."""
        return self.by_picture(read_image(question), k) if isinstance(question, Path) else self.by_text(question, k)

    def by_text(self, text: str, k: int = NUM_ANSWERS) -> Answer:
        """The k pictures nearest to a text; all where there are fewer. InputError for a text that holds nothing to read."""
        return self.by_texts([text], k)[0]

    def by_texts(self, texts: Sequence[str], k: int = NUM_ANSWERS) -> list[Answer]:
        """An answer a text, computed together."""
        asked = [checked_text(text) for text in texts]
        answers: list[Answer] = []
        for start in range(0, len(asked), TEXTS_AT_A_TIME):
            answers += self._answer_texts(asked[start : start + TEXTS_AT_A_TIME], k)
        return answers

    @torch.inference_mode()
    def by_picture(self, picture: Image.Image, k: int = NUM_ANSWERS) -> Answer:
        """The k pictures nearest to a picture; ConfigError with a second model, which compares pictures with texts only."""
        if self.reranker is not None:
            found = f"{self.reranker.ref} scores a picture with a text, and cannot re-rank pictures by a picture"
            raise ConfigError(found, hint="leave --rerank out, or ask by a text")
        started = time.perf_counter()
        vectors_QD = self.model.embed_images(self.model.preprocess.images([picture]).to(self.device))
        return self._nearest(_on_cpu(vectors_QD), k, started, [()])[0]

    @torch.inference_mode()
    def _answer_texts(self, texts: Sequence[str], k: int) -> list[Answer]:
        started = time.perf_counter()
        with self._tokenizing:
            batch = self.model.preprocess.texts(texts)
            notes = [
                self._notes(text, ids[mask.bool()]) for text, ids, mask in zip(texts, batch.input_ids, batch.attention_mask, strict=True)
            ]
        vectors_QD = _on_cpu(self.model.embed_texts(batch.to(self.device)))
        if self.reranker is None:
            return self._nearest(vectors_QD, k, started, notes)
        found = self._nearest(vectors_QD, max(k, self.reranker.depth), started, notes)
        answers = [self.reranker.apply(text, answer, self.index) for text, answer in zip(texts, found, strict=True)]
        return [replace(answer, hits=answer.hits[:k]) for answer in answers]

    def _nearest(self, vectors_QD: NDArray[np.float32], k: int, started: float, notes: Sequence[tuple[str, ...]]) -> list[Answer]:
        """The answers to vectors whose encoding began at `started`; no hits for rows that the index did not fill."""
        if k < 1:
            raise ConfigError(f"k is {k}, at least 1 answer is wanted")
        encoded = time.perf_counter()
        nearest = self.index.nearest(vectors_QD, min(k, self.index.num_images))
        hits_Q = [
            tuple(self._hit(row, score) for row, score in zip(rows, scores, strict=True) if row >= 0)
            for rows, scores in zip(nearest.rows_QK.tolist(), nearest.scores_QK.tolist(), strict=True)
        ]
        encode_s, find_s = ((end - begin) / len(hits_Q) for begin, end in ((started, encoded), (encoded, time.perf_counter())))
        return [Answer(hits, encode_s, find_s, notes=told) for hits, told in zip(hits_Q, notes, strict=True)]

    def _hit(self, row: int, score: float) -> Hit:
        return Hit(row, self.index.image_id(row), self.index.name(row), score)

    def _notes(self, text: str, ids: Tensor) -> tuple[str, ...]:
        """What is told about the tokens of a text; InputError where there are none of it."""
        tokenizer, most = self.model.preprocess.tokenizer, self.model.preprocess.max_text_len
        words = set(ids.tolist()) - (set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})
        if not words:
            raise InputError(f"the model reads nothing in {text!r}", hint="ask in words")
        told = []
        if words == {tokenizer.unk_token_id}:
            told.append("the model knows none of these words: what it finds is by chance")
        if len(ids) == most and (length := len(tokenizer(text, verbose=False)["input_ids"])) > most:
            told.append(f"the text has {length:,} tokens, and the model reads the first {most}")
        return tuple(told)


def _on_cpu(vectors_QD: Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = vectors_QD.float().cpu().numpy()
    return found
