"""`dcdctl index`: embed images once and make them searchable, or change an index."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from dcdctl.cli.declare import Ref, optional_path, optional_ref, path
from dcdctl.cli.options import (
    BatchSize,
    Device,
    Dims,
    Json,
    QueryRef,
    Threads,
    Workers,
    argument,
    computes,
    configures,
    reads,
    reads_split,
    refuse,
    writes,
)
from dcdctl.cli.views.terminal import bar, note, printable, show, show_json
from dcdctl.core.progress import counted

if TYPE_CHECKING:
    import pyarrow as pa

    from dcdctl.core.devices import Compute
    from dcdctl.core.progress import Say
    from dcdctl.core.search import Changes, IndexChange, IndexConfig
    from dcdctl.core.stores import Store, Upload

Metadata: TypeAlias = "Ref | pa.Table | None"
Settings: TypeAlias = "IndexConfig | None"


@dataclass(frozen=True)
class NewIndex:
    """A dual encoder, images, and the folder of their index. A command that changes an index has neither images nor
    folder, and the index in place of the model."""

    model: Annotated[
        Ref,
        argument(
            "Dual or late-interaction model (run folder or another reference); to change an index, its folder.",
            "RUN|INDEX",
        ),
        str,
    ]
    images: Annotated[
        Ref, reads("--images", "Folder of images, or a folder written by `dcdctl prepare`.", "DIR"), Path | None
    ]
    out: Annotated[Ref, writes("--out -o", "Folder of the new index.", "INDEX"), Path | None]
    _: KW_ONLY
    settings: Settings = None
    """The command line has `--set`."""
    precision: Annotated[
        str | None,
        computes("--precision", "Precision of a new index: fp32, or bf16 if the hardware supports it.", "NAME"),
    ] = None
    split: Annotated[str | None, reads_split(show_default="all")] = None
    query_model: QueryRef = None
    metadata: Annotated[
        Metadata,
        configures(
            "--metadata", "Columns for conditions: CSV or Parquet with a column image and others, such as year.", "FILE"
        ),
        Path,
    ] = None
    exif: Annotated[
        Literal["camera", "place"] | None,
        configures(
            "--exif",
            "Read columns from the image files: taken, year and camera; with place also latitude and longitude.",
            "camera|place",
        ),
    ] = None
    workers: Workers = None
    batch_size: BatchSize = 32
    device: Device = "auto"
    progress: bool = False
    """Show bars. The command always shows them."""

    def compute(self) -> Compute:
        """The same as the core takes it."""
        from dcdctl.core import devices

        return devices.Compute(device=devices.choose(self.device), batch_size=self.batch_size, workers=self.workers)


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """What changes in an index, or is special about a new one, and a store that follows it."""

    add: Annotated[Path | None, reads("--add", "Add the new images of a folder or a corpus.", "DIR")] = None
    remove: Annotated[
        list[str] | None, reads("--remove", "Remove an image by name, or several by a pattern; repeatable.", "NAME")
    ] = None
    remove_gone: Annotated[bool, reads("--remove-gone", "Remove the images whose files no longer exist.")] = False
    vectors: Annotated[
        list[str] | None,
        reads(
            "--vectors",
            "Take the vectors of the images from Parquet files, in place of embedding; folder or pattern; repeatable.",
            "FILE",
        ),
    ] = None
    sets: Annotated[
        Sequence[str] | None,
        configures("--set", "Override a search setting: kind=flat, hnsw, int8 or binary; repeatable.", "KEY=VALUE"),
        list[str],
    ] = None
    dims: Dims = None
    keywords: Annotated[
        bool,
        configures(
            "--keywords",
            "Index the words of captions and file names too, for `dcdctl search --hybrid`: --set keywords=true.",
        ),
    ] = False
    drop_column: Annotated[
        list[str] | None, configures("--drop-column", "Remove a column of the index; repeatable.", "NAME")
    ] = None

    plan_only: Annotated[
        bool, writes("--plan-only", "Write the list of images to the folder OUT, for another engine to embed.")
    ] = False
    to: Annotated[
        str | None,
        writes("--to", "Bring a store up to the index: PostgreSQL, LanceDB or Qdrant (docs/indexing.md).", "URL"),
    ] = None
    replace: Annotated[
        bool, configures("--replace", "With --to: fill the store again, in place of the images of another index.")
    ] = False

    def for_index(self, new: NewIndex, say: Say) -> Changes:
        """The same as the core takes it."""
        from dcdctl.core import devices
        from dcdctl.core.search import Changes

        # Options for the settings that users change most, after --set, so that they win.
        settings = {"dims": self.dims, "keywords": "true" if self.keywords else None}
        chosen = [f"{name}={value}" for name, value in settings.items() if value is not None]
        precision = None  # keeps the precision of an index that is changed
        if new.precision is not None:
            precision = devices.precision_on(new.precision, devices.choose(new.device), say)
        return Changes(
            sets=(*(self.sets or ()), *chosen),
            remove=tuple(self.remove or ()),
            remove_gone=self.remove_gone,
            add=self.add,
            split=new.split,
            precision=precision,
            vectors=tuple(self.vectors or ()),
            drop_columns=tuple(self.drop_column or ()),
            metadata=table_or_path(new.metadata),
            exif=new.exif,
            query_model=optional_ref(new.query_model),
        )


def table_or_path(metadata: Metadata) -> Path | pa.Table | None:
    """Metadata as the core takes it."""
    return path(metadata) if isinstance(metadata, str | os.PathLike) else metadata


NUM_SKIPPED_SHOWN = 5
"""Damaged files that are named on the screen."""


def index(new: NewIndex, changes: IndexOptions, threads: Threads = None, json: Json = False) -> None:
    """Make images searchable, or change an index. A model embeds the images of a folder or a corpus once."""
    # Typer knows no options that depend on each other.
    if changes.replace and changes.to is None:
        raise typer.BadParameter("replaces the images of a store: name it with --to", param_hint="--replace")
    from dcdctl.core import devices, search, stores

    # A wrong URL is an error before any work.
    store = None if changes.to is None else stores.open_store(changes.to)
    if changes.plan_only:
        return _plan(new, changes, json)
    if store is not None:
        _check_store(store, new, replace=changes.replace)
    devices.use_threads(threads)
    change = search.run_index_job(
        os.fspath(new.model),
        changes.for_index(new, note),
        images=optional_path(new.images),
        out=optional_path(new.out),
        compute=new.compute(),
        track=bar,
    )
    uploaded = None
    if store is not None:
        uploaded = stores.upload_index(change.index, store, replace=changes.replace, track=bar)
    if json:
        show_json(_document(change, uploaded))
    else:
        _show(change, uploaded)


def _check_store(store: Store, new: NewIndex, *, replace: bool) -> None:
    """The errors of an upload that can be known before images are embedded."""
    from dcdctl.core import models, search, stores

    ref = os.fspath(new.model)
    if new.images is not None:
        is_late = models.check_ref(ref, kind="searchable") == "late"
        stores.check_store(store, is_late=is_late, replace=replace)
    elif (folder := Path(ref).expanduser()).is_dir():
        stores.check_store(store, search.FolderIndex.open(folder), replace=replace)


def _plan(new: NewIndex, changes: IndexOptions, json: bool) -> None:
    from dcdctl.core.search import write_image_list

    others = {
        "--add": changes.add,
        "--remove": changes.remove,
        "--vectors": changes.vectors,
        "--metadata": new.metadata,
        "--to": changes.to,
        "--query-model": new.query_model,
    }
    refuse(others, "and --plan-only are two steps: list the images first")
    if new.images is None or new.out is None:
        raise typer.BadParameter("needs --images DIR and --out FOLDER", param_hint="--plan-only")
    listed = write_image_list(os.fspath(new.model), path(new.images), path(new.out))
    if json:
        return show_json(listed)
    counts = f"{counted(listed['images'], 'files')} in {counted(listed['files'], 'Parquet files')}"
    show(f"{counts}, model {listed['model'][:8]} -> {listed['list']}")


def _document(change: IndexChange, uploaded: Upload | None) -> dict[str, Any]:
    index = change.index
    document = {
        "index": str(index.folder),
        "images": index.num_images,
        "added": change.added,
        "removed": change.removed,
        "left_out": len(change.skipped),
        "left_out_by_kind": _by_kind(change),
        "dims": index.dim,
        "kind": index.kind,
        "keywords": index.has_keywords,
        "columns": index.columns.names,
        "notes": list(change.notes),
    }
    return document if uploaded is None else {**document, "store": asdict(uploaded)}


def _by_kind(change: IndexChange) -> dict[str, int]:
    from dcdctl.core import data

    # Files that an earlier version left out have no kind.
    return data.count_kinds(file.get("kind", "unreadable") for file in change.skipped)


def _show(change: IndexChange, uploaded: Upload | None) -> None:
    from dcdctl.core import data, search

    index, skipped = change.index, change.skipped
    for line in data.left_out_lines(_by_kind(change)):
        note(line)
    # Only damaged files by name: of the others, the kind says it all.
    damaged = [file for file in skipped if file.get("kind") == data.DAMAGED.kind]
    for file in damaged[:NUM_SKIPPED_SHOWN]:
        note(f"  {file['path']!r}: {file['reason']}")
    if skipped:
        note(f"left out: each is listed in {index.folder / str(index.document.skipped.file)}")
    for text in change.notes:
        note(f"note: {printable(text)}")
    if reason := search.text_side_note(index.document):
        note(f"note: {reason}")
    counts = _counts(added=change.added, removed=change.removed)
    words = " and by words" if index.has_keywords else ""
    columns = f", columns {', '.join(map(printable, index.columns.names))}" if index.columns.names else ""
    if query := search.query_model_of(index.document):
        columns += f", texts by {printable(query)}"
    numbers = f"{index.dim} numbers {index.stored_type.per}"
    images = f"{counted(index.num_images, 'images')}{counts}"
    show(f"{images}, {numbers}, search by {index.kind}{words}{columns} -> {index.folder}")
    if uploaded is not None:
        changes = _counts(sent=uploaded.sent, deleted=uploaded.deleted)
        show(f"{counted(uploaded.images, 'images')}{changes} -> {uploaded.location}")


def _counts(**counts: int) -> str:
    return "".join(f", {count:,} {action}" for action, count in counts.items() if count)
