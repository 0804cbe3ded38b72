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
from dcdctl.core.index import Index
from dcdctl.core.search_answers import Answer, Hit, to_document
from dcdctl.core.search_query import checked_text, read_picture
from dcdctl.core.search_reranking import DEPTH, Reranker

__all__ = ["DEPTH", "NUM_ANSWERS", "Answer", "Hit", "Searcher", "read_picture", "to_document"]

MODEL_FOLDER = "model"
NUM_ANSWERS = 10
TEXTS_AT_A_TIME = 64
"""Texts encoded together."""


@dataclass(frozen=True)
class Searcher:
    """An index and the models that answer from it; several threads may ask at once."""

    index: Index
    model: models.DualModel
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
        model = models.load_dual(folder / MODEL_FOLDER).to(device).eval()
        index.expect(models.fingerprint(model))
        return Searcher(index, model, device, None if rerank is None else Reranker.open(rerank, depth=depth, device=device))

    def ask(self, question: str | Path, k: int = NUM_ANSWERS) -> Answer:
        """The answer to a text, or to the picture in a file."""
        return self.by_picture(read_picture(question), k) if isinstance(question, Path) else self.by_text(question, k)

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
