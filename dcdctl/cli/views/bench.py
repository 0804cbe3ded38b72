"""A benchmark as tables: the models, their times, the times by gallery size, and the speed-ups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dcdctl.cli.views.terminal import show_table
from dcdctl.core.progress import byte_size, digits

if TYPE_CHECKING:
    from dcdctl.core.bench import Bench, Duration, Latency, ModelTimes, Percentile, SpeedUp

NOT_TIMED = "-"
INTERVAL = "(low-high): 95 % of bootstrap resamples of the repeats"
EXTRAPOLATED = "~ extrapolated: measured rate x count"
Row = Sequence[str]


def show_bench(result: Bench) -> None:
    """Print all tables on stdout."""
    names = ["", "teacher", "student"]
    times = [result.teacher, result.student]
    if result.onnx.times is not None:
        names, times = [*names, "student, ONNX"], [*times, result.onnx.times]
    _show_footprints(result)
    show_table(
        "Latency, ms", names, _latency_rows(times, result.settings.reference_gallery), caption=_latency_caption(result)
    )
    rates: list[Row] = []
    for unit in ("pairs", "images", "captions"):
        for i, batch in enumerate(result.teacher.throughput):
            of_models = [digits(getattr(model.throughput[i], f"{unit}_per_s")) for model in times]
            rates.append((f"{unit}, batch size {batch.batch_size}", *of_models))
    show_table("Throughput per second", names, rates)
    queries: list[Row] = []
    for point in result.curve:
        durations = [model.query(point.num_images, is_cached=point.is_cached) for model in times]
        encoded = "before" if point.is_cached else "with it"
        queries.append((f"{point.num_images:,} encoded {encoded}", *map(_time, durations), _factor(point.speed_up)))
    show_table(
        "One query over N images", [*names, "student's speed-up"], queries, caption=f"{EXTRAPOLATED}; {INTERVAL}"
    )
    test_set = f"whole test set: {result.num_images:,} images, {result.num_captions:,} captions, preprocessed"
    notes = [f"{test_set}; {EXTRAPOLATED}", result.paper]
    if result.onnx.note:
        notes.append(f"ONNX Runtime: {result.onnx.note}")
    title = "Speed-up: the teacher's time divided by the student's"
    show_table(title, *_speed_ups(result), caption="\n".join(notes))


def _show_footprints(result: Bench) -> None:
    machine = result.machine
    title = (
        f"{result.machine_name}, {result.settings.precision}, torch {machine['torch']}, transformers "
        f"{machine['transformers']}"
    )
    caption = "operations: floating point, two per multiply-add, in matrix products, convolutions and attention"
    student = _footprint(result.student)
    rows = [[label, cell, student.get(label, NOT_TIMED)] for label, cell in _footprint(result.teacher).items()]
    show_table(title, ["", "teacher", "student"], rows, caption=caption)


def _footprint(times: ModelTimes) -> dict[str, str]:
    """The cells of a model by the label of their row."""
    footprint, flops = times.footprint, times.footprint.flops
    cells = {
        "model": f"{times.kind}, {times.dtype}",
        "parameters": operations(footprint.num_parameters),
        "weights": byte_size(footprint.weight_bytes),
        "operations per image": operations(flops.per_image),
        "operations per caption": operations(flops.per_caption),
        "operations per pair, everything encoded": operations(flops.per_pair),
        "operations per additional encoded image": operations(flops.per_ranked_image),
    }
    for dtype in ("float32", "float16"):
        cells[f"index of a million images, {dtype}"] = byte_size(footprint.index_bytes_per_million_images[dtype])
    return cells


def _latency_rows(times: Sequence[ModelTimes], gallery_size: int) -> list[Row]:
    labels = {
        "pair": "one pair",
        "image": "one image",
        "caption": "one caption",
        "query": f"one query, N = {gallery_size:,}",
    }
    rows: list[Row] = []
    for name, label in labels.items():
        latencies = [model.latencies.get(name) for model in times]
        if any(latencies):
            for percent in (50, 95, 99):
                rows.append((f"{label}: p{percent}", *(_percentile(latency, percent) for latency in latencies)))
    return rows


def _percentile(latency: Latency | None, percent: int) -> str:
    if latency is None:
        return NOT_TIMED
    value: Percentile = getattr(latency, f"p{percent}")
    low, high = map(digits, value.interval_ms)
    mark = "" if value.is_resolved else " *"
    return f"{digits(value.ms)} ({low}-{high}){mark}"


def _latency_caption(result: Bench) -> str:
    settings = result.settings
    clock = "" if settings.clock == "wall" else "CPU time, not wall-clock time; "
    steps = (
        f"{clock}one pair: both encoded and scored; one image, one caption: encoded; one query: images already encoded"
    )
    repeats = (
        f"warm-up {settings.num_warmup}, then up to {settings.num_repeats} repeats or {settings.budget_s:g} s, "
        "models alternating"
    )
    return f"{steps}\n{repeats}\n{INTERVAL}; * too few repeats for this percentile: close to their maximum"


def _speed_ups(result: Bench) -> tuple[list[str], list[list[str]]]:
    columns, rows = ["", "student"], [[item.label, _factor(item)] for item in result.speed_ups]
    if result.onnx.speed_ups:
        columns.append("student, ONNX")
        rows = [[*row, _factor(item)] for row, item in zip(rows, result.onnx.speed_ups, strict=True)]
    return columns, [*rows, ["claimed in the paper", f">= {result.paper_speed_up}x", *[""] * (len(columns) - 2)]]


def _factor(item: SpeedUp) -> str:
    low, high = map(digits, item.interval)
    mark = "~" if item.extrapolated else ""
    return f"{mark}{digits(item.ratio)}x ({low}-{high})"


def _time(duration: Duration) -> str:
    """A time in the unit that fits it, with a leading ~ if it was extrapolated."""
    mark = "~" if duration.extrapolated else ""
    return f"{mark}{seconds(duration.seconds)}"


def seconds(value: float) -> str:
    """A time in the unit that fits it.

    >>> seconds(0.00213), seconds(3.14), seconds(300), seconds(7300), seconds(200_000)
    ('2.13 ms', '3.14 s', '5.00 min', '2.03 h', '2.31 days')
    """
    for limit, factor, unit in ((1, 1000, "ms"), (120, 1, "s"), (7200, 1 / 60, "min"), (48 * 3600, 1 / 3600, "h")):
        if value < limit:
            return f"{digits(value * factor)} {unit}"
    return f"{digits(value / 86400)} days"


def operations(value: float) -> str:
    """A large number with a unit.

    >>> operations(184e9), operations(2.5e6), operations(512)
    ('184 G', '2.50 M', '512')
    """
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{digits(value / unit)} {name}"
    return digits(value)
