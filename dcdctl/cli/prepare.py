"""`dcdctl prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dcdctl.cli.options import Json
from dcdctl.cli.terminal import bar, show, show_json

Name = Annotated[str | None, typer.Argument(help="A manifest: its name (--list shows them) or a .toml file.", metavar="MANIFEST")]
Karpathy = Annotated[Path | None, typer.Option("--karpathy", help="Karpathy's JSON, such as dataset_flickr30k.json.", metavar="FILE")]
Csv = Annotated[Path | None, typer.Option("--csv", help="A CSV with a row a caption: image,caption[,split].", metavar="FILE")]
Images = Annotated[Path | None, typer.Option("--images", help="The folder or zip in which their images lie.", metavar="DIR|ZIP")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write; data/NAME if not given.", metavar="DIR")]
Splits = Annotated[str, typer.Option("--splits", help="Only these splits: train,val.", metavar="NAMES", show_default=False)]
MaxImages = Annotated[int | None, typer.Option("--max-images", help="Only the first N images of each split.", min=1, metavar="N")]
ImageSize = Annotated[
    int | None,
    typer.Option("--image-size", help="Shrink larger images to this shorter side; else originals are kept.", min=1, metavar="PX"),
]
Workers = Annotated[int | None, typer.Option("--workers", help="Processes that read images; one a core if not given.", min=1, metavar="N")]
OnError = Annotated[str, typer.Option("--on-error", help="At a row that cannot be used: stop, or skip it.", metavar="stop|skip")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Override a manifest field: counts.train=500.", metavar="KEY=VALUE")]
List = Annotated[bool, typer.Option("--list", help="Show the manifests and stop.")]


def prepare(
    name: Name = None,
    karpathy: Karpathy = None,
    csv: Csv = None,
    images: Images = None,
    out: Out = None,
    splits: Splits = "",
    max_images: MaxImages = None,
    image_size: ImageSize = None,
    workers: Workers = None,
    on_error: OnError = "stop",
    sets: Sets = None,
    json: Json = False,
    show_list: List = False,
) -> None:
    """Turn captioned images into a corpus: checked, sharded, fingerprinted."""
    from dcdctl.core import manifest
    from dcdctl.core import prepare as core
    from dcdctl.core.config import build, to_table

    if show_list:
        known = manifest.summaries()
        return show_json(known) if json else show("\n".join(f"{item['name']:<12} {item['summary']}" for item in known))
    source = manifest.choose(name, karpathy=karpathy, csv=csv, images=images, sets=sets or ())
    wanted = {"splits": [split.strip() for split in splits.split(",") if split.strip()], "on_error": on_error}
    limits = {"max_images": max_images, "image_size_px": image_size, "workers": workers or core.num_cores()}
    options = build(core.PrepareOptions, wanted | limits)
    summary = core.prepare(source, out or Path("data") / source.name, options=options, track=bar)
    return show_json(to_table(summary)) if json else show(str(summary))
