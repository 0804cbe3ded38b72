"""A benchmark: teacher and student, and the student in ONNX Runtime, timed in turn on the same images and captions."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch

from dcdctl.core import artifacts, devices, files, models
from dcdctl.core.bench import cold_start, footprint, rates, result
from dcdctl.core.bench.cold_start import ColdStartRequest
from dcdctl.core.bench.config import BenchConfig
from dcdctl.core.bench.rates import Timings
from dcdctl.core.bench.result import (
    Bench,
    CurvePoint,
    Duration,
    FirstQuery,
    Footprint,
    ModelTimes,
    OnnxTimes,
    SpeedUp,
    Throughput,
    speed_up,
)
from dcdctl.core.bench.steps import BenchModel, TimedDual, device_of, prepare_model
from dcdctl.core.bench.timer import Timer
from dcdctl.core.data import Corpus
from dcdctl.core.devices import Compute
from dcdctl.core.errors import ConfigError, DcdError, MissingError
from dcdctl.core.models import DualEncoder, FusionScorer
from dcdctl.core.progress import Track, silent

TEACHER, STUDENT, ONNX = "teacher", "student", "onnx"


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
        student = ColdStartRequest(
            ref=self.student,
            data=str(self.data),
            split=self.split,
            num_images=config.num_images,
            batch_size=config.batch_size,
            device=str(device),
            precision=config.precision,
            num_threads=config.num_threads,
        )
        return {TEACHER: dataclasses.replace(student, ref=self.teacher, overrides=self.overrides), STUDENT: student}


def compare_saved(pair: ModelPair, config: BenchConfig, *, device: torch.device, track: Track = silent) -> Bench:
    """The benchmark of two saved models; saved as bench.json if the student is a run folder.

    Before it opens a corpus or weights: ModelError for a reference that names nothing, ConfigError for a wrong setting
    of the teacher and for a clock that does not measure the device, InputError if the result cannot be written.
    """
    models.check_ref(pair.student)
    models.check_ref(pair.teacher, pair.overrides)
    result_file = Path(pair.student, "bench.json") if Path(pair.student, "run.json").exists() else None
    if result_file is not None:
        files.check_output_file(result_file)
        artifacts.run_of(result_file.parent)  # an error before any work if run.json is damaged
    clock = _clock(config, device)
    corpus = Corpus.open(pair.data, pair.split)
    saved = {TEACHER: models.load(pair.teacher, pair.overrides, track), STUDENT: models.load(pair.student)}
    # Before the models are moved to a GPU, so that the processes have all of its memory.
    requests = pair.requests(config, device) if config.num_fresh_processes else {}
    fresh = cold_start.measure(requests, config.num_fresh_processes, track) if requests else {}
    on_device = {name: model.to(device) for name, model in saved.items()}
    bench = compare(on_device, corpus, config, fresh=fresh, clock=clock, track=track)
    bench = dataclasses.replace(bench, student_model=pair.student, teacher_model=pair.teacher)
    if result_file is not None:
        artifacts.write_document(result_file, {**bench.to_json(), **artifacts.run_of(result_file.parent)})
    return bench


def compare(
    in_torch: Mapping[str, FusionScorer | DualEncoder],
    corpus: Corpus,
    config: BenchConfig,
    *,
    fresh: Mapping[str, FirstQuery] | None = None,
    clock: Callable[[], float] | None = None,
    track: Track = silent,
) -> Bench:
    """Times of the teacher and the student, on the device they are on, and three speed-ups.

    `fresh` has the times of fresh processes by model; `clock` replaces the clock of the settings.
    """
    student = in_torch[STUDENT]
    device = device_of(student)
    # The load before and after shows whether other programs slowed the measurement.
    load_before = devices.load_average()
    with _inference(config, device):
        bench_models = {name: prepare_model(model, corpus, config) for name, model in in_torch.items()}
        footprints = {name: footprint.of_model(model, bench_models[name]) for name, model in in_torch.items()}
        with onnx_student(student, bench_models[STUDENT], is_requested=config.is_onnx_timed) as (onnx, onnx_times):
            if onnx is not None:
                bench_models[ONNX] = onnx
            timer = _timer(config, device, clock or _clock(config, device))
            timings = rates.measure(bench_models, config, timer, track)
            runtimes = {name: (f"torch {torch.__version__}", _dtype(model)) for name, model in in_torch.items()}
            if onnx is not None:
                runtimes[ONNX] = f"onnxruntime {version('onnxruntime')}", "float32"
                # An export has the weights and the operations of the student.
                footprints[ONNX] = footprints[STUDENT]
        machine = {**devices.describe(device), "load_average": [load_before, devices.load_average()]}
    times = {
        name: _model_times(each, corpus, config, footprints[name], *runtimes[name]) for name, each in timings.items()
    }
    speed_ups = {name: _speed_ups(timings[TEACHER], each, corpus, config) for name, each in timings.items()}
    if onnx is not None:
        onnx_times = dataclasses.replace(onnx_times, times=times[ONNX], speed_ups=speed_ups[ONNX])
    return Bench(
        split=corpus.split,
        num_images=corpus.num_images,
        num_captions=corpus.num_captions,
        settings=config,
        machine=machine,
        teacher=dataclasses.replace(times[TEACHER], first_query=(fresh or {}).get(TEACHER)),
        student=dataclasses.replace(times[STUDENT], first_query=(fresh or {}).get(STUDENT)),
        onnx=onnx_times,
        speed_ups=speed_ups[STUDENT],
        curve=_curve(timings[TEACHER], timings[STUDENT], config),
    )


@contextmanager
def _inference(config: BenchConfig, device: torch.device) -> Iterator[None]:
    """Inference mode, autocast and the number of threads, for both models."""
    # The number of threads holds for the whole process, so it is restored at the end.
    before = torch.get_num_threads()
    torch.set_num_threads(config.num_threads or before)
    try:
        with torch.inference_mode(), Compute(device=device, precision=config.precision).forward_pass():
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


def _dtype(model: FusionScorer | DualEncoder) -> str:
    return next((str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()), "unknown")


def _model_times(
    timings: Timings, corpus: Corpus, config: BenchConfig, size: Footprint, runtime: str, dtype: str
) -> ModelTimes:
    latencies = {name: result.latency(timings.steps[name]) for name in ("pair", "image", "caption")}
    if (query := timings.queries[True][config.reference_gallery].repeats) is not None:
        latencies["query"] = result.latency(query)
    pair = latencies["pair"]
    # A fusion model takes too long for all pairs to time a test set as a whole.
    test_set_s = timings.test_set_s(corpus.num_images, corpus.num_captions)
    return ModelTimes(
        kind=timings.model.steps.kind,
        runtime=runtime,
        num_parameters=size.num_parameters,
        dtype=dtype,
        pair_p50_ms=pair.p50.ms,
        pair_p95_ms=pair.p95.ms,
        pair_p99_ms=pair.p99.ms,
        latencies=latencies,
        pairs_per_s=timings.batches[config.batch_size]["pairs"].median.inverse(config.batch_size).value,
        image_encode_ms=1000 * timings.in_batch("images").value,
        text_encode_ms=1000 * timings.in_batch("captions").value,
        throughput=tuple(_throughput(timings, count) for count in timings.batches),
        queries=tuple(
            result.query_time(count, timings.queries[is_cached][count], is_cached=is_cached)
            for count in sorted(config.gallery_sizes)
            for is_cached in (True, False)
        ),
        test_set=Duration(seconds=test_set_s.value, extrapolated=True, interval=test_set_s.interval, num_repeats=0),
        footprint=size,
        first_query=None,
    )


def _throughput(timings: Timings, size: int) -> Throughput:
    pairs, images, captions = (
        timings.batches[size][kind].median.inverse(size) for kind in ("pairs", "images", "captions")
    )
    return Throughput(
        batch_size=size,
        pairs_per_s=pairs.value,
        pairs_interval=pairs.interval,
        images_per_s=images.value,
        images_interval=images.interval,
        captions_per_s=captions.value,
        captions_interval=captions.interval,
    )


def _speed_ups(teacher: Timings, other: Timings, corpus: Corpus, config: BenchConfig) -> tuple[SpeedUp, ...]:
    """Teacher over other: for one pair, for one query, for the whole test set."""
    pair_s = teacher.steps["pair"].median, other.steps["pair"].median
    test_set_s = [timings.test_set_s(corpus.num_images, corpus.num_captions) for timings in (teacher, other)]
    return (
        speed_up("one pair, everything encoded", *pair_s, extrapolated=False),
        _query_speed_up(teacher, other, config.reference_gallery, is_cached=True),
        speed_up("whole test set, all pairs", *test_set_s, extrapolated=True),
    )


def _curve(teacher: Timings, student: Timings, config: BenchConfig) -> tuple[CurvePoint, ...]:
    return tuple(
        CurvePoint(
            num_images=count,
            is_cached=is_cached,
            speed_up=_query_speed_up(teacher, student, count, is_cached=is_cached),
        )
        for is_cached in (True, False)
        for count in sorted(config.gallery_sizes)
    )


def _query_speed_up(teacher: Timings, other: Timings, num_images: int, *, is_cached: bool) -> SpeedUp:
    slow, fast = (timings.queries[is_cached][num_images] for timings in (teacher, other))
    # A ratio is only measured if both of its times are.
    label = f"one query over {num_images:,} images, encoded {'before' if is_cached else 'with it'}"
    return speed_up(label, slow.seconds, fast.seconds, extrapolated=slow.repeats is None or fast.repeats is None)


@contextmanager
def onnx_student(
    model: FusionScorer | DualEncoder, bench_model: BenchModel, *, is_requested: bool
) -> Iterator[tuple[BenchModel | None, OnnxTimes]]:
    """The student exported into a temporary folder, and what is known of it before it is timed; None with a note if it
    is not. Its vectors are compared with torch's."""
    if not is_requested:
        yield None, OnnxTimes(note="not asked for")
    elif missing := _missing_packages():
        yield None, OnnxTimes(note=missing)
    elif model.kind == "fusion":
        yield None, OnnxTimes(note="does not export: the shapes of a fusion model depend on the data")
    else:
        with tempfile.TemporaryDirectory(prefix="dcdctl-onnx-") as folder:
            yield _exported(model, bench_model, Path(folder))


def _missing_packages() -> str:
    try:
        models.require_onnx()
    except MissingError as error:
        return str(error)
    return ""


def _exported(model: DualEncoder, in_torch: BenchModel, folder: Path) -> tuple[BenchModel | None, OnnxTimes]:
    try:
        # The files hold float32, whatever the autocast precision of the benchmark.
        with torch.inference_mode(False), torch.autocast(device_of(model).type, enabled=False):
            towers = models.export_onnx(model, folder / "towers")
            onnx = models.OnnxDual(towers, model.preprocess, device=device_of(model))
            size = in_torch.batch_size
            difference = models.check_onnx(onnx, model, in_torch.images[size], in_torch.texts[size])
    except DcdError as error:
        return None, OnnxTimes(note=f"does not run: {error.args[0]}")
    # It has only the members of a dual encoder that are timed.
    timed = dataclasses.replace(in_torch, steps=TimedDual(cast(DualEncoder, onnx)))
    return timed, OnnxTimes(largest_difference=difference, file_bytes=towers.num_bytes)
