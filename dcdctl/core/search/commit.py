"""Rows to remove, skipped files, and the commit of a change to index.json."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dcdctl.core import config as configs
from dcdctl.core import devices, distributed, files
from dcdctl.core.artifacts import Build, seal_of, sha256_of
from dcdctl.core.errors import InputError, StaleError
from dcdctl.core.progress import Track, silent
from dcdctl.core.search import ann, exact, keywords, part_files, storage
from dcdctl.core.search.columns.table import write_columns
from dcdctl.core.search.config import IndexConfig
from dcdctl.core.search.exact import Floats, Rows
from dcdctl.core.search.index import Index
from dcdctl.core.search.sources import SourceImages
from dcdctl.core.search.storage import INDEX, ImageSource, Listed, Part, Segment, WordFiles

SHOWN = 3
"""Unknown names in an error message."""
BLOCK = 1024
"""Vectors passed to a segment together."""
COMPILER = "compiler"
"""Entry of `versions` for an index whose images a compiled encoder embedded."""


def ids_of(index: Index, source: int) -> set[str]:
    """The image ids of a source in an index, without removed rows."""
    return {
        image_id
        for first, part, ids in _parts(index)
        if part.source == source
        for row, image_id in enumerate(ids, first)
        if not index.is_gone(row)
    }


def rows_to_remove(index: Index, names: Sequence[str], *, gone: bool) -> Rows | None:
    """All rows to be empty after the removal, including rows removed before; None if there is nothing to remove.

    A name is an image id, or a pattern (`*`, `?`, `[...]`) of image ids. With `gone`, images whose files are gone are
    removed too. InputError if a name matches no image, or if an image folder itself is gone.
    """
    if not names and not gone:
        return None
    if gone:
        _check_folders(index)
    # A file name may contain * or [, so a name that is an image id is not read as a pattern.
    patterns = {
        name: re.compile(re.escape(name) + r"\Z" if index.rows_of(name) else fnmatch.translate(name)) for name in names
    }
    unused, rows = set(names), []
    for first, part, ids in _parts(index):
        source = index.document["sources"][part.source]
        root = Path(source["path"]) if gone and source["kind"] == "folder" else None
        for row, image_id in enumerate(ids, first):
            if index.is_gone(row):
                rows.append(row)
                continue
            matching = {name for name, pattern in patterns.items() if pattern.match(image_id)}
            unused -= matching
            if matching or (root is not None and not (root / image_id).is_file()):
                rows.append(row)
    if unused:
        unknown = ", ".join(map(repr, sorted(unused)[:SHOWN]))
        raise InputError(
            f"the index {index.folder} has no image {unknown}; nothing was removed",
            hint="name image ids, or patterns such as '2019/*'",
        )
    return np.array(rows, dtype=np.int64)


def _check_folders(index: Index) -> None:
    for source in index.document["sources"]:
        # Otherwise an unmounted disk would remove all of its images.
        if source["kind"] == "folder" and not Path(source["path"]).is_dir():
            hint = "is its disk mounted? Nothing was removed"
            raise InputError(f"the image folder {source['path']} is gone", hint=hint)


def _parts(index: Index) -> Any:
    """The first row, the part and its image ids, for each part."""
    first = 0
    for part in index.parts:
        yield (
            first,
            part,
            pq.read_table(part_files.part_path(index.folder, part, index.dim), columns=["image_id"])
            .column("image_id")
            .to_pylist(),
        )
        first += part.rows


def skipped_of(folder: Path, document: dict[str, Any]) -> list[dict[str, Any]]:
    """The skipped files of an index, with their sources and the reasons."""
    listed = Listed(**document["skipped"])
    if listed.file is None or listed.sha256 is None:
        return []
    return files.read_json(
        INDEX.checked(folder / listed.file, listed.sha256), kind=list, error=StaleError, hint=INDEX.remake
    )


def commit(
    folder: Path,
    document: dict[str, Any],
    *,
    removed: Rows | None = None,
    skipped: list[dict[str, Any]] | None = None,
    track: Track = silent,
) -> dict[str, Any]:
    """Replace index.json by this document, after all processes have built the segments that the index lacks. Returns
    the new index.json.

    `removed` are all rows without an image, `skipped` all image files that could not be read; None leaves them as they
    are.
    """
    segments = _segments(folder, document, track)
    distributed.barrier()  # until all have read what is about to be replaced
    with distributed.main_first():
        if distributed.is_main():
            # The generation in the names keeps the files of the old index intact until index.json is replaced.
            generation = document["generation"]
            listed: dict[str, Any] = {}
            if removed is not None:
                listed["removed"] = _write_removed(folder / f"removed-{generation}.npy", removed)
            if skipped is not None:
                listed["skipped"] = _write_skipped(folder / f"skipped-{generation}.json", skipped)
            sealed = _in_order({**document, **listed}, segments)
            if sealed["settings"].get("keywords"):
                sealed["keywords"] = asdict(_keywords(folder, {**sealed, "keywords": document.get("keywords")}, track))
            Build(folder, {}, INDEX).seal(sealed, storage.files_of(sealed))
    return storage.read_document(folder)


def _keywords(folder: Path, document: dict[str, Any], track: Track) -> WordFiles:
    """The words of all rows; those of rows that have words already are not read from their sources again."""
    index, existing = Index(folder, document), storage.words_of(document)
    removed = document["removed"]["count"]
    if existing is not None and (existing.num_rows, existing.removed) == (index.num_rows, removed):
        return existing
    words_R = [] if existing is None else keywords.read_words(folder, existing)
    sources = SourceImages(str(folder), [ImageSource(**entry) for entry in document["sources"]])
    with track("read words", total=index.num_rows - len(words_R), unit="images") as advance:
        for first, part, _ in _parts(index):
            if first >= len(words_R):
                words_R += _words_of_part(index, part, sources)
                advance(part.rows)
    # Removed images leave no words behind.
    live = [[] if index.is_gone(row) else words for row, words in enumerate(words_R)]
    return keywords.write(folder, document["generation"], live, removed)


def _words_of_part(index: Index, part: Part, sources: SourceImages) -> list[list[str]]:
    """The words of the images of a part. MissingError or StaleError for a corpus that is gone or has changed."""
    images = part_files.read_images(part_files.part_path(index.folder, part, index.dim))
    return [
        keywords.words_of_image(image.path or image.image_id, sources.read_captions(part.source, image))
        for image in images
    ]


def commit_columns(folder: Path, document: dict[str, Any], table: pa.Table) -> None:
    """Replace index.json by one with these columns of all rows; a table without columns removes them. For one
    process."""
    document = {key: value for key, value in document.items() if key != "columns"} | {
        "generation": document["generation"] + 1
    }
    if table.column_names:
        path = folder / f"columns-{document['generation']}.parquet"
        write_columns(path, table)
        columns = [{"name": field.name, "type": str(field.type)} for field in table.schema]
        document["columns"] = {"file": path.name, "rows": len(table), **seal_of(path), "columns": columns}
    sealed = _in_order(document, [Segment(**entry) for entry in document["segments"]])
    if "keywords" in document:
        sealed["keywords"] = document["keywords"]
    Build(folder, {}, INDEX).seal(sealed, storage.files_of(sealed))


def _in_order(document: dict[str, Any], segments: list[Segment]) -> dict[str, Any]:
    """index.json, with short and general keys first."""
    kind = document["settings"]["kind"] if segments else "flat"
    words = keywords.packages() if document["settings"].get("keywords") else {}
    return {
        "format": document["format"],
        "generation": document["generation"],
        "images": sum(part["rows"] for part in document["parts"]) - document["removed"]["count"],
        "kind": kind,
        **{key: document[key] for key in ("model", "precision", "settings", "sources", "skipped", "removed")},
        "versions": {**devices.versions(), **ann.packages(kind), **words, **_compiler(document)},
        "parts": document["parts"],
        "segments": [asdict(segment) for segment in segments],
        **({"columns": document["columns"]} if "columns" in document else {}),
        **({"text": document["text"]} if "text" in document else {}),
    }


def _compiler(document: dict[str, Any]) -> dict[str, str]:
    """What compiled the encoder of images of the index, if anything did."""
    before = document.get("versions", {})
    return {COMPILER: "torch.compile"} if document.get("compile") or COMPILER in before else {}


def _segments(folder: Path, document: dict[str, Any], track: Track) -> list[Segment]:
    """The segments of an index, after the processes have built the missing ones."""
    build, config = Build(folder, {}, INDEX), configs.build(IndexConfig, document["settings"])
    parts, dim, generation = storage.parts_of(document), document["model"]["dim"], document["generation"]
    existing = [Segment(**entry) for entry in document["segments"]]
    ranges = ann.segment_ranges(sum(part.rows for part in parts), existing, config)
    by_rows = {range(segment.first_row, segment.stop): segment for segment in existing}
    missing = [rows for rows in ranges if rows not in by_rows]

    def blocks_of(rows: range) -> Iterator[Floats]:
        for _, block_RD in part_files.read_blocks(folder, parts, dim, rows):
            for start in range(0, len(block_RD), BLOCK):
                yield exact.unit_rows(block_RD[start : start + BLOCK])

    if missing:
        local = [missing[number] for number in distributed.local_indices(len(missing))]
        with track(f"build {config.kind}", total=sum(map(len, local)), unit="vectors") as advance:
            threads = torch.get_num_threads()
            ann.build_all(build, local, blocks_of, dim, config, generation, threads=threads, advance=advance)
        distributed.barrier()
    return [by_rows[rows] if rows in by_rows else ann.describe(build, config.kind, rows, generation) for rows in ranges]


def _write_removed(path: Path, rows: Rows) -> dict[str, Any]:
    if len(rows):
        # An open file, because np.save appends .npy to other names.
        with files.atomic_path(path) as partial, partial.open("wb") as file:
            np.save(file, rows)
    return _listed(path, len(rows))


def _write_skipped(path: Path, skipped: list[dict[str, Any]]) -> dict[str, Any]:
    if skipped:
        files.write_json(path, skipped)
    return _listed(path, len(skipped))


def _listed(path: Path, count: int) -> dict[str, Any]:
    return asdict(Listed(count=count, file=path.name, sha256=sha256_of(path)) if count else Listed())
