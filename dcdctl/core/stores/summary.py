"""A summary of a store: its images by number, its model, its columns and its size."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dcdctl.core.search import ImageSource
from dcdctl.core.stores.protocol import Store
from dcdctl.core.stores.retry import FOR_A_QUESTION, repeated
from dcdctl.core.stores.store_index import StoreIndex


@dataclass(frozen=True, kw_only=True)
class StoreSummary:
    """The content of a store."""

    location: str
    kind: str
    images: int
    """Images that are there now."""
    expected: int
    """Images that the last upload ended with."""
    dims: int
    model: str
    """The fingerprint of the dual encoder that made the vectors."""
    model_folder: str
    precision: str
    columns: dict[str, str]
    sources: tuple[ImageSource, ...]
    bytes: int | None
    """Size on disk; None if the store cannot say."""


def summarize_store(store: Store) -> StoreSummary:
    """The summary of a store. The errors of `StoreIndex.open`."""
    facts = StoreIndex.open(store).facts
    return StoreSummary(
        location=store.location,
        kind=store.kind,
        images=repeated(store.count, FOR_A_QUESTION),
        expected=facts.images,
        dims=facts.dims,
        model=facts.model,
        model_folder=facts.model_folder,
        precision=facts.precision,
        columns=dict(facts.columns),
        sources=facts.sources,
        bytes=repeated(store.num_bytes, FOR_A_QUESTION),
    )


def store_document(summary: StoreSummary) -> dict[str, Any]:
    """The summary as a JSON-able document."""
    return asdict(summary)


def store_facts(summary: StoreSummary) -> list[tuple[str, str]]:
    """Names and values, in words."""
    is_off = summary.images != summary.expected
    size = "" if summary.bytes is None else f"; {summary.bytes:,} bytes on disk"
    return [
        (
            "images",
            f"{summary.images:,}" + (f", and the last upload ended with {summary.expected:,}" if is_off else ""),
        ),
        *(
            ("source", f"{source.kind} {source.path}" + (f", split {source.split}" if source.split else ""))
            for source in summary.sources
        ),
        ("vectors", f"{summary.dims:,} numbers{size}"),
        ("columns", ", ".join(f"{name} ({type_})" for name, type_ in summary.columns.items()) or "none"),
        ("model", f"{summary.model[:8]}, precision {summary.precision}, at {summary.model_folder}"),
    ]
