"""Time and memory until the first answer of a fresh process.

`measure` starts processes that import dcdctl, load a model, encode some images and answer a caption. Each runs `answer`
and prints its times. Files that were read before are in the system's file cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

import torch

from dcdctl.core import devices, files
from dcdctl.core.artifacts import Document
from dcdctl.core.bench.config import STUDENT, TEACHER, BenchConfig, ModelPair
from dcdctl.core.bench.result import ColdStartTimes, FirstQuery
from dcdctl.core.bench.steps import FIRST, MiB, timed_model
from dcdctl.core.config import build, to_table
from dcdctl.core.data import Corpus
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ModelError
from dcdctl.core.models import Model
from dcdctl.core.progress import Track, silent

_SCRIPT = "import json, sys; from dcdctl.core.bench import cold_start; cold_start.answer(*json.loads(sys.argv[1]))"


def measure(pair: ModelPair, config: BenchConfig, device: torch.device, track: Track = silent) -> dict[str, FirstQuery]:
    """Times of both models, in turn; ModelError if a process cannot answer."""
    times: dict[str, list[ColdStartTimes]] = {TEACHER: [], STUDENT: []}
    with track("fresh processes", total=config.num_fresh_processes * len(times), unit="processes") as advance:
        for _ in range(config.num_fresh_processes):
            # In turn, so that other work on the machine slows both.
            for name, processes in times.items():
                processes.append(run(name, pair, config, device))
                advance(1)
    first_queries = {}
    for name, processes in times.items():
        first_queries[name] = FirstQuery(
            num_images=config.num_images, median=_median(processes), processes=tuple(processes)
        )
    return first_queries


def _median(processes: Sequence[ColdStartTimes]) -> ColdStartTimes:
    """The median of each field; None for one that a process lacks."""
    medians: dict[str, float | None] = {}
    for part in asdict(processes[0]):
        values = [getattr(process, part) for process in processes]
        medians[part] = None if None in values else median(values)
    return build(ColdStartTimes, medians)


def run(name: str, pair: ModelPair, config: BenchConfig, device: torch.device) -> ColdStartTimes:
    """The times of one process that loads the teacher or the student."""
    package = str(files.PACKAGE.parent)
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    # -P: files in the current folder cannot replace modules.
    # Not perf_counter, which may start at another point in each process; and the clock of the machine may be set.
    request = [time.monotonic(), name, to_table(pair), to_table(config), str(device)]
    command = [sys.executable, "-P", "-c", _SCRIPT, json.dumps(request)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        reason = said[-1] if said else f"exit code {done.returncode}"
        raise ModelError(
            f"a fresh process that loads {getattr(pair, name)} could not answer: {reason}",
            hint="--set num_fresh_processes=0 leaves this measurement out",
        )
    # The last line, because a library may have printed to stdout before.
    return build(ColdStartTimes, json.loads(done.stdout.splitlines()[-1]))


def answer(started: float, name: str, pair_table: Document, config_table: Document, device_name: str) -> None:
    """Run in a fresh process: load, encode, answer, and write `ColdStartTimes` to stdout as one line of JSON."""
    pair, config, device = build(ModelPair, pair_table), build(BenchConfig, config_table), devices.choose(device_name)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    model = pair.load(name).to(device).eval()
    devices.synchronize(device)
    loaded, worked = time.monotonic(), time.process_time()
    corpus = Corpus.open(pair.data, pair.split)
    with torch.inference_mode(), Compute(device=device, precision=config.precision).forward_pass():
        first, first_worked = _answer(model, corpus, config, device)
    parts = {
        "total_s": loaded - started + first,
        "processor_s": worked + first_worked,
        "rss_peak_mib": peak_rss_mib(),
        "cuda_peak_mib": torch.cuda.max_memory_allocated(device) / MiB if device.type == "cuda" else None,
    }
    sys.stdout.write(json.dumps(parts) + "\n")


def _answer(model: Model, corpus: Corpus, config: BenchConfig, device: torch.device) -> tuple[float, float]:
    """Seconds and CPU seconds for the answer of a caption."""
    steps = timed_model(model, config.batch_size)
    # One batch of images; the gallery repeats them if it is larger.
    batch = corpus.images(range(min(config.batch_size, config.num_images, corpus.num_images)))
    images = steps.encode_images(model.preprocess.images(batch).to(device))
    gallery = steps.gallery(images, config.num_images)
    devices.synchronize(device)
    encoded, worked = time.perf_counter(), time.process_time()
    text = steps.encode_texts(model.preprocess.texts([corpus.captions[0]]).to(device))
    # The copy to the CPU waits for the GPU, so the time is of finished work.
    steps.rank(gallery, text).topk(min(FIRST, config.num_images)).indices.cpu()
    return time.perf_counter() - encoded, time.process_time() - worked


def peak_rss_mib() -> float:
    """Peak memory of this process; 0 on a system without /proc.

    Not `getrusage`, which includes the memory of the parent process on Linux.
    """
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii", errors="replace").splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)
