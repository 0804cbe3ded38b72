"""`dcdctl prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dcdctl.cli.options import Json
from dcdctl.cli.views.terminal import bar, show, show_json, show_table

Name = Annotated[str | None, typer.Argument(help="A manifest: its name (--list shows them) or a .toml file.", metavar="MANIFEST")]
Karpathy = Annotated[Path | None, typer.Option("--karpathy", help="Karpathy's JSON, such as dataset_flickr30k.json.", metavar="FILE")]
Csv = Annotated[Path | None, typer.Option("--csv", help="A CSV with a row a caption: image,caption[,split].", metavar="FILE")]
Jsonl = Annotated[Path | None, typer.Option("--jsonl", help="Objects with image, caption or captions, and perhaps split.", metavar="FILE")]
Images = Annotated[
    list[Path] | None, typer.Option("--images", help="The folder, zip or tar in which their images lie; repeatable.", metavar="PATH")
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write; data/NAME if not given.", metavar="DIR")]
Placed = Annotated[Path | None, typer.Option("--from", help="Folder with the manifest's files, placed there by hand.", metavar="DIR")]
SourceName = Annotated[str, typer.Option("--source", help="The manifest's source to take; else the first that can be had.", metavar="NAME")]
Offline = Annotated[bool, typer.Option("--offline", help="Download nothing: only what was downloaded before, or is in --from.")]
Splits = Annotated[str, typer.Option("--splits", help="Only these splits: train,val.", metavar="NAMES", show_default=False)]
MaxImages = Annotated[int | None, typer.Option("--max-images", help="Only the first N images of each split.", min=1, metavar="N")]
ImageSize = Annotated[
    int | None,
    typer.Option("--image-size", help="Shrink larger images to this shorter side; else originals are kept.", min=1, metavar="PX"),
]
Workers = Annotated[int | None, typer.Option("--workers", help="Processes that read images; one a core if not given.", min=1, metavar="N")]
OnError = Annotated[str, typer.Option("--on-error", help="At a row that cannot be used: stop, or skip it.", metavar="stop|skip")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Override a manifest field: counts.train=500.", metavar="KEY=VALUE")]
List = Annotated[bool, typer.Option("--list", help="Show the data sets and the published teachers, and stop.")]


def prepare(
    name: Name = None,
    karpathy: Karpathy = None,
    csv: Csv = None,
    jsonl: Jsonl = None,
    images: Images = None,
    out: Out = None,
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
    """Turn captioned images into a corpus: fetched, checked, sharded, fingerprinted."""
    from dcdctl.core import data, devices, models
    from dcdctl.core.config import build, to_table
    from dcdctl.core.data import SourceOptions

    if show_list:
        return _show_catalogue(models.list_published(), json)
    chosen = data.choose_manifest(name, karpathy=karpathy, csv=csv, jsonl=jsonl, images=images or (), sets=sets or ())
    wanted = {"splits": [split.strip() for split in splits.split(",") if split.strip()], "on_error": on_error}
    limits = {"max_images": max_images, "image_size_px": image_size, "workers": workers or devices.num_cores()}
    options = build(data.PrepareOptions, wanted | limits)
    sources = SourceOptions(source=source, placed=placed, offline=offline)
    summary = data.prepare_corpus(chosen, out or Path("data") / chosen.name, options=options, source_options=sources, track=bar)
    return show_json(to_table(summary)) if json else show(str(summary))


def _show_catalogue(document: dict[str, Any], json: bool) -> None:
    if json:
        return show_json(document)
    from dcdctl.core.data import Direction

    rows = [
        [one["name"], ", ".join(one["images"]) or "-", ", ".join(source["name"] for source in one["sources"]), one["license"]]
        for one in document["data_sets"]
    ]
    show_table("data sets: dcdctl prepare NAME", ["name", "images", "sources", "license"], rows)
    columns = ["name", "published on", "text R@1/5/10", "image R@1/5/10", "source"]
    lines = [
        [one["name"], protocol, *("/".join(map(str, recalls.get(direction.key, "-"))) for direction in Direction), one["source"]]
        for one in document["teachers"]
        for protocol, recalls in (one["published"] or {"-": {}}).items()
    ]
    return show_table("teachers: --teacher NAME", columns, lines)
