"""What an index stores of its images, by type: a vector per image, or the vectors of its tokens.

Both types answer the same calls, so an index, a store and the background of an index ask for candidates and scores, and
not for the type. It follows from the kind of the model (`STORED`).

Shape letters: D width, R rows, N tokens of all rows one after another, L tokens of a query.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dcdctl.core.search import exact
from dcdctl.core.search.exact import Codes, Element, Elements, Floats, Half, Rows

COUNTS = "num_tokens"
"""The column of a file of tokens with the number of tokens of each row."""


@dataclass(frozen=True)
class Stored(ABC):
    """What is stored of some images, in the order of their rows."""

    data: Elements
    """The vectors as the files have them: R x D float16, or N tokens in the format of their codes."""
    made_by: ClassVar[str]
    """The kind of model, in words."""
    per: ClassVar[str]
    """What has a vector, after a number of numbers: "512 numbers each"."""
    kinds: ClassVar[tuple[str, ...]]
    """The kinds of index that search these vectors (`IndexConfig.kind`)."""
    defaults: ClassVar[tuple[str, ...]]
    """Settings of a new index, unless the user sets them."""
    query_axes: ClassVar[int]
    """Axes of an array of queries: Q x D, or Q x L x D."""

    @staticmethod
    @abstractmethod
    def element(dim: int, codes: Codes) -> Element:
        """How a vector, or a token, is stored."""

    @staticmethod
    @abstractmethod
    def store_type(dim: int) -> pa.DataType:
        """The type of the column of vectors in a store."""

    @classmethod
    @abstractmethod
    def of_column(cls, column: pa.ChunkedArray) -> Self:
        """The values of a column of a store."""

    @abstractmethod
    def to_column(self) -> pa.Array:
        """The column of a store for these images."""

    @classmethod
    @abstractmethod
    def of_lists(cls, lists: Sequence[Any], dim: int) -> Self:
        """The values that `to_lists` gave; ValueError for vectors of another width."""

    @abstractmethod
    def to_lists(self) -> list[Any]:
        """A list of numbers per image, or of its tokens, for an engine that takes JSON."""

    @abstractmethod
    def file_columns(self) -> pa.Table:
        """The columns of these images in a file of vectors."""

    @classmethod
    @abstractmethod
    def joined(cls, parts: Sequence[Any], element: Element) -> Self:
        """All images of several parts, which may be none; `element` is their type."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, rows: Rows) -> Self:
        """The images at these places."""

    @abstractmethod
    def rough(self, query: Floats) -> Floats:
        """(R,): the scores of all images in float32, within `exact.ROUNDING` of `score` for unit vectors."""

    @abstractmethod
    def score(self, query: Floats) -> Floats:
        """(R,): the exact scores of all images; equal images have equal scores in every position."""

    def propose(self, query: Floats, k: int) -> Rows:
        """The places of the images that may be among the k best; an exact comparison of all would take longer, and with
        a thousand tokens per image gigabytes."""
        return exact.best_of([(np.arange(len(self)), self.rough(query))], k)


class StoredVectors(Stored):
    """A vector per image, compared by cosine."""

    data: Half
    made_by = "dual encoder"
    per = "each"
    kinds = ("flat", "hnsw", "int8", "binary")
    defaults = ()
    query_axes = 2

    @staticmethod
    def element(dim: int, codes: Codes) -> Element:
        return exact.token_type(dim, "float16")

    @staticmethod
    def store_type(dim: int) -> pa.DataType:
        return pa.list_(pa.field("element", pa.float16(), nullable=False), dim)

    @classmethod
    def of_column(cls, column: pa.ChunkedArray) -> Self:
        width = column.type.list_size
        chunks = [chunk.flatten().to_numpy().reshape(-1, width) for chunk in column.chunks]
        return cls(np.concatenate([np.empty((0, width), dtype=np.float16), *chunks]))

    def to_column(self) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(
            pa.array(self.data.reshape(-1)), type=self.store_type(self.data.shape[1])
        )

    @classmethod
    def of_lists(cls, lists: Sequence[Any], dim: int) -> Self:
        return cls(np.array(lists, dtype=np.float16).reshape(len(lists), dim))

    def to_lists(self) -> list[Any]:
        numbers: list[Any] = self.data.astype(np.float32).tolist()
        return numbers

    def file_columns(self) -> pa.Table:
        column = self.to_column()
        return pa.table([column], pa.schema([pa.field("vector", column.type, nullable=False)]))

    @classmethod
    def joined(cls, parts: Sequence[StoredVectors], element: Element) -> Self:
        return cls(np.concatenate([np.empty(0, element), *(part.data for part in parts)]))

    def __len__(self) -> int:
        return len(self.data)

    def take(self, rows: Rows) -> Self:
        return type(self)(self.data[rows])

    @cached_property
    def unit_RD(self) -> Floats:
        """The vectors as float32, of unit length."""
        return exact.unit_rows(self.data)

    def rough(self, query: Floats) -> Floats:
        scores: Floats = self.unit_RD @ query / np.linalg.norm(query)
        return scores

    def score(self, query: Floats) -> Floats:
        return exact.cosines(query, self.data)


