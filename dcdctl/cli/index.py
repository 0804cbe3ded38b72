"""`dcdctl index`: embed images once and make them searchable, or change an index."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dcdctl.cli.completion import complete_split
from dcdctl.cli.options import (
    CODES_HELP,
    COLUMNS_HELP,
    DIMS_HELP,
    BatchSize,
    Device,
    Json,
    Threads,
    Workers,
    names_in,
    refuse,
)
from dcdctl.cli.views.scoring import precision_on
from dcdctl.cli.views.terminal import bar, note, printable, show, show_json

if TYPE_CHECKING:
    from dcdctl.core.search import ImageList, IndexChange
    from dcdctl.core.stores import Upload

Target = Annotated[
    str,
    typer.Argument(
        help="Dual encoder (run folder or another model reference); to change an index, its folder.",
        metavar="RUN|INDEX",
    ),
]
Images = Annotated[
    Path | None,
    typer.Option("--images", help="Folder of images, or a folder written by `dcdctl prepare`.", metavar="DIR"),
]
OutFolder = Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the new index.", metavar="INDEX")]
Add = Annotated[Path | None, typer.Option("--add", help="Add the new images of a folder or a corpus.", metavar="DIR")]
Remove = Annotated[
    list[str] | None,
    typer.Option("--remove", help="Remove an image by name, or several by a pattern; repeatable.", metavar="NAME"),
]
RemoveGone = Annotated[bool, typer.Option("--remove-gone", help="Remove the images whose files no longer exist.")]
Split = Annotated[
    str | None,
    typer.Option(
        "--split",
        help="Split of the corpus; train+val reads two as one.",
        show_default="all",
        autocompletion=complete_split,
        metavar="NAME",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Override a search setting: kind=flat, hnsw, int8 or binary; repeatable.",
        metavar="KEY=VALUE",
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision", help="Precision of a new index: fp32, or bf16 if the hardware supports it.", metavar="NAME"
    ),
]

Dims = Annotated[int | None, typer.Option("--dims", help=DIMS_HELP, min=1, metavar="N")]
Codes = Annotated[Literal["int8", "binary"] | None, typer.Option("--codes", help=CODES_HELP, metavar="int8|binary")]
Vectors = Annotated[
    list[str] | None,
    typer.Option(
        "--vectors",
        help="Take the vectors of the images from Parquet files, in place of embedding; folder or pattern; repeatable.",
        metavar="FILE",
    ),
]
Verify = Annotated[
    int | None,
    typer.Option(
        "--verify", help="With --vectors: embed N images again and compare.", show_default="4", min=0, metavar="N"
    ),
]
PlanOnly = Annotated[
    bool, typer.Option("--plan-only", help="Write the list of images to the folder OUT, for another engine to embed.")
]
Keywords = Annotated[
    bool,
    typer.Option(
        "--keywords",
        help="Index the words of captions and file names too, for `dcdctl search --hybrid`: --set keywords=true.",
    ),
]

Metadata = Annotated[
    Path | None,
    typer.Option(
        "--metadata",
        help="Columns for conditions: CSV, JSON lines or Parquet with a column image and others, such as year.",
        metavar="FILE",
    ),
]
Columns = Annotated[str | None, typer.Option("--columns", help=COLUMNS_HELP, show_default="all", metavar="NAMES")]
Exif = Annotated[bool, typer.Option("--exif", help="Read columns from the image files: taken, year and camera.")]
ExifPlace = Annotated[bool, typer.Option("--exif-place", help="The same, and latitude and longitude.")]
DropColumn = Annotated[
    list[str] | None, typer.Option("--drop-column", help="Remove a column of the index; repeatable.", metavar="NAME")
]

To = Annotated[
    str | None,
    typer.Option(
        "--to",
        help="Bring a store up to the index: PostgreSQL, LanceDB or Qdrant, by URL (docs/stores.md).",
        metavar="URL",
    ),
]
ReplaceStore = Annotated[
    bool, typer.Option("--replace", help="With --to: fill the store again, in place of the images of another index.")
]

NUM_SKIPPED_SHOWN = 5
"""Files without a readable image that are named on the screen."""


def index(
    target: Target,
    images: Images = None,
    out: OutFolder = None,
    add: Add = None,
    remove: Remove = None,
    remove_gone: RemoveGone = False,
    split: Split = None,
    sets: Settings = None,
    workers: Workers = None,
    batch_size: BatchSize = 32,
    device: Device = "auto",
    threads: Threads = None,
    precision: Precision = None,
    dims: Dims = None,
    codes: Codes = None,
    vectors: Vectors = None,
    verify: Verify = None,
    plan_only: PlanOnly = False,
    keywords: Keywords = False,
    metadata: Metadata = None,
    columns: Columns = None,
    exif: Exif = False,
    exif_place: ExifPlace = False,
    drop_column: DropColumn = None,
    to: To = None,
    replace: ReplaceStore = False,
    json: Json = False,
) -> None:
    """Make images searchable, or change an index. A dual encoder embeds the images of a folder or a corpus once."""
    if replace and to is None:
        raise typer.BadParameter("replaces the images of a store: name it with --to", param_hint="--replace")
    if not vectors:
        refuse({"--verify": verify}, "compares given vectors: add --vectors")
    from dcdctl.core import devices, search, stores
    from dcdctl.core.devices import Compute
    from dcdctl.core.search import NUM_VERIFIED, Changes, ColumnChanges, VectorFiles

    store = None if to is None else stores.open_store(to)  # a wrong URL is an error before any work
    if plan_only:
        others: dict[str, object] = {
            "--add": add,
            "--remove": remove,
            "--vectors": vectors,
            "--metadata": metadata,
            "--to": to,
        }
        refuse(others, "and --plan-only are two steps: list the images first")
        if images is None or out is None:
            raise typer.BadParameter("needs --images DIR and --out FOLDER", param_hint="--plan-only")
        listed = search.write_image_list(target, images, out.expanduser())
        return show_json(_list_document(listed)) if json else show(_list_line(listed))
    given = (
        None if not vectors else VectorFiles(names=tuple(vectors), verify=NUM_VERIFIED if verify is None else verify)
    )
    devices.use_threads(threads)
    precision = None if precision is None else precision_on(precision, devices.choose(device))
    place = devices.choose(device)
    compute = Compute(device=place, batch_size=batch_size, workers=workers)
    settings = {"dims": dims, "kind": codes, "keywords": "true" if keywords else None}
    chosen = [f"{name}={value}" for name, value in settings.items() if value is not None]
    changes = Changes(
        sets=(*(sets or ()), *chosen),
        remove=tuple(remove or ()),
        remove_gone=remove_gone,
        add=add,
        split=split,
        precision=precision,
        vectors=given,
        columns=ColumnChanges(
            drop=tuple(drop_column or ()), metadata=metadata, chosen=names_in(columns), exif=exif, place=exif_place
        ),
    )
    change = search.run_index_job(target, changes, images=images, out=out, compute=compute, track=bar)
    uploaded = None if store is None else stores.upload_index(change.index, store, replace=replace, track=bar)
    show_json(_document(change, uploaded)) if json else _show(change, uploaded)


def _list_document(listed: ImageList) -> dict[str, Any]:
    return {"list": str(listed.folder), "images": listed.num_images, "files": listed.num_files, "model": listed.model}


def _list_line(listed: ImageList) -> str:
    return (
        f"{listed.num_images:,} files in {listed.num_files:,} Parquet files, model {listed.model[:8]} -> "
        f"{listed.folder}"
    )


def _document(change: IndexChange, uploaded: Upload | None) -> dict[str, Any]:
    index = change.index
    counts = {
        "images": index.num_images,
        "added": change.added,
        "removed": change.removed,
        "left_out": len(change.skipped),
    }
    document = {
        "index": str(index.folder),
        **counts,
        "dims": index.dim,
        "kind": index.kind,
        "keywords": index.has_keywords,
        "columns": index.columns.names,
        "notes": list(change.notes),
    }
    return document if uploaded is None else {**document, "store": asdict(uploaded)}


def _show(change: IndexChange, uploaded: Upload | None) -> None:
    from dcdctl.core import search

    index, skipped = change.index, change.skipped
    for file in skipped[:NUM_SKIPPED_SHOWN]:
        note(f"left out: {file['path']!r}: {file['reason']}")
    if len(skipped) > NUM_SKIPPED_SHOWN:
        listed = index.folder / str(index.document.skipped.file)
        note(f"left out: {len(skipped) - NUM_SKIPPED_SHOWN:,} more, all listed in {listed}")
    for text in change.notes:
        note(f"note: {printable(text)}")
    if reason := search.text_side_note(index.document):
        note(f"note: {reason}")
    counts = "".join(
        f", {count:,} {action}" for action, count in (("added", change.added), ("removed", change.removed)) if count
    )
    words = " and by words" if index.has_keywords else ""
    columns = f", columns {', '.join(map(printable, index.columns.names))}" if index.columns.names else ""
    show(
        f"{index.num_images:,} images{counts}, {index.dim} numbers each, search by {index.kind}{words}{columns} -> "
        f"{index.folder}"
    )
    if uploaded is not None:
        changes = "".join(
            f", {count:,} {action}"
            for action, count in (("sent", uploaded.sent), ("deleted", uploaded.deleted))
            if count
        )
        show(f"{uploaded.images:,} images{changes} -> {uploaded.location}")
