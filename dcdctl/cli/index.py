"""`dcdctl index`: embed images once and make them searchable, or change an index."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from dcdctl.cli.declare import Ref, optional_path, optional_ref, path
from dcdctl.cli.option_groups import Cluster, Machine
from dcdctl.cli.options import (
    BatchSize,
    Dims,
    Json,
    QueryRef,
    argument,
    computes,
    configures,
    reads,
    reads_split,
    refuse,
    writes,
)
from dcdctl.cli.views.index import change_document, show_change, show_copies, show_sync
from dcdctl.cli.views.terminal import bar, note, show, show_error, show_json
from dcdctl.core.progress import counted

if TYPE_CHECKING:
    import pyarrow as pa

    from dcdctl.core.engines import Compute
    from dcdctl.core.progress import Say
    from dcdctl.core.search import Changes, IndexChange, IndexConfig
    from dcdctl.core.stores import Store

Metadata: TypeAlias = "Ref | pa.Table | None"
Settings: TypeAlias = "IndexConfig | None"


@dataclass(frozen=True, kw_only=True)
class Embedding(Machine, Cluster):
    """How to embed images: by this process, those of torchrun or the workers of an engine."""

    batch_size: BatchSize = 32

    def compute(self, say: Say) -> Compute:
        """The same as the core takes it, with the threads set."""
        from dcdctl.core.engines import Compute

        return Compute.chosen(
            self.choice(), device=self.device, threads=self.threads, batch_size=self.batch_size, say=say
        )


@dataclass(frozen=True)
class NewIndex(Embedding):
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


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """What changes in an index, or is special about a new one, and a store that follows it."""

    sync: Annotated[
        bool,
        reads("--sync", "Follow the image folders: add what is new, read again what changed, remove what is gone."),
    ] = False
    watch: Annotated[bool, reads("--watch", "Keep following the image folders until Ctrl-C.")] = False
    moved: Annotated[
        tuple[Path, Path] | None,
        reads(
            "--moved",
            "An image folder, or a folder that it is in, is at another place now; nothing is embedded.",
            "OLD NEW",
        ),
    ] = None
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
    exif_place: Annotated[
        bool,
        configures(
            "--exif-place",
            "Read latitude and longitude from the image files too, and name the place: --set exif=place.",
        ),
    ] = False
    no_exif: Annotated[
        bool, configures("--no-exif", "Read no date and no camera from the image files: --set exif=none.")
    ] = False
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

    duplicates: Annotated[
        bool, writes("--duplicates", "List the images that are copies of each other or look alike; removes nothing.")
    ] = False
    csv: Annotated[bool, writes("--csv", "With --duplicates: print CSV, a row per image.")] = False
    plan_only: Annotated[
        bool, writes("--plan-only", "Write the list of images to the folder OUT, for another engine to embed.")
    ] = False
    to: Annotated[
        str | None,
        writes("--to", "Bring a store up to the index: PostgreSQL or LanceDB (docs/indexing.md).", "URL"),
    ] = None
    replace: Annotated[
        bool, configures("--replace", "With --to: fill the store again, in place of the images of another index.")
    ] = False

    def for_index(self, new: NewIndex, say: Say) -> Changes:
        """The same as the core takes it."""
        from dcdctl.core.search import Changes

        # Options for the settings that users change most, after --set, so that they win.
        exif = "place" if self.exif_place else "none" if self.no_exif else None
        settings = {"dims": self.dims, "keywords": "true" if self.keywords else None, "exif": exif}
        chosen = [f"{name}={value}" for name, value in settings.items() if value is not None]
        precision = None  # keeps the precision of an index that is changed
        if new.precision is not None:
            from dcdctl.core import devices

            if new.engine is None:
                precision = devices.precision_on(new.precision, devices.choose(new.device), say)
            else:  # the device is that of workers
                precision = devices.precision(new.precision)
        if new.query_model is not None:
            say_of_query_model(os.fspath(new.query_model), say)
        return Changes(
            sets=(*(self.sets or ()), *chosen),
            remove=tuple(self.remove or ()),
            remove_gone=self.remove_gone,
            moved=self.moved,
            sync=self.sync,
            add=self.add,
            split=new.split,
            precision=precision,
            vectors=tuple(self.vectors or ()),
            drop_columns=tuple(self.drop_column or ()),
            metadata=table_or_path(new.metadata),
            query_model=optional_ref(new.query_model),
        )


def say_of_query_model(ref: str, say: Say) -> None:
    """Say if a query encoder is far from its teacher, before it answers every search."""
    from dcdctl.core import training

    if text := training.note_of_query_model(ref):
        say(text)


def table_or_path(metadata: Metadata) -> Path | pa.Table | None:
    """Metadata as the core takes it."""
    return path(metadata) if isinstance(metadata, str | os.PathLike) else metadata


def index(new: NewIndex, changes: IndexOptions, json: Json = False) -> None:
    """Make images searchable, or change an index. A model embeds the images of a folder or a corpus once."""
    new.choice()  # a wrong engine is an error also where nothing is to be done
    # Typer knows no options that depend on each other.
    if changes.replace and changes.to is None:
        raise typer.BadParameter("replaces the images of a store: name it with --to", param_hint="--replace")
    if changes.csv and not changes.duplicates:
        raise typer.BadParameter("is a form of --duplicates: add it", param_hint="--csv")
    if changes.duplicates:
        return _list_duplicates(new, changes, json)
    if changes.watch:
        return _watch(new, changes, json)
    if changes.plan_only:
        return _plan(new, changes, json)
    from dcdctl.core import stores

    # A wrong URL is an error before any work.
    store = None if changes.to is None else stores.open_store(changes.to)
    if store is not None:
        _check_store(store, new, replace=changes.replace)
    change = _change(new, changes)
    uploaded = None
    if store is not None:
        uploaded = stores.upload_index(change.index, store, replace=changes.replace, track=bar)
    if json:
        show_json(change_document(change, uploaded))
    elif changes.sync:
        show_sync(change, uploaded)
    else:
        show_change(change, uploaded)


def _change(new: NewIndex, changes: IndexOptions) -> IndexChange:
    """Do what is asked for. What needs no model is found out before torch is imported, which takes seconds."""
    from dcdctl.core import search

    ref = os.fspath(new.model)
    if new.images is None and new.out is None:
        if changes.remove:
            search.check_removable(ref, changes.remove)
        if changes.sync and changes.for_index(new, note) == search.Changes(sync=True):
            same = search.up_to_date(search.open_to_change(ref))
            if same is not None:
                return same
    return search.run_index_job(
        ref,
        changes.for_index(new, note),
        images=optional_path(new.images),
        out=optional_path(new.out),
        compute=new.compute(note),
        track=bar,
    )


def _watch(new: NewIndex, changes: IndexOptions, json: bool) -> None:
    """Follow the image folders until Ctrl-C, and show each change."""
    from dcdctl.core.search import watch_index

    _refuse_changes(new, replace(changes, watch=False, sync=False), "--watch")

    @cache  # with one engine, whose workers are kept
    def compute() -> Compute:
        return new.compute(note)

    def show_it(change: IndexChange) -> None:
        if json:
            show_json(change_document(change), indent=None)
        else:
            show_sync(change)

    with suppress(KeyboardInterrupt):
        watch_index(os.fspath(new.model), show_it, show_error, compute=compute, track=bar)


def _list_duplicates(new: NewIndex, changes: IndexOptions, json: bool) -> None:
    from dcdctl.core.search import find_copies, open_to_change

    _refuse_changes(new, replace(changes, duplicates=False, csv=False), "--duplicates")
    if json:
        refuse({"--csv": changes.csv or None}, "and --json are two forms of --duplicates: choose one")
    show_copies(find_copies(open_to_change(os.fspath(new.model))), as_json=json, as_csv=changes.csv)


def _refuse_changes(new: NewIndex, changes: IndexOptions, name: str) -> None:
    """A usage error for an option that makes or changes an index, beside one that does not."""
    of_new = {item: getattr(new, item) for item in ("images", "out", "precision", "split", "query_model", "metadata")}
    unset = IndexOptions()
    of_changes = {item: value for item, value in vars(changes).items() if value != getattr(unset, item)}
    options = {
        f"--{item.removesuffix('s') if item == 'sets' else item.replace('_', '-')}": value
        for item, value in (of_new | of_changes).items()
    }
    refuse(options, f"and {name} are two steps: make or change the index first")


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
