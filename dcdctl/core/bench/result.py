"""The result of a benchmark as plain values: times with intervals, footprints and speed-ups.

An interval [low, high] is a 95% bootstrap interval over rounds (see `timer`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dcdctl.core import artifacts, models
from dcdctl.core.artifacts import Document
from dcdctl.core.bench.config import BenchConfig
from dcdctl.core.bench.timer import Quantity, Repeats
from dcdctl.core.config import build_document, to_table
from dcdctl.core.errors import InputError
from dcdctl.core.progress import counted

Interval = tuple[float, float]
MAKE_AGAIN = "run `dcdctl bench` again"
PAPER_SPEED_UP = 129
PAPER = (
    'Rao et al. 2023: at least 129x, "compared to the existing ITR models"; its abstract names no model, '
    "hardware or way of timing"
)


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Floating-point operations, two for a multiply-add; means over some pairs."""

    per_image: float
    """To encode an image."""
    per_caption: float
    """To encode a caption without padding."""
    per_pair: float
    """To encode both and score the pair."""
    per_ranked_image: float
    """To rank one more encoded image for an encoded caption."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    num_parameters: int
    weight_bytes: int
    """Parameters and buffers in memory."""
    flops: Flops
    index_bytes_per_million_images: dict[str, int]
    """Vectors of a dual model, encoded images of a fusion model, by number format."""


@dataclass(frozen=True, kw_only=True)
class Duration:
    seconds: float
    extrapolated: bool
    """Measured rate times count; not timed as a whole."""
    interval: Interval
    num_repeats: int
    """0 if extrapolated."""


@dataclass(frozen=True, kw_only=True)
class QueryTime(Duration):
    num_images: int
    is_cached: bool
    """Whether the images were encoded before."""


@dataclass(frozen=True, kw_only=True)
class Percentile:
    ms: float
    interval_ms: Interval
    is_resolved: bool
    """Whether there are enough repeats that at least one is expected above it; else it is close to the maximum."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    num_repeats: int
    num_rounds: int
    p50: Percentile
    p95: Percentile
    p99: Percentile


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Rates in batches of one size."""

    batch_size: int
    pairs_per_s: float
    """Encoding included."""
    images_per_s: float
    captions_per_s: float


@dataclass(frozen=True, kw_only=True)
class ModelTimes:
    kind: str
    runtime: str
    """torch or ONNX Runtime, with its version."""
    dtype: str
    """Number format of the weights."""
    latencies: dict[str, Latency]
    """Latencies of a pair including encoding, one image, one caption, and a query over the encoded reference gallery
    (absent if extrapolated)."""
    throughput: tuple[Throughput, ...]
    queries: tuple[QueryTime, ...]
    test_set: Duration
    footprint: Footprint

    def query(self, num_images: int, *, is_cached: bool) -> Duration:
        return next(item for item in self.queries if (item.num_images, item.is_cached) == (num_images, is_cached))


@dataclass(frozen=True, kw_only=True)
class SpeedUp:
    label: str
    ratio: float
    """Teacher time divided by the other's time."""
    extrapolated: bool
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """The speed-up for a query over N images."""

    num_images: int
    is_cached: bool
    speed_up: SpeedUp


@dataclass(frozen=True, kw_only=True)
class OnnxTimes:
    """The student in ONNX Runtime."""

    note: str = ""
    """Why it was not timed; empty if it was."""
    times: ModelTimes | None = None
    largest_difference: float | None = None
    """Between a coordinate of its vectors and of torch's."""
    speed_ups: tuple[SpeedUp, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Bench:
    split: str
    num_images: int
    num_captions: int
    settings: BenchConfig
    machine: Document
    teacher: ModelTimes
    student: ModelTimes
    onnx: OnnxTimes
    speed_ups: tuple[SpeedUp, ...]
    """In torch: for a pair, for a query over the reference gallery, for the whole test set."""
    curve: tuple[CurvePoint, ...]
    paper_speed_up: int = PAPER_SPEED_UP
    paper: str = PAPER
    student_model: str = ""
    """The reference that the user gave; empty for a model in memory."""
    teacher_model: str = ""

    def __repr__(self) -> str:
        ratios = ", ".join(f"{speed_up.label} {speed_up.ratio:.3g}x" for speed_up in self.speed_ups)
        return f"Bench({self.student_model!r} against {self.teacher_model!r}: {ratios})"

    @property
    def machine_name(self) -> str:
        """Device and number of threads."""
        cpu, device, threads = (self.machine[name] for name in ("cpu", "device", "threads"))
        name = cpu if device == "cpu" else f"{device} ({cpu})"
        return f"{name}, {counted(threads, 'threads')}"

    def to_json(self) -> Document:
        """The contents of bench.json."""
        document: Document = to_table(self)
        return document


def latency(repeats: Repeats) -> Latency:
    """Percentiles of the repeats."""
    percentiles = {}
    for percent in (50, 95, 99):
        ms = repeats.percentile(percent) * 1000
        # At least one repeat in the share above the percentile.
        is_resolved = repeats.num_repeats * (100 - percent) >= 100
        percentiles[f"p{percent}"] = Percentile(ms=ms.value, interval_ms=ms.interval, is_resolved=is_resolved)
    return Latency(num_repeats=repeats.num_repeats, num_rounds=len(repeats.seconds_NK), **percentiles)


def speed_up(label: str, teacher: Quantity, other: Quantity, *, extrapolated: bool) -> SpeedUp:
    """Teacher time divided by the other's time."""
    ratio = teacher / other
    return SpeedUp(label=label, ratio=ratio.value, extrapolated=extrapolated, interval=ratio.interval)


@dataclass(frozen=True, kw_only=True)
class QueryTimes:
    """The query time of a model, read from a bench.json."""

    query_ms: float
    """One caption against `num_images` images that were encoded before."""
    is_extrapolated: bool
    num_images: int
    num_parameters: int
    speed_up: float | None
    """The teacher's time over this model's; None for the teacher itself."""
    teacher_model: str
    machine: str


def read_times(path: Path, model: Literal["teacher", "student"]) -> QueryTimes | None:
    """The query time of the teacher or the student in a bench.json; None if there is no such file. InputError for a
    damaged one."""
    if not path.exists():
        return None
    document = artifacts.read_document(path, error=InputError, hint=MAKE_AGAIN)
    models.expect_run(path, document, error=InputError, hint=MAKE_AGAIN)
    bench = build_document(Bench, document, path, error=InputError, hint=MAKE_AGAIN)
    size, times = bench.settings.reference_gallery, getattr(bench, model)
    teacher, student = (each.query(size, is_cached=True) for each in (bench.teacher, times))
    return QueryTimes(
        query_ms=1000 * student.seconds,
        is_extrapolated=student.extrapolated,
        num_images=size,
        num_parameters=times.footprint.num_parameters,
        speed_up=None if model == "teacher" else teacher.seconds / student.seconds,
        teacher_model=bench.teacher_model,
        machine=f"{bench.machine_name}, torch {bench.machine['torch']}",
    )
