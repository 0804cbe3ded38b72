"""The commit of a change: index.json is replaced atomically, after all files that it names were written."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from dcdctl.core import config as configs
from dcdctl.core import devices, files
from dcdctl.core.artifacts import Build, sha256_of
from dcdctl.core.progress import Track, silent
from dcdctl.core.search import copies, image_files, keywords, proposers, segments, storage
from dcdctl.core.search.columns.table import write_columns
from dcdctl.core.search.entries import ListFile
from dcdctl.core.search.exact import Rows
from dcdctl.core.search.index import FolderIndex
from dcdctl.core.search.index_config import IndexConfig
from dcdctl.core.search.storage import INDEX, IndexDocument


def commit(
    folder: Path,
    document: IndexDocument,
    *,
    removed: Rows | None = None,
    skipped: list[dict[str, Any]] | None = None,
    facts: pa.Table | None = None,
    track: Track = silent,
) -> IndexDocument:
    """Replace index.json by this document, with the segments and the words that follow from it. Returns the new
    index.json.

    `removed` are all rows without an image, `skipped` all image files that could not be
    read, `facts` what is known of the files of all rows; None leaves them as they are.
    """
    document = replace(document, segments=segments.fill(folder, document, track))
    if removed is not None:
        path = folder / f"removed-{document.generation}.npy"
        if len(removed):
            with files.atomic_path(path) as partial:
                storage.save_arrays([removed], partial)
        document = replace(document, removed=_listed(path, len(removed)))
    if skipped is not None:
        path = folder / f"skipped-{document.generation}.json"
        if skipped:
            files.write_json(path, skipped)
        document = replace(document, skipped=_listed(path, len(skipped)))
    if facts is not None:
        group_R = copies.group_rows(folder, document, facts)
        entry = image_files.write_files_table(folder, document.generation, facts, group_R)
        document = replace(document, image_files=entry)
    seal(folder, replace(document, keywords=keywords.fill(folder, document, track)))
    # With what sealing adds.
    return storage.read_document(folder)


def seal_columns(index: FolderIndex, columns: pa.Table, facts: pa.Table | None, settings: IndexConfig) -> None:
    """Write index.json with other columns and settings, and with `facts` other facts of the same files."""
    generation, folder = index.document.generation + 1, index.folder
    entry = write_columns(folder, generation, columns)
    document = replace(index.document, generation=generation, columns=entry, settings=settings)
    if facts is not None:
        files_entry = image_files.write_files_table(folder, generation, facts, index.image_files.group_R)
        document = replace(document, image_files=files_entry)
    seal(folder, document)


def _listed(path: Path, count: int) -> ListFile:
    return ListFile(count=count, file=path.name, sha256=sha256_of(path)) if count else ListFile()


def seal(folder: Path, document: IndexDocument) -> None:
    """Write index.json, with what follows from its other entries. Files that it does not name are removed."""
    used = [proposers.PROPOSERS[document.model.kind].package if document.segments else None]
    used.append("bm25s" if document.settings.keywords else None)
    packages = [package for package in used if package is not None]
    document = replace(
        document,
        images=document.num_rows - document.removed.count,
        # Not the metadata of the packages: conda gives some another name.
        versions=devices.versions() | {name: importlib.import_module(name).__version__ for name in packages},
    )
    Build(folder, {}, INDEX).seal(configs.to_table(document), document.files)
