"""`dcdctl prepare`: turn captioned images into a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from dcdctl.cli.completion import complete_manifest
from dcdctl.cli.declare import Overrides, Ref, Refs, assignments, many, names_in, optional_path, optional_ref, path
from dcdctl.cli.options import (
    MOST_WORKERS,
    Engine,
    Json,
    MaxImages,
    argument,
    computes,
    configures,
    reads,
)
from dcdctl.cli.views.terminal import bar, note, show, show_entries, show_json

if TYPE_CHECKING:
    from dcdctl.core.data import CorpusSummary
    from dcdctl.core.progress import Say, Track


@dataclass(frozen=True)
class Prepare:
    """Captioned images, and the corpus that they become."""

    manifest: Annotated[
        Ref | None,
        argument("Manifest: a name (--list shows them) or a .toml file.", "MANIFEST", autocompletion=complete_manifest),
        str,
    ] = None
    out: Annotated[Ref | None, configures("--out -o", "Folder to write; data/NAME by default.", "DIR"), Path] = None
    _: KW_ONLY
    karpathy: Annotated[
        Ref | None, reads("--karpathy", "Karpathy JSON, such as dataset_flickr30k.json.", "FILE"), Path
    ] = None
    csv: Annotated[
        Ref | None, reads("--csv", "CSV file with one caption per row: image,caption[,split].", "FILE"), Path
    ] = None
    jsonl: Annotated[Ref | None, reads("--jsonl", "JSON lines: image, caption or captions[, split].", "FILE"), Path] = (
        None
    )
    images: Annotated[
        Refs | None, reads("--images", "Folder, zip or tar of the images; repeatable.", "PATH"), list[Path]
    ] = None
    queries: Annotated[
        Refs | None,
        reads(
            "--queries",
            "Texts without an image, for a pool: .txt with one a line, or .csv, .tsv, .jsonl, .parquet with a "
            "column query, caption or text; repeatable.",
            "FILE",
        ),
        list[Path],
    ] = None
    decontaminate: Annotated[
        Refs | None,
        reads(
            "--decontaminate",
            "Prepared corpus, whose val and test images and texts a pool is left without; repeatable.",
            "DIR",
        ),
        list[Path],
    ] = None
    hold_out: Annotated[
        float | None,
        configures(
            "--hold-out",
            "Share of images, and of a pool's texts, for each of val and test in a source without splits (0.1).",
            "SHARE",
        ),
    ] = None
    placed: Annotated[
        Ref | None, reads("--from", "Folder with files of the manifest that you downloaded.", "DIR"), Path
    ] = None
    source: Annotated[str, reads("--source", "Source in the manifest; by default the first one.", "NAME")] = ""
    offline: Annotated[bool, reads("--offline", "Download nothing: use earlier downloads and --from.")] = False
    splits: Annotated[
        Sequence[str], reads("--splits", "Prepare only these splits: train,val.", "NAMES", show_default=False), str
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
    # str for Typer, so that `PrepareOptions` refuses a wrong word, as in Python.
    on_error: Annotated[
        Literal["stop", "skip"],
        configures("--on-error", "What to do with an unusable row: stop, or skip it.", "stop|skip"),
        str,
    ] = "stop"
    overrides: Annotated[
        Overrides | None,
        configures("--set", 'Override a manifest field: encoding=cp1252, columns=["year"]; repeatable.', "KEY=VALUE"),
        list[str],
    ] = None
    progress: bool = False
    """Show bars. The command always shows them."""

    def run(self, track: Track, say: Say) -> CorpusSummary:
        """Write the corpus, unless it is finished."""
        from dcdctl.core import data, machine
        from dcdctl.core.config import build
        from dcdctl.core.engines import EngineChoice, open_engine
        from dcdctl.core.errors import ConfigError

        workers = EngineChoice.parse(self.engine)
        if workers.is_files:
            raise ConfigError("prepare writes no tasks", hint="--engine files:DIR is for cache-teacher, index and sync")
        # Images are decoded without a GPU, which the workers of a model get by default.
        engine = open_engine(replace(workers, gpus=0), say).alone()
        # Every core, since decoding images is the work here; nothing else computes meanwhile.
        threads = self.workers or (1 if engine.sends_tasks else machine.num_cores())
        out = optional_path(self.out)
        choice = data.DataChoice(
            manifest=optional_ref(self.manifest),
            karpathy=optional_path(self.karpathy),
            csv=optional_path(self.csv),
            jsonl=optional_path(self.jsonl),
            images=[path(folder) for folder in many(self.images)],
            queries=[path(file) for file in many(self.queries)],
            folder=out,
            sets=assignments(self.overrides),
            hold_out=self.hold_out,
        )
        manifest = data.choose_manifest(choice)
        rows = {
            "splits": names_in(self.splits),
            "max_images": self.max_images,
            "image_size_px": self.image_size,
            "workers": threads,
            "on_error": self.on_error,
        }
        sources = data.SourceOptions(source=self.source, placed=optional_path(self.placed), offline=self.offline)
        return data.prepare_corpus(
            manifest,
            out or Path("data") / manifest.name,
            options=build(data.PrepareOptions, rows),
            source_options=sources,
            decontaminate=[path(folder) for folder in many(self.decontaminate)],
            engine=engine,
            track=track,
        )


def prepare(
    arguments: Prepare,
    json: Json = False,
    show_list: Annotated[bool, reads("--list", "List the data sets and stop.")] = False,
) -> None:
    """Turn captioned images into a corpus. They are downloaded, checked, sharded and fingerprinted."""
    from dcdctl.core import data
    from dcdctl.core.config import to_table

    if show_list:
        return _show_data_sets(data.list_data_sets(), json)
    summary = arguments.run(bar, note)
    return show_json(to_table(summary)) if json else show(str(summary))


def _show_data_sets(data_sets: list[dict[str, Any]], json: bool) -> None:
    if json:
        return show_json({"data_sets": data_sets})
    entries = []
    for entry in data_sets:
        facts = {
            "": entry["summary"],
            "images": ", ".join(f"{name} {counts['images']:,}" for name, counts in entry["expected"].items()),
            "sources": ", ".join(source["name"] for source in entry["sources"]),
            "license": entry["license"],
        }
        entries.append((entry["name"], facts))
    show_entries("data sets: dcdctl prepare NAME", entries)
