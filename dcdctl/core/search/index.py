"""An index of images that is searched by vector: opened in milliseconds, memory-mapped, shared by threads.

Shape letters: Q queries, D width, K answers per query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dcdctl.core.errors import InputError, MissingError
from dcdctl.core.models import TextTower
from dcdctl.core.search import exact, keywords, part_files, proposers, storage
from dcdctl.core.search.columns.order import Order, in_order
from dcdctl.core.search.columns.table import ColumnSummary, StoredColumns, summarize_column
from dcdctl.core.search.columns.unmet import why_none
from dcdctl.core.search.columns.where import BUILT_IN, Condition, columns_of, matches
from dcdctl.core.search.entries import Segment
from dcdctl.core.search.exact import Floats, Rows
from dcdctl.core.search.image_files import StoredFiles
from dcdctl.core.search.part_files import SourceImage
from dcdctl.core.search.protocol import Hit, ImageIndex, Listing
from dcdctl.core.search.readers import OPEN_FILES, READERS
from dcdctl.core.search.sources import SourceImages
from dcdctl.core.search.storage import INDEX, IndexDocument
from dcdctl.core.search.stored import Stored, best_of

# Scores of a block and a part of 8,192 rows take 2 MB.
QUERY_BLOCK = 64
"""Queries searched together."""
# Users keep a condition while they change the text. The rows of a million images take 8 MB.
CONDITIONS = 8
"""Conditions whose rows are remembered."""


class FolderIndex(ImageIndex):
    """An index in a folder; safe to search from several threads."""

    def __init__(self, folder: Path, document: IndexDocument) -> None:
        self.folder = folder
        self._open(document)

    def _open(self, document: IndexDocument) -> None:
        folder = self.folder
        self.document, self.location = document, str(folder)
        self.dim, self.fingerprint = document.model.dim, document.model.fingerprint
        self.kind = proposers.PROPOSERS[document.model.kind].name if document.segments else "flat"
        self.num_images, self.has_keywords = document.images, document.keywords is not None
        self.config, self.parts, self.segments = document.settings, document.parts, document.segments
        self.stored_type = document.stored_type
        self.query_model = None if document.text is None else document.text.query_model
        self.num_rows = document.num_rows
        self.reader = READERS[document.model.kind](folder, document)
        self.is_removed = self.reader.is_removed
        # A missing package is an error on opening, not in the first query.
        if self.segments:
            proposers.require(document.model.kind)
        self.images = SourceImages(str(folder), document.sources)
        # Caches of this instance: a decorated method would keep every opened index alive.
        # A column of a million images has 1,024 groups of 1,024 rows.
        self._strings = lru_cache(maxsize=1024)(self._read_strings)
        self._footer = lru_cache(maxsize=OPEN_FILES)(pq.read_metadata)
        # Unbounded, because each query asks every segment.
        self._segment = lru_cache(maxsize=None)(partial(proposers.open_segment, folder, model=document.model))
        self._words = lru_cache(maxsize=1)(keywords.open_keywords)
        self.stored_columns = StoredColumns(folder, document.columns, self.num_rows)
        self.columns = self.stored_columns.schema
        self.image_files = StoredFiles(folder, document.image_files, self.num_rows)
        self.summarize_columns = lru_cache(maxsize=1)(self._summarize_columns)
        self._copies = lru_cache(maxsize=1)(self._find_copies)
        self._matching = lru_cache(maxsize=CONDITIONS)(self._find_matching)
        self._why_none = lru_cache(maxsize=CONDITIONS)(self._find_why_none)
        # The pages of a list follow each other.
        self._in_order = lru_cache(maxsize=CONDITIONS)(self._find_in_order)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The index in a folder. MissingError if there is none or a file is missing; StaleError if a file has another
        size than when it was written."""
        return cls(Path(folder), storage.read_document(Path(folder)))

    def __fspath__(self) -> str:
        return str(self.folder)

    def check_model(self) -> None:
        """StaleError if another model was put in the folder of the index, MissingError if its model is gone."""
        storage.check_model(self.folder, self.document)

    def check(self) -> None:
        for name, (_, sha256) in self.document.files.items():
            INDEX.checked(self.folder / name, sha256)

    @property
    def is_live(self) -> NDArray[np.bool_]:
        """(R,): the rows that were not removed."""
        return ~self.is_removed

    @property
    def source_R(self) -> NDArray[np.int64]:
        """(R,): the source of each row, an index into the sources of index.json."""
        return np.repeat([part.source for part in self.parts], [part.rows for part in self.parts]).astype(np.int64)

    def values(self, name: str) -> pa.Array:
        """The values of all rows in a column, removed rows too."""
        if name not in BUILT_IN.names:
            return self.stored_columns.column(name)
        chunks = [chunk for part in self.parts for chunk in part_files.read_column(self.folder, part, name).chunks]
        return pa.chunked_array(chunks, pa.string()).combine_chunks()

    @property
    def empty_columns(self) -> list[str]:
        """The columns without a value in any row, such as those of EXIF data where no photo has any."""
        return [name for name in self.columns.names if self.values(name).null_count == self.num_rows]

    def _summarize_columns(self) -> list[ColumnSummary]:
        """Each column with its type, the number of images without a value, and its most frequent values."""
        table = self.stored_columns.table()
        return [summarize_column(name, table.column(name), self.is_removed) for name in table.column_names]

    @property
    def model(self) -> Path:
        folder = self.folder / "model"
        # Models of open_clip have no config.json of their own.
        if not any((folder / name).is_file() for name in ("config.json", "dcdctl.json")):
            hint = f"copy it to {folder}, or index again"
            raise MissingError(f"the index {self.folder} lacks its model {self.fingerprint[:8]}", hint=hint)
        return folder

    @property
    def text_side(self) -> Path | None:
        """StaleError if the folder is not the index's."""
        side = self.document.text
        if side is None or not side.files:
            return None
        # It holds the checksums of the other files, which are compared when they are read.
        sealed = next(file for file in side.files if file.file == TextTower.FILE)
        return INDEX.checked(self.folder / side.folder / sealed.file, sealed.sha256).parent

    def nearest(self, vectors_QD: NDArray[np.floating], k: int, where: Condition | None = None) -> tuple[Floats, Rows]:
        """The scores and the rows of the k images nearest to each query, as `stored.best_of` gives them, exact over the
        stored vectors: cosines, or MaxSims of a late index, whose queries are Q x L x D. Safe to call from threads.

        With a condition, all rows that meet it are compared; codes and centroids are not used.
        ValueError for queries that are not finite numbers of these shapes, and for k below 1. InputError for a
        condition on unknown columns.
        """
        queries_QD = self.checked_queries(vectors_QD, k)
        rows = np.flatnonzero(self.is_live) if self.compares_all else None
        if where is not None:
            rows = self._matching(where)
        scores, found = [], []
        # At least one block, so that no queries give empty arrays of the right shape.
        for start in range(0, max(len(queries_QD), 1), QUERY_BLOCK):
            block_QD = queries_QD[start : start + QUERY_BLOCK]
            candidates = self._candidates(block_QD, k, rows)
            scores_QK, rows_QK = best_of(block_QD, candidates, self.stored, k)
            scores.append(scores_QK)
            found.append(rows_QK)
        return np.concatenate(scores), np.concatenate(found)

    def _candidates(self, queries_QD: Floats, k: int, among: Rows | None) -> list[Rows]:
        """Rows that may be among the k best of each query: of some rows, or of all, with the help of the segments."""
        candidates = self.reader.propose(queries_QD, k, among)
        if among is not None:
            return candidates
        for segment in self.segments:
            for query, rows in enumerate(self._candidates_in(segment, queries_QD, k)):
                candidates[query] = np.concatenate([candidates[query], rows])
        return candidates

    def _candidates_in(self, segment: Segment, queries_QD: Floats, k: int) -> list[Rows]:
        """Candidate rows of a segment that were not removed; at least k, if it has as many."""
        count = min(self._segment(segment).num_candidates(k), segment.rows)
        is_gone = self.is_removed[segment.first_row : segment.stop]
        enough = min(k, segment.rows - int(is_gone.sum()))
        while True:
            candidates = [rows_C[rows_C >= 0] for rows_C in self._segment(segment).candidates(queries_QD, count)]
            live = [rows[~is_gone[rows]] + segment.first_row for rows in candidates]
            if count == segment.rows or all(len(rows) >= enough for rows in live):
                return live
            # Removed rows took the places of others, so more candidates are requested.
            count = min(4 * count, segment.rows)

    def _find_matching(self, where: Condition) -> Rows:
        """The rows that meet a condition, ascending, without removed ones."""
        names = sorted(columns_of(where))
        self._check_columns(names)
        held = matches(where, pa.table({name: self.values(name) for name in names}))
        return np.flatnonzero(held & self.is_live)

    def why_none(self, where: Condition) -> str:
        return self._why_none(where)

    def _find_why_none(self, where: Condition) -> str:
        live = pa.array(self.is_live)
        return why_none(where, lambda name: self.values(name).filter(live))

    def _check_columns(self, names: Sequence[str]) -> None:
        """InputError for an unknown column: another index may be open now than when a condition or an order was
        read."""
        if unknown := [name for name in names if name not in (*self.columns.names, *BUILT_IN.names)]:
            raise InputError(
                f"the index {self.folder} has no column {unknown[0]}",
                hint="`dcdctl inspect` lists the columns of an index",
            )

    def search(self, vectors_QD: NDArray[np.floating], k: int, where: Condition | None = None) -> list[tuple[Hit, ...]]:
        """The hits of `nearest` for each query; only the best one of copies and look-alikes is a hit, unless
        `all_copies`."""
        most = max(self.num_images, 1)
        k = count = min(k, most)
        while True:
            scores_QK, rows_QK = self.nearest(vectors_QD, count, where)
            places_Q = [self._distinct(rows_K)[:k] for rows_K in rows_QK]
            if count == most or all(len(places) == k for places in places_Q):
                break
            # Copies took the places of others.
            count = min(4 * count, most)
        hits_Q = []
        for scores_K, rows_K, places in zip(scores_QK, rows_QK, places_Q, strict=True):
            hits_Q.append(tuple(self._hit(int(rows_K[place]), float(scores_K[place])) for place in places))
        return hits_Q

    def _distinct(self, rows_K: Rows) -> Rows:
        """The places in `rows_K`, best first, of the rows that are hits: of a group of copies its first row, unless
        `all_copies`. A row of -1 is none."""
        places = np.flatnonzero(rows_K >= 0)
        if self.all_copies or not self._copies():
            return places
        _, firsts = np.unique(self.image_files.group_R[rows_K[places]], return_index=True)
        return places[np.sort(firsts)]

    def _find_copies(self) -> dict[int, list[int]]:
        """The rows of each group of several images, by the name of the group."""
        rows = np.flatnonzero(self.is_live)
        groups = self.image_files.group_R[rows]
        names, counts = np.unique(groups, return_counts=True)
        is_shared = np.isin(groups, names[counts > 1])
        members: dict[int, list[int]] = {}
        for row, group in zip(rows[is_shared].tolist(), groups[is_shared].tolist(), strict=True):
            members.setdefault(group, []).append(row)
        return members

    def hybrid(
        self, texts: Sequence[str], vectors_QD: NDArray[np.floating], k: int, where: Condition | None = None
    ) -> list[tuple[Hit, ...]]:
        assert self.document.keywords is not None  # `check_hybrid` was called before
        words = self._words(self.folder, self.document.keywords)
        # One depth for every small k, so that the first hits do not change with k.
        depth = max(k, keywords.DEPTH)
        _, rows_QK = self.nearest(vectors_QD, min(depth, max(self.num_images, 1)), where)
        # Removed rows have no words.
        is_out = self.is_removed
        if where is not None:
            is_out = np.ones(self.num_rows, dtype=np.bool_)
            is_out[self._matching(where)] = False
        has_captions = np.array([source.is_corpus for source in self.document.sources])[self.source_R]
        hits_Q = []
        for text, query_D, near_K in zip(texts, exact.unit(vectors_QD, self.dim), rows_QK, strict=True):
            bm25_R = words.scores(text)
            by_words = keywords.best(bm25_R, depth, is_out)
            rows, fused = keywords.fuse(near_K[near_K >= 0], by_words, depth, has_captions)
            places = self._distinct(rows)[:k]
            rows, fused = rows[places], fused[places]
            scores = self.stored(rows).score(query_D, np.arange(len(rows)))
            hits = []
            for row, score, sum_of_ranks in zip(rows.tolist(), scores.tolist(), fused.tolist(), strict=True):
                # None, not 0, for an image without a word of the text.
                bm25 = float(bm25_R[row]) or None
                hits.append(replace(self._hit(row, score), bm25=bm25, fused=sum_of_ranks))
            hits_Q.append(tuple(hits))
        return hits_Q

    def browse(
        self, where: Condition | None = None, order: Order | None = None, *, k: int = 10, offset: int = 0
    ) -> Listing:
        if k < 1 or offset < 0:
            raise ValueError(f"k must be at least 1 and offset at least 0, got {k} and {offset}")
        rows = self._in_order(where, order, self.all_copies)
        hits = tuple(self._hit(row, None) for row in rows[offset : offset + k].tolist())
        return Listing(hits, total=len(rows))

    def _find_in_order(self, where: Condition | None, order: Order | None, all_copies: bool) -> Rows:
        """The rows that meet a condition, in an order; without an order ascending. The first one stands for its copies,
        unless all are hits."""
        rows = np.flatnonzero(self.is_live) if where is None else self._matching(where)
        if order is not None:
            self._check_columns([order.column])
            rows = in_order(rows, self.values(order.column), order)
        return rows if all_copies else rows[self._distinct(rows)]

    def _hit(self, row: int, score: float | None) -> Hit:
        source, image = self.source_image(row)
        copies: tuple[str, ...] = ()
        if not self.all_copies:
            group = int(self.image_files.group_R[row])
            copies = tuple(self.name(other) for other in self._copies().get(group, ()) if other != row)
        return Hit(
            row,
            image.image_id,
            image.path or image.image_id,
            score,
            columns=self.stored_columns.values(row),
            path=self.images.path(source, image),
            copies=copies,
        )

    def spread_rows(self, count: int) -> list[int]:
        return [row for row in exact.spread_over(self.num_rows, count) if not self.is_removed[row]]

    def stored(self, rows: Rows) -> Stored:
        return self.reader.stored(rows)

    def part_table(self, number: int) -> pa.Table:
        """The images of a part without their vectors, as its file has them; removed rows too."""
        path = part_files.part_path(self.folder, self.parts[number])
        with part_files.reading(path):
            return pq.read_table(path, columns=part_files.IMAGE_COLUMNS.names)

    def image_id(self, row: int) -> str:
        """The image id of a row: the id in the corpus, or the path in the folder."""
        return self.source_image(row)[1].image_id

    def source_image(self, row: int) -> tuple[int, SourceImage]:
        if not 0 <= row < self.num_rows or self.is_removed[row]:
            raise MissingError(f"the index {self.folder} has no image {row}")
        part, group, within = self.reader.locate(row)
        names = part_files.IMAGE_COLUMNS.names
        fields: dict[str, Any] = {name: self._strings(name, part, group)[within].as_py() for name in names}
        return self.parts[part].source, SourceImage(**fields)

    def _read_strings(self, column: str, part: int, group: int) -> pa.Array:
        path = part_files.part_path(self.folder, self.parts[part])
        with part_files.reading(path):
            # Ten hits may be in ten files, and reading a footer takes longer than reading a name.
            file = pq.ParquetFile(path, metadata=self._footer(path), memory_map=True, pre_buffer=False)
            strings = file.read_row_group(group, columns=[column], use_threads=False).column(column).combine_chunks()
            strings.validate(full=True)
            # A page may hold fewer values than its footer says.
            if len(strings) != part_files.group_rows(self.parts[part].rows)[group]:
                raise ValueError(f"a group has {len(strings):,} rows")
        return strings
