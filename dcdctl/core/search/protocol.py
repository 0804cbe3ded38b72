"""What a search, a service and a page need of indexed images, wherever their vectors are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dcdctl.core.models import TextTower
from dcdctl.core.search.columns.where import Condition, Value
from dcdctl.core.search.exact import Half, Rows


@dataclass(frozen=True)
class Hit:
    """An image in an answer."""

    row: int
    image_id: str
    name: str
    score: float
    """Cosine of the query vector and the image vector."""
    reranked: float | None = None
    """Logit of the re-ranker; None if it has not scored this image."""
    columns: Mapping[str, Value | None] = field(default_factory=dict)
    """The values of the image in the columns of the index."""
    bm25: float | None = None
    """BM25 of the words of the query in the captions and the name of the image; None without hybrid search, or without
    a common word."""
    fused: float | None = None
    """Sum of reciprocal ranks by which a hybrid search orders; None without hybrid search."""


class ImageIndex(Protocol):
    """Indexed images. The row of an image never changes; removed rows stay empty."""

    dim: int
    """Numbers of a vector."""
    fingerprint: str
    """The digest of the model that made the vectors."""
    kind: str
    """How it is searched, such as hnsw or postgresql."""
    num_images: int

    @property
    def location(self) -> str:
        """Its folder, or its URL without a password."""

    @property
    def columns(self) -> pa.Schema:
        """The columns that conditions may read; the types are those of `where.TYPES`."""

    @property
    def model(self) -> Path:
        """The folder of the dual encoder that made the vectors; MissingError if it is gone."""

    def check(self) -> None:
        """StaleError if it is damaged, or is no longer what was opened. Compares all at once, so that no later search
        waits for it."""

    @property
    def text_side(self) -> Path | None:
        """The folder of the text side of that model for ONNX Runtime (`models.TextTower`); None if there is none."""

    def expect(self, fingerprint: str) -> None:
        """StaleError if a model of another fingerprint made the vectors."""

    def search(self, vectors_QD: NDArray[np.floating], k: int, where: Condition | None = None) -> list[tuple[Hit, ...]]:
        """For each query the k images of the highest exact cosines among those that meet a condition, or all if there
        are fewer.

        Ties by row. Safe to call from threads. ValueError for queries that are not Q x D finite numbers, and for k
        below 1.
        """

    @property
    def has_keywords(self) -> bool:
        """Whether the words of captions and file names are indexed too."""

    def hybrid(
        self, texts: Sequence[str], vectors_QD: NDArray[np.floating], k: int, where: Condition | None = None
    ) -> list[tuple[Hit, ...]]:
        """For each query the k images of the best ranks by words and by vectors, fused (`keywords.fuse`); `texts` are
        those of the vectors.

        MissingError for an index without words; otherwise as `search`.
        """

    def spread_rows(self, count: int) -> list[int]:
        """At most `count` rows spread evenly over the index, without removed rows."""

    def vectors(self, rows: Rows) -> Half:
        """(R, D): the stored vectors of rows, in the given order."""

    def name(self, row: int) -> str:
        """The name of an image for users: its path in the folder, or its id in the corpus."""

    def image_bytes(self, row: int) -> bytes:
        """The image file of a row, read from its source; MissingError if it is gone, StaleError if its corpus has
        changed."""

    def has_image(self, row: int) -> bool:
        """Whether `image_bytes` finds the image file of a row, without reading the file."""

    def captions(self, row: int) -> list[str]:
        """The captions of an image of a corpus; empty for one of a folder, or if the corpus is gone or has changed."""


def text_side_beside(model: Path) -> Path | None:
    """The folder of the text side of an index, beside that of its model; None if there is none."""
    folder = model.parent / "text"
    return folder if (folder / TextTower.FILE).is_file() else None
