"""A benchmark: teacher and student, and the student in ONNX Runtime, timed in turn on the same images and captions."""

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

from dcdctl.core import artifacts, devices, files, models
from dcdctl.core.bench import cold_start, footprint, rates, result
from dcdctl.core.bench.cold_start import ColdStartRequest
from dcdctl.core.bench.config import BenchConfig
from dcdctl.core.bench.rates import BatchTimes, RateMeasurement, Rates
from dcdctl.core.bench.result import (
    Bench,
    CurvePoint,
    Duration,
    FirstQuery,
    Footprint,
    ModelTimes,
    OnnxTimes,
    QueryTiming,
    SpeedUp,
    Throughput,
    speed_up,
)
from dcdctl.core.bench.steps import BenchModel, Inputs, TimedDual, device_of, inputs_for, timed_model
from dcdctl.core.bench.timer import Quantity, Timer
from dcdctl.core.data import Corpus
from dcdctl.core.devices import Compute
from dcdctl.core.errors import ConfigError, DcdError, MissingError
from dcdctl.core.models import DualEncoder, FusionScorer
from dcdctl.core.progress import Track, silent

TEACHER, STUDENT, ONNX = "teacher", "student", "onnx"


@dataclass(frozen=True, kw_only=True)
class ModelTimings:
    """All times of one model."""

    rates: Rates
    cached: dict[int, QueryTiming]
    """Queries by gallery size, images encoded before."""
    uncached: dict[int, QueryTiming]
    """Queries by gallery size, images encoded with the query."""
    test_set_s: Quantity


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What is known of a model besides its times."""

    kind: str
    runtime: str
    dtype: str
    footprint: Footprint
    first_query: FirstQuery | None = None


@dataclass(frozen=True, kw_only=True)
class ModelPair:
    """Two saved models and the corpus that they are timed on."""

    teacher: str
    student: str
    overrides: Mapping[str, Any]
    """Settings that the teacher's files lack."""
    data: Path
    split: str

    def requests(self, config: BenchConfig, device: torch.device) -> dict[str, ColdStartRequest]:
        """The requests to fresh processes."""
        shared = {
            "data": str(self.data),
            "split": self.split,
            "num_images": config.num_images,
            "batch_size": config.batch_size,
            "device": str(device),
            "precision": config.precision,
            "num_threads": config.num_threads,
        }
        teacher = ColdStartRequest(ref=self.teacher, overrides=self.overrides, **shared)  # type: ignore[arg-type]
        return {TEACHER: teacher, STUDENT: ColdStartRequest(ref=self.student, **shared)}  # type: ignore[arg-type]


@dataclass(frozen=True)
class BenchPlan:
    """A benchmark whose settings are checked, with nothing opened yet."""

    clock: Callable[[], float]
    result_file: Path | None
    """bench.json in the student's run folder; None if the student is not a run."""


def resolve(pair: ModelPair, config: BenchConfig, device: torch.device) -> BenchPlan:
    """The plan of a benchmark. Opens no corpus and no weights.

    ModelError for a reference that names nothing, ConfigError for a wrong setting of the teacher and for a clock that
    does not measure the device, InputError if the result cannot be written.
    """
    models.check_ref(pair.student)
    models.check_ref(pair.teacher, pair.overrides)
    result_file = Path(pair.student, "bench.json") if Path(pair.student, "run.json").exists() else None
    if result_file is not None:
        files.check_output_file(result_file)
        artifacts.run_of(result_file.parent)  # an error before any work if run.json is damaged
    return BenchPlan(_clock(config, device), result_file)


def compare_saved(pair: ModelPair, config: BenchConfig, *, device: torch.device, track: Track = silent) -> Bench:
    """The benchmark of two saved models; saved as bench.json if the student is a run folder."""
    plan = resolve(pair, config, device)
    corpus = Corpus.open(pair.data, pair.split)
    teacher, student = models.load(pair.teacher, pair.overrides, track), models.load(pair.student)
    # Before the models are moved to a GPU, so that the processes have all of its memory.
    requests = pair.requests(config, device) if config.num_fresh_processes else {}
    fresh = cold_start.measure(requests, config.num_fresh_processes, track) if requests else {}
    result = compare(teacher.to(device), student.to(device), corpus, config, fresh=fresh, clock=plan.clock, track=track)
    result = dataclasses.replace(result, student_model=pair.student, teacher_model=pair.teacher)
    if plan.result_file is not None:
        artifacts.write_document(plan.result_file, {**result.to_json(), **artifacts.run_of(plan.result_file.parent)})
    return result


