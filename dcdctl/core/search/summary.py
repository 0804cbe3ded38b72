"""A summary of an index: its images by source, its vectors and codes in bytes, and how they are searched."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np

from dcdctl.core import config
from dcdctl.core.search.columns.table import ColumnSummary
from dcdctl.core.search.index import FolderIndex
from dcdctl.core.search.query import shown, value_for_json
from dcdctl.core.search.storage import ImageSource, Part, SealedFile, Segment, text_side_note

# A line of a terminal has room for as many.
NUM_SHOWN = 4
"""Most frequent values of a column that are named."""


def index_document(index: FolderIndex) -> dict[str, Any]:
    """The content of an open index as a JSON-able document; dates are texts. Reads no file besides those that opening
    read, the columns and the model's dcdctl.json; StaleError for another model, MissingError for none."""
    index.check_model()
    document, words, text = index.document, index.document.keywords, index.document.text
    in_segments = index.segments[-1].stop if index.segments else 0
    columns = [
        {
            **asdict(column),
            "frequent": [{"value": value_for_json(value), "images": count} for value, count in column.frequent],
            "low": None if column.low is None else value_for_json(column.low),
            "high": None if column.high is None else value_for_json(column.high),
        }
        for column in index.summarize_columns()
    ]
    return {
        "images": index.num_images,
        "removed": document.removed.count,
        "skipped": document.skipped.count,
        "dims": index.dim,
        "tokens": sum(sum(part.num_tokens) for part in index.parts),
        "kind": index.kind,
        "segments": len(index.segments),
        "segment_rows": in_segments,
        "exact_rows": index.num_rows - in_segments,
        "vector_bytes": _num_bytes(index.parts),
        "segment_bytes": _num_bytes(index.segments),
        "word_bytes": 0 if words is None else _num_bytes(words.files),
        "text_bytes": 0 if text is None else _num_bytes(text.files),
        "text_note": text_side_note(document),
        "model": index.fingerprint,
        "precision": document.precision,
        "settings": config.to_table(document.settings),
        "sources": [{"source": asdict(source), "images": count} for source, count in _images_by_source(index)],
        "columns": columns,
    }


def index_facts(index: FolderIndex) -> list[tuple[str, str]]:
    """The content of an open index as names and values, in words."""
    document = index_document(index)
    searches = []
    if index.segments:
        rows, num_bytes = document["segment_rows"], document["segment_bytes"]
        segments = f"{len(index.segments):,} segments of {rows:,} vectors"
        searches.append(f"{index.kind} in {segments}, {num_bytes / rows:,.1f} bytes each")
    if document["exact_rows"]:
        searches.append(f"exact for {document['exact_rows']:,} vectors")
    if document["word_bytes"]:
        searches.append(f"by words with --hybrid, {document['word_bytes']:,} bytes")
    counts = ((document["removed"], "removed"), (document["skipped"], "files left out"))
    images = [f"{index.num_images:,}", *(f"{count:,} {name}" for count, name in counts if count)]
    per = f" for each of {document['tokens']:,} tokens" if index.is_late else ""
    size = index.document.vector_type.itemsize
    vectors = f"{index.dim:,} numbers{per}, {size:,} bytes each; files of {document['vector_bytes']:,} bytes"
    texts = f"searched without torch, by a text side for ONNX Runtime of {document['text_bytes']:,} bytes"
    return [
        ("images", ", ".join(images)),
        *(("source", _source(source, count)) for source, count in _images_by_source(index)),
        ("vectors", vectors),
        ("search", "; ".join(searches)),
        ("model", f"{index.fingerprint[:8]}, precision {document['precision']}"),
        ("texts", document["text_note"] or texts),
        *((f"column {column.name}", _column(column)) for column in index.summarize_columns()),
    ]


def _num_bytes(files: Iterable[Part | Segment | SealedFile]) -> int:
    return sum(file.bytes for file in files)


def _images_by_source(index: FolderIndex) -> list[tuple[ImageSource, int]]:
    """Each source, and how many of its images can be found."""
    sources = index.document.sources
    images = np.bincount(index.source_R[index.is_live], minlength=len(sources)).tolist()
    return list(zip(sources, images, strict=True))


def _column(summary: ColumnSummary) -> str:
    """A column in words: its type, how many values are missing, and the most frequent values, or the first and the
    last."""
    missing = f", {summary.missing:,} missing" if summary.missing else ""
    if not summary.frequent:
        return f"{summary.type}{missing}"
    if summary.low is not None and summary.high is not None and summary.frequent[0][1] == 1:
        return (
            f"{summary.type}{missing}; {summary.distinct:,} values from {shown(summary.low)} to {shown(summary.high)}"
        )
    frequent = ", ".join(f"{shown(value)} ({count:,})" for value, count in summary.frequent[:NUM_SHOWN])
    others = summary.distinct - NUM_SHOWN
    return f"{summary.type}{missing}; {frequent}{f' and {others:,} other values' if others > 0 else ''}"


def _source(source: ImageSource, images: int) -> str:
    split = "" if source.split is None else f", split {source.split}"
    return f"{source.kind} {source.path}{split}: {images:,} images"
