"""`dcdctl prepare`: turn captioned images into a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dcdctl.cli.completion import complete_manifest
from dcdctl.cli.options import COLUMNS_HELP, Json, names_in
from dcdctl.cli.views.terminal import bar, show, show_json

Name = Annotated[
    str | None,
    typer.Argument(
        help="Manifest: a name (--list shows them) or a .toml file.",
        autocompletion=complete_manifest,
        metavar="MANIFEST",
    ),
]
Karpathy = Annotated[
    Path | None, typer.Option("--karpathy", help="Karpathy JSON, such as dataset_flickr30k.json.", metavar="FILE")
]
Csv = Annotated[
    Path | None, typer.Option("--csv", help="CSV file with one caption per row: image,caption[,split].", metavar="FILE")
]
Jsonl = Annotated[
    Path | None, typer.Option("--jsonl", help="JSON lines: image, caption or captions[, split].", metavar="FILE")
]
Images = Annotated[
    list[Path] | None, typer.Option("--images", help="Folder, zip or tar of the images; repeatable.", metavar="PATH")
]
DataName = Annotated[
    str | None,
    typer.Option("--name", help="Name of the data set; by default that of --out, else of the file.", metavar="NAME"),
]
HoldOut = Annotated[
    float | None,
    typer.Option(
        "--hold-out",
        help="Share of images for each of val and test in a CSV or JSON lines without splits (0.1).",
        metavar="SHARE",
    ),
]
Encoding = Annotated[
    str | None,
    typer.Option("--encoding", help="Encoding of a CSV or JSON lines that is not Unicode.", metavar="NAME"),
]
Columns = Annotated[
    str | None,
    typer.Option("--columns", help=COLUMNS_HELP, show_default="all", metavar="NAMES"),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write; data/NAME by default.", metavar="DIR")]
Placed = Annotated[
    Path | None, typer.Option("--from", help="Folder with manifest files that you downloaded yourself.", metavar="DIR")
]
SourceName = Annotated[
    str, typer.Option("--source", help="Source in the manifest; by default the first available one.", metavar="NAME")
]
Offline = Annotated[bool, typer.Option("--offline", help="Download nothing: use only earlier downloads and --from.")]
Splits = Annotated[
    str, typer.Option("--splits", help="Prepare only these splits: train,val.", metavar="NAMES", show_default=False)
]
MaxImages = Annotated[
    int | None, typer.Option("--max-images", help="Use only the first N images of a split.", min=1, metavar="N")
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        "--image-size",
        help="Shrink larger images to this shorter side; by default the originals are kept.",
        min=1,
        metavar="PX",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers", help="Threads that read and check images ahead.", show_default="one per core", min=1, metavar="N"
    ),
]
OnError = Annotated[
    str, typer.Option("--on-error", help="What to do with an unusable row: stop, or skip it.", metavar="stop|skip")
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="Override a manifest field: counts.train=500.", metavar="KEY=VALUE")
]
List = Annotated[bool, typer.Option("--list", help="List the data sets and stop.")]


def prepare(
    name: Name = None,
    karpathy: Karpathy = None,
    csv: Csv = None,
    jsonl: Jsonl = None,
    images: Images = None,
    out: Out = None,
    data_name: DataName = None,
    hold_out: HoldOut = None,
    encoding: Encoding = None,
    columns: Columns = None,
    placed: Placed = None,
    source: SourceName = "",
    offline: Offline = False,
    splits: Splits = "",
    max_images: MaxImages = None,
    image_size: ImageSize = None,
    workers: Workers = None,
    on_error: OnError = "stop",
    sets: Sets = None,
    json: Json = False,
    show_list: List = False,
) -> None:
    """Turn captioned images into a corpus. They are downloaded, checked, sharded and fingerprinted."""
    from dcdctl.core import data, machine, models
    from dcdctl.core.config import build, to_table
    from dcdctl.core.data import SourceOptions

    if show_list:
        return _show_published(models.list_published(), json)
    choice = data.DataChoice(
        manifest=name,
        karpathy=karpathy,
        csv=csv,
        jsonl=jsonl,
        images=images or (),
        folder=out,
        sets=sets or (),
        name=data_name,
        hold_out=hold_out,
        encoding=encoding,
        columns=names_in(columns),
    )
    manifest = data.choose_manifest(choice)
    rows = {
        "splits": [split.strip() for split in splits.split(",") if split.strip()],
        "max_images": max_images,
        "on_error": on_error,
    }
    options = build(
        data.PrepareOptions, rows | {"image_size_px": image_size, "workers": workers or machine.num_cores()}
    )
    sources = SourceOptions(source=source, placed=placed, offline=offline)
    summary = data.prepare_corpus(
        manifest, out or Path("data") / manifest.name, options=options, source_options=sources, track=bar
    )
    return show_json(to_table(summary)) if json else show(str(summary))


def _show_published(document: dict[str, Any], json: bool) -> None:
    if json:
        return show_json(document)
    from dcdctl.cli.views.lists import show_entries

    facts = [
        (
            entry["name"],
            {
                "": entry["summary"],
                "images": ", ".join(entry["images"]),
                "sources": ", ".join(source["name"] for source in entry["sources"]),
                "license": entry["license"],
            },
        )
        for entry in document["data_sets"]
    ]
    show_entries("data sets: dcdctl prepare NAME", facts)
    show("teachers: dcdctl models lists them; --teacher NAME")
    show(", ".join(entry["name"] for entry in document["teachers"]))