def compare(
    teacher: FusionScorer | DualEncoder,
    student: FusionScorer | DualEncoder,
    corpus: Corpus,
    config: BenchConfig,
    *,
    fresh: Mapping[str, FirstQuery] | None = None,
    clock: Callable[[], float] | None = None,
    track: Track = silent,
) -> Bench:
    """Times of teacher and student, on the device they are on, and three speed-ups.

    `fresh` has the times of fresh processes by model; `clock` replaces the clock of the settings.
    """
    device = device_of(student)
    load_before = devices.load_average()
    in_torch = ((TEACHER, teacher), (STUDENT, student))
    with _inference(config, device):
        bench_models = {name: _bench_model(model, corpus, config) for name, model in in_torch}
        facts = {name: _facts(model, bench_models[name], (fresh or {}).get(name)) for name, model in in_torch}
        with onnx_student(student, bench_models[STUDENT].inputs, is_requested=config.is_onnx_timed) as onnx:
            if onnx.model is not None:
                bench_models[ONNX] = onnx.model
            timings = _timings(
                bench_models, corpus, config, _timer(config, device, clock or _clock(config, device)), track
            )
        machine = {**devices.describe(device), "load_average": [load_before, devices.load_average()]}
    return Bench(
        split=corpus.split,
        num_images=corpus.num_images,
        num_captions=corpus.num_captions,
        settings=config,
        machine=machine,
        teacher=_model_times(facts[TEACHER], timings[TEACHER], config),
        student=_model_times(facts[STUDENT], timings[STUDENT], config),
        onnx=_onnx_times(onnx, facts[STUDENT], timings, config),
        speed_ups=_speed_ups(timings[TEACHER], timings[STUDENT], config.reference_gallery),
        curve=_curve(timings[TEACHER], timings[STUDENT]),
    )


@contextmanager
def _inference(config: BenchConfig, device: torch.device) -> Iterator[None]:
    """Inference mode, autocast and the number of threads, for both models."""
    before = torch.get_num_threads()
    torch.set_num_threads(config.num_threads or before)
    try:
        with (
            torch.inference_mode(),
            Compute(device=device, precision=config.precision).forward_pass(),
        ):
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
        raise ConfigError(
            f"a processor's seconds say nothing of work on {device.type}", hint="use --clock wall or --device cpu"
        )
    return time.process_time


def _bench_model(model: FusionScorer | DualEncoder, corpus: Corpus, config: BenchConfig) -> BenchModel:
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
    return BenchModel(timed_model(model, config.batch_size), inputs)


def _facts(model: FusionScorer | DualEncoder, bench_model: BenchModel, fresh: FirstQuery | None) -> ModelFacts:
    return ModelFacts(
        kind=bench_model.steps.kind,
        runtime=f"torch {torch.__version__}",
        dtype=next((str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()), "unknown"),
        footprint=footprint.of_model(model, bench_model),
        first_query=fresh,
    )


def _timings(
    bench_models: Mapping[str, BenchModel], corpus: Corpus, config: BenchConfig, timer: Timer, track: Track
) -> dict[str, ModelTimings]:
    with track("bench", total=rates.num_measurements(config), unit="measurements") as advance:
        measurement = RateMeasurement(bench_models, config, timer, advance)
        by_model = rates.rates(measurement)
        cached, uncached = (rates.queries(measurement, by_model, is_cached=is_cached) for is_cached in (True, False))
    return {
        name: ModelTimings(
            rates=steps,
            cached=cached[name],
            uncached=uncached[name],
            test_set_s=steps.image_s * corpus.num_images
            + (steps.text_s + steps.block_s * corpus.num_images) * corpus.num_captions,
        )
        for name, steps in by_model.items()
    }


