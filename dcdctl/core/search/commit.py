"""The commit of a change: index.json is replaced atomically, after all files that it names were written."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from dcdctl.core import config as configs
from dcdctl.core import devices, distributed, files
from dcdctl.core.artifacts import Build, sha256_of
from dcdctl.core.errors import StaleError
from dcdctl.core.progress import Track, silent
from dcdctl.core.search import ann, keywords, segments, storage
from dcdctl.core.search.exact import Rows
from dcdctl.core.search.storage import INDEX, IndexDocument, ListFile


def commit(
    folder: Path,
    document: IndexDocument,
    *,
    removed: Rows | None = None,
    skipped: list[dict[str, Any]] | None = None,
    track: Track = silent,
) -> IndexDocument:
    """Replace index.json by this document, with the segments and the words that follow from it. Returns the new
    index.json.

    All processes build segments. `removed` are all rows without an image, `skipped` all image files that could not be
    read; None leaves them as they are.
    """
    document = replace(document, segments=segments.fill(folder, document, track))
    distributed.barrier()  # until all have read what is about to be replaced
    with distributed.main_first():
        if distributed.is_main():
            if removed is not None:
                path = folder / f"removed-{document.generation}.npy"
                if len(removed):
                    with files.atomic_path(path) as partial:
                        storage.save_array(removed, partial)
                document = replace(document, removed=_listed(path, len(removed)))
            if skipped is not None:
                path = folder / f"skipped-{document.generation}.json"
                if skipped:
                    files.write_json(path, skipped)
                document = replace(document, skipped=_listed(path, len(skipped)))
            seal(folder, replace(document, keywords=keywords.fill(folder, document, track)))
    # From the disk, because only the main process has made it.
    return storage.read_document(folder)


def _listed(path: Path, count: int) -> ListFile:
    return ListFile(count=count, file=path.name, sha256=sha256_of(path)) if count else ListFile()


def seal(folder: Path, document: IndexDocument) -> None:
    """Write index.json, with what follows from its other entries. Files that it does not name are removed."""
    # A few images are searched exactly, whatever the settings say.
    kind = document.settings.kind if document.segments else "flat"
    packages = [ann.PACKAGES[kind]] if kind in ann.PACKAGES else []
    if document.settings.keywords:
        packages.append("bm25s")
    document = replace(
        document,
        images=document.num_rows - document.removed.count,
        kind=kind,
        # Not the metadata of the packages: conda gives some another name.
        versions=devices.versions() | {name: importlib.import_module(name).__version__ for name in packages},
    )
    Build(folder, {}, INDEX).seal(configs.to_table(document), document.files)


def skipped_of(folder: Path, document: IndexDocument) -> list[dict[str, Any]]:
    """The skipped files of an index, with their sources and the reasons."""
    if document.skipped.file is None:
        return []
    path = INDEX.checked(folder / document.skipped.file, str(document.skipped.sha256))
    return files.read_json(path, kind=list, error=StaleError, hint=INDEX.remake)
