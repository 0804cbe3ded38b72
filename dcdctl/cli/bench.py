"""`dcdctl bench`: how much faster the student is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcdctl.cli.options import Data, Device, Json, ModelSet, Split, Teacher, Threads
from dcdctl.cli.terminal import bar, show_json, show_table

if TYPE_CHECKING:
    from dcdctl.core.benchmark import Bench, Duration, ModelTimes

Student = Annotated[str, typer.Argument(help="Run folder of the student, or another model reference.", metavar="RUN")]
Images = Annotated[int, typer.Option("--images", help="Images of the corpus that the timed pairs are made of.", min=1)]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Pairs, images or captions in one forward pass.", min=1)]

CAPTION = "~ extrapolated: measured rate x count.  paper: at least 129x (their student and hardware, not this measurement)."


def bench(
    run: Student,
    teacher: Teacher,
    data: Data,
    split: Split = "test",
    images: Images = 32,
    batch_size: BatchSize = 32,
    device: Device = "auto",
    threads: Threads = None,
    model_set: ModelSet = None,
    json: Json = False,
) -> None:
    """Time a student beside its teacher on the same pairs, and say how much faster it is."""
    from dcdctl.core import benchmark, devices, files, models
    from dcdctl.core.config import apply_sets
    from dcdctl.core.corpus import Corpus

    config = benchmark.BenchConfig(num_images=images, batch_size=batch_size, num_threads=threads)
    corpus, place = Corpus.open(data, split), devices.choose(device)
    scorer = models.load_fusion(teacher, apply_sets({}, model_set or []), bar).to(place)
    result = benchmark.compare(scorer, models.load(run).to(place), corpus, config, track=bar)
    document = {"student_model": run, "teacher_model": teacher, **result.to_json()}
    if Path(run, "run.json").exists():
        files.write_json(Path(run, "bench.json"), document)
    if json:
        return show_json(document)
    _show(result)


def _show(result: Bench) -> None:
    machine, settings = result.machine, result.settings
    where = machine["cpu"] if machine["device"] == "cpu" else f"{machine['device']} ({machine['cpu']})"
    title = f"{where}, {machine['threads']} threads, torch {machine['torch']}, transformers {machine['transformers']}"
    both = (result.teacher, result.student)
    rows: list[Sequence[str]] = [
        ("model", *(f"{times.kind}, {times.num_parameters / 1e6:,.1f} M parameters, {times.dtype}" for times in both)),
        ("one pair, everything encoded: p50", *(f"{times.pair_p50_ms:,.2f} ms" for times in both)),
        ("one pair, everything encoded: p95", *(f"{times.pair_p95_ms:,.2f} ms" for times in both)),
        (f"pairs, everything encoded, batches of {settings.batch_size}", *(f"{times.pairs_per_s:,.1f}/s" for times in both)),
        *_query_rows(both, settings.gallery_sizes),
        (f"test set, {result.num_images:,} x {result.num_captions:,}", *(_words(times.test_set) for times in both)),
    ]
    runs = f"warm-up {settings.num_warmup}, then up to {settings.num_repeats} repeats or {settings.budget_s:g} s; medians unless said"
    show_table(title, ("", "teacher", "student"), rows, caption=runs)
    factors = [(item.label, f"{'~' if item.extrapolated else ''}{item.ratio:,.1f}x") for item in result.speed_ups]
    show_table("Speed-up: teacher's time over student's", ("", "factor"), factors, caption=CAPTION)


def _query_rows(both: Sequence[ModelTimes], gallery_sizes: Sequence[int]) -> list[Sequence[str]]:
    return [
        (f"one query, {count:,} images encoded {when}", *(_words(times.query(count, is_cached=is_cached)) for times in both))
        for is_cached, when in ((True, "before"), (False, "with it"))
        for count in gallery_sizes
    ]


def _words(duration: Duration) -> str:
    """A time in the unit that fits it, with ~ before it where it was extrapolated."""
    seconds, mark = duration.seconds, "~" if duration.extrapolated else ""
    if seconds < 1:
        return f"{mark}{1000 * seconds:,.2f} ms"
    return f"{mark}{seconds:,.1f} s" if seconds < 7200 else f"{mark}{seconds / 3600:,.1f} h"
