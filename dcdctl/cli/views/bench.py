"""A benchmark as tables: what the models are, how long they take, how that grows, and the speed-ups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dcdctl.cli.views.terminal import show_table

if TYPE_CHECKING:
    from dcdctl.core.bench import Bench, Duration, Latency, ModelTimes, Percentile, SpeedUp

NOT_TIMED = "-"
BRACKETS = "(low-high): 95 % of bootstrap draws of the repeats"
EXTRAPOLATED = "~ extrapolated: measured rate x count"
Row = Sequence[str]


def show_bench(result: Bench) -> None:
    """All tables, on stdout."""
    names = ["", "teacher", "student"]
    times = [result.teacher, result.student]
    if result.onnx.times is not None:
        names, times = [*names, "student, ONNX"], [*times, result.onnx.times]
    _show_footprints(result)
    show_table("Latency, ms", names, _latency_rows(times, result.settings.reference_gallery), caption=_latency_caption(result))
    show_table("Throughput, a second", names, _throughput_rows(times))
    show_table("One query over N images", [*names, "student's speed-up"], _query_rows(result, times), caption=f"{EXTRAPOLATED}; {BRACKETS}")
    show_table("Speed-up: teacher's time over student's", *_speed_ups(result), caption=_speed_up_caption(result))


def _show_footprints(result: Bench) -> None:
    machine, settings = result.machine, result.settings
    where = machine["cpu"] if machine["device"] == "cpu" else f"{machine['device']} ({machine['cpu']})"
    threads = f"{machine['threads']} thread{'s' if machine['threads'] != 1 else ''}"
    title = f"{where}, {threads}, {settings.precision}, torch {machine['torch']}, transformers {machine['transformers']}{_busy(result)}"
    rows: list[tuple[str, Callable[[ModelTimes], str]]] = [
        ("model", lambda one: f"{one.kind}, {one.dtype}"),
        ("parameters", lambda one: operations(one.num_parameters)),
        ("weights", lambda one: size(one.footprint.weight_bytes)),
        ("operations: an image", lambda one: operations(one.footprint.flops.per_image)),
        ("operations: a caption", lambda one: operations(one.footprint.flops.per_caption)),
        ("operations: a pair, everything encoded", lambda one: operations(one.footprint.flops.per_pair)),
        ("operations: one encoded image more", lambda one: operations(one.footprint.flops.per_ranked_image)),
        ("index of a million images, float32", lambda one: size(one.footprint.index_bytes_per_million_images["float32"])),
        ("index of a million images, float16", lambda one: size(one.footprint.index_bytes_per_million_images["float16"])),
    ]
    if result.teacher.first_query is not None:
        rows += [
            ("first query of a fresh process", lambda one: _first(one, "total_s")),
            ("- interpreter and imports", lambda one: _first(one, "start_s", "import_s")),
            ("- loading the model", lambda one: _first(one, "load_s")),
            ("- first answer", lambda one: _first(one, "first_answer_s")),
            ("- of all that, the processor's work", lambda one: _first(one, "processor_s")),
            ("its second answer", lambda one: _first(one, "second_answer_s")),
            ("its peak memory", _peak),
        ]
    caption = "operations: floating-point, two a multiply-add, of matrix products, convolutions and attention"
    cells = [[label, cell(result.teacher), cell(result.student)] for label, cell in rows]
    show_table(title, ["", "teacher", "student"], cells, caption=caption)


def _busy(result: Bench) -> str:
    """A line for those who read times of a machine that does other things as well."""
    loads = [load for load in result.machine["load_average"] if load is not None]
    cores = result.machine["cores"]
    if not loads or max(loads) <= cores:
        return ""
    what = "all times" if result.settings.clock == "wall" else "times of fresh processes"
    advice = ", those of short work jump; --clock processor does not mind" if result.settings.clock == "wall" else ""
    return f"\nbusy: {max(loads):.1f} processes wanted {cores} cores; {what} are upper bounds{advice}"


def _first(one: ModelTimes, *parts: str) -> str:
    if one.first_query is None:
        return NOT_TIMED
    return seconds(sum(getattr(one.first_query.median, part) for part in parts))


def _peak(one: ModelTimes) -> str:
    if one.first_query is None:
        return NOT_TIMED
    median = one.first_query.median
    gpu = "" if median.cuda_peak_mib is None else f", GPU {median.cuda_peak_mib:,.0f} MiB"
    return f"{median.rss_peak_mib:,.0f} MiB{gpu}"


def _latency_rows(times: Sequence[ModelTimes], gallery_size: int) -> list[Row]:
    labels = {"pair": "a pair", "image": "an image", "caption": "a caption", "query": f"a query, N = {gallery_size:,}"}
    return [
        (f"{label}: p{percent}", *(_percentile(one.latencies.get(name), percent) for one in times))
        for name, label in labels.items()
        for percent in (50, 95, 99)
        if any(name in one.latencies for one in times)
    ]


def _percentile(latency: Latency | None, percent: int) -> str:
    if latency is None:
        return NOT_TIMED
    found: Percentile = getattr(latency, f"p{percent}")
    low, high = map(digits, found.interval_ms)
    return f"{digits(found.ms)} ({low}-{high}){'' if found.is_resolved else ' *'}"


def _latency_caption(result: Bench) -> str:
    settings = result.settings
    clock = "" if settings.clock == "wall" else "seconds of the processor, not of the clock on the wall; "
    what = f"{clock}a pair: both encoded and scored; an image, a caption: encoded; a query: its images encoded before"
    repeats = f"warm-up {settings.num_warmup}, then up to {settings.num_repeats} repeats or {settings.budget_s:g} s, in turns"
    return f"{what}\n{repeats}\n{BRACKETS}; * fewer repeats than this percentile needs: near their maximum"


def _throughput_rows(times: Sequence[ModelTimes]) -> list[Row]:
    return [
        (f"{what}, batches of {batch.batch_size}", *(digits(getattr(one.throughput[i], key)) for one in times))
        for what, key in (("pairs", "pairs_per_s"), ("images", "images_per_s"), ("captions", "captions_per_s"))
        for i, batch in enumerate(times[0].throughput)
    ]


def _query_rows(result: Bench, times: Sequence[ModelTimes]) -> list[Row]:
    return [
        (
            f"{point.num_images:,} encoded {'before' if point.is_cached else 'with it'}",
            *(_words(one.query(point.num_images, is_cached=point.is_cached)) for one in times),
            _factor(point.speed_up),
        )
        for point in result.curve
    ]


def _speed_ups(result: Bench) -> tuple[list[str], list[list[str]]]:
    columns, rows = ["", "student"], [[item.label, _factor(item)] for item in result.speed_ups]
    if result.onnx.speed_ups:
        columns.append("student, ONNX")
        rows = [[*row, _factor(item)] for row, item in zip(rows, result.onnx.speed_ups, strict=True)]
    return columns, [*rows, ["the paper's", f">= {result.paper_speed_up}x", *[""] * (len(columns) - 2)]]


def _speed_up_caption(result: Bench) -> str:
    protocol = f"whole test set: {result.num_images:,} images, {result.num_captions:,} captions, preprocessed; {EXTRAPOLATED}"
    paper = 'the paper\'s: "compared to the existing ITR models"; which, on what and timed how, its abstract does not say'
    onnx = f"\nONNX Runtime: {result.onnx.note}" if result.onnx.note else ""
    return f"{protocol}\n{paper}{onnx}"


def _factor(item: SpeedUp) -> str:
    low, high = map(digits, item.interval)
    return f"{'~' if item.extrapolated else ''}{digits(item.ratio)}x ({low}-{high})"


def _words(duration: Duration) -> str:
    """A time in the unit that fits it, with ~ before it where it was extrapolated."""
    return f"{'~' if duration.extrapolated else ''}{seconds(duration.seconds)}"


def digits(value: float) -> str:
    """Three digits, or all before the point.

    >>> digits(0.01234), digits(1.5), digits(99.96), digits(12345.6), digits(0)
    ('0.0123', '1.50', '100', '12,346', '0')
    """
    for decimals, limit in ((0, 99.95), (1, 9.995), (2, 0.9995), (3, 0.09995), (4, 0.0)):
        if value > limit:
            return f"{value:,.{decimals}f}"
    return "0"


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


def size(num_bytes: float) -> str:
    """Bytes with a unit.

    >>> size(1_024_000_000), size(5_200_000)
    ('1.02 GB', '5.20 MB')
    """
    return f"{digits(num_bytes / 1e9)} GB" if num_bytes >= 1e9 else f"{digits(num_bytes / 1e6)} MB"
