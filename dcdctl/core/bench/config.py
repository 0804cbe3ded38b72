"""The few settings of a benchmark; all are kept in its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from dcdctl.core.config import AtLeast, Count, NotEmpty, Positive, check_fields
from dcdctl.core.errors import ConfigError

DEFAULT_SIZES = (100, 1_000, 10_000, 100_000, 1_000_000)


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    num_images: Count = 32
    """Images of the corpus that the timed pairs are made of; used again where a measurement needs more."""
    batch_size: Count = 32
    """Images, captions or pairs in one forward pass, where galleries are encoded and ranked."""
    batch_sizes: Annotated[tuple[Count, ...], NotEmpty()] = (1, 8, 32)
    """Of the curve of throughput; `batch_size` is on it in any case."""
    num_warmup: Count = 2
    num_repeats: Count = 100
    """Most repeats of one measurement; fewer where the budget is reached."""
    min_rounds: Count = 3
    """Fewest repeats, whatever the budget: an interval needs several."""
    budget_s: Positive = 5.0
    """Seconds for the repeats of one measurement of one model; a query that takes longer is extrapolated."""
    gallery_sizes: Annotated[tuple[Count, ...], NotEmpty()] = DEFAULT_SIZES
    """Numbers of images N that a query is timed against."""
    headline_size: int = 1000
    """The gallery of the speed-up per query."""
    max_gallery_mib: int = 1024
    """A dual model's gallery that is larger is not made, and its query extrapolated."""
    clock: Literal["wall", "processor"] = "wall"
    """wall, or processor: seconds that the processor worked for this process alone, all its threads together; on a CPU."""
    num_fresh_processes: Annotated[int, AtLeast(0)] = 3
    """Processes a model that load and answer, for the time of a first query and the peak memory; 0 for neither."""
    is_onnx_timed: bool = True
    """Whether ONNX Runtime runs the student too, where the student exports."""
    precision: str = "float32"
    """Of autocast, for both models; float32 is without."""
    num_threads: int | None = None
    """CPU threads; what torch finds where not given."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.headline_size not in self.gallery_sizes:
            sizes = ", ".join(map(str, self.gallery_sizes))
            raise ConfigError(f"headline_size must be one of the gallery sizes {sizes}, got {self.headline_size}")

    @property
    def all_batch_sizes(self) -> tuple[int, ...]:
        """Those of the curve of throughput, ascending."""
        return tuple(sorted({*self.batch_sizes, self.batch_size}))
