"""A benchmark: teacher and student, and the student in ONNX Runtime, timed in turn on the same images and captions."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dcdctl.core import artifacts, devices, files, models
from dcdctl.core.arguments import optional_ref, path
from dcdctl.core.bench import rates, result
from dcdctl.core.bench.config import ONNX, STUDENT, TEACHER, BenchConfig
from dcdctl.core.bench.footprint import measure_footprint
from dcdctl.core.bench.job import BenchJob
from dcdctl.core.bench.result import (
    Bench,
    CurvePoint,
    Duration,
    Footprint,
    ModelTimes,
    OnnxTimes,
    QueryTime,
    SpeedUp,
    Throughput,
    speed_up,
)
from dcdctl.core.bench.steps import BenchModel, device_of, prepare_model, timed_model
from dcdctl.core.bench.timer import Timer
from dcdctl.core.config import build
from dcdctl.core.data import Corpus
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ConfigError, CorpusError, DcdError
from dcdctl.core.models import Model
from dcdctl.core.progress import Say, Track, silent, unsaid
from dcdctl.core.toml import apply_sets


def run_bench(job: BenchJob, *, track: Track = silent, say: Say = unsaid) -> Bench:
    """Time two saved models; saved as bench.json if the student, or its query encoder, is a run folder. A line to `say`
    for a precision that is slower than fp32 on this processor.

    Before it opens a corpus or weights: ModelError for a reference that names nothing; ConfigError without a teacher,
    for a wrong setting, and for a clock that does not measure the device; InputError if the result cannot be written.
    """
    device = devices.choose(job.device)
    config = job.config
    if config is None:
        settings = {"precision": devices.precision_on(job.precision, device, say)}
        config = build(BenchConfig, settings | apply_sets({}, job.sets or []))
    if job.teacher is None and job.query_model is None:
        raise ConfigError("--teacher is missing", hint="name the slow model, or --query-model")
    overrides = models.parse_overrides(job.model_overrides)
    fast, slow = os.fspath(job.student), os.fspath(job.teacher or job.student)
    models.check_ref(fast)
    models.check_ref(slow, overrides)
    query_model = optional_ref(job.query_model)
    if query_model is not None:
        models.check_ref(query_model, kind="query")
    student = query_model or fast
    result_file = Path(student, "bench.json") if Path(student, "run.json").exists() else None
    if result_file is not None:
        files.check_output_file(result_file)
        models.run_of(result_file.parent)  # an error before any work if run.json is damaged
    clock = _clock(config, device)
    corpus = Corpus.open(path(job.data), job.split)
    if not (corpus.num_images and corpus.num_captions):
        raise CorpusError(
            f"{job.data} has {corpus.num_images:,} images and {corpus.num_captions:,} texts in {job.split}",
            hint="a search needs both: name another corpus, or a split with --split",
        )
    teacher_model: Any = models.load(slow, overrides, track)
    student_model: Any = models.load(fast)
    if query_model is not None:
        student_model = models.with_queries(student_model, query_model)
    on_device = {TEACHER: teacher_model.to(device), STUDENT: student_model.to(device)}
    bench = compare(on_device, corpus, config, clock=clock, track=track)
    bench = dataclasses.replace(bench, student_model=student, teacher_model=slow)
    if result_file is not None:
        artifacts.write_document(result_file, {**bench.to_json(), **models.run_of(result_file.parent)})
    return bench


def compare(
    in_torch: Mapping[str, Model],
    corpus: Corpus,
    config: BenchConfig,
    *,
    clock: Callable[[], float],
    track: Track = silent,
) -> Bench:
    """Times of the teacher and the student, on the device they are on, and three speed-ups."""
    student = in_torch[STUDENT]
    device = device_of(student)
    with _inference(config, device), tempfile.TemporaryDirectory(prefix="dcdctl-onnx-") as folder:
        bench_models = {name: prepare_model(model, corpus, config) for name, model in in_torch.items()}
        footprints = {name: measure_footprint(model, bench_models[name]) for name, model in in_torch.items()}
        runtimes = {}
        for name, model in in_torch.items():
            # A Python function has no parameters.
            dtypes = [str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()]
            runtimes[name] = f"torch {torch.__version__}", dtypes[0] if dtypes else "unknown"
        # Before the timing, so that the exported model takes turns with the others.
        onnx, onnx_times = onnx_student(student, bench_models[STUDENT], Path(folder), is_timed=config.is_onnx_timed)
        if onnx is not None:
            bench_models[ONNX] = onnx
            runtimes[ONNX] = f"onnxruntime {version('onnxruntime')}", "float32"
            # An export has the weights and the operations of the student.
            footprints[ONNX] = footprints[STUDENT]
        timer = Timer(config=config, clock=clock, synchronize=partial(devices.synchronize, device))
        rates.measure(bench_models, timer, track)
        machine = devices.describe(device)
    times = {}
    for name, each in bench_models.items():
        runtime, dtype = runtimes[name]
        times[name] = _model_times(each, corpus, config, footprint=footprints[name], runtime=runtime, dtype=dtype)
    speed_ups = {name: _speed_ups(bench_models[TEACHER], each, corpus, config) for name, each in bench_models.items()}
    if onnx is not None:
        onnx_times = dataclasses.replace(onnx_times, times=times[ONNX], speed_ups=speed_ups[ONNX])
    return Bench(
        split=corpus.split,
        num_images=corpus.num_images,
        num_captions=corpus.num_captions,
        settings=config,
        machine=machine,
        teacher=times[TEACHER],
        student=times[STUDENT],
        onnx=onnx_times,
        speed_ups=speed_ups[STUDENT],
        curve=_curve(bench_models[TEACHER], bench_models[STUDENT], config),
    )


@contextmanager
def _inference(config: BenchConfig, device: torch.device) -> Iterator[None]:
    """Inference mode and autocast, for both models."""
    with torch.inference_mode(), Compute(device=device, precision=config.precision).forward_pass():
        yield


def _clock(config: BenchConfig, device: torch.device) -> Callable[[], float]:
    if config.clock == "wall":
        return time.perf_counter
    if device.type != "cpu":
        raise ConfigError(
            f"a processor's seconds say nothing of work on {device.type}", hint="use --set clock=wall or --device cpu"
        )
    return time.process_time


def _model_times(
    model: BenchModel, corpus: Corpus, config: BenchConfig, *, footprint: Footprint, runtime: str, dtype: str
) -> ModelTimes:
    latencies = {name: result.latency(model.step_times[name]) for name in ("pair", "image", "caption")}
    if (query := model.query_times[True].get(config.reference_gallery)) is not None:
        latencies["query"] = result.latency(query)
    # A fusion model takes too long for all pairs to time a test set as a whole.
    test_set_s = model.test_set_s(corpus.num_images, corpus.num_captions)
    throughput = []
    for size, times in model.batch_times.items():
        rates = {f"{kind}_per_s": size / repeats.median.value for kind, repeats in times.items()}
        throughput.append(Throughput(batch_size=size, **rates))
    queries = []
    for count in sorted(config.gallery_sizes):
        for is_cached in (True, False):
            query_s, timed = model.query_s(count, is_cached=is_cached), model.query_times[is_cached].get(count)
            queries.append(
                QueryTime(
                    num_images=count,
                    is_cached=is_cached,
                    seconds=query_s.value,
                    extrapolated=timed is None,
                    interval=query_s.interval,
                    num_repeats=0 if timed is None else timed.num_repeats,
                )
            )
    return ModelTimes(
        kind=model.steps.kind,
        runtime=runtime,
        dtype=dtype,
        latencies=latencies,
        throughput=tuple(throughput),
        queries=tuple(queries),
        test_set=Duration(seconds=test_set_s.value, extrapolated=True, interval=test_set_s.interval, num_repeats=0),
        footprint=footprint,
    )


def _speed_ups(teacher: BenchModel, other: BenchModel, corpus: Corpus, config: BenchConfig) -> tuple[SpeedUp, ...]:
    """Teacher over other: for one pair, for one query, for the whole test set."""
    pair_s = [model.step_times["pair"].median for model in (teacher, other)]
    test_set_s = [model.test_set_s(corpus.num_images, corpus.num_captions) for model in (teacher, other)]
    return (
        speed_up("one pair, everything encoded", *pair_s, extrapolated=False),
        _query_speed_up(teacher, other, config.reference_gallery, is_cached=True),
        speed_up("whole test set, all pairs", *test_set_s, extrapolated=True),
    )


def _curve(teacher: BenchModel, student: BenchModel, config: BenchConfig) -> tuple[CurvePoint, ...]:
    points = []
    for is_cached in (True, False):
        for count in sorted(config.gallery_sizes):
            gain = _query_speed_up(teacher, student, count, is_cached=is_cached)
            points.append(CurvePoint(num_images=count, is_cached=is_cached, speed_up=gain))
    return tuple(points)


def _query_speed_up(teacher: BenchModel, other: BenchModel, num_images: int, *, is_cached: bool) -> SpeedUp:
    slow, fast = (model.query_s(num_images, is_cached=is_cached) for model in (teacher, other))
    # A ratio is only measured if both of its times are.
    encoded = "before" if is_cached else "with it"
    label = f"one query over {num_images:,} images, encoded {encoded}"
    is_timed = all(num_images in model.query_times[is_cached] for model in (teacher, other))
    return speed_up(label, slow, fast, extrapolated=not is_timed)


def onnx_student(
    model: Model, in_torch: BenchModel, folder: Path, *, is_timed: bool
) -> tuple[BenchModel | None, OnnxTimes]:
    """The student exported into a folder, and what is known of it before it is timed; None with a note if it is not.
    Its vectors are compared with torch's."""
    if not is_timed:
        return None, OnnxTimes(note="not asked for")
    try:
        # The files hold float32, whatever the autocast precision of the benchmark.
        with torch.inference_mode(False), torch.autocast(device_of(model).type, enabled=False):
            models.export_onnx(model, towers := folder / "towers")
            onnx = models.OnnxTowers(towers, device=device_of(model))
            size = in_torch.batch_size
            difference = models.check_onnx(onnx, model, in_torch.images[size], in_torch.texts[size])
    except DcdError as error:
        return None, OnnxTimes(note=str(error))
    timed = dataclasses.replace(in_torch, steps=timed_model(model, in_torch.batch_size, onnx))
    return timed, OnnxTimes(largest_difference=difference)
