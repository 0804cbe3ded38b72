"""What is taken out of an index, and what never came in: rows by name, and files that are no pictures."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from dcdctl.core.errors import InputError
from dcdctl.core.index import Index
from dcdctl.core.nearest import Rows

SHOWN = 3


def ids_of(index: Index, source: int) -> set[str]:
    """The image ids that an index has of a source."""
    return {
        image_id
        for first, part, ids in _parts(index)
        if part.source == source
        for row, image_id in enumerate(ids, first)
        if not index.is_gone(row)
    }


def rows_to_remove(index: Index, names: Sequence[str], *, gone: bool) -> Rows | None:
    """All rows that shall have no image, those without one already among them; None where nothing was asked for.

    A name is an image's id, or a pattern (`*`, `?`, `[...]`) of several. InputError if it is that of no image, or if a folder of pictures
    is itself gone.
    """
    if not names and not gone:
        return None
    if gone:
        _check_folders(index)
    patterns = {name: re.compile(re.escape(name) + r"\Z" if index.rows_of(name) else fnmatch.translate(name)) for name in names}
    unused, rows = set(names), []
    for first, part, ids in _parts(index):
        source = index.document["sources"][part.source]
        root = Path(source["path"]) if gone and source["kind"] == "folder" else None
        for row, image_id in enumerate(ids, first):
            if index.is_gone(row):
                rows.append(row)
                continue
            found = {name for name, pattern in patterns.items() if pattern.match(image_id)}
            unused -= found
            if found or (root is not None and not (root / image_id).is_file()):
                rows.append(row)
    if unused:
        some = ", ".join(map(repr, sorted(unused)[:SHOWN]))
        raise InputError(
            f"the index {index.folder} has no image {some}; nothing was removed", hint="name image ids, or patterns as '2019/*'"
        )
    return np.array(rows, dtype=np.int64)


def _check_folders(index: Index) -> None:
    for source in index.document["sources"]:
        if source["kind"] == "folder" and not Path(source["path"]).is_dir():
            hint = "is its disk there? Nothing was removed"
            raise InputError(f"the folder of pictures {source['path']} is not there as a whole", hint=hint)


def _parts(index: Index) -> Any:
    """The first row of each part, the part and its image ids."""
    first = 0
    for part in index.parts:
        yield first, part, pq.read_table(index.folder / "vectors" / part.file, columns=["image_id"]).column("image_id").to_pylist()
        first += part.rows


def skipped_of(folder: Path, document: dict[str, Any]) -> list[dict[str, Any]]:
    """The files among the pictures that are none, with their sources and the reasons."""
    name = document["skipped"]["file"]
    return [] if name is None else list(json.loads((folder / name).read_text(encoding="utf-8")))
