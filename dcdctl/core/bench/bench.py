"""The student by ONNX Runtime, as one more contestant of a benchmark."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from dcdctl.core import devices, files, models
from dcdctl.core.bench import cold_start, footprint, rates, result
from dcdctl.core.bench.cold_start import FirstQuery, Request
from dcdctl.core.bench.config import BenchConfig
from dcdctl.core.bench.footprint import Footprint
from dcdctl.core.bench.rates import BatchTimes, Course, Query, Rates
from dcdctl.core.bench.result import Bench, CurvePoint, Duration, ModelTimes, OnnxTimes, SpeedUp, Throughput, speed_up
from dcdctl.core.bench.steps import Contestant, DualSide, Inputs, device_of, inputs_for, side_of
from dcdctl.core.bench.timer import Quantity, Timer
from dcdctl.core.data import Corpus
from dcdctl.core.devices import Compute
from dcdctl.core.errors import ConfigError, DcdError, MissingError
from dcdctl.core.models import DualEncoder, FusionScorer
from dcdctl.core.progress import Track, silent


@dataclass(frozen=True, kw_only=True)
class OnnxStudent:
    """Whether and how ONNX Runtime takes part."""

    note: str = ""
    """Why it does not, in a few words."""
    contestant: Contestant | None = None
    largest_difference: float | None = None
    """Of a coordinate of its vectors from torch's."""
    file_bytes: int | None = None


@contextmanager
def onnx_student(model: FusionScorer | DualEncoder, inputs: Inputs, *, is_wanted: bool) -> Iterator[OnnxStudent]:
    """The student exported into a folder of its own, gone afterwards; its vectors are compared with torch's before it may take part."""
    if not is_wanted:
        yield OnnxStudent(note="not asked for")
    elif missing := _missing_packages():
        yield OnnxStudent(note=missing)
    elif model.kind == "fusion":
        yield OnnxStudent(note="does not export: the shapes of a fusion model depend on the data")
    else:
        with tempfile.TemporaryDirectory(prefix="dcdctl-onnx-") as folder:
            yield _exported(model, inputs, Path(folder))


def _missing_packages() -> str:
    try:
        models.require_onnx()
    except MissingError as error:
        return str(error)
    return ""


def _exported(model: DualEncoder, inputs: Inputs, folder: Path) -> OnnxStudent:
    try:
        with torch.inference_mode(False), torch.autocast(device_of(model).type, enabled=False):
            towers = models.export_onnx(model, folder / "towers")
            onnx = models.OnnxDual(towers, model.preprocess, device=device_of(model))
            size = inputs.batch_size
            difference = models.check_onnx(onnx, model, inputs.images[size], inputs.texts[size])
    except DcdError as error:
        return OnnxStudent(note=f"does not run: {error.args[0]}")
    # It embeds as a dual encoder does; it is not trained, saved or moved.
    contestant = Contestant(DualSide(cast(DualEncoder, onnx)), inputs)
    return OnnxStudent(contestant=contestant, largest_difference=difference, file_bytes=towers.num_bytes)


TEACHER, STUDENT, ONNX = "teacher", "student", "onnx"


@dataclass(frozen=True, kw_only=True)
class Timed:
    """All that the clock told of one contestant."""

    rates: Rates
    cached: dict[int, Query]
    """Queries by size of the gallery, images encoded before."""
    uncached: dict[int, Query]
    test_set_s: Quantity


@dataclass(frozen=True, kw_only=True)
class About:
    """What the clock does not tell of a contestant."""

    kind: str
    runtime: str
    dtype: str
    footprint: Footprint
    first_query: FirstQuery | None = None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two saved models and what they are timed on."""

    teacher: str
    student: str
    overrides: Mapping[str, Any]
    """What the teacher's files do not say."""
    data: Path
    split: str

    def requests(self, config: BenchConfig, device: torch.device) -> dict[str, Request]:
        """What fresh processes are asked."""
        shared = {
            "data": str(self.data),
            "split": self.split,
            "num_images": config.num_images,
            "batch_size": config.batch_size,
            "device": str(device),
            "precision": config.precision,
            "num_threads": config.num_threads,
        }
        teacher = Request(ref=self.teacher, overrides=self.overrides, **shared)  # type: ignore[arg-type]
        return {TEACHER: teacher, STUDENT: Request(ref=self.student, **shared)}  # type: ignore[arg-type]


