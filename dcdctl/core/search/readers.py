"""What is stored of the images of an index, read from its files by row, and the candidates of a search among rows that
no segment covers.

Shape letters: Q queries, R rows, D width.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from dcdctl.core.search import exact, part_files
from dcdctl.core.search.exact import Floats, Half, Rows
from dcdctl.core.search.storage import INDEX, IndexDocument, removed_rows
from dcdctl.core.search.stored import COUNTS, StoredTokens, StoredVectors

OPEN_FILES = 256
"""Maximum number of open files; the least recently used is closed."""
FLOAT_BYTES = 2 << 30
"""Exactly searched vectors are kept as float32 up to this size; beyond it they are converted for each query."""
MANY = 0.05
"""Share of the rows above which a condition masks all rows; the vectors of fewer rows are gathered, which takes longer
for each."""
GATHERED = 8192
"""Vectors that are gathered together."""
COMPARED = 1 << 18
"""Numbers of tokens that are compared together: 1 MB of float32, which fits a cache."""
BLOCK = 1024
"""Images whose vectors are passed to a segment together: 2 MB of float32 at 512 numbers per vector."""
BLOCK_NUMBERS = 1 << 23
"""Maximum numbers of the tokens that are passed to a segment together: 32 MB of float32. A page of ColPali has 132,000
numbers."""


class PartReader:
    """The files of vectors of an index, by row; safe to use from several threads."""

    def __init__(self, folder: Path, document: IndexDocument) -> None:
        self.folder, self.parts, self.num_rows = folder, document.parts, document.num_rows
        self.dim, self.element = document.model.dim, document.vector_type
        self.is_removed = removed_rows(folder, document)
        self.segments_stop = document.segments[-1].stop if document.segments else 0
        """The first row that is in no segment."""
        self._ends = list(itertools.accumulate(part.rows for part in self.parts))
        # A cache of this instance: a decorated method would keep every opened index alive.
        self._groups = lru_cache(maxsize=OPEN_FILES)(
            lambda part: part_files.mapped(folder, document.parts[part], document.vector_type)
        )

    def locate(self, row: int) -> tuple[int, int, int]:
        """The part and row group of a row, and its place in the group."""
        if not 0 <= row < self.num_rows:
            raise IndexError(f"row {row} of {self.num_rows}")
        part = bisect.bisect_right(self._ends, row)
        return part, *divmod(row - (self._ends[part] - self.parts[part].rows), part_files.ROWS_PER_GROUP)


class VectorReader(PartReader):
    """Reads and compares the vectors of an index with a vector per image."""

    def __init__(self, folder: Path, document: IndexDocument) -> None:
        super().__init__(folder, document)
        self._unit: dict[int, Floats] = {}

    def stored(self, rows: Rows) -> StoredVectors:
        """What is stored of rows, in the given order."""
        vectors_RD = np.empty((len(rows), self.dim), dtype=np.float16)
        # Row by row, because the candidates of a query are in as many groups.
        for i, row in enumerate(rows.tolist()):
            part, group, within = self.locate(row)
            vectors_RD[i] = self._groups(part)[group][within]
        return StoredVectors(vectors_RD)

    def part(self, number: int) -> StoredVectors:
        """What is stored of all rows of a part, removed ones too."""
        return StoredVectors(np.concatenate(self._groups(number)))

    def blocks(self, rows: range) -> Iterator[StoredVectors]:
        """What is stored of a range of rows, in blocks: they may be more than fit into memory."""
        for _, stored in self._parts(rows):
            for start in range(0, len(stored), BLOCK):
                yield StoredVectors(stored.data[start : start + BLOCK])

    def propose(self, queries: Floats, k: int, among: Rows | None = None) -> list[Rows]:
        """For each query, which rows outside the segments, or which of some rows, which ascend, may be its k best."""
        if among is None:
            return exact.rough(queries, self._rest(), k, self.is_removed)
        if len(among) > MANY * self.num_rows:
            blocks = itertools.chain(self._unit_blocks(range(self.segments_stop)), self._rest())
            is_out = np.ones(self.num_rows, dtype=np.bool_)
            is_out[among] = False
            return exact.rough(queries, blocks, k, is_out)
        starts = range(0, len(among), GATHERED)
        gathered = ((start, exact.unit_rows(self._gathered(among[start : start + GATHERED]))) for start in starts)
        return [among[places] for places in exact.rough(queries, gathered, k)]

    def _parts(self, rows: range) -> Iterator[tuple[int, StoredVectors]]:
        """The vectors of a range of rows part by part, each with its first row."""
        for number, (end, part) in enumerate(zip(self._ends, self.parts, strict=True)):
            first = end - part.rows
            start, stop = max(rows.start, first), min(rows.stop, end)
            if start < stop:
                yield start, StoredVectors(self.part(number).data[start - first : stop - first])

    def _rest(self) -> Iterable[tuple[int, Floats]]:
        """The unit vectors outside the segments in blocks, each with its first row."""
        rows = range(self.segments_stop, self.num_rows)
        if 4 * self.dim * len(rows) > FLOAT_BYTES:
            return self._unit_blocks(rows)
        if not self._unit:
            # Assigned as a whole, so that another thread never sees a part of it.
            self._unit = dict(self._unit_blocks(rows))
        return self._unit.items()

    def _unit_blocks(self, rows: range) -> Iterator[tuple[int, Floats]]:
        return ((first, exact.unit_rows(stored.data)) for first, stored in self._parts(rows))

    def _gathered(self, rows: Rows) -> Half:
        """The vectors of many ascending rows, read by row group, which takes a fraction of the time."""
        vectors_RD = np.empty((len(rows), self.dim), dtype=np.float16)
        start = 0
        while start < len(rows):
            part, group, within = self.locate(int(rows[start]))
            first, block_RD = int(rows[start]) - within, self._groups(part)[group]
            stop = int(np.searchsorted(rows, first + len(block_RD)))
            vectors_RD[start:stop] = block_RD[rows[start:stop] - first]
            start = stop
        return vectors_RD


class TokenReader(PartReader):
    """Reads and compares the tokens of an index of tokens. The members of `VectorReader`."""

    def __init__(self, folder: Path, document: IndexDocument) -> None:
        super().__init__(folder, document)
        self._places = lru_cache(maxsize=1)(self._read_places)
        self._kept: list[tuple[Rows, StoredTokens]] = []

    def stored(self, rows: Rows) -> StoredTokens:
        starts_R, counts_R = self._places()
        tokens = [np.empty(0, self.element)]
        for row in rows.tolist():
            part, group, _ = self.locate(row)
            tokens.append(self._groups(part)[group][starts_R[row] : starts_R[row] + counts_R[row]])
        return StoredTokens(np.concatenate(tokens), counts_R[rows])

    def part(self, number: int) -> StoredTokens:
        end = self._ends[number]
        counts_R = self._places()[1][end - self.parts[number].rows : end]
        return StoredTokens(np.concatenate(self._groups(number)), counts_R)

    def blocks(self, rows: range) -> Iterator[StoredTokens]:
        step = min(BLOCK, self._images_with(BLOCK_NUMBERS))
        return (self.stored(np.arange(first, min(first + step, rows.stop))) for first in rows[::step])

    def propose(self, queries: Floats, k: int, among: Rows | None = None) -> list[Rows]:
        blocks = self._rest() if among is None else self._blocks(among)
        scored: list[list[tuple[Rows, Floats]]] = [[] for _ in queries]
        for rows, stored in blocks:
            for parts, query in zip(scored, queries, strict=True):
                parts.append((rows, stored.rough(query)))
        return [exact.best_of(parts, k) for parts in scored]

    def _blocks(self, rows: Rows) -> Iterator[tuple[Rows, StoredTokens]]:
        """The tokens of rows as float32, in blocks."""
        step = self._images_with(COMPARED)
        for start in range(0, len(rows), step):
            stored = self.stored(rows[start : start + step])
            yield rows[start : start + step], StoredTokens(stored.tokens_ND, stored.counts_R)

    def _images_with(self, numbers: int) -> int:
        """How many images have at most so many numbers; at least one."""
        counts_R = self._places()[1]
        return max(1, numbers // (self.dim * int(counts_R.max(initial=1))))

    def _rest(self) -> Iterable[tuple[Rows, StoredTokens]]:
        """The blocks of all rows outside the segments."""
        if self._kept:
            return self._kept
        rest = np.flatnonzero(~self.is_removed)
        rest = rest[rest >= self.segments_stop]
        if 4 * self.dim * self._places()[1][rest].sum() > FLOAT_BYTES:
            return self._blocks(rest)
        # To gather and convert tokens takes three times as long as to compare them. Assigned as a whole, so that
        # another thread never sees a part of it.
        self._kept = list(self._blocks(rest))
        return self._kept

    def _read_places(self) -> tuple[Rows, Rows]:
        """Where the tokens of each row begin in its row group, and their number."""
        size, none = part_files.ROWS_PER_GROUP, np.empty(0, dtype=np.int64)
        starts, counts = [none], [none]
        for part in self.parts:
            path = part_files.part_path(self.folder, part)
            with part_files.reading(path), pq.ParquetFile(path) as file:
                column = file.read(columns=[COUNTS]).column(COUNTS)
                if column.type != "int32" or column.null_count:
                    raise ValueError(f"its {COUNTS} are {column.type}")
                # `read_table` and `to_numpy` import pandas, a quarter of the time of a first answer.
                counts_R = np.from_dlpack(column.combine_chunks()).astype(np.int64)
            of_group = [int(counts_R[first : first + size].sum()) for first in range(0, len(counts_R), size)]
            if counts_R.min() < 1 or tuple(of_group) != part.num_tokens:
                raise INDEX.damaged(path, "its numbers of tokens are not those of index.json")
            starts_R = np.cumsum(counts_R) - counts_R
            of_group_R = np.repeat(starts_R[::size], size)[: len(starts_R)]
            counts.append(counts_R)
            starts.append(starts_R - of_group_R)
        return np.concatenate(starts), np.concatenate(counts)


READERS: dict[str, type[VectorReader] | type[TokenReader]] = {"dual": VectorReader, "late": TokenReader}
"""The reader by the kind of model."""
