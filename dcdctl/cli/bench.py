"""`dcdctl bench`: how much faster the student is."""

from __future__ import annotations

import os
from dataclasses import KW_ONLY, asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from dcdctl.cli.declare import Ref, assignments, path
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
    argument,
    computes,
    configures,
    sizes,
)
from dcdctl.cli.views.bench import show_bench
from dcdctl.cli.views.scoring import precision_on
from dcdctl.cli.views.terminal import bar, show_json

if TYPE_CHECKING:
    from dcdctl.core.bench import BenchConfig, ModelPair

Config: TypeAlias = "BenchConfig | None"


@dataclass(frozen=True)
class TimedModels:
    """The models to time, their pairs, and the device."""

    student: Annotated[Ref, argument("Run folder of the student, or another model reference.", "RUN"), str]
    teacher: Teacher
    data: Data
    _: KW_ONLY
    split: Split = "test"
    model_overrides: ModelSet = None
    device: Device = "auto"
    config: Config = None
    """Sizes, repeats, and the precision; the command line has options for them."""
    progress: bool = False
    """Show bars. The command always shows them."""

    def pair(self) -> ModelPair:
        """The same as the core takes it."""
        from dcdctl.core import models
        from dcdctl.core.bench import ModelPair

        return ModelPair(
            teacher=os.fspath(self.teacher),
            student=os.fspath(self.student),
            overrides=models.parse_overrides(assignments(self.model_overrides)),
            data=path(self.data),
            split=self.split,
        )


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Fields of `BenchConfig` with an option."""

    num_images: Annotated[int, configures("--num-images", "Images of the corpus in the timed pairs.", "N", min=1)] = 32
    batch_size: BatchSize = 32
    # Any, because Typer takes a list in one word by `parser`, not by its type.
    batch_sizes: Annotated[
        Any, configures("--batch-sizes", "Batch sizes whose throughput is timed.", "N,N,...", parser=sizes)
    ] = (1, 8, 32)
    gallery_sizes: Annotated[
        Any, configures("--gallery-sizes", "Gallery sizes that a query is timed against.", "N,N,...", parser=sizes)
    ] = (100, 1000, 10_000, 100_000, 1_000_000)
    reference_gallery: Annotated[
        int, configures("--reference-gallery", "Gallery size used for the headline speed-up.", "N", min=1)
    ] = 1000
    budget_s: Annotated[float, computes("--budget", "Seconds for one measurement of one model.", "SECONDS")] = 5.0
    num_repeats: Annotated[int, computes("--repeats", "Maximum number of repeats of one measurement.", "N", min=1)] = (
        100
    )
    clock: Annotated[
        str, computes("--clock", "wall, or processor: CPU time only, for a busy machine without a GPU.", "NAME")
    ] = "wall"
    num_fresh_processes: Annotated[
        int,
        computes(
            "--fresh-processes", "Processes per model that time a first query and its memory; 0 for none.", "N", min=0
        ),
    ] = 3
    is_onnx_timed: Annotated[
        bool, computes("--onnx/--no-onnx", "Also time the student in ONNX Runtime (extra onnx).")
    ] = True
    num_threads: Threads = None
    precision: Precision = "fp32"


def bench(timed: TimedModels, timing: Timing, json: Json = False) -> None:
    """Time a student and its teacher on the same pairs. It prints the time of a query, the throughput and the memory of
    both."""
    from dcdctl.core import devices
    from dcdctl.core.bench import BenchConfig, compare_saved

    device = devices.choose(timed.device)
    settings = asdict(timing) | {"precision": precision_on(timing.precision, device)}
    result = compare_saved(timed.pair(), BenchConfig(**settings), device=device, track=bar)
    if json:
        return show_json(result.to_json())
    show_bench(result)