def compare_saved(pair: Pair, config: BenchConfig, *, device: torch.device, track: Track = silent) -> Bench:
    """The benchmark of two saved models; kept as bench.json where the student is a run folder."""
    corpus, clock = Corpus.open(pair.data, pair.split), _clock(config, device)
    teacher, student = models.load_fusion(pair.teacher, pair.overrides, track), models.load(pair.student)
    # Before the models are moved: on a GPU the processes have its memory for themselves.
    requests = pair.requests(config, device) if config.num_fresh_processes else {}
    fresh = cold_start.measure(requests, config.num_fresh_processes, track) if requests else {}
    found = compare(teacher.to(device), student.to(device), corpus, config, fresh=fresh, clock=clock, track=track)
    result = dataclasses.replace(found, student_model=pair.student, teacher_model=pair.teacher)
    if Path(pair.student, "run.json").exists():
        files.write_json(Path(pair.student, "bench.json"), result.to_json())
    return result


def compare(
    teacher: FusionScorer,
    student: FusionScorer | DualEncoder,
    corpus: Corpus,
    config: BenchConfig,
    *,
    fresh: Mapping[str, FirstQuery] | None = None,
    clock: Callable[[], float] | None = None,
    track: Track = silent,
) -> Bench:
    """Times of teacher and student, on the device they are on, and three speed-ups.

    `fresh` is what fresh processes told of each; `clock` takes the place of the setting's.
    """
    device = device_of(student)
    load_before = devices.load_average()
    with _setting(config, device):
        both = {name: _contestant(model, corpus, config) for name, model in ((TEACHER, teacher), (STUDENT, student))}
        abouts = {name: _about(model, both[name], (fresh or {}).get(name)) for name, model in ((TEACHER, teacher), (STUDENT, student))}
        with onnx_student(student, both[STUDENT].inputs, is_wanted=config.is_onnx_timed) as onnx:
            everyone = both if onnx.contestant is None else {**both, ONNX: onnx.contestant}
            timed = _timed(everyone, corpus, config, _timer(config, device, clock or _clock(config, device)), track)
        where = {**devices.describe(device), "load_average": [load_before, devices.load_average()]}
    return Bench(
        split=corpus.split,
        num_images=corpus.num_images,
        num_captions=corpus.num_captions,
        settings=config,
        machine=where,
        teacher=_model_times(abouts[TEACHER], timed[TEACHER], config),
        student=_model_times(abouts[STUDENT], timed[STUDENT], config),
        onnx=_onnx_times(onnx, abouts[STUDENT], timed, config),
        speed_ups=_speed_ups(timed[TEACHER], timed[STUDENT], config.headline_size),
        curve=_curve(timed[TEACHER], timed[STUDENT]),
    )


@contextmanager
def _setting(config: BenchConfig, device: torch.device) -> Iterator[None]:
    """Inference mode, autocast and the number of threads, for both models."""
    before = torch.get_num_threads()
    torch.set_num_threads(config.num_threads or before)
    try:
        with torch.inference_mode(), Compute(device=device, precision=config.precision).autocast():
            yield
    finally:
        torch.set_num_threads(before)


def _timer(config: BenchConfig, device: torch.device, clock: Callable[[], float]) -> Timer:
    return Timer(
        num_warmup=config.num_warmup,
        num_repeats=config.num_repeats,
        budget_s=config.budget_s,
        min_rounds=min(config.min_rounds, config.num_repeats),
        clock=clock,
        synchronize=partial(devices.synchronize, device),
    )


def _clock(config: BenchConfig, device: torch.device) -> Callable[[], float]:
    if config.clock == "wall":
        return time.perf_counter
    if device.type != "cpu":
        raise ConfigError(f"a processor's seconds say nothing of work on {device.type}", hint="use --clock wall or --device cpu")
    return time.process_time


def _contestant(model: FusionScorer | DualEncoder, corpus: Corpus, config: BenchConfig) -> Contestant:
    model.eval()
    inputs: Inputs = inputs_for(
        model.preprocess,
        corpus,
        device_of(model),
        num_images=config.num_images,
        batch_size=config.batch_size,
        batch_sizes=config.batch_sizes,
        counts=config.gallery_sizes,
    )
    return Contestant(side_of(model, config.batch_size), inputs)


def _about(model: FusionScorer | DualEncoder, contestant: Contestant, fresh: FirstQuery | None) -> About:
    return About(
        kind=contestant.side.kind,
        runtime=f"torch {torch.__version__}",
        dtype=str(next(iter(model.parameters())).dtype).removeprefix("torch."),
        footprint=footprint.of_model(model, contestant),
        first_query=fresh,
    )


