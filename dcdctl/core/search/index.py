"""An index of images that is searched by vector: opened in milliseconds, memory-mapped, shared by threads.

Shape letters: Q queries, D width, K answers per query.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dcdctl.core import config
from dcdctl.core.errors import ConfigError, InputError, MissingError, StaleError
from dcdctl.core.models import TextTower
from dcdctl.core.search import ann, exact, keywords, part_files, storage
from dcdctl.core.search.ann import OpenSegment
from dcdctl.core.search.columns.table import Columns, ColumnSummary, summarize_column
from dcdctl.core.search.columns.where import BUILT_IN, Condition, columns_of, matches
from dcdctl.core.search.config import IndexConfig
from dcdctl.core.search.exact import Floats, Half, Nearest, Rows
from dcdctl.core.search.keywords import Keywords
from dcdctl.core.search.part_files import SourceImage
from dcdctl.core.search.protocol import Hit
from dcdctl.core.search.sources import SourceImages
from dcdctl.core.search.storage import INDEX, ImageSource, Listed, Segment

QUERY_BLOCK = 64
"""Queries searched together."""
OPEN_FILES = 256
"""Maximum number of open files; the least recently used is closed."""
CONDITIONS = 8
"""Conditions whose rows are remembered."""
MANY = 0.05
"""Share of the rows above which a condition masks all rows; the vectors of fewer rows are gathered, which takes longer
for each."""
GATHERED = 8192
"""Vectors that are gathered together."""
FLOAT_BYTES = 2 << 30
"""Exactly searched vectors are kept as float32 up to this size; beyond it they are converted for each query."""


class Index:
    """Indexed images. The row of an image never changes; removed rows stay empty."""

    def __init__(self, folder: Path, document: dict[str, Any]) -> None:
        self.folder, self.document = folder, document
        self.dim: int = document["model"]["dim"]
        self.fingerprint: str = document["model"]["fingerprint"]
        self.kind: str = document["kind"]
        self.num_images: int = document["images"]
        self.parts = storage.parts_of(document)
        self._ends = list(itertools.accumulate(part.rows for part in self.parts))
        self.num_rows = self._ends[-1] if self._ends else 0
        self.is_removed = _removed(folder, document, self.num_rows)
        self.config = _settings(folder, document)
        self.segments = [Segment(**entry) for entry in document["segments"]]
        # A missing package is an error on opening, not in the first query.
        for segment in self.segments:
            ann.packages(segment.kind)
        self.images = SourceImages(str(folder), [ImageSource(**entry) for entry in document["sources"]])
        self._unit: dict[int, Floats] = {}
        # Caches of this instance: a decorated method would keep every opened index alive.
        self._strings = lru_cache(maxsize=1024)(self._read_strings)
        self._footer = lru_cache(maxsize=OPEN_FILES)(pq.read_metadata)
        self._mapped = lru_cache(maxsize=OPEN_FILES)(self._map)
        # Unbounded, because each query asks every segment.
        self._segment = lru_cache(maxsize=None)(self._open_segment)
        self._words = lru_cache(maxsize=1)(self._open_words)
        self._columns = Columns(folder, storage.columns_file(document), self.num_rows)
        self._summaries = lru_cache(maxsize=1)(self._summarize_columns)
        self._matching = lru_cache(maxsize=CONDITIONS)(self._find_matching)

    @staticmethod
    def open(folder: Path) -> Index:
        """The index in a folder. MissingError if there is none or a file is missing; StaleError if a file has another
        size than when it was written."""
        folder = Path(folder)
        document = storage.read_document(folder)
        return Index(folder, document)

    def __repr__(self) -> str:
        return f"Index({str(self.folder)!r}: {self.num_images:,} images, {self.kind}, model {self.fingerprint[:8]})"

    def __fspath__(self) -> str:
        return str(self.folder)

    def __len__(self) -> int:
        return self.num_images

    def check(self) -> None:
        """StaleError if a file of the index is damaged. Compares all files at once, so that no later search waits for
        it."""
        for name, entry in storage.files_of(self.document).items():
            INDEX.checked(self.folder / name, entry["sha256"])

    @property
    def location(self) -> str:
        """The folder of the index."""
        return str(self.folder)

    @property
    def columns(self) -> pa.Schema:
        """The columns of the images; conditions may read them and `where.BUILT_IN`."""
        return self._columns.schema

    @property
    def num_covered(self) -> int:
        """The first rows, which have had a chance to get values in columns; rows that were added since have none."""
        return self._columns.num_covered

    def values(self, name: str) -> pa.Array:
        """The values of all rows in a column, removed rows too."""
        return self._whole(name) if name in BUILT_IN.names else self._columns.column(name)

    def column_table(self) -> pa.Table:
        """The columns of all rows, removed rows too."""
        return self._columns.table()

    def summarize_columns(self) -> list[ColumnSummary]:
        """Each column with its type, the number of images without a value, and its most frequent values."""
        return self._summaries()

    def _summarize_columns(self) -> list[ColumnSummary]:
        return [summarize_column(name, self._columns.column(name), self.is_removed) for name in self.columns.names]

    def expect(self, fingerprint: str) -> None:
        """StaleError if a model of another fingerprint made the index."""
        if fingerprint != self.fingerprint:
            message = (
                f"the index {self.folder} was made with the model {self.fingerprint[:8]}, and this is the "
                f"model {fingerprint[:8]}"
            )
            raise StaleError(message, hint=f"search with {self.folder / 'model'}, or index the images with this model")

    @property
    def model(self) -> Path:
        """The folder of the dual encoder that made the vectors; MissingError if it is gone."""
        folder = self.folder / "model"
        # Models of open_clip have no config.json of their own.
        if not any((folder / name).is_file() for name in ("config.json", "dcdctl.json")):
            hint = f"copy it to {folder}, or index again"
            raise MissingError(f"the index {self.folder} lacks its model {self.fingerprint[:8]}", hint=hint)
        return folder

    @property
    def text_side(self) -> Path | None:
        """The folder of the text side of the model for ONNX Runtime; None if the index has none. StaleError if it is
        not the index's."""
        entries = {entry["file"]: entry for entry in (self.document.get("text") or {"files": []})["files"]}
        if not entries:
            return None
        # It holds the checksums of the other files, which are compared when they are read.
        return INDEX.checked(self.folder / storage.TEXT / TextTower.FILE, entries[TextTower.FILE]["sha256"]).parent

    def nearest(self, vectors_QD: NDArray[np.floating], k: int, where: Condition | None = None) -> Nearest:
        """The k images with the highest cosine for each query, exact over the float16 vectors; ties by row. Safe to
        call from threads.

        With a condition, all rows that meet it are compared; graphs and codes are not used.
        ValueError for queries that are not Q x D finite numbers, and for k below 1. InputError for a condition on
        unknown columns.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        queries_QD = exact.unit(vectors_QD, self.dim)
        rows = None if where is None else self._matching(where)
        starts = range(0, max(len(queries_QD), 1), QUERY_BLOCK)
        parts = (queries_QD[start : start + QUERY_BLOCK] for start in starts)
        blocks = [self._nearest(part, k) if rows is None else self._nearest_of(part, k, rows) for part in parts]
        return Nearest(
            np.concatenate([block.scores_QK for block in blocks]), np.concatenate([block.rows_QK for block in blocks])
        )

    def _nearest(self, queries_QD: Floats, k: int) -> Nearest:
        proposals = [self._proposed(segment, self._segment(segment), queries_QD, k) for segment in self.segments]
        proposals.append(exact.rough(queries_QD, self._unit_blocks(), k, self.is_removed))
        return exact.exact(queries_QD, [np.concatenate(rows) for rows in zip(*proposals, strict=True)], self.vectors, k)

    def _nearest_of(self, queries_QD: Floats, k: int, rows: Rows) -> Nearest:
        """The nearest of some rows, which ascend."""
        if len(rows) > MANY * self.num_rows:
            proposed = exact.rough(queries_QD, self._all_unit_blocks(), k, self._all_but(rows))
        else:
            blocks = (
                (start, exact.unit_rows(self._gathered(rows[start : start + GATHERED])))
                for start in range(0, len(rows), GATHERED)
            )
            proposed = [rows[places] for places in exact.rough(queries_QD, blocks, k)]
        return exact.exact(queries_QD, proposed, self.vectors, k)

    def _all_but(self, rows: Rows) -> NDArray[np.bool_]:
        """A mask of all other rows."""
        is_out = np.ones(self.num_rows, dtype=np.bool_)
        is_out[rows] = False
        return is_out

    def _find_matching(self, where: Condition) -> Rows:
        """The rows that meet a condition, ascending, without removed ones."""
        names = sorted(columns_of(where))
        # Another index may be open now than when the condition was read.
        if unknown := [name for name in names if name not in (*self.columns.names, *BUILT_IN.names)]:
            raise InputError(
                f"the index {self.folder} has no column {unknown[0]}",
                hint="`dcdctl inspect` lists the columns of an index",
            )
        held = matches(where, pa.table({name: self.values(name) for name in names}))
        return np.flatnonzero(held if self.is_removed is None else held & ~self.is_removed)

    def _gathered(self, rows: Rows) -> Half:
        """The stored vectors of ascending rows, read by row group."""
        vectors_RD = np.empty((len(rows), self.dim), dtype=np.float16)
        start = 0
        while start < len(rows):
            part, group, within = self._locate(int(rows[start]))
            first = int(rows[start]) - within
            block_RD = self._mapped(part)[group]
            stop = int(np.searchsorted(rows, first + len(block_RD)))
            vectors_RD[start:stop] = block_RD[rows[start:stop] - first]
            start = stop
        return vectors_RD

    def _proposed(self, segment: Segment, opened: OpenSegment, queries_QD: Floats, k: int) -> list[Rows]:
        """Candidate rows of a segment that were not removed; at least k, if it has as many."""
        count = min(max(self.config.candidates, 2 * k), segment.rows)
        gone = None if self.is_removed is None else self.is_removed[segment.first_row : segment.stop]
        enough = min(k, segment.rows - (0 if gone is None else int(gone.sum())))
        while True:
            candidates = [rows_C[rows_C >= 0] for rows_C in opened.candidates(queries_QD, count)]
            live = [
                rows + segment.first_row if gone is None else rows[~gone[rows]] + segment.first_row
                for rows in candidates
            ]
            if count == segment.rows or all(len(rows) >= enough for rows in live):
                return live
            # Removed rows took the places of others, so more candidates are requested.
            count = min(4 * count, segment.rows)

    def search(self, vectors_QD: NDArray[np.floating], k: int, where: Condition | None = None) -> list[tuple[Hit, ...]]:
        """The hits of `nearest` for each query."""
        nearest = self.nearest(vectors_QD, min(k, max(self.num_images, 1)), where)
        return [
            tuple(self._hit(row, score) for row, score in zip(rows, scores, strict=True) if row >= 0)
            for rows, scores in zip(nearest.rows_QK.tolist(), nearest.scores_QK.tolist(), strict=True)
        ]

    @property
    def has_keywords(self) -> bool:
        """Whether the words of captions and file names are indexed too."""
        return self.document.get("keywords") is not None

    def hybrid(
        self, texts: Sequence[str], vectors_QD: NDArray[np.floating], k: int, where: Condition | None = None
    ) -> list[tuple[Hit, ...]]:
        """The k images of the best ranks by words and by vectors, fused; at least the first `keywords.DEPTH` of both
        are.

        MissingError for an index without words.
        """
        keywords.check_hybrid(self)
        words, depth = self._words(), max(k, keywords.DEPTH)
        nearest = self.nearest(vectors_QD, min(depth, max(self.num_images, 1)), where)
        hits_Q, is_out = [], None if where is None else self._all_but(self._matching(where))
        for text, query_D, near_K in zip(texts, exact.unit(vectors_QD, self.dim), nearest.rows_QK, strict=True):
            bm25_R = words.scores(text)
            rows, fused = keywords.fuse(
                near_K[near_K >= 0], keywords.best(bm25_R, depth, is_out), k, self._has_captions()
            )
            cosines = exact.cosines(query_D, self.vectors(rows))
            facts = zip(rows.tolist(), cosines.tolist(), bm25_R[rows].tolist(), fused.tolist(), strict=True)
            hits_Q.append(
                tuple(replace(self._hit(row, score), bm25=bm25 or None, fused=sum_) for row, score, bm25, sum_ in facts)
            )
        return hits_Q

    def _hit(self, row: int, score: float) -> Hit:
        return Hit(row, self.image_id(row), self.name(row), score, columns=self._columns.values(row))

    def spread_rows(self, count: int) -> list[int]:
        """At most `count` rows spread evenly over the index, without removed rows."""
        count = min(count, self.num_rows)
        rows = ((2 * part + 1) * self.num_rows // (2 * count) for part in range(count))
        return [row for row in rows if not self.is_gone(row)]

    def vectors(self, rows: Rows) -> Half:
        """The stored vectors of rows, in the given order."""
        vectors_RD = np.empty((len(rows), self.dim), dtype=np.float16)
        for i, row in enumerate(rows.tolist()):
            part, group, within = self._locate(row)
            vectors_RD[i] = self._mapped(part)[group][within]
        return vectors_RD

    def part_table(self, number: int) -> pa.Table:
        """The images of a part with their vectors, as its file has them; removed rows too."""
        return pq.read_table(part_files.part_path(self.folder, self.parts[number], self.dim))

    def image_id(self, row: int) -> str:
        """The image id of a row: the id in the corpus, or the path in the folder."""
        return self._string(row, "image_id")

    def name(self, row: int) -> str:
        """The name of an image for users: its path in the folder, or its id in the corpus."""
        return self._string(row, "path") or self._string(row, "image_id")

    def rows_of(self, image_id: str) -> list[int]:
        """The rows of an image id, without removed rows; several if several folders have a file of that name."""
        rows = []
        for number, part in enumerate(self.parts):
            path = part_files.part_path(self.folder, part, self.dim)
            # Row groups whose range of ids excludes it are not read.
            if part.rows and len(pq.read_table(path, columns=["image_id"], filters=[("image_id", "=", image_id)])):
                ids = pq.read_table(path, columns=["image_id"]).column("image_id")
                matches = pc.indices_nonzero(pc.equal(ids, image_id)).to_pylist()
                rows += [self._ends[number] - part.rows + match for match in matches]
        return [row for row in rows if not self.is_gone(row)]

    def image_bytes(self, row: int) -> bytes:
        """The image file of a row, read from its source.

        MissingError if the row was removed, or its file is gone or is a link out of its folder; StaleError if the
        corpus has changed.
        """
        return self.images.read(*self._image(row))

    def open_image(self, row: int) -> BinaryIO:
        """The image file of a row, opened in its source. Errors as for `image_bytes`."""
        return self.images.open(*self._image(row))

    def captions(self, row: int) -> list[str]:
        """The captions of an image of a corpus; empty for one of a folder, or if the corpus is gone or has changed."""
        try:
            return self.images.captions(*self._image(row))
        except MissingError:
            return []

    def has_image(self, row: int) -> bool:
        """Whether `image_bytes` finds the image file of a row, without reading the file."""
        try:
            return self.images.exists(*self._image(row))
        except MissingError:
            return False

    def _image(self, row: int) -> tuple[int, SourceImage]:
        """The source of a row, and its image in the source; MissingError for a removed row."""
        if not 0 <= row < self.num_rows or self.is_gone(row):
            raise MissingError(f"the index {self.folder} has no image {row}")
        fields = {name: self._string(row, name) for name in part_files.IMAGE_COLUMNS.names}
        return self.parts[self._locate(row)[0]].source, SourceImage(**fields)

    def is_gone(self, row: int) -> bool:
        """Whether a row was removed."""
        return self.is_removed is not None and bool(self.is_removed[row])

    def _locate(self, row: int) -> tuple[int, int, int]:
        """The part and row group of a row, and its place in the group."""
        if not 0 <= row < self.num_rows:
            raise IndexError(f"row {row} of {self.num_rows}")
        part = bisect.bisect_right(self._ends, row)
        return part, *divmod(row - (self._ends[part] - self.parts[part].rows), part_files.ROWS_PER_GROUP)

    def _string(self, row: int, column: str) -> Any:
        part, group, within = self._locate(row)
        return self._strings(column, part, group)[within].as_py()

    def _read_strings(self, column: str, part: int, group: int) -> pa.Array:
        path = part_files.part_path(self.folder, self.parts[part], self.dim)
        # Ten names may be in ten files, and opening a file takes longer than reading from it.
        file = pq.ParquetFile(path, metadata=self._footer(path), memory_map=True, pre_buffer=False)
        return file.read_row_group(group, columns=[column], use_threads=False).column(column).combine_chunks()

    def _whole(self, column: str) -> pa.Array:
        """A column of the files of vectors for all rows."""
        paths = [part_files.part_path(self.folder, part, self.dim) for part in self.parts]
        chunks = [chunk for path in paths for chunk in pq.read_table(path, columns=[column]).column(column).chunks]
        return pa.chunked_array(chunks, pa.string()).combine_chunks()

    def _map(self, part: int) -> tuple[Half, ...]:
        return part_files.mapped(self.folder, self.parts[part], self.dim)

    def _open_segment(self, segment: Segment) -> OpenSegment:
        return ann.open_segment(self.folder / "ann", segment, self.dim, self.config)

    def _has_captions(self) -> NDArray[np.bool_] | None:
        """Which rows have captions, those of corpora; None if all rows have, or none."""
        is_corpus_P = [self.document["sources"][part.source]["kind"] == "corpus" for part in self.parts]
        return None if len(set(is_corpus_P)) < 2 else np.repeat(is_corpus_P, [part.rows for part in self.parts])

    def _open_words(self) -> Keywords:
        files_of_words = storage.words_of(self.document)
        assert files_of_words is not None
        return keywords.open_keywords(self.folder, files_of_words)

    def _unit_blocks(self) -> Iterator[tuple[int, Floats]]:
        """Vectors outside the segments, as float32 unit vectors in blocks, each with its first row."""
        rows = range(self.segments[-1].stop if self.segments else 0, self.num_rows)
        if 4 * self.dim * len(rows) > FLOAT_BYTES:
            yield from self._read_unit(rows)
            return
        if not self._unit:
            # Assigned as a whole, so that another thread never sees a part of it.
            self._unit = dict(self._read_unit(rows))
        yield from self._unit.items()

    def _all_unit_blocks(self) -> Iterator[tuple[int, Floats]]:
        """All vectors, those of the segments too."""
        if self.segments:
            yield from self._read_unit(range(self.segments[-1].stop))
        yield from self._unit_blocks()

    def _read_unit(self, rows: range) -> Iterator[tuple[int, Floats]]:
        for first, block_RD in part_files.read_blocks(self.folder, self.parts, self.dim, rows):
            yield first, exact.unit_rows(block_RD)


def _settings(folder: Path, document: dict[str, Any]) -> IndexConfig:
    try:
        return config.build(IndexConfig, document["settings"])
    except ConfigError as error:
        raise StaleError(
            f"the settings of the index {folder} are not known here: {error}", hint="update dcdctl"
        ) from error


def _removed(folder: Path, document: dict[str, Any], num_rows: int) -> NDArray[np.bool_] | None:
    """A mask of the removed rows; None if there are none."""
    listed = Listed(**document["removed"])
    if listed.file is None or listed.sha256 is None:
        return None
    path = INDEX.checked(folder / listed.file, listed.sha256)
    is_removed = np.zeros(num_rows, dtype=np.bool_)
    try:
        is_removed[np.load(path)] = True
    except (ValueError, LookupError) as error:
        raise INDEX.damaged(path, f"it does not list rows of the index ({error})") from error
    if (found := int(is_removed.sum())) != listed.count:
        raise INDEX.damaged(path, f"it lists {found:,} rows, and {storage.INDEX_FILE} says {listed.count:,}")
    return is_removed