@dataclass(frozen=True)
class StoredTokens(Stored):
    """A vector for each token of an image, compared by MaxSim."""

    counts_R: Rows
    """Tokens of each image, at least one."""
    made_by = "late-interaction model"
    per = "per token"
    kinds = ("flat", "centroids")
    # Measured: docs/indexing.md.
    defaults = ("kind=centroids", "flat_up_to=2000", "candidates=200")
    query_axes = 3

    @staticmethod
    def element(dim: int, codes: Codes) -> Element:
        return exact.token_type(dim, codes)

    @staticmethod
    def store_type(dim: int) -> pa.DataType:
        return pa.list_(pa.field("token", StoredVectors.store_type(dim), nullable=False))

    @classmethod
    def of_column(cls, column: pa.ChunkedArray) -> Self:
        counts_R = pc.list_value_length(column).to_numpy().astype(np.int64)
        return cls(StoredVectors.of_column(pc.list_flatten(column)).data, counts_R)

    def to_column(self) -> pa.Array:
        # A store has float16, whatever the codes of the files are.
        tokens = StoredVectors(self.tokens_ND.astype(np.float16)).to_column()
        return self._lists(tokens, self.store_type(self.tokens_ND.shape[1]))

    @classmethod
    def of_lists(cls, lists: Sequence[Any], dim: int) -> Self:
        tokens = [token for tokens in lists for token in tokens]
        counts_R = np.array([len(tokens) for tokens in lists], dtype=np.int64)
        return cls(StoredVectors.of_lists(tokens, dim).data, counts_R)

    def to_lists(self) -> list[Any]:
        return [tokens_ND.tolist() for tokens_ND in np.split(self.tokens_ND, np.cumsum(self.counts_R)[:-1])]

    def file_columns(self) -> pa.Table:
        num_bytes = self.data.dtype.itemsize * math.prod(self.data.shape[1:])
        token = pa.field("element", pa.binary(num_bytes), nullable=False)
        raw = [None, pa.py_buffer(np.ascontiguousarray(self.data))]
        tokens = pa.FixedSizeBinaryArray.from_buffers(token.type, len(self.data), raw)
        counts = pa.field(COUNTS, pa.int32(), nullable=False)
        lists = pa.field("tokens", pa.list_(token), nullable=False)
        columns = [pa.array(self.counts_R, counts.type), self._lists(tokens, lists.type)]
        return pa.table(columns, pa.schema([counts, lists]))

    def _lists(self, tokens: pa.Array, type_: pa.DataType) -> pa.Array:
        """The tokens of each image as a list."""
        if len(tokens) != self.counts_R.sum():
            raise ValueError(f"{len(tokens)} tokens, expected {self.counts_R.sum()}")
        return pa.ListArray.from_arrays(np.cumsum([0, *self.counts_R], dtype=np.int32), tokens, type=type_)

    @classmethod
    def joined(cls, parts: Sequence[StoredTokens], element: Element) -> Self:
        tokens = np.concatenate([np.empty(0, element), *(part.data for part in parts)])
        return cls(tokens, np.concatenate([np.empty(0, np.int64), *(part.counts_R for part in parts)]))

    def __len__(self) -> int:
        return len(self.counts_R)

    def take(self, rows: Rows) -> Self:
        starts_R = np.cumsum(self.counts_R) - self.counts_R
        tokens = [self.data[starts_R[row] : starts_R[row] + self.counts_R[row]] for row in rows.tolist()]
        return type(self)(np.concatenate([self.data[:0], *tokens]), self.counts_R[rows])

    @cached_property
    def tokens_ND(self) -> Floats:
        """The tokens as float32."""
        return exact.decoded(self.data)

    def rough(self, query: Floats) -> Floats:
        return exact.maxsims(query, self.tokens_ND, self.counts_R)

    def score(self, query: Floats) -> Floats:
        return exact.maxsims(query, self.tokens_ND, self.counts_R, is_precise=True)


STORED: dict[str, type[Stored]] = {"dual": StoredVectors, "late": StoredTokens}
"""The type by the kind of model."""