def _model_times(facts: ModelFacts, timings: ModelTimings, config: BenchConfig) -> ModelTimes:
    steps, size = timings.rates, config.batch_size
    pair = result.latency(steps.pair)
    query = timings.cached[config.reference_gallery].sample
    latencies = {
        "pair": steps.pair,
        "image": steps.image,
        "caption": steps.text,
        **({} if query is None else {"query": query}),
    }
    queries = [
        result.query_time(count, by_size[count], is_cached=is_cached)
        for count in sorted(timings.cached)
        for is_cached, by_size in ((True, timings.cached), (False, timings.uncached))
    ]
    return ModelTimes(
        **{field.name: getattr(facts, field.name) for field in dataclasses.fields(facts)},
        num_parameters=facts.footprint.num_parameters,
        pair_p50_ms=pair.p50.ms,
        pair_p95_ms=pair.p95.ms,
        pair_p99_ms=pair.p99.ms,
        latencies={name: result.latency(sample) for name, sample in latencies.items()},
        pairs_per_s=steps.batches[size].pairs.median.inverse(size).value,
        image_encode_ms=1000 * steps.image_s.value,
        text_encode_ms=1000 * steps.text_s.value,
        throughput=tuple(_throughput(count, times) for count, times in steps.batches.items()),
        queries=tuple(queries),
        test_set=Duration(
            seconds=timings.test_set_s.value, extrapolated=True, interval=timings.test_set_s.interval, num_repeats=0
        ),
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


def _onnx_times(
    onnx: OnnxStudent, student: ModelFacts, timings: Mapping[str, ModelTimings], config: BenchConfig
) -> OnnxTimes:
    if onnx.model is None:
        return OnnxTimes(note=onnx.note, times=None, largest_difference=None, file_bytes=None, speed_ups=())
    facts = dataclasses.replace(student, runtime=models.onnxruntime_version(), dtype="float32", first_query=None)
    return OnnxTimes(
        note="",
        times=_model_times(facts, timings[ONNX], config),
        largest_difference=onnx.largest_difference,
        file_bytes=onnx.file_bytes,
        speed_ups=_speed_ups(timings[TEACHER], timings[ONNX], config.reference_gallery),
    )


def _speed_ups(teacher: ModelTimings, other: ModelTimings, num_images: int) -> tuple[SpeedUp, ...]:
    """Teacher over other: for one pair, for one query, for the whole test set."""
    return (
        speed_up(
            "one pair, everything encoded", teacher.rates.pair.median, other.rates.pair.median, extrapolated=False
        ),
        _query_speed_up(teacher.cached, other.cached, num_images, "encoded before"),
        speed_up("whole test set, all pairs", teacher.test_set_s, other.test_set_s, extrapolated=True),
    )


def _curve(teacher: ModelTimings, student: ModelTimings) -> tuple[CurvePoint, ...]:
    modes = (
        (True, teacher.cached, student.cached, "encoded before"),
        (False, teacher.uncached, student.uncached, "encoded with it"),
    )
    return tuple(
        CurvePoint(num_images=count, is_cached=is_cached, speed_up=_query_speed_up(slow, fast, count, when))
        for is_cached, slow, fast, when in modes
        for count in sorted(slow)
    )


def _query_speed_up(
    teacher: Mapping[int, QueryTiming], other: Mapping[int, QueryTiming], num_images: int, when: str
) -> SpeedUp:
    slow, fast = teacher[num_images], other[num_images]
    label = f"one query over {num_images:,} images, {when}"
    return speed_up(label, slow.seconds, fast.seconds, extrapolated=slow.sample is None or fast.sample is None)


@dataclass(frozen=True, kw_only=True)
class OnnxStudent:
    """The student in ONNX Runtime."""

    note: str = ""
    """Why it is not timed; empty if it is."""
    model: BenchModel | None = None
    largest_difference: float | None = None
    """Between a coordinate of its vectors and of torch's."""
    file_bytes: int | None = None


@contextmanager
def onnx_student(model: FusionScorer | DualEncoder, inputs: Inputs, *, is_requested: bool) -> Iterator[OnnxStudent]:
    """The student exported into a temporary folder. Its vectors are compared with torch's before it is timed."""
    if not is_requested:
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
        # The files hold float32, whatever the autocast precision of the benchmark.
        with torch.inference_mode(False), torch.autocast(device_of(model).type, enabled=False):
            towers = models.export_onnx(model, folder / "towers")
            onnx = models.OnnxDual(towers, model.preprocess, device=device_of(model))
            size = inputs.batch_size
            difference = models.check_onnx(onnx, model, inputs.images[size], inputs.texts[size])
    except DcdError as error:
        return OnnxStudent(note=f"does not run: {error.args[0]}")
    # It has only the members of a dual encoder that are timed.
    model_in_onnx = BenchModel(TimedDual(cast(DualEncoder, onnx)), inputs)
    return OnnxStudent(model=model_in_onnx, largest_difference=difference, file_bytes=towers.num_bytes)
