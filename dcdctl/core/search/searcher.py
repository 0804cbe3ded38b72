"""Search by text or by image: the nearest images of an index, optionally re-ranked by another model.

Importing this module imports no torch: texts are read by the text side that an index holds for ONNX Runtime
(`models.TextTower`), and torch and transformers, which take seconds to import, come with the first image or the
re-ranker.

Shape letters: Q queries, K answers per query, D width of the vectors.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dcdctl.core import models
from dcdctl.core.arguments import Settings
from dcdctl.core.errors import ConfigError, InputError, ModelError, StaleError
from dcdctl.core.models import TextTower
from dcdctl.core.search.answers import SearchAnswer, checked_text, query_image
from dcdctl.core.search.background import Background, measure_background, probe_texts
from dcdctl.core.search.columns.order import Order, default_order
from dcdctl.core.search.columns.where import Condition
from dcdctl.core.search.combined import DEPTH, IMAGE_WEIGHT, MINUS, CombinedQuery
from dcdctl.core.search.exact import best_first
from dcdctl.core.search.protocol import Hit, ImageIndex

if TYPE_CHECKING:
    import torch

    from dcdctl.core.search.torch_models import DualVectors, Reranker

NUM_ANSWERS = 10
TEXT_BATCH = 64
"""Texts encoded together."""
WEAK = "Probably not among these images: unrelated texts score as high"


class IndexModel:
    """The model of an index, loaded when it is first needed. Thread-safe."""

    def __init__(self, index: ImageIndex, device: str | torch.device) -> None:
        """MissingError if the index lacks its model. `device` is a name for `devices.choose`, or a device."""
        self._index, self._folder, self._device = index, index.model, device
        self._loaded: DualVectors | None = None
        self._loading = threading.Lock()

    @property
    def is_loaded(self) -> bool:
        """Whether `load` returns at once."""
        return self._loaded is not None

    def load(self) -> DualVectors:
        """The model on its device. StaleError if another model made the vectors, ModelError if it cannot be loaded."""
        # Two threads must not load it twice.
        with self._loading:
            if self._loaded is None:
                from dcdctl.core.search.torch_models import DualVectors  # torch, which takes seconds to import

                device = self.device()
                model = models.load_searchable(self._folder).to(device).eval()
                self._index.expect(model.digest)
                self._loaded = DualVectors(model, device)
            return self._loaded

    def device(self) -> torch.device:
        """The device of the name; ConfigError if this machine lacks it."""
        from dcdctl.core import devices

        return devices.choose(str(self._device))


def browse_index(
    index: ImageIndex,
    k: int = NUM_ANSWERS,
    where: Condition | None = None,
    order: Order | None = None,
    *,
    offset: int = 0,
) -> SearchAnswer:
    """The images that meet a condition, without a query, a model and scores: `k` of them after the first `offset`.

    Without an order the newest come first, if the index has a column `taken`. InputError for a store.
    """
    _check_k(k)
    if offset < 0:
        raise ConfigError(f"the offset must be at least 0, got {offset}")
    started = time.perf_counter()
    listing = index.browse(where, order or default_order(index.columns), k=k, offset=offset)
    found = time.perf_counter() - started
    notes = (index.why_none(where),) if where is not None and not listing.total else ()
    return SearchAnswer(listing.hits, 0.0, found, notes=notes, total=listing.total)


@dataclass(frozen=True)
class IndexSearcher:
    """An index and the models that search it; safe to call from several threads."""

    index: ImageIndex
    texts: TextTower | DualVectors
    encoder: IndexModel
    """The model of the index; texts need it only if the index has no text side for ONNX Runtime."""
    reranker: Reranker | None = None

    @staticmethod
    def for_index(
        index: ImageIndex,
        *,
        device: str | torch.device,
        rerank: str | None = None,
        depth: int | None = None,
        rerank_set: Settings | None = None,
    ) -> IndexSearcher:
        """A searcher with the model of an index.

        On the CPU, and on a device `auto`, ONNX Runtime encodes texts on the CPU if the index has a text side, and the
        model is loaded for the first image. Otherwise, and with a re-ranker, it is loaded now. The texts of an index
        with a query encoder have their text side alone, whatever the device.

        `rerank` is a fusion scorer or another dual encoder, named as for `models.load`, and `rerank_set` its settings
        (`Reranker.open`). It orders the first `depth` candidates, `DEPTH` if None.

        MissingError if the index lacks its model, StaleError if another model made its vectors, ModelError if a model
        cannot be loaded.
        """
        overrides = models.parse_overrides(rerank_set, "rerank-set")
        if rerank is not None:
            models.check_ref(rerank, overrides)
        elif overrides:
            raise ConfigError("--rerank-set sets up a re-ranker, and there is none", hint="add --rerank REF")
        encoder, tower = IndexModel(index, device), None
        # A re-ranker needs torch anyway, and on a GPU that the user names, texts are encoded there.
        is_best = rerank is None and str(device) in ("auto", "cpu") and TextTower.is_available()
        if (is_best or index.query_model is not None) and (side := index.text_side) is not None:
            tower = TextTower.open(side, index.fingerprint, probe_texts())
        searcher = IndexSearcher(index, tower or encoder.load(), encoder)
        if rerank is None:
            return searcher
        from dcdctl.core.search.torch_models import Reranker

        return replace(
            searcher, reranker=Reranker.open(rerank, depth=depth, device=encoder.device(), settings=rerank_set)
        )

    @cached_property
    def background(self) -> Background | None:
        """What is a weak match in the index, measured once; None for an index without images."""
        probes_PD = self.texts.probes
        if probes_PD is None:
            probes_PD = self.texts.vectors(self.texts.tokenize(probe_texts())[0])
        return measure_background(self.index, probes_PD)

    @property
    def model(self) -> models.Searchable:
        """The model of the index, which is loaded if it was not needed before."""
        return self.encoder.load().model

    def browse(
        self,
        k: int = NUM_ANSWERS,
        where: Condition | None = None,
        order: Order | None = None,
        *,
        offset: int = 0,
    ) -> SearchAnswer:
        """The images that meet a condition, without a query (`browse_index`)."""
        return browse_index(self.index, k, where, order, offset=offset)

    def ask(
        self,
        question: str | Path | Image.Image | CombinedQuery,
        k: int = NUM_ANSWERS,
        where: Condition | None = None,
        *,
        hybrid: bool = False,
    ) -> SearchAnswer:
        """The answer to a text, to the image in a file, to an image in memory, or to several of them; ConfigError for a
        hybrid search by an image or by several."""
        if isinstance(question, str):
            return self.by_text(question, k, where, hybrid=hybrid)
        if hybrid:
            raise ConfigError(
                "a hybrid search compares the words of one text, and this query is an image or has several parts",
                hint="search by a text",
            )
        if isinstance(question, CombinedQuery):
            return self.by_parts(question, k, where)
        return self.by_image(query_image(question), k, where)

    def by_text(
        self, text: str, k: int = NUM_ANSWERS, where: Condition | None = None, *, hybrid: bool = False
    ) -> SearchAnswer:
        """The k images nearest to a text, or all if there are fewer. InputError for a text without a token that the
        model reads.

        With `hybrid`, the ranks by vectors are fused with those by the words of captions and file names; MissingError
        for an index without.
        """
        return self.by_texts([text], k, where, hybrid=hybrid)[0]

    def by_texts(
        self, texts: Sequence[str], k: int = NUM_ANSWERS, where: Condition | None = None, *, hybrid: bool = False
    ) -> list[SearchAnswer]:
        """An answer for each text, computed together."""
        _check_k(k)
        if hybrid:
            self.index.check_hybrid()
        checked = [checked_text(text) for text in texts]
        answers: list[SearchAnswer] = []
        for start in range(0, len(checked), TEXT_BATCH):
            answers += self._answer_texts(checked[start : start + TEXT_BATCH], k, where, hybrid)
        return answers

    def by_image(self, image: Image.Image, k: int = NUM_ANSWERS, where: Condition | None = None) -> SearchAnswer:
        """The k images nearest to an image; ConfigError with a re-ranker, because it compares images with texts
        only."""
        self._refuse_reranker("an image")
        _check_k(k)
        encoder = self.encoder.load()
        started = time.perf_counter()
        vectors_1D = encoder.of_image(image)
        (answer,) = self._answers(vectors_1D, started, lambda vectors_QD: self.index.search(vectors_QD, k, where))
        return replace(answer, notes=() if answer.hits or where is None else (self.index.why_none(where),))

    def by_parts(self, query: CombinedQuery, k: int = NUM_ANSWERS, where: Condition | None = None) -> SearchAnswer:
        """The k images of the best scores of a query of several parts (`combined`); ConfigError with a re-ranker.

        It has no background: the scores of its sums are on another scale than those of the probes, which are single
        texts. An index of tokens subtracts from the best `combined.DEPTH` images by the other parts, or from all if it
        compares all.
        """
        self._refuse_reranker("several parts")
        _check_k(k)
        stored, num_wanted = self.index.stored_type, len(query.wanted)
        encoder = None if query.image is None else self.encoder.load()
        started = time.perf_counter()
        vectors, notes = self._part_vectors(query.texts)
        wanted, weights = vectors[:num_wanted], [1.0] * num_wanted
        if encoder is not None and query.image is not None:
            wanted.append(self._checked(encoder.of_image(query_image(query.image)))[0])
            weights.append(IMAGE_WEIGHT)
        weights = [weight / sum(weights) for weight in weights]
        unwanted = vectors[num_wanted:]
        minus = [MINUS / len(unwanted) for _ in unwanted]
        if stored.joins_negative:
            query_vectors = stored.join([*wanted, *unwanted], [*weights, *(-weight for weight in minus)])
        else:
            query_vectors = stored.join(wanted, weights)
        encoded = time.perf_counter()
        if unwanted and not stored.joins_negative:
            count = self.index.num_images if self.index.compares_all else max(DEPTH, 2 * k)
            (near,) = self.index.search(query_vectors[None], max(count, 1), where)
            hits = self._subtracted(near, stored.join(unwanted, minus))[:k]
        else:
            (hits,) = self.index.search(query_vectors[None], k, where)
        found = time.perf_counter()
        if where is not None and not hits:
            notes.append(self.index.why_none(where))
        return SearchAnswer(hits, encoded - started, found - encoded, notes=tuple(notes))

    def _part_vectors(self, texts: Sequence[str]) -> tuple[list[NDArray[np.float32]], list[str]]:
        """The vectors of the texts of a query, and notes on their tokens, each with its text."""
        if not texts:
            return [], []
        checked = [checked_text(text) for text in texts]
        batch, ids_T = self.texts.tokenize(checked)
        notes = [
            f"{text!r}: {told}" for text, ids in zip(checked, ids_T, strict=True) for told in self._notes(text, ids)
        ]
        return list(self._checked(self.texts.vectors(batch))), notes

    def _subtracted(self, hits: tuple[Hit, ...], minus_LD: NDArray[np.float32]) -> tuple[Hit, ...]:
        """Hits whose scores are less by those of another query, best first, ties by row."""
        rows = np.array([hit.row for hit in hits], dtype=np.int64)
        if not len(rows):
            return hits
        scores = np.array([hit.score for hit in hits], dtype=np.float32)
        scores -= self.index.stored(rows).score(minus_LD, np.arange(len(rows)))
        return tuple(replace(hits[place], score=float(scores[place])) for place in best_first(scores, rows, len(rows)))

    def _refuse_reranker(self, what: str) -> None:
        if self.reranker is not None:
            raise ConfigError(
                f"{self.reranker.ref} scores an image with a text, and cannot re-rank images by {what}",
                hint="leave --rerank out, or search by a text",
            )

    def _answer_texts(self, texts: Sequence[str], k: int, where: Condition | None, hybrid: bool) -> list[SearchAnswer]:
        started = time.perf_counter()
        batch, ids_Q = self.texts.tokenize(texts)
        notes = [self._notes(text, ids) for text, ids in zip(texts, ids_Q, strict=True)]
        count = k if self.reranker is None else max(k, self.reranker.depth)

        def find(vectors_QD: NDArray[np.float32]) -> list[tuple[Hit, ...]]:
            if hybrid:
                return self.index.hybrid(texts, vectors_QD, count, where)
            return self.index.search(vectors_QD, count, where)

        answers = self._answers(self.texts.vectors(batch), started, find)
        for number, answer in enumerate(answers):
            if where is not None and not answer.hits:
                notes[number].append(self.index.why_none(where))
            elif hybrid and all(hit.bm25 is None for hit in answer.hits):
                notes[number].append(
                    "no word of the text is in the captions or names of these images: they are ordered by vectors alone"
                )
            best = answer.hits[0].score if answer.hits else None
            # A file that is found by its name is no weak match, whatever its cosine.
            if not hybrid and best is not None and self.background and best <= self.background.limit:
                notes[number].insert(0, WEAK)
            answers[number] = replace(answer, notes=tuple(notes[number]), background=self.background)
        if self.reranker is None:
            return answers
        answers = [self.reranker.apply(text, answer, self.index) for text, answer in zip(texts, answers, strict=True)]
        return [replace(answer, hits=answer.hits[:k]) for answer in answers]

    def _answers(
        self,
        vectors_QD: NDArray[np.float32],
        started: float,
        find: Callable[[NDArray[np.float32]], list[tuple[Hit, ...]]],
    ) -> list[SearchAnswer]:
        """What `find` gives for vectors whose encoding began at `started`."""
        vectors_QD = self._checked(vectors_QD)
        encoded = time.perf_counter()
        hits_Q = find(vectors_QD)
        found = time.perf_counter()
        encode_s, find_s = (encoded - started) / len(hits_Q), (found - encoded) / len(hits_Q)
        return [SearchAnswer(hits, encode_s, find_s) for hits in hits_Q]

    def _checked(self, vectors_QD: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors of queries as the index has them; StaleError for those of another model, ModelError for zeros and
        NaN."""
        dim, axes = self.index.dim, self.index.stored_type.query_axes
        if vectors_QD.shape[-1] < dim or vectors_QD.ndim != axes:
            raise StaleError(
                f"{self.index.location} has vectors of {dim} numbers, and its model gives {vectors_QD.shape[-1]}",
                hint="make it again with its model",
            )
        # An index of short vectors is searched by the first numbers alone, which may be zero where the others are not.
        vectors_QD = vectors_QD[..., : self.index.dim]
        if not (np.isfinite(vectors_QD).all() and vectors_QD.reshape(len(vectors_QD), -1).any(axis=1).all()):
            hint = "its training diverged: index the images with another model"
            raise ModelError("the model gives vectors of queries that are zero, NaN or infinite", hint=hint)
        return vectors_QD

    def _notes(self, text: str, ids: Sequence[int]) -> list[str]:
        """Notes on the tokens of a text; InputError if it has none."""
        limit = self.texts.max_text_len
        words = set(ids) - self.texts.special_ids
        if not words:
            raise InputError(f"the model reads nothing in {text!r}", hint="search in words")
        notes = []
        if words == {self.texts.unknown_id}:
            notes.append("the model knows none of these words: the hits are random")
        if len(ids) == limit and (length := self.texts.num_tokens(text)) > limit:
            notes.append(f"the text has {length:,} tokens, and the model reads the first {limit}")
        return notes


def _check_k(k: int) -> None:
    if k < 1:
        raise ConfigError(f"k must be at least 1, got {k}")
