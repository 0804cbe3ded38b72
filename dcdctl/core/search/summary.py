"""A summary of an index: its images by source, the bytes of its files, and how it is searched."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np

from dcdctl.core import config
from dcdctl.core.progress import counted
from dcdctl.core.search.answers import shown, value_for_json
from dcdctl.core.search.columns.table import ColumnSummary
from dcdctl.core.search.index import FolderIndex
from dcdctl.core.search.storage import query_model_of, text_side_note

# A line of a terminal has room for as many.
NUM_SHOWN = 4
"""Most frequent values of a column that are named."""


def index_document(index: FolderIndex) -> dict[str, Any]:
    """The content of an open index as a JSON-able document; dates are texts. Reads no file besides those that opening
    read, the columns and the model's dcdctl.json; StaleError for another model, MissingError for none."""
    index.check_model()
    document, num_bytes = index.document, Counter[str]()
    for name, (size, _) in document.files.items():
        num_bytes[name.partition("/")[0]] += size or 0
    # Removed images are of no source.
    images = np.bincount(index.source_R[index.is_live], minlength=len(document.sources)).tolist()
    sources = [
        {"source": asdict(source), "images": count} for source, count in zip(document.sources, images, strict=True)
    ]
    columns = []
    for column in index.summarize_columns():
        frequent = [{"value": value_for_json(value), "images": count} for value, count in column.frequent]
        ends = {"low": value_for_json(column.low), "high": value_for_json(column.high)}
        columns.append({**asdict(column), "frequent": frequent, **ends})
    return {
        "images": index.num_images,
        "removed": document.removed.count,
        "skipped": document.skipped.count,
        "dims": index.dim,
        "tokens": sum(sum(part.num_tokens) for part in index.parts),
        "kind": index.kind,
        "keywords": index.has_keywords,
        "bytes": {name: size for name, size in num_bytes.items() if size},
        "text_note": text_side_note(document),
        "model": index.fingerprint,
        "query_model": index.query_model,
        "precision": document.precision,
        "settings": config.to_table(document.settings),
        "sources": sources,
        "columns": columns,
    }


def index_facts(index: FolderIndex) -> list[tuple[str, str]]:
    """The content of an open index as names and values, in words."""
    document = index_document(index)
    per = f" for each of {document['tokens']:,} tokens" if document["tokens"] else ""
    size = index.document.vector_type.itemsize
    by_words = ", and by words with --hybrid" if index.has_keywords else ""
    removed, skipped = f"{document['removed']:,} removed", f"{counted(document['skipped'], 'files')} left out"
    facts = [("images", f"{index.num_images:,}, {removed}, {skipped}")]
    facts += [("source", _source(entry)) for entry in document["sources"]]
    facts.append(("vectors", f"{index.dim:,} numbers{per}, {size:,} bytes each"))
    facts.append(("search", f"{index.kind}{by_words}"))
    facts.append(("bytes", ", ".join(f"{name} {count:,}" for name, count in document["bytes"].items())))
    facts.append(("model", f"{index.fingerprint[:8]}, precision {document['precision']}"))
    if query_model := query_model_of(index.document):
        facts.append(("query model", query_model))
    facts.append(("texts", document["text_note"] or "searched without torch, by a text side for ONNX Runtime"))
    facts += [(f"column {column.name}", _column(column)) for column in index.summarize_columns()]
    return facts


def _column(summary: ColumnSummary) -> str:
    """A column in words: its type, how many values are missing and differ, and the most frequent ones."""
    frequent = ", ".join(f"{shown(value)} ({count:,})" for value, count in summary.frequent[:NUM_SHOWN]) or "none"
    counts = f"{summary.missing:,} missing, {summary.distinct:,} different values"
    return f"{summary.type}, {counts}; most frequent: {frequent}"


def _source(entry: dict[str, Any]) -> str:
    source = entry["source"]
    split = "" if source["split"] is None else f", split {source['split']}"
    return f"{source['kind']} {source['path']}{split}: {counted(entry['images'], 'images')}"
