"""What a search, a service and a page need of indexed images, wherever their vectors are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dcdctl.core import files
from dcdctl.core.errors import InputError, MissingError, StaleError
from dcdctl.core.models import TextTower
from dcdctl.core.search.columns.order import Order
from dcdctl.core.search.columns.unmet import NO_IMAGE
from dcdctl.core.search.columns.where import Condition, Value
from dcdctl.core.search.entries import TEXT
from dcdctl.core.search.exact import Floats, Rows, unit
from dcdctl.core.search.part_files import SourceImage
from dcdctl.core.search.sources import SourceImages
from dcdctl.core.search.stored import Stored, StoredType


@dataclass(frozen=True)
class Hit:
    """An image in an answer."""

    row: int
    image_id: str
    name: str
    score: float | None
    """Cosine of the query vector and the image vector, or their MaxSim; None in a list without a query."""
    reranked: float | None = None
    """Logit of the re-ranker; None if it has not scored this image."""
    columns: Mapping[str, Value | None] = field(default_factory=dict)
    """The values of the image in the first columns of the index (`columns.table.NUM_SHOWN`)."""
    copies: tuple[str, ...] = ()
    """The names of other images that are copies of this one or look like it, and are no hits of their own."""
    bm25: float | None = None
    """BM25 of the words of the query in the captions and the name of the image; None without hybrid search, or without
    a common word."""
    fused: float | None = None
    """Sum of reciprocal ranks by which a hybrid search orders; None without hybrid search."""
    path: Path | None = None
    """The absolute path of its file; None for an image of a corpus."""


@dataclass(frozen=True)
class Listing:
    """Images that meet a condition, in an order."""

    hits: tuple[Hit, ...]
    total: int
    """How many images meet the condition, whether they are among the hits or not."""


class ImageIndex(ABC):
    """Indexed images. The row of an image never changes; removed rows stay empty."""

    location: str
    """Its folder, or its URL without a password."""
    dim: int
    """Numbers of a vector."""
    fingerprint: str
    """The digest of the model that made the vectors."""
    kind: str
    """How it is searched: flat, codes, centroids, or the name of a store."""
    num_images: int
    columns: pa.Schema
    """The columns that conditions may read, besides `where.BUILT_IN`; the types are keys of `where.TYPES`."""
    images: SourceImages
    stored_type: StoredType
    """What it stores of an image."""
    compares_all: bool = False
    """Whether a search compares all images, in place of the candidates of codes or centroids."""
    all_copies: bool = False
    """Whether copies and look-alikes are hits of their own."""
    query_model: str | None = None
    """Fingerprint of the query encoder that embeds texts in the model's place, by the text side alone."""
    has_keywords: bool = False
    """Whether the words of captions and file names are indexed too."""

    def __len__(self) -> int:
        return self.num_images

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}({self.location!r}: {self.num_images:,} images, {self.kind}, model {self.fingerprint[:8]})"

    @property
    @abstractmethod
    def model(self) -> Path:
        """The folder of the model that made the vectors; MissingError if it is gone."""

    @property
    @abstractmethod
    def text_side(self) -> Path | None:
        """The folder of the text side of that model, or of the query encoder, for ONNX Runtime (`models.TextTower`);
        None if there is none."""

    @abstractmethod
    def check(self) -> None:
        """StaleError if it is damaged, or is no longer what was opened. Compares all at once, so that no later search
        waits for it."""

    def is_ready(self) -> bool:
        """Whether searches are answered now. Files are there once they are open."""
        return True

    def expect(self, fingerprint: str) -> None:
        """StaleError if a model of another fingerprint made the vectors."""
        if fingerprint != self.fingerprint:
            message = (
                f"{self.location} was made with the model {self.fingerprint[:8]}, and this is the model "
                f"{fingerprint[:8]}"
            )
            raise StaleError(message, hint="name the folder `model` of the index, or index the images with this model")

    def checked_queries(self, vectors: NDArray[np.floating], k: int) -> Floats:
        """Queries as they are compared; ValueError if they are not finite numbers of the shape of this index, and for k
        below 1."""
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        queries = unit(vectors, self.dim)
        if queries.ndim != self.stored_type.query_axes:
            raise ValueError(f"queries have {queries.ndim} axes, expected {self.stored_type.query_axes}")
        return queries

    @abstractmethod
    def search(self, vectors_QD: NDArray[np.floating], k: int, where: Condition | None = None) -> list[tuple[Hit, ...]]:
        """For each query the k images of the highest cosines, best first, ties by row; fewer if there are not as many.

        With a condition, only images that meet it. ValueError for queries that are not Q x `dim` finite numbers, or for
        k below 1.
        """

    def browse(
        self, where: Condition | None = None, order: Order | None = None, *, k: int = 10, offset: int = 0
    ) -> Listing:
        """The images that meet a condition, without a query: `k` of them, after the first `offset`, in an order, or in
        that of rows. InputError for a store, ValueError for k below 1 or a negative offset."""
        # Not abstract: stores answer queries, and have no common order of text and of missing values.
        raise InputError(
            f"{self.location} is a store, which lists no images without a query",
            hint="search by a text or an image, or list the images of the index in its folder",
        )

    def why_none(self, where: Condition) -> str:
        """The note for a condition that no image meets."""
        # Not abstract: the values of a store are in another program.
        return NO_IMAGE

    def check_hybrid(self) -> None:
        """MissingError if it cannot be searched by words."""
        if not self.has_keywords:
            hint = "hybrid search needs an index in a folder"
            if Path(self.location).is_dir():
                hint = f"add them: dcdctl change {self.location} --set keywords=true"
            raise MissingError(f"{self.location} has no words of captions and file names", hint=hint)

    def hybrid(
        self, texts: Sequence[str], vectors_QD: NDArray[np.floating], k: int, where: Condition | None = None
    ) -> list[tuple[Hit, ...]]:
        """For each query the k images of the best ranks by words and by vectors, fused (`keywords.fuse`); `texts` are
        those of the vectors.

        Only for an index with words (`check_hybrid`). The condition, the errors and the number of hits are those of
        `search`.
        """
        # Not abstract: an index without words has no more to say.
        raise NotImplementedError

    def check_paths(self) -> None:
        """InputError if no image can have a file of its own."""
        if all(source.is_corpus for source in self.images.sources):
            raise InputError(
                f"the images of {self.location} are in a corpus, and have no file of their own",
                hint="leave --paths out: their ids are shown",
            )

    @abstractmethod
    def spread_rows(self, count: int) -> list[int]:
        """At most `count` rows spread evenly over the index, without removed rows."""

    @abstractmethod
    def stored(self, rows: Rows) -> Stored:
        """What it stores of rows, in the given order: their vectors, or their tokens."""

    @abstractmethod
    def source_image(self, row: int) -> tuple[int, SourceImage]:
        """The source of a row, and its image in the source; MissingError for a row without an image."""

    def name(self, row: int) -> str:
        """The name of an image for users: its path in the folder, or its id in the corpus."""
        _, image = self.source_image(row)
        return image.path or image.image_id

    def image_bytes(self, row: int) -> bytes:
        """The image file of a row, read from its source; MissingError if it is gone, StaleError if its corpus has
        changed."""
        return self.images.read(*self.source_image(row))

    def captions(self, row: int) -> list[str]:
        """The captions of an image of a corpus; empty for one of a folder, or if the corpus is gone or has changed."""
        try:
            return self.images.read_captions(*self.source_image(row))
        except (MissingError, StaleError):
            return []


def text_side_beside(model: Path, query_model: str | None) -> Path | None:
    """The folder with the text side of a query encoder, or of the model itself if that is None, beside the folder of
    the model; None if there is none."""
    for path in sorted(model.parent.glob(f"{TEXT}*/{TextTower.FILE}")):
        # Whatever else is there, and damage, `TextTower.open` finds.
        if files.read_json(path, error=StaleError).get("query_model") == query_model:
            return path.parent
    return None
