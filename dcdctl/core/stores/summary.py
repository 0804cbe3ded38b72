"""A summary of a store: its images by number, its model, its columns and its size."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dcdctl.core.stores.protocol import Store
from dcdctl.core.stores.retry import FOR_A_QUESTION, repeated
from dcdctl.core.stores.store_index import StoreIndex


def store_document(store: Store) -> dict[str, Any]:
    """The summary of a store as a JSON-able document: the images that are there now, `expected` ones that the last
    upload ended with, and the size on disk, None if the store cannot say. The errors of `StoreIndex.open`."""
    facts = asdict(StoreIndex.open(store).facts)
    return {
        "location": store.location,
        "kind": store.kind,
        "images": repeated(store.count, FOR_A_QUESTION),
        "expected": facts["images"],
        **{name: facts[name] for name in ("dims", "model", "model_folder", "precision", "columns", "sources")},
        "bytes": repeated(store.num_bytes, FOR_A_QUESTION),
    }


def store_facts(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values of a summary, in words."""
    images, expected, size = document["images"], document["expected"], document["bytes"]
    sources = [
        f"{source['kind']} {source['path']}" + (f", split {source['split']}" if source["split"] else "")
        for source in document["sources"]
    ]
    columns = [f"{name} ({type_})" for name, type_ in document["columns"].items()]
    return [
        ("images", f"{images:,}" + (f", and the last upload ended with {expected:,}" if images != expected else "")),
        *(("source", source) for source in sources),
        ("vectors", f"{document['dims']:,} numbers" + ("" if size is None else f"; {size:,} bytes on disk")),
        ("columns", ", ".join(columns) or "none"),
        ("model", f"{document['model'][:8]}, precision {document['precision']}, at {document['model_folder']}"),
    ]
