"""How long a student takes beside its teacher, on the same images and captions.

What is timed starts from preprocessed pixels and tokens, after a warm-up, in inference mode, with the device synchronized:

- a pair: one image and one caption, both encoded, and their score;
- throughput: batches of pairs, each with its own image and caption, everything encoded;
- a query: one caption encoded, scored against N images, the first ten found; the images encoded before (cached) or with it;
- the test set: every image and every caption encoded once, every pair scored.

A number that would take longer than the budget is the measured rate times the count, and says so (`extrapolated`).
"""

from __future__ import annotations

import itertools
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcdctl.core.config import to_table
from dcdctl.core.corpus import Corpus
from dcdctl.core.devices import versions
from dcdctl.core.errors import ConfigError
from dcdctl.core.models.protocols import DualEncoder, FusionScorer
from dcdctl.core.progress import Advance, Track, silent
from dcdctl.core.timing import Inputs, Side, Timer, device_of, inputs_for, side_of

FIRST = 10
"""A query is answered when its first ten images are known."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    num_images: int = 32
    """Images of the corpus that the timed pairs are made of; used again where a measurement needs more."""
    batch_size: int = 32
    """Pairs, images or captions in one forward pass."""
    num_warmup: int = 2
    num_repeats: int = 30
    """Most repeats of one measurement; fewer where the budget is reached."""
    budget_s: float = 5.0
    """Seconds for the repeats of one measurement; a query that takes longer is extrapolated."""
    gallery_sizes: tuple[int, ...] = (100, 1000, 10000)
    headline_size: int = 1000
    """The gallery of the speed-up per query."""
    num_threads: int | None = None
    """CPU threads of torch; what torch finds where not given."""

    def __post_init__(self) -> None:
        if min(self.num_images, self.batch_size, self.num_warmup, self.num_repeats, *self.gallery_sizes) < 1:
            raise ConfigError("images, batch size, warm-up, repeats and gallery sizes must be at least 1")
        if self.headline_size not in self.gallery_sizes:
            raise ConfigError(f"headline_size must be one of the gallery sizes, got {self.headline_size}")


@dataclass(frozen=True)
class Duration:
    seconds: float
    extrapolated: bool
    """Measured rate times count, not timed as a whole."""


@dataclass(frozen=True, kw_only=True)
class QueryTime:
    num_images: int
    is_cached: bool
    """The images were encoded before."""
    duration: Duration


@dataclass(frozen=True, kw_only=True)
class ModelTimes:
    kind: str
    num_parameters: int
    dtype: str
    pair_p50_ms: float
    pair_p95_ms: float
    pairs_per_s: float
    image_encode_ms: float
    """One image, in a batch."""
    text_encode_ms: float
    """One caption, in a batch."""
    queries: tuple[QueryTime, ...]
    test_set: Duration

    def query(self, num_images: int, *, is_cached: bool) -> Duration:
        return next(item.duration for item in self.queries if (item.num_images, item.is_cached) == (num_images, is_cached))


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Seconds of the single steps."""

    pair_s: list[float]
    """One pair, everything encoded; each repeat."""
    batch_s: float
    """A batch of pairs, everything encoded."""
    image_s: float
    text_s: float
    one_text_s: float
    """One caption alone, as a query comes."""
    rank_s: float
    """One encoded image more for an encoded caption."""
    block_s: float
    """One pair more of a test set, both encoded."""


@dataclass(frozen=True, kw_only=True)
class SpeedUp:
    label: str
    ratio: float
    """Teacher's time over student's."""
    extrapolated: bool


@dataclass(frozen=True, kw_only=True)
class Bench:
    split: str
    num_images: int
    num_captions: int
    settings: BenchConfig
    machine: dict[str, Any]
    teacher: ModelTimes
    student: ModelTimes
    speed_ups: tuple[SpeedUp, ...]

    def to_json(self) -> dict[str, Any]:
        """The plain form; `extrapolated` marks what was not timed as a whole."""
        table: dict[str, Any] = to_table(self)
        return table


def compare(
    teacher: FusionScorer,
    student: FusionScorer | DualEncoder,
    corpus: Corpus,
    config: BenchConfig,
    *,
    clock: Callable[[], float] = time.perf_counter,
    track: Track = silent,
) -> Bench:
    """Times of teacher and student, on the device they are on, and three speed-ups."""
    device = device_of(student)
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    timer = Timer(
        num_warmup=config.num_warmup, num_repeats=config.num_repeats, budget_s=config.budget_s, clock=clock, synchronize=synchronize
    )
    num_measurements = 2 * (len(fields(Rates)) + 2 * len(config.gallery_sizes))
    with _threads(config.num_threads), torch.inference_mode(), track("bench", total=num_measurements, unit="timings") as advance:
        times = [_times(model.eval(), corpus, config, timer, advance) for model in (teacher, student)]
        about = machine(device)
    return Bench(
        split=corpus.split,
        num_images=corpus.num_images,
        num_captions=corpus.num_captions,
        settings=config,
        machine=about,
        teacher=times[0],
        student=times[1],
        speed_ups=speed_ups(times[0], times[1], config.headline_size),
    )


