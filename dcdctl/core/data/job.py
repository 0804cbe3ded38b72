"""What to prepare: the job of `dcdctl prepare` and `dcdctl.prepare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Literal

from dcdctl.core.arguments import (
    MOST_WORKERS,
    Ref,
    Refs,
    Settings,
    argument,
    computes,
    configures,
    reads,
)
from dcdctl.core.options import Engine, MaxImages


@dataclass(frozen=True)
class PrepareJob:
    """Captioned images, and the corpus that they become: a manifest, a file of captions with its images, or a pool."""

    manifest: Annotated[
        Ref | None,
        argument("Manifest: a name (--list shows them) or a .toml file.", "MANIFEST", "manifest"),
    ] = None
    out: Annotated[Ref | None, configures("--out -o", "Folder to write; data/NAME by default.", "DIR")] = None
    _: KW_ONLY
    karpathy: Annotated[
        Ref | None, reads("--karpathy", "Karpathy JSON, such as dataset_flickr30k.json.", "FILE", "place")
    ] = None
    csv: Annotated[
        Ref | None, reads("--csv", "CSV file with one caption per row: image,caption[,split].", "FILE", "place")
    ] = None
    jsonl: Annotated[
        Ref | None, reads("--jsonl", "JSON lines: image, caption or captions[, split].", "FILE", "place")
    ] = None
    images: Annotated[
        Refs | None, reads("--images", "Folder, zip or tar of the images; repeatable.", "PATH", "place")
    ] = None
    queries: Annotated[
        Refs | None,
        reads(
            "--queries",
            "Texts without an image, for a pool: .txt with one a line, or .csv, .tsv, .jsonl, .parquet with a "
            "column query, caption or text; repeatable.",
            "FILE",
        ),
    ] = None
    decontaminate: Annotated[
        Refs | None,
        reads(
            "--decontaminate",
            "Prepared corpus, whose val and test images and texts a pool is left without; repeatable.",
            "DIR",
        ),
    ] = None
    hold_out: Annotated[
        float | None,
        configures(
            "--hold-out",
            "Share of images, and of a pool's texts, for each of val and test in a source without splits (0.1).",
            "SHARE",
        ),
    ] = None
    placed: Annotated[Ref | None, reads("--from", "Folder with files of the manifest that you downloaded.", "DIR")] = (
        None
    )
    source: Annotated[str, reads("--source", "Source in the manifest; by default the first one.", "NAME")] = ""
    offline: Annotated[bool, reads("--offline", "Download nothing: use earlier downloads and --from.")] = False
    splits: Annotated[
        Sequence[str], reads("--splits", "Prepare only these splits: train,val.", "NAMES", show_default=False)
    ] = ()
    max_images: MaxImages = None
    image_size: Annotated[
        int | None,
        configures(
            "--image-size", "Shrink larger images to this shorter side; by default the originals are kept.", "PX", min=1
        ),
    ] = None
    workers: Annotated[
        int | None,
        computes(
            "--workers",
            "Threads that read and check images ahead.",
            "N",
            show_default="one per core; one in a worker of an engine",
            min=1,
            max=MOST_WORKERS,
        ),
    ] = None
    engine: Engine = None
    on_error: Annotated[
        Literal["stop", "skip"],
        configures("--on-error", "What to do with an unusable row: stop, or skip it.", "stop|skip"),
    ] = "stop"
    overrides: Annotated[
        Settings | None,
        configures("--set", 'Override a manifest field: encoding=cp1252, columns=["year"]; repeatable.', "KEY=VALUE"),
    ] = None
    progress: bool = False
    """Show bars. The command always shows them."""
