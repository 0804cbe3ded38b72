"""A benchmark as tables: what the models are, how long they take, how that grows, and the speed-ups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dcdctl.cli.terminal import show_table

if TYPE_CHECKING:
    from dcdctl.core.bench_results import Bench, Duration, Latency, ModelTimes, Percentile, SpeedUp

NOT_TIMED = "-"
INTERVALS = "(low to high): 95 % of bootstrap draws of the repeats"


def show_bench(result: Bench) -> None:
    """All tables, on stdout."""
    names = ["", "teacher", "student"]
    times = [result.teacher, result.student]
    if result.onnx.times is not None:
        names, times = [*names, "student, ONNX"], [*times, result.onnx.times]
    _show_footprints(result, names[:3])
    show_table("Latency", names, _latency_rows(times, result.settings.headline_size), caption=_latency_caption(result))
    show_table("Throughput a second", names, _throughput_rows(times))
    show_table("One query over N images", [*names, "speed-up"], _query_rows(result, times), caption=f"~ extrapolated; {INTERVALS}")
    _show_speed_ups(result)


def _show_footprints(result: Bench, names: Sequence[str]) -> None:
    machine, settings = result.machine, result.settings
    where = machine["cpu"] if machine["device"] == "cpu" else f"{machine['device']} ({machine['cpu']})"
    title = f"{where}, {machine['threads']} threads, {settings.precision}, torch {machine['torch']}, transformers {machine['transformers']}"
    both = [result.teacher, result.student]
    rows: list[tuple[str, Callable[[ModelTimes], str]]] = [
        ("model", lambda one: f"{one.kind}, {one.dtype}"),
        ("parameters", lambda one: f"{one.num_parameters / 1e6:,.2f} M"),
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
            ("first query, fresh process", lambda one: _first(one, "total_s")),
            ("- interpreter and imports", lambda one: _first(one, "start_s", "import_s")),
            ("- loading the model", lambda one: _first(one, "load_s")),
            ("- first answer", lambda one: _first(one, "first_answer_s")),
            ("second answer", lambda one: _first(one, "second_answer_s")),
            ("peak memory of that process", _peak),
        ]
    caption = "operations: floating-point, two a multiply-add, of products, convolutions and attention"
    show_table(title, names, [(label, *map(cell, both)) for label, cell in rows], caption=caption)


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


def _latency_rows(times: Sequence[ModelTimes], headline: int) -> list[Sequence[str]]:
    labels = {
        "pair": "a pair, everything encoded",
        "image": "an image encoded",
        "caption": "a caption encoded",
        "query": f"a query, {headline:,} images encoded before",
    }
    rows: list[Sequence[str]] = []
    for name, label in labels.items():
        found = [one.latencies.get(name) for one in times]
        rows += [
            (f"{label}: p{percent}", *(_percentile(one, percent) for one in found))
            for percent in (50, 95, 99)
            if any(one is not None for one in found)
        ]
    return rows


def _percentile(latency: Latency | None, percent: int) -> str:
    if latency is None:
        return NOT_TIMED
    found: Percentile = getattr(latency, f"p{percent}")
    cell = f"{milliseconds(found.ms)} ({milliseconds(found.interval_ms[0])} to {milliseconds(found.interval_ms[1])}) ms"
    return cell if found.is_resolved else f"{cell} *"


def _latency_caption(result: Bench) -> str:
    settings = result.settings
    repeats = f"warm-up {settings.num_warmup}, then up to {settings.num_repeats} repeats or {settings.budget_s:g} s, in turns"
    return f"{repeats}; {INTERVALS}; * too few repeats for this percentile: near their maximum"


def _throughput_rows(times: Sequence[ModelTimes]) -> list[Sequence[str]]:
    return [
        (f"{what}, batches of {batch.batch_size}", *(f"{getattr(one.throughput[i], key):,.1f}" for one in times))
        for what, key in (("pairs, everything encoded", "pairs_per_s"), ("images", "images_per_s"), ("captions", "captions_per_s"))
        for i, batch in enumerate(times[0].throughput)
    ]


def _query_rows(result: Bench, times: Sequence[ModelTimes]) -> list[Sequence[str]]:
    return [
        (
            f"{point.num_images:,} encoded {'before' if point.is_cached else 'with it'}",
            *(_words(one.query(point.num_images, is_cached=point.is_cached)) for one in times),
            _factor(point.speed_up),
        )
        for point in result.curve
    ]


def _show_speed_ups(result: Bench) -> None:
    columns, rows = ["", "student"], [[item.label, _factor(item)] for item in result.speed_ups]
    if result.onnx.speed_ups:
        columns.append("student, ONNX")
        rows = [[*row, _factor(item)] for row, item in zip(rows, result.onnx.speed_ups, strict=True)]
    rows.append(["the paper's", f"at least {result.paper_speed_up}x", *[""] * (len(columns) - 2)])
    protocol = f"whole test set: {result.num_images:,} images x {result.num_captions:,} captions, preprocessed"
    paper = 'paper: "compared to the existing ITR models"; on what, and timed how, its abstract does not say'
    onnx = f"\nONNX Runtime: {result.onnx.note}" if result.onnx.note else ""
    show_table(
        "Speed-up: teacher's time over student's",
        columns,
        rows,
        caption=f"{protocol}\n~ extrapolated: measured rate x count\n{paper}{onnx}",
    )


def _factor(item: SpeedUp) -> str:
    low, high = (_ratio(bound) for bound in item.interval)
    return f"{'~' if item.extrapolated else ''}{_ratio(item.ratio)}x ({low} to {high})"


def _ratio(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _words(duration: Duration) -> str:
    """A time in the unit that fits it, with ~ before it where it was extrapolated."""
    return f"{'~' if duration.extrapolated else ''}{seconds(duration.seconds)}"


def seconds(value: float) -> str:
    """A time in the unit that fits it.

    >>> seconds(0.00213), seconds(3.14), seconds(7300), seconds(200_000)
    ('2.13 ms', '3.1 s', '2.0 h', '2.3 days')
    """
    if value < 1:
        return f"{milliseconds(1000 * value)} ms"
    if value < 7200:
        return f"{value:,.1f} s"
    return f"{value / 3600:,.1f} h" if value < 48 * 3600 else f"{value / 86400:,.1f} days"


def milliseconds(value: float) -> str:
    """Milliseconds to three digits, whole ones from a hundred on.

    >>> milliseconds(0.01234), milliseconds(1.5), milliseconds(12345)
    ('0.0123', '1.50', '12,345')
    """
    if value >= 100:
        return f"{value:,.0f}"
    digits = 2 if value >= 1 else 4
    return f"{value:.1f}" if value >= 10 else f"{value:.{digits}f}"


def operations(value: float) -> str:
    """Operations with a unit.

    >>> operations(184e9), operations(2.5e6), operations(512)
    ('184.00 G', '2.50 M', '512')
    """
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:,.2f} {name}"
    return f"{value:.0f}"


def size(num_bytes: float) -> str:
    """Bytes with a unit.

    >>> size(1_024_000_000), size(5_200_000)
    ('1.02 GB', '5.2 MB')
    """
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"
