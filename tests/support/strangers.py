"""Indices of strangers: files and entries that were changed, with checksums that fit."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dcdctl.core import artifacts

Edit = Callable[[bytes], bytes]


def forged(
    index: Path,
    folder: Path,
    edits: dict[str, Edit] | None = None,
    entries: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """A copy of an index with other files, whose sizes and checksums are entered everywhere, and other entries of
    index.json."""
    # Links, because most files stay as they are; the others are replaced.
    shutil.copytree(index, folder, copy_function=os.link)
    for name, edit in (edits or {}).items():
        (path,) = folder.glob(name)
        content = edit(path.read_bytes())
        path.unlink()
        path.write_bytes(content)
    text = folder / "text" / "text.json"
    if text.exists() and not any(name.startswith("text/text.json") for name in edits or {}):
        document = artifacts.read_document(text)
        document["files"] = artifacts.list_files(text.parent, document["files"])
        document["weights"] = artifacts.list_files(folder, document["weights"])
        artifacts.write_document(text, document)
    document = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    del document[artifacts.CHECKSUM]
    for place, entry in _sealed(document):
        entry.update(artifacts.seal_of(folder / place / entry["file"]))
        if place in ("removed", "skipped"):
            del entry["bytes"]
    if entries is not None:
        entries(document)
    artifacts.write_document(folder / "index.json", document)
    return folder


def _sealed(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries of files, each with its folder."""
    for part in document["parts"]:
        yield "vectors", part
    for segment in document["segments"]:
        yield "ann", segment
    for file in (document.get("keywords") or {}).values():
        if isinstance(file, dict):
            yield "keywords", file
    if columns := document.get("columns"):
        yield "", columns
    for file in (document.get("text") or {}).get("files", []):
        yield document["text"].get("folder", "text"), file
    for name in ("removed", "skipped"):
        if document[name]["file"] is not None:
            path = document[name]["file"]
            digest = document[name]
            yield "", _WithoutSize(digest, path)


class _WithoutSize(dict[str, Any]):
    """The entry of a list, which has no size."""

    def __init__(self, entry: dict[str, Any], path: str) -> None:
        super().__init__(file=path)
        self._entry = entry

    def update(self, seal: dict[str, Any]) -> None:  # type: ignore[override]
        self._entry["sha256"] = seal["sha256"]
