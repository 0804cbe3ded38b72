"""The last steps of every change of an index: segments where they are missing, then index.json, in one move."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcdctl.core import config as configs
from dcdctl.core import devices, distributed, files, index_files, index_segments, nearest
from dcdctl.core.index_config import IndexConfig
from dcdctl.core.index_files import INDEX_FILE, Segment
from dcdctl.core.nearest import Floats, Rows
from dcdctl.core.progress import Track, silent

BLOCK = 1024
"""Vectors that are given to a segment at a time."""


def become(
    folder: Path,
    document: dict[str, Any],
    *,
    removed: Rows | None = None,
    skipped: list[dict[str, Any]] | None = None,
    track: Track = silent,
) -> dict[str, Any]:
    """Make a folder the index that a document describes; segments that it lacks are built, by all processes.

    `removed` are all rows without an image, `skipped` all files that are none; None leaves them as they are.
    """
    segments = _segments(folder, document, track)
    distributed.wait()  # until all have read what is about to be replaced
    with distributed.main_first():
        if distributed.is_main():
            generation = document["generation"]
            names: dict[str, Any] = {}
            if removed is not None:
                names["removed"] = _write_removed(folder / f"removed-{generation}.npy", removed)
            if skipped is not None:
                names["skipped"] = _write_skipped(folder / f"skipped-{generation}.json", skipped)
            whole = _in_order({**document, **names}, segments)
            files.write_json(folder / INDEX_FILE, whole)
            index_files.tidy(folder, whole)
    return index_files.read_document(folder)


def _in_order(document: dict[str, Any], segments: list[Segment]) -> dict[str, Any]:
    """index.json, its keys in the order in which a reader wants them."""
    kind = document["settings"]["kind"] if segments else "flat"
    return {
        "format": document["format"],
        "generation": document["generation"],
        "images": sum(part["rows"] for part in document["parts"]) - document["removed"]["count"],
        "kind": kind,
        **{key: document[key] for key in ("model", "precision", "settings", "sources", "skipped", "removed")},
        "versions": {**devices.versions(), **index_segments.packages(kind)},
        "parts": document["parts"],
        "segments": [asdict(one) for one in segments],
    }


def _segments(folder: Path, document: dict[str, Any], track: Track) -> list[Segment]:
    """The segments of an index; those it does not have yet are built, this process's share of them."""
    config = configs.build(IndexConfig, document["settings"])
    parts, dim, generation = index_files.parts_of(document), document["model"]["dim"], document["generation"]
    there = [Segment(**one) for one in document["segments"]]
    ranges = index_segments.wanted(sum(part.rows for part in parts), there, config)
    kept = {range(one.first_row, one.stop): one for one in there}
    missing = [rows for rows in ranges if rows not in kept]

    def blocks_of(rows: range) -> Iterator[Floats]:
        for _, block_RD in index_files.read_blocks(folder, parts, dim, rows):
            for start in range(0, len(block_RD), BLOCK):
                yield nearest.unit_rows(block_RD[start : start + BLOCK])

    if missing:
        mine = [missing[number] for number in distributed.dealt(len(missing))]
        with track(f"build {config.kind}", total=sum(map(len, mine)), unit="vectors") as advance:
            threads = torch.get_num_threads()
            index_segments.build_all(folder / "ann", mine, blocks_of, dim, config, generation, threads=threads, advance=advance)
        distributed.wait()
    return [kept[rows] if rows in kept else index_segments.describe(folder / "ann", config.kind, rows, generation) for rows in ranges]


def _write_removed(path: Path, rows: Rows) -> dict[str, Any]:
    if len(rows):
        with files.atomic_path(path) as partial, partial.open("wb") as file:
            np.save(file, rows)
    return {"count": len(rows), "file": path.name if len(rows) else None}


def _write_skipped(path: Path, skipped: list[dict[str, Any]]) -> dict[str, Any]:
    if skipped:
        files.write_json(path, skipped)
    return {"count": len(skipped), "file": path.name if skipped else None}
