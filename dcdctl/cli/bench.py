"""`dcdctl bench`: how much faster the student is."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dcdctl.cli.options import (
    BatchSize,
    Data,
    Device,
    Json,
    ModelSet,
    Precision,
    Split,
    Teacher,
    Threads,
)
from dcdctl.cli.views.bench import show_bench
from dcdctl.cli.views.scoring import precision_on
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
NumImages = Annotated[
    int, typer.Option("--num-images", help="Images of the corpus in the timed pairs.", min=1, metavar="N")
]
BatchSizes = Annotated[
    Any, typer.Option("--batch-sizes", help="Batch sizes whose throughput is timed.", parser=sizes, metavar="N,N,...")
]
GallerySizes = Annotated[
    Any,
    typer.Option(
        "--gallery-sizes", help="Gallery sizes that a query is timed against.", parser=sizes, metavar="N,N,..."
    ),
]
ReferenceGallery = Annotated[
    int, typer.Option("--reference-gallery", help="Gallery size used for the headline speed-up.", min=1, metavar="N")
]
Budget = Annotated[float, typer.Option("--budget", help="Seconds for one measurement of one model.", metavar="SECONDS")]
Repeats = Annotated[
    int, typer.Option("--repeats", help="Maximum number of repeats of one measurement.", min=1, metavar="N")
]
ClockName = Annotated[
    str,
    typer.Option(
        "--clock", help="wall, or processor: CPU time only, for a busy machine without a GPU.", metavar="NAME"
    ),
]
FreshProcesses = Annotated[
    int,
    typer.Option(
        "--fresh-processes",
        help="Processes per model that time a first query and its memory; 0 for none.",
        min=0,
        metavar="N",
    ),
]
Onnx = Annotated[bool, typer.Option("--onnx/--no-onnx", help="Also time the student in ONNX Runtime (extra onnx).")]


def bench(
    run: Student,
    teacher: Teacher,
    data: Data,
    split: Split = "test",
    num_images: NumImages = 32,
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
    """Time a student and its teacher on the same pairs. It prints the time of a query, the throughput and the memory of
    both."""
    from dcdctl.core import devices, models
    from dcdctl.core.bench import BenchConfig, ModelPair, compare_saved
    from dcdctl.core.config import build

    place = devices.choose(device)
    settings = {
        "num_images": num_images, "batch_size": batch_size, "batch_sizes": batch_sizes, "gallery_sizes": gallery_sizes,
        "reference_gallery": reference_gallery, "budget_s": budget, "num_repeats": repeats,
        "num_fresh_processes": fresh_processes,
        "is_onnx_timed": onnx, "num_threads": threads, "clock": clock, "precision": precision_on(precision, place),
    }  # fmt: skip
    pair = ModelPair(
        teacher=teacher, student=run, overrides=models.parse_overrides(model_set or ()), data=data, split=split
    )
    result = compare_saved(pair, build(BenchConfig, settings), device=place, track=bar)
    if json:
        return show_json(result.to_json())
    show_bench(result)
