"""A summary of an index: its images by source, its vectors and codes in bytes, and how they are searched."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dcdctl.core import config
from dcdctl.core.search.columns.table import ColumnSummary
from dcdctl.core.search.index import FolderIndex
from dcdctl.core.search.query import cut, shown, value_for_json
from dcdctl.core.search.storage import ImageSource, text_side_note

HALF_BYTES = 2
NUM_SHOWN = 4
"""Most frequent values of a column that are named."""


@dataclass(frozen=True, kw_only=True)
class SourceSummary:
    """A source of images, and how many of its images can be found."""

    source: ImageSource
    images: int


@dataclass(frozen=True, kw_only=True)
class IndexSummary:
    """The content of an index, as index.json describes it."""

    images: int
    removed: int
    skipped: int
    """Files that could not be indexed."""
    dims: int
    """Numbers of a vector."""
    kind: str
    """How the segments are searched; flat without segments."""
    segments: int
    segment_rows: int
    """Vectors in segments; the others are searched exactly."""
    exact_rows: int
    vector_bytes: int
    """The files of vectors, with the names of the images."""
    segment_bytes: int
    """Codes or graphs."""
    word_bytes: int
    """The words of captions and file names; 0 for an index without."""
    text_bytes: int
    """The text side of the model for ONNX Runtime; 0 for an index without."""
    text_note: str
    """Why texts are searched with torch; empty if the index has a text side."""
    model: str
    """The fingerprint of the dual encoder that made the vectors."""
    precision: str
    settings: dict[str, Any]
    sources: tuple[SourceSummary, ...]
    columns: tuple[ColumnSummary, ...]


def summarize_index(index: FolderIndex) -> IndexSummary:
    """The summary of an open index. Reads no file besides those that opening read, and the columns."""
    document, words = index.document, index.document.keywords
    images = np.bincount(index.source_R[index.is_live], minlength=len(document.sources)).tolist()
    in_segments = index.segments[-1].stop if index.segments else 0
    return IndexSummary(
        images=index.num_images,
        removed=index.num_removed,
        skipped=document.skipped.count,
        dims=index.dim,
        kind=index.kind,
        segments=len(index.segments),
        segment_rows=in_segments,
        exact_rows=index.num_rows - in_segments,
        vector_bytes=sum(part.bytes for part in index.parts),
        segment_bytes=sum(segment.bytes for segment in index.segments),
        word_bytes=0 if words is None else sum(file.bytes for file in words.files),
        text_bytes=0 if document.text is None else sum(file.bytes for file in document.text.files),
        text_note=text_side_note(document),
        model=index.fingerprint,
        precision=document.precision,
        settings=config.to_table(document.settings),
        sources=tuple(
            SourceSummary(source=source, images=count) for source, count in zip(document.sources, images, strict=True)
        ),
        columns=tuple(index.summarize_columns()),
    )


def index_document(summary: IndexSummary) -> dict[str, Any]:
    """The summary as a JSON-able document; dates are texts."""
    columns = [
        {
            **asdict(column),
            "frequent": [{"value": value_for_json(value), "images": count} for value, count in column.frequent],
            "low": None if column.low is None else value_for_json(column.low),
            "high": None if column.high is None else value_for_json(column.high),
        }
        for column in summary.columns
    ]
    return {**asdict(summary), "columns": columns}


def index_facts(summary: IndexSummary) -> list[tuple[str, str]]:
    """Names and values, in words."""
    searches = []
    if summary.segments:
        per_vector = f"{summary.segment_bytes / summary.segment_rows:,.1f} bytes each"
        searches.append(
            f"{summary.kind} in {summary.segments:,} segments of {summary.segment_rows:,} vectors, {per_vector}"
        )
    if summary.exact_rows:
        searches.append(f"exact for {summary.exact_rows:,} vectors")
    if summary.word_bytes:
        searches.append(f"by words with --hybrid, {summary.word_bytes:,} bytes")
    counts = [
        f"{count:,} {name}"
        for count, name in ((summary.removed, "removed"), (summary.skipped, "files left out"))
        if count
    ]
    return [
        ("images", ", ".join([f"{summary.images:,}", *counts])),
        *(("source", _source(each)) for each in summary.sources),
        (
            "vectors",
            f"{summary.dims:,} numbers, {HALF_BYTES * summary.dims:,} bytes each; files of {summary.vector_bytes:,} "
            "bytes",
        ),
        ("search", "; ".join(searches)),
        ("model", f"{summary.model[:8]}, precision {summary.precision}"),
        (
            "texts",
            summary.text_note
            or f"searched without torch, by a text side for ONNX Runtime of {summary.text_bytes:,} bytes",
        ),
        *((f"column {column.name}", _column(column)) for column in summary.columns),
    ]


def _column(summary: ColumnSummary) -> str:
    """A column in words: its type, how many values are missing, and the most frequent values, or the first and the
    last."""
    missing = f", {summary.missing:,} missing" if summary.missing else ""
    if not summary.frequent:
        return f"{summary.type}{missing}"
    if summary.low is not None and summary.high is not None and summary.frequent[0][1] == 1:
        return (
            f"{summary.type}{missing}; {summary.distinct:,} values from {cut(shown(summary.low))} to "
            f"{cut(shown(summary.high))}"
        )
    frequent = ", ".join(f"{cut(shown(value))} ({count:,})" for value, count in summary.frequent[:NUM_SHOWN])
    others = summary.distinct - NUM_SHOWN
    return f"{summary.type}{missing}; {frequent}{f' and {others:,} other values' if others > 0 else ''}"


def _source(summary: SourceSummary) -> str:
    split = "" if summary.source.split is None else f", split {summary.source.split}"
    return f"{summary.source.kind} {summary.source.path}{split}: {summary.images:,} images"