def _timed(contestants: Mapping[str, Contestant], corpus: Corpus, config: BenchConfig, timer: Timer, track: Track) -> dict[str, Timed]:
    with track("bench", total=rates.num_measurements(config), unit="measurements") as advance:
        course = Course(contestants, config, timer, advance)
        found = rates.rates(course)
        cached, uncached = (rates.queries(course, found, is_cached=is_cached) for is_cached in (True, False))
    return {
        name: Timed(
            rates=one,
            cached=cached[name],
            uncached=uncached[name],
            test_set_s=one.image_s * corpus.num_images + (one.text_s + one.block_s * corpus.num_images) * corpus.num_captions,
        )
        for name, one in found.items()
    }


def _model_times(about: About, timed: Timed, config: BenchConfig) -> ModelTimes:
    one, size = timed.rates, config.batch_size
    pair = result.latency(one.pair)
    headline = timed.cached[config.headline_size].sample
    latencies = {"pair": one.pair, "image": one.image, "caption": one.text, **({} if headline is None else {"query": headline})}
    queries = [
        result.query_time(count, by_size[count], is_cached=is_cached)
        for count in sorted(timed.cached)
        for is_cached, by_size in ((True, timed.cached), (False, timed.uncached))
    ]
    return ModelTimes(
        **{field.name: getattr(about, field.name) for field in dataclasses.fields(about)},
        num_parameters=about.footprint.num_parameters,
        pair_p50_ms=pair.p50.ms,
        pair_p95_ms=pair.p95.ms,
        pair_p99_ms=pair.p99.ms,
        latencies={name: result.latency(sample) for name, sample in latencies.items()},
        pairs_per_s=one.batches[size].pairs.median.inverse(size).value,
        image_encode_ms=1000 * one.image_s.value,
        text_encode_ms=1000 * one.text_s.value,
        throughput=tuple(_throughput(count, times) for count, times in one.batches.items()),
        queries=tuple(queries),
        test_set=Duration(seconds=timed.test_set_s.value, extrapolated=True, interval=timed.test_set_s.interval, num_repeats=0),
    )


def _throughput(size: int, times: BatchTimes) -> Throughput:
    pairs, images, captions = (sample.median.inverse(size) for sample in (times.pairs, times.images, times.texts))
    return Throughput(
        batch_size=size,
        pairs_per_s=pairs.value,
        pairs_interval=pairs.interval,
        images_per_s=images.value,
        images_interval=images.interval,
        captions_per_s=captions.value,
        captions_interval=captions.interval,
    )


def _onnx_times(onnx: OnnxStudent, student: About, timed: Mapping[str, Timed], config: BenchConfig) -> OnnxTimes:
    if onnx.contestant is None:
        return OnnxTimes(note=onnx.note, times=None, largest_difference=None, file_bytes=None, speed_ups=())
    about = dataclasses.replace(student, runtime=models.onnxruntime_version(), dtype="float32", first_query=None)
    return OnnxTimes(
        note="",
        times=_model_times(about, timed[ONNX], config),
        largest_difference=onnx.largest_difference,
        file_bytes=onnx.file_bytes,
        speed_ups=_speed_ups(timed[TEACHER], timed[ONNX], config.headline_size),
    )


def _speed_ups(teacher: Timed, other: Timed, num_images: int) -> tuple[SpeedUp, ...]:
    """The three ways to say how much faster the student is."""
    return (
        speed_up("one pair, everything encoded", teacher.rates.pair.median, other.rates.pair.median, extrapolated=False),
        _query_speed_up(teacher.cached, other.cached, num_images, "encoded before"),
        speed_up("whole test set, all pairs", teacher.test_set_s, other.test_set_s, extrapolated=True),
    )


def _curve(teacher: Timed, student: Timed) -> tuple[CurvePoint, ...]:
    ways = ((True, teacher.cached, student.cached, "encoded before"), (False, teacher.uncached, student.uncached, "encoded with it"))
    return tuple(
        CurvePoint(num_images=count, is_cached=is_cached, speed_up=_query_speed_up(ours, theirs, count, when))
        for is_cached, ours, theirs, when in ways
        for count in sorted(ours)
    )


def _query_speed_up(teacher: Mapping[int, Query], other: Mapping[int, Query], num_images: int, when: str) -> SpeedUp:
    slow, fast = teacher[num_images], other[num_images]
    label = f"one query over {num_images:,} images, {when}"
    return speed_up(label, slow.seconds, fast.seconds, extrapolated=slow.sample is None or fast.sample is None)
