"""What an index stores of its images, by type: a vector per image, or the vectors of its tokens.

Both types answer the same calls, so an index, a store and the background of an index ask for candidates and scores, and
not for the type. It follows from the kind of the model (`STORED`).

Shape letters: D width, R rows, N tokens of all rows one after another, L tokens of a query.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dcdctl.core.errors import InputError
from dcdctl.core.search import exact
from dcdctl.core.search.exact import Element, Elements, Floats, Half, Rows

COUNTS = "num_tokens"
"""The column of a file of tokens with the number of tokens of each row."""


@dataclass(frozen=True)
class StoredVectors:
    """A vector per image, compared by cosine."""

    data: Half
    """R x D, as the files have them."""
    per: ClassVar = "each"
    """What has a vector, after a number of numbers: "512 numbers each"."""
    score_name: ClassVar = "cosine"
    """What a score is called beside its number."""
    defaults: ClassVar = ()
    """Settings of a new index, unless the user sets them."""
    query_axes: ClassVar = 2
    """Queries are Q x D."""
    joins_negative: ClassVar = True
    """Whether a part of a joined query may have a negative weight."""

    def __len__(self) -> int:
        return len(self.data)

    # Compared with a query

    @cached_property
    def unit_RD(self) -> Floats:
        """The vectors as float32, of unit length."""
        return exact.unit_rows(self.data)

    def rough(self, query_D: Floats) -> Floats:
        """(R,): the scores of all images in float32, within `exact.ROUNDING` of the exact ones."""
        scores: Floats = self.unit_RD @ query_D / np.linalg.norm(query_D)
        return scores

    def propose(self, query_D: Floats, k: int) -> Rows:
        """The places of the images that may be among the k best."""
        return exact.best_of([(np.arange(len(self)), self.rough(query_D))], k)

    def score(self, query_D: Floats, places: Rows) -> Floats:
        """The exact scores of some images; equal images have equal scores in every position."""
        return exact.cosines(query_D, self.data[places])

    @staticmethod
    def join(parts: Sequence[Floats], weights: Sequence[float]) -> Floats:
        """The query whose scores are the weighted sums of those of queries: the unit vector in the direction of the sum
        of their unit vectors. InputError if they cancel each other out."""
        sum_D = sum(weight * exact.unit(part[None], len(part))[0] for part, weight in zip(parts, weights, strict=True))
        length = np.linalg.norm(sum_D)
        # Below, rounding decides the direction.
        if length < 1e-3 * max(map(abs, weights)):
            raise InputError("the parts of the query cancel each other out", hint="leave one of them out")
        return np.asarray(sum_D / length, dtype=np.float32)

    # In the files of an index

    @classmethod
    def joined(cls, parts: Sequence[Any], element: Element) -> Self:
        """All images of several parts, which may be none; `element` is their type."""
        return cls(np.concatenate([np.empty(0, element), *(part.data for part in parts)]))

    def file_columns(self) -> pa.Table:
        """The columns of these images in a file of vectors."""
        return pa.table([self.to_column()], self.file_schema(np.dtype((self.data.dtype, self.data.shape[1:]))))

    @classmethod
    def file_schema(cls, element: Element) -> pa.Schema:
        """The columns of images in a file of vectors of this type."""
        return pa.schema([pa.field("vector", cls.store_type(element.shape[0]), nullable=False)])

    @classmethod
    def of_file_columns(cls, columns: pa.Table, element: Element) -> Self:
        """The images of columns such as `file_columns` gives; `element` is their type."""
        return cls(cls.of_column(columns.column("vector")).data.astype(element.base, copy=False))

    # In a store

    @staticmethod
    def store_type(dim: int) -> pa.DataType:
        """The type of the column of vectors."""
        return pa.list_(pa.field("element", pa.float16(), nullable=False), dim)

    def to_column(self) -> pa.Array:
        """The column of vectors for these images."""
        numbers = pa.array(self.data.reshape(-1))
        return pa.FixedSizeListArray.from_arrays(numbers, type=self.store_type(self.data.shape[1]))

    @classmethod
    def of_column(cls, column: pa.ChunkedArray) -> Self:
        """The images of a column of vectors."""
        width = column.type.list_size
        chunks = [chunk.flatten().to_numpy().reshape(-1, width) for chunk in column.chunks]
        return cls(np.concatenate([np.empty((0, width), dtype=np.float16), *chunks]))


@dataclass(frozen=True)
class StoredTokens:
    """A vector for each token of an image, compared by MaxSim. The members of `StoredVectors`, and the tokens."""

    data: Elements
    """The tokens of all images one after another, in the format of their codes."""
    counts_R: Rows
    """Tokens of each image, at least one."""
    per: ClassVar = "per token"
    score_name: ClassVar = "MaxSim"
    # Measured: docs/indexing.md.
    defaults: ClassVar = ("flat_up_to=2000",)
    query_axes: ClassVar = 3
    """Queries are Q x L x D."""
    # The largest of negated products is not the negated largest one.
    joins_negative: ClassVar = False

    def __len__(self) -> int:
        return len(self.counts_R)

    # Compared with a query

    @cached_property
    def tokens_ND(self) -> Floats:
        """The tokens as float32."""
        return exact.decoded(self.data)

    def rough(self, query_LD: Floats) -> Floats:
        return exact.maxsims(query_LD, self.tokens_ND, self.counts_R)

    def propose(self, query_LD: Floats, k: int) -> Rows:
        # Not `rough`, which keeps all tokens as float32: 105 MB of 200 candidates with a thousand tokens each.
        scores_R = exact.maxsims(query_LD, self.data, self.counts_R)
        return exact.best_of([(np.arange(len(self)), scores_R)], k)

    def score(self, query_LD: Floats, places: Rows) -> Floats:
        starts_R = np.cumsum(self.counts_R) - self.counts_R
        tokens = [self.data[starts_R[row] : starts_R[row] + self.counts_R[row]] for row in places.tolist()]
        near_N = np.concatenate([self.data[:0], *tokens])
        return exact.maxsims(query_LD, near_N, self.counts_R[places], is_precise=True)

    @staticmethod
    def join(parts: Sequence[Floats], weights: Sequence[float]) -> Floats:
        """The tokens of all parts, scaled: a weight above 0 scales a largest product as it scales its token. The score
        of a part is divided by the sum of the lengths of its tokens, and padding is left out."""
        scaled = []
        for part_LD, weight in zip(parts, weights, strict=True):
            # Not by the number of tokens: a model whose MaxSim is a mean has divided its queries by it already.
            lengths_L = np.linalg.norm(part_LD.astype(np.float64), axis=1)
            scaled.append(weight / lengths_L.sum() * part_LD[lengths_L > 0])
        return np.concatenate(scaled).astype(np.float32)

    # In the files of an index

    @classmethod
    def joined(cls, parts: Sequence[Any], element: Element) -> Self:
        tokens = np.concatenate([np.empty(0, element), *(part.data for part in parts)])
        return cls(tokens, np.concatenate([np.empty(0, np.int64), *(part.counts_R for part in parts)]))

    def file_columns(self) -> pa.Table:
        schema = self.file_schema(np.dtype((self.data.dtype, self.data.shape[1:])))
        counts, lists = schema
        raw = [None, pa.py_buffer(np.ascontiguousarray(self.data))]
        tokens = pa.FixedSizeBinaryArray.from_buffers(lists.type.value_type, len(self.data), raw)
        return pa.table([pa.array(self.counts_R, counts.type), self._lists(tokens, lists.type)], schema)

    @classmethod
    def file_schema(cls, element: Element) -> pa.Schema:
        token = pa.field("element", pa.binary(element.itemsize), nullable=False)
        return pa.schema(
            [pa.field(COUNTS, pa.int32(), nullable=False), pa.field("tokens", pa.list_(token), nullable=False)]
        )

    @classmethod
    def of_file_columns(cls, columns: pa.Table, element: Element) -> Self:
        tokens = pc.list_flatten(columns.column("tokens")).combine_chunks()
        data = np.frombuffer(tokens.buffers()[1], element, len(tokens), element.itemsize * tokens.offset)
        return cls(data, columns.column(COUNTS).to_numpy().astype(np.int64))

    def _lists(self, tokens: pa.Array, type_: pa.DataType) -> pa.Array:
        """The tokens of each image as a list."""
        if len(tokens) != self.counts_R.sum():
            raise ValueError(f"{len(tokens)} tokens, expected {self.counts_R.sum()}")
        return pa.ListArray.from_arrays(np.cumsum([0, *self.counts_R], dtype=np.int32), tokens, type=type_)

    # In a store

    @staticmethod
    def store_type(dim: int) -> pa.DataType:
        return pa.list_(pa.field("token", StoredVectors.store_type(dim), nullable=False))

    def to_column(self) -> pa.Array:
        # A store has float16, whatever the codes of the files are.
        tokens = StoredVectors(self.tokens_ND.astype(np.float16)).to_column()
        return self._lists(tokens, self.store_type(self.tokens_ND.shape[1]))

    @classmethod
    def of_column(cls, column: pa.ChunkedArray) -> Self:
        counts_R = pc.list_value_length(column).to_numpy().astype(np.int64)
        return cls(StoredVectors.of_column(pc.list_flatten(column)).data, counts_R)


Stored = StoredVectors | StoredTokens
"""What is stored of some images, in the order of their rows."""
StoredType = type[StoredVectors] | type[StoredTokens]
STORED: dict[str, StoredType] = {"dual": StoredVectors, "late": StoredTokens}
"""The type by the kind of model."""


def best_of(
    queries_QD: Floats, candidates: Sequence[Rows], stored: Callable[[Rows], Stored], k: int
) -> tuple[Floats, Rows]:
    """The scores and the rows of the k best candidates of each query, Q x K; `stored` reads what is stored of rows.

    The best come first, and the smaller row among equal scores. If there are fewer than K, -inf and the row -1 follow.
    """
    scores_QK = np.full((len(queries_QD), k), -np.inf, dtype=np.float32)
    rows_QK = np.full((len(queries_QD), k), exact.NO_ROW, dtype=np.int64)
    for query, (query_D, rows) in enumerate(zip(queries_QD, candidates, strict=True)):
        found = stored(rows)
        near = found.propose(query_D, k)
        scores, rows = found.score(query_D, near), rows[near]
        order = exact.best_first(scores, rows, k)
        scores_QK[query, : len(order)], rows_QK[query, : len(order)] = scores[order], rows[order]
    return scores_QK, rows_QK
