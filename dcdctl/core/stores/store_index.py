"""A store as an index: searched, shown and served like an index in a folder.

The engine proposes candidates; their stored vectors come with them and are scored exactly, so answers equal those of
the index. Shape letters: Q queries, D width, R rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dcdctl.core.errors import DcdError, MissingError, StaleError
from dcdctl.core.search import (
    IMAGE_COLUMNS,
    NUM_SHOWN,
    Condition,
    Floats,
    Hit,
    ImageIndex,
    Rows,
    SourceImage,
    SourceImages,
    Stored,
    best_first,
    spread_over,
    text_side_beside,
)
from dcdctl.core.stores.protocol import Store, StoreFacts
from dcdctl.core.stores.retry import FOR_A_QUESTION, T, repeated

CANDIDATES = 50
"""Minimum number of candidates of a query that are scored again; at least twice the number of answers."""


class StoreIndex(ImageIndex):
    """The images of a store; removed rows are not there. The words of captions and file names are not in a store."""

    def __init__(self, store: Store, facts: StoreFacts, model: Path | None = None) -> None:
        self.store, self.facts, self.location = store, facts, store.location
        self.dim, self.fingerprint, self.kind = facts.dims, facts.model, store.kind
        self.stored_type, self.query_model = facts.stored_type, facts.query_model
        self.num_images, self.columns = facts.images, facts.schema
        self.images = SourceImages(store.location, facts.sources)
        self._model = model

    @staticmethod
    def open(store: Store, model: Path | None = None) -> StoreIndex:
        """The index of a store; `model` is the folder of its model, if it is not where the store was filled.

        MissingError if the store is empty, StaleError if another program filled it, UnavailableError if it does not
        answer.
        """
        facts = repeated(store.facts, FOR_A_QUESTION)
        if facts is None:
            raise store.not_there()
        return StoreIndex(store, facts, model)

    @property
    def model(self) -> Path:
        folder = self._model or Path(self.facts.model_folder)
        if not folder.is_dir():
            raise MissingError(
                f"the model {self.fingerprint[:8]} of {self.location} is not at {folder}",
                hint="copy the folder `model` of the index to this machine, and name it with --model",
            )
        return folder

    @property
    def text_side(self) -> Path | None:
        # The store was filled from the folder of an index, and its model may still be there.
        side = text_side_beside(self.model, self.query_model)
        if side is None and self.query_model is not None:
            raise MissingError(
                f"the text side of the query model {self.query_model[:8]} is not beside {self.model}",
                hint="upload the index again, or copy its folder `text-N` beside the folder of the model",
            )
        return side

    def check(self) -> None:
        """StaleError if the store has another number of images than it had when an upload ended."""
        if (count := repeated(self.store.count, FOR_A_QUESTION)) != self.num_images:
            raise StaleError(
                f"{self.location} has {count:,} images, and its last upload ended with {self.num_images:,}",
                hint="run `dcdctl upload` again; does an upload run, or does another program write to it?",
            )

    def is_ready(self) -> bool:
        """Whether the store answers, and still holds the vectors of this model."""
        try:
            facts = repeated(self.store.facts, FOR_A_QUESTION)
        except DcdError:
            return False
        return facts is not None and facts.model == self.fingerprint

    def search(self, vectors_QD: NDArray[np.floating], k: int, where: Condition | None = None) -> list[tuple[Hit, ...]]:
        """For each query the k images of the highest exact scores among the candidates of the engine; ties by row.

        StaleError if the store was filled with another model since it was opened.
        """
        queries_QD = self.checked_queries(vectors_QD, k)
        k = min(k, max(self.facts.rows, 1))
        tables, model = self._ask(self.store.search, queries_QD, max(CANDIDATES, 2 * k), where)
        if model != self.fingerprint:
            raise StaleError(
                f"{self.location} was filled with another model ({model[:8]}, not {self.fingerprint[:8]})",
                hint="start again, to search with that model",
            )
        return [self._best(query_D, images, k) for query_D, images in zip(queries_QD, tables, strict=True)]

    def _ask(self, work: Callable[..., T], *arguments: Any) -> T:
        """The answer of the store, whose facts may be of other images."""
        try:
            return repeated(work, FOR_A_QUESTION, *arguments)
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> StaleError:
        """The error for images that are not as their facts say."""
        return StaleError(
            f"{self.location} does not hold what its facts say: {str(error.args[0])[:200]}",
            hint="does another program write to it? Fill it again with `dcdctl upload INDEX URL --replace`",
        )

    def _best(self, query_D: Floats, images: pa.Table, k: int) -> tuple[Hit, ...]:
        try:
            stored = self.stored_type.of_column(images.column("vector"))
            near = stored.propose(query_D, k)
            scores = stored.score(query_D, near)
        except (StaleError, ValueError) as error:
            raise self._damaged(error) from error
        order = best_first(scores, images.column("row").to_numpy()[near], k)
        best = images.drop_columns(["vector"]).take(pa.array(near[order])).to_pylist()
        hits = []
        for score, values in zip(scores[order].tolist(), best, strict=True):
            image = _image_of(values)
            hits.append(
                Hit(
                    values["row"],
                    image.image_id,
                    image.path or image.image_id,
                    score,
                    columns={name: values[name] for name in self.columns.names[:NUM_SHOWN]},
                    path=self.images.path(values["source"], image),
                )
            )
        return tuple(hits)

    def spread_rows(self, count: int) -> list[int]:
        rows = np.array(spread_over(self.facts.rows, count), dtype=np.int64)
        return self._ask(self.store.fetch, rows).column("row").to_pylist()

    def stored(self, rows: Rows) -> Stored:
        fetched = self._ask(self.store.fetch, rows)
        found_R = fetched.column("row").to_numpy()
        if len(missing := np.setdiff1d(rows, found_R)):
            raise IndexError(f"{self.location} has no row {missing[0]}")
        return self.stored_type.of_column(fetched.column("vector").take(pa.array(np.searchsorted(found_R, rows))))

    def source_image(self, row: int) -> tuple[int, SourceImage]:
        fetched = self._ask(self.store.fetch, np.array([row], dtype=np.int64))
        if not len(fetched):
            raise MissingError(f"{self.location} has no image {row}")
        (values,) = fetched.drop_columns(["vector"]).to_pylist()
        return values["source"], _image_of(values)


def _image_of(values: Mapping[str, Any]) -> SourceImage:
    """The image of a row of a store."""
    return SourceImage(**{name: values[name] for name in IMAGE_COLUMNS.names})
