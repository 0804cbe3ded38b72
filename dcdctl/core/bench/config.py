"""The few settings of a benchmark; all are kept in its result."""

from __future__ import annotations

from dataclasses import dataclass

from dcdctl.core.errors import ConfigError

CLOCKS = ("wall", "processor")
DEFAULT_SIZES = (100, 1_000, 10_000, 100_000, 1_000_000)


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    num_images: int = 32
    """Images of the corpus that the timed pairs are made of; used again where a measurement needs more."""
    batch_size: int = 32
    """Images, captions or pairs in one forward pass, where galleries are encoded and ranked."""
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    """Of the curve of throughput; `batch_size` is on it in any case."""
    num_warmup: int = 2
    num_repeats: int = 100
    """Most repeats of one measurement; fewer where the budget is reached."""
    min_rounds: int = 3
    """Fewest repeats, whatever the budget: an interval needs several."""
    budget_s: float = 5.0
    """Seconds for the repeats of one measurement of one model; a query that takes longer is extrapolated."""
    gallery_sizes: tuple[int, ...] = DEFAULT_SIZES
    """Numbers of images N that a query is timed against."""
    headline_size: int = 1000
    """The gallery of the speed-up per query."""
    max_gallery_mib: int = 1024
    """A dual model's gallery that is larger is not made, and its query extrapolated."""
    clock: str = "wall"
    """wall, or processor: seconds that the processor worked for this process alone, all its threads together; on a CPU."""
    num_fresh_processes: int = 3
    """Processes a model that load and answer, for the time of a first query and the peak memory; 0 for neither."""
    is_onnx_timed: bool = True
    """Whether ONNX Runtime runs the student too, where the student exports."""
    precision: str = "float32"
    """Of autocast, for both models; float32 is without."""
    num_threads: int | None = None
    """CPU threads; what torch finds where not given."""

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("num_images", "batch_size", "num_warmup", "num_repeats", "min_rounds")}
        lists = {"batch_sizes": self.batch_sizes, "gallery_sizes": self.gallery_sizes}
        for name, smallest in {**counts, **{name: min(sizes, default=0) for name, sizes in lists.items()}}.items():
            if smallest < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.budget_s <= 0:
            raise ConfigError(f"budget_s must be more than 0 seconds, got {self.budget_s:g}")
        if self.clock not in CLOCKS:
            raise ConfigError(f"clock must be one of {', '.join(CLOCKS)}, got {self.clock}")
        if self.num_fresh_processes < 0:
            raise ConfigError(f"num_fresh_processes must not be negative, got {self.num_fresh_processes}")
        if self.headline_size not in self.gallery_sizes:
            sizes = ", ".join(map(str, self.gallery_sizes))
            raise ConfigError(f"headline_size must be one of the gallery sizes {sizes}, got {self.headline_size}")

    @property
    def all_batch_sizes(self) -> tuple[int, ...]:
        """Those of the curve of throughput, ascending."""
        return tuple(sorted({*self.batch_sizes, self.batch_size}))
