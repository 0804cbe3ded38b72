"""The settings of a benchmark, which are saved with its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from dcdctl.core.config import NOT_EMPTY, Count, Positive, settle_fields
from dcdctl.core.errors import ConfigError

# From a folder of photos to a catalog, a power of ten apart: the curve is drawn on a logarithmic axis.
DEFAULT_SIZES = (100, 1_000, 10_000, 100_000, 1_000_000)
TEACHER, STUDENT, ONNX = "teacher", "student", "onnx"


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    num_images: Count = 32
    """Images of the corpus for the timed pairs; used repeatedly if a measurement needs more."""
    batch_size: Count = 32
    """Images, captions or pairs in a forward pass when galleries are encoded and ranked."""
    batch_sizes: Annotated[tuple[Count, ...], NOT_EMPTY] = (1, 8, 32)
    """Batch sizes of the throughput curve; `batch_size` is always included."""
    num_warmup: Count = 2
    num_repeats: Count = 100
    """Maximum number of repeats of a measurement; fewer if the budget is reached."""
    min_rounds: Count = 3
    """Minimum number of repeats, whatever the budget: an interval needs several."""
    budget_s: Positive = 5.0
    """Seconds for the repeats of one measurement of one model; a query that takes longer is extrapolated."""
    gallery_sizes: Annotated[tuple[Count, ...], NOT_EMPTY] = DEFAULT_SIZES
    """Numbers of images N that a query is timed against."""
    reference_gallery: int = 1000
    """The gallery size of the reported speed-up per query."""
    max_gallery_mib: int = 1024
    """A larger gallery of a dual model is not allocated, and its query is extrapolated."""
    clock: Literal["wall", "processor"] = "wall"
    """wall, or processor: CPU seconds of this process over all its threads; for models on a CPU."""
    is_onnx_timed: bool = True
    """Whether the student is also timed in ONNX Runtime, if it can be exported."""
    precision: str = "float32"
    """Autocast precision of both models; float32 means no autocast."""

    def __post_init__(self) -> None:
        settle_fields(self)
        if self.reference_gallery not in self.gallery_sizes:
            sizes = ", ".join(map(str, self.gallery_sizes))
            raise ConfigError(
                f"reference_gallery must be one of the gallery sizes {sizes}, got {self.reference_gallery}"
            )

    @property
    def all_batch_sizes(self) -> tuple[int, ...]:
        """Batch sizes of the throughput curve, ascending."""
        return tuple(sorted({*self.batch_sizes, self.batch_size}))


QUICK = BenchConfig(budget_s=2.0, num_repeats=20, batch_sizes=(32,), gallery_sizes=(1000,), is_onnx_timed=False)
"""How a study and the demo time queries."""