def speed_ups(teacher: ModelTimes, student: ModelTimes, num_images: int) -> tuple[SpeedUp, ...]:
    """The three ways to say how much faster the student is."""
    pair_s = [Duration(times.pair_p50_ms / 1000, False) for times in (teacher, student)]
    query_s = [times.query(num_images, is_cached=True) for times in (teacher, student)]
    return (
        _speed_up("one pair, everything encoded", *pair_s),
        _speed_up(f"one query over {num_images:,} images, encoded before", *query_s),
        _speed_up("whole test set, all pairs", teacher.test_set, student.test_set),
    )


def machine(device: torch.device) -> dict[str, Any]:
    """What the times depend on besides the models."""
    return {
        "cpu": _cpu_name(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        **versions(),
    }


def _speed_up(label: str, teacher: Duration, student: Duration) -> SpeedUp:
    either = teacher.extrapolated or student.extrapolated
    return SpeedUp(label=label, ratio=teacher.seconds / student.seconds, extrapolated=either)


def _times(model: FusionScorer | DualEncoder, corpus: Corpus, config: BenchConfig, timer: Timer, advance: Advance) -> ModelTimes:
    side = side_of(model, config.batch_size)
    inputs = inputs_for(model, corpus, config.num_images, config.batch_size, config.gallery_sizes)
    rates = _rates(side, inputs, config, timer, advance)
    queries = [
        QueryTime(num_images=count, is_cached=is_cached, duration=_query(side, inputs, rates, count, is_cached, timer, advance))
        for count in config.gallery_sizes
        for is_cached in (True, False)
    ]
    return ModelTimes(
        kind=side.kind,
        # A dual model's calibration serves training alone, and no saved model has one.
        num_parameters=sum(one.numel() for name, one in model.named_parameters() if not name.startswith("calibration.")),
        dtype=str(next(iter(model.parameters())).dtype).removeprefix("torch."),
        pair_p50_ms=1000 * float(np.percentile(rates.pair_s, 50)),
        pair_p95_ms=1000 * float(np.percentile(rates.pair_s, 95)),
        pairs_per_s=config.batch_size / rates.batch_s,
        image_encode_ms=1000 * rates.image_s,
        text_encode_ms=1000 * rates.text_s,
        queries=tuple(queries),
        test_set=Duration(
            corpus.num_images * rates.image_s + corpus.num_captions * (rates.text_s + corpus.num_images * rates.block_s),
            extrapolated=True,
        ),
    )


def _rates(side: Side, inputs: Inputs, config: BenchConfig, timer: Timer, advance: Advance) -> Rates:
    size, batch = config.batch_size, inputs.images[config.batch_size]
    images, texts, one_text = side.encode_images(batch), side.encode_texts(inputs.texts), side.encode_texts(inputs.singles[0][1])
    some, many = side.gallery(images, size), side.gallery(images, max(config.gallery_sizes))
    num_block_pairs = side.block(many, texts).numel()
    turns = itertools.cycle(inputs.singles)

    def pair() -> Tensor:
        image, text = next(turns)
        return side.score_own(side.encode_images(image), side.encode_texts(text))

    def timed(work: Callable[[], object]) -> list[float]:
        seconds = timer.repeats(work)
        advance(1)
        return seconds

    def median(work: Callable[[], object]) -> float:
        return float(np.median(timed(work)))

    return Rates(
        pair_s=timed(pair),
        batch_s=median(lambda: side.score_own(side.encode_images(batch), side.encode_texts(inputs.texts))),
        image_s=median(lambda: side.encode_images(batch)) / size,
        text_s=median(lambda: side.encode_texts(inputs.texts)) / size,
        one_text_s=median(lambda: side.encode_texts(inputs.singles[0][1])),
        rank_s=median(lambda: side.rank(some, one_text)) / size,
        block_s=median(lambda: side.block(many, texts)) / num_block_pairs,
    )


def _query(side: Side, inputs: Inputs, rates: Rates, count: int, is_cached: bool, timer: Timer, advance: Advance) -> Duration:
    """Time to find the first images of a gallery for one caption: timed, or the rates times the count where that would take too long."""
    expected_s = rates.one_text_s + count * (rates.rank_s if is_cached else rates.rank_s + rates.image_s)
    advance(1)
    if expected_s > timer.budget_s:
        return Duration(expected_s, extrapolated=True)
    gallery = side.gallery(side.encode_images(inputs.chunks(count)[0]), count)

    def answer() -> Tensor:
        if not is_cached:
            for chunk in inputs.chunks(count):
                side.encode_images(chunk)
        scores_N = side.rank(gallery, side.encode_texts(inputs.singles[0][1]))
        return scores_N.topk(min(FIRST, count)).indices

    return Duration(float(np.median(timer.repeats(answer))), extrapolated=False)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cpu_name() -> str:
    """The model name where Linux tells it, else what Python knows."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
