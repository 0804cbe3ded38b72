"""`dcdctl bench`: how much faster the student is."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dcdctl.cli.options import Data, Device, Json, ModelSet, Precision, Split, Teacher, Threads
from dcdctl.cli.views.bench import show_bench
from dcdctl.cli.views.terminal import bar, show_json


def sizes(text: str) -> tuple[int, ...]:
    """Whole numbers between commas.

    >>> sizes("1, 8,32")
    (1, 8, 32)
    """
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a list of whole numbers, such as 1,8,32") from error


Student = Annotated[str, typer.Argument(help="Run folder of the student, or another model reference.", metavar="RUN")]
Images = Annotated[int, typer.Option("--images", help="Images of the corpus that the timed pairs are made of.", min=1)]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Images, captions or pairs in one forward pass, over galleries.", min=1)]
BatchSizes = Annotated[Any, typer.Option("--batch-sizes", help="Batches whose throughput is timed.", parser=sizes, metavar="B,B,...")]
GallerySizes = Annotated[
    Any, typer.Option("--gallery-sizes", help="Numbers of images that a query is timed against.", parser=sizes, metavar="N,N,...")
]
ReferenceGallery = Annotated[int, typer.Option("--reference-gallery", help="Gallery size of the speed-up per query.", min=1, metavar="N")]
Budget = Annotated[float, typer.Option("--budget", help="Seconds for one measurement of one model.", metavar="SECONDS")]
Repeats = Annotated[int, typer.Option("--repeats", help="Most repeats of one measurement.", min=1)]
ClockName = Annotated[
    str, typer.Option("--clock", help="wall, or processor: its seconds alone, for a busy machine without a GPU.", metavar="NAME")
]
FreshProcesses = Annotated[
    int, typer.Option("--fresh-processes", help="Processes a model for first-query time and peak memory; 0 for neither.", min=0)
]
Onnx = Annotated[bool, typer.Option("--onnx/--no-onnx", help="Time the student by ONNX Runtime too (extra onnx).")]


def bench(
    run: Student,
    teacher: Teacher,
    data: Data,
    split: Split = "test",
    images: Images = 32,
    batch_size: BatchSize = 32,
    batch_sizes: BatchSizes = "1,8,32",
    gallery_sizes: GallerySizes = "100,1000,10000,100000,1000000",
    reference_gallery: ReferenceGallery = 1000,
    budget: Budget = 5.0,
    repeats: Repeats = 100,
    clock: ClockName = "wall",
    fresh_processes: FreshProcesses = 3,
    onnx: Onnx = True,
    device: Device = "auto",
    threads: Threads = None,
    precision: Precision = "fp32",
    model_set: ModelSet = None,
    json: Json = False,
) -> None:
    """Time a student beside its teacher on the same pairs, and say how much faster it is."""
    from dcdctl.core import devices
    from dcdctl.core.bench import BenchConfig, ModelPair, compare_saved
    from dcdctl.core.config import apply_sets, build

    settings = {
        "num_images": images, "batch_size": batch_size, "batch_sizes": batch_sizes, "gallery_sizes": gallery_sizes,
        "reference_gallery": reference_gallery, "budget_s": budget, "num_repeats": repeats, "num_fresh_processes": fresh_processes,
        "is_onnx_timed": onnx, "num_threads": threads, "clock": clock, "precision": devices.precision(precision),
    }  # fmt: skip
    config = build(BenchConfig, settings)
    place = devices.choose(device)
    pair = ModelPair(teacher=teacher, student=run, overrides=apply_sets({}, model_set or []), data=data, split=split)
    result = compare_saved(pair, config, device=place, track=bar)
    if json:
        return show_json(result.to_json())
    show_bench(result)
