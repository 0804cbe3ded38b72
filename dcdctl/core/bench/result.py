"""What a benchmark gives: times with their intervals, footprints and speed-ups, as plain values.

An interval [low, high] holds 95 % of the bootstrap draws of the repeats (`timing`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dcdctl.core.bench.cold_start import FirstQuery
from dcdctl.core.bench.config import BenchConfig
from dcdctl.core.bench.footprint import Footprint
from dcdctl.core.bench.rates import Query
from dcdctl.core.bench.timer import Quantity, Sample
from dcdctl.core.config import to_table

Interval = tuple[float, float]
PAPER_SPEED_UP = 129
PAPER = 'Rao et al. 2023: at least 129x, "compared to the existing ITR models"; its abstract names no model, hardware or way of timing'


@dataclass(frozen=True, kw_only=True)
class Duration:
    seconds: float
    extrapolated: bool
    """Measured rate times count, not timed as a whole."""
    interval: Interval
    num_repeats: int
    """0 where it is extrapolated."""


@dataclass(frozen=True, kw_only=True)
class QueryTime:
    num_images: int
    is_cached: bool
    """The images were encoded before."""
    duration: Duration


@dataclass(frozen=True, kw_only=True)
class Percentile:
    percent: int
    ms: float
    interval_ms: Interval
    is_resolved: bool
    """There are so many repeats that one lies above it in the mean; else it is near their maximum."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    num_repeats: int
    num_rounds: int
    p50: Percentile
    p95: Percentile
    p99: Percentile


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Of batches of this size; with the interval of each rate."""

    batch_size: int
    pairs_per_s: float
    pairs_interval: Interval
    """Everything encoded."""
    images_per_s: float
    images_interval: Interval
    captions_per_s: float
    captions_interval: Interval


@dataclass(frozen=True, kw_only=True)
class ModelTimes:
    kind: str
    runtime: str
    """What ran it, with its version."""
    num_parameters: int
    dtype: str
    """Of the weights."""
    pair_p50_ms: float
    pair_p95_ms: float
    pair_p99_ms: float
    latencies: dict[str, Latency]
    """Of a pair with everything encoded, an image alone, a caption alone, and a query over the headline gallery, encoded before (absent
    where that was extrapolated)."""
    pairs_per_s: float
    """In batches of the setting's `batch_size`, everything encoded."""
    image_encode_ms: float
    """One image, in a batch."""
    text_encode_ms: float
    """One caption, in a batch."""
    throughput: tuple[Throughput, ...]
    queries: tuple[QueryTime, ...]
    test_set: Duration
    footprint: Footprint
    first_query: FirstQuery | None
    """None where no fresh processes were wanted, and of another runtime than torch."""

    def query(self, num_images: int, *, is_cached: bool) -> Duration:
        return next(item.duration for item in self.queries if (item.num_images, item.is_cached) == (num_images, is_cached))


@dataclass(frozen=True, kw_only=True)
class SpeedUp:
    label: str
    ratio: float
    """Teacher's time over the other's."""
    extrapolated: bool
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """The speed-up of a query over N images."""

    num_images: int
    is_cached: bool
    speed_up: SpeedUp


@dataclass(frozen=True, kw_only=True)
class OnnxTimes:
    """The student by ONNX Runtime; `times` is None where `note` says why."""

    note: str
    """Why not, in a few words; empty where it ran."""
    times: ModelTimes | None
    largest_difference: float | None
    """Of a coordinate of its vectors from torch's."""
    file_bytes: int | None
    """Both files; their weights are float32."""
    speed_ups: tuple[SpeedUp, ...]


@dataclass(frozen=True, kw_only=True)
class Bench:
    split: str
    num_images: int
    num_captions: int
    settings: BenchConfig
    machine: dict[str, Any]
    teacher: ModelTimes
    student: ModelTimes
    onnx: OnnxTimes
    speed_ups: tuple[SpeedUp, ...]
    """A pair, a query over the headline gallery, the whole protocol; by torch."""
    curve: tuple[CurvePoint, ...]
    paper_speed_up: int = PAPER_SPEED_UP
    paper: str = PAPER
    student_model: str = ""
    """How the user named it; empty for a model that comes from nowhere."""
    teacher_model: str = ""

    def to_json(self) -> dict[str, Any]:
        """The plain form; `extrapolated` marks what was not timed as a whole."""
        table: dict[str, Any] = to_table(self)
        return table


def latency(sample: Sample) -> Latency:
    """The percentiles of the repeats."""
    p50, p95, p99 = (_percentile(sample, percent) for percent in (50, 95, 99))
    return Latency(num_repeats=sample.num_repeats, num_rounds=len(sample.seconds_NK), p50=p50, p95=p95, p99=p99)


def _percentile(sample: Sample, percent: int) -> Percentile:
    ms = sample.percentile(percent) * 1000
    is_resolved = sample.num_repeats * (100 - percent) >= 100
    return Percentile(percent=percent, ms=ms.value, interval_ms=ms.interval, is_resolved=is_resolved)


def query_time(num_images: int, query: Query, *, is_cached: bool) -> QueryTime:
    """A query as plain values."""
    num_repeats = 0 if query.sample is None else query.sample.num_repeats
    duration = Duration(
        seconds=query.seconds.value, extrapolated=query.sample is None, interval=query.seconds.interval, num_repeats=num_repeats
    )
    return QueryTime(num_images=num_images, is_cached=is_cached, duration=duration)


def speed_up(label: str, teacher: Quantity, other: Quantity, *, extrapolated: bool) -> SpeedUp:
    """Teacher's time over another's."""
    ratio = teacher / other
    return SpeedUp(label=label, ratio=ratio.value, extrapolated=extrapolated, interval=ratio.interval)
