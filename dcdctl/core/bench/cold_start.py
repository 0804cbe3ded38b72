"""How long a user waits for the first answer of a fresh process, and how much memory it takes.

`measure` starts processes that import, load a model, encode some pictures and answer a caption; each runs `answer` and tells its parts.
Files are in the system's cache as far as they were read before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from dcdctl.core import devices, files, models
from dcdctl.core.bench.steps import FIRST, MiB, side_of
from dcdctl.core.config import build
from dcdctl.core.data import Corpus
from dcdctl.core.devices import Compute
from dcdctl.core.errors import ModelError
from dcdctl.core.progress import Track, silent

try:
    import resource
except ImportError:  # not a POSIX system
    resource = None  # type: ignore[assignment]
# The clock is read before anything is imported but itself.
_SCRIPT = "import sys, time; begun = time.time(); from dcdctl.core.bench import cold_start; cold_start.answer(sys.argv[1], begun)"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a process shall load and answer."""

    ref: str
    data: str
    split: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    num_images: int = 32
    """Encoded images that the caption is ranked against; made of one batch of pictures, used again where it is too small."""
    batch_size: int = 32
    device: str = "cpu"
    precision: str = "float32"
    num_threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What one process took, part by part."""

    start_s: float
    """From the parent's order to the interpreter's first line."""
    import_s: float
    load_s: float
    """The model from its files to its device."""
    encode_s: float
    """A batch of pictures read, preprocessed and encoded: what an index would have ready, and no part of the total."""
    first_answer_s: float
    """A caption tokenised and encoded, all encoded images ranked, the first ten known."""
    second_answer_s: float
    """The same again."""
    total_s: float
    """Start, import, load and first answer."""
    processor_s: float
    """What the processor worked for that, all threads together; the rest was waiting, for files or for other processes."""
    rss_imported_mib: float
    """Most memory of the process so far, after the imports."""
    rss_loaded_mib: float
    """After loading."""
    rss_peak_mib: float
    """At the end."""
    cuda_peak_mib: float | None
    """Most memory torch had allocated on the GPU; None on a CPU."""


@dataclass(frozen=True, kw_only=True)
class FirstQuery:
    """The medians over fresh processes, and each of them."""

    num_images: int
    """Encoded images that the caption is ranked against."""
    median: Answered
    processes: tuple[Answered, ...]


def measure(requests: Mapping[str, Request], num_processes: int, track: Track = silent) -> dict[str, FirstQuery]:
    """What each contestant takes, in turns; a ModelError where a process cannot answer."""
    found: dict[str, list[Answered]] = {name: [] for name in requests}
    with track("fresh processes", total=num_processes * len(requests), unit="processes") as advance:
        for _ in range(num_processes):
            for name, request in requests.items():
                found[name].append(_run(request))
                advance(1)
    return {
        name: FirstQuery(num_images=requests[name].num_images, median=_median(some), processes=tuple(some)) for name, some in found.items()
    }


def _run(request: Request) -> Answered:
    package = str(files.PACKAGE.parent)
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    # -P: files of the folder the user is in are not imported by mistake.
    command = [sys.executable, "-P", "-c", _SCRIPT, json.dumps({**asdict(request), "ordered": time.time()})]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), f"exit code {done.returncode}")
        raise ModelError(
            f"a fresh process that loads {request.ref} could not answer: {reason}", hint="--fresh-processes 0 leaves this measurement out"
        )
    return build(Answered, json.loads(done.stdout.splitlines()[-1]))


def _median(some: Sequence[Answered]) -> Answered:
    """Part by part; so the parts of a total are not those of one process."""
    parts: dict[str, list[Any]] = {name: [asdict(one)[name] for one in some] for name in asdict(some[0])}
    return build(Answered, {name: None if None in values else median(values) for name, values in parts.items()})


def answer(request_json: str, begun: float) -> None:
    """What a fresh process does: load, encode, answer twice; its parts go to stdout as one line of JSON."""
    imported, rss_imported = time.time(), peak_rss_mib()
    table = json.loads(request_json)
    ordered = table.pop("ordered")
    request = build(Request, table)
    device = devices.choose(request.device)
    if request.num_threads is not None:
        torch.set_num_threads(request.num_threads)
    model = models.load(request.ref, request.overrides).to(device).eval()
    devices.synchronize(device)
    loaded, rss_loaded, worked = time.time(), peak_rss_mib(), time.process_time()
    corpus = Corpus.open(Path(request.data), request.split)
    with torch.inference_mode(), Compute(device=device, precision=request.precision).autocast():
        encoded, first, second, first_worked = _answer_twice(model, corpus, request, device)
    parts = {
        "start_s": begun - ordered,
        "import_s": imported - begun,
        "load_s": loaded - imported,
        "encode_s": encoded,
        "first_answer_s": first,
        "second_answer_s": second,
        "total_s": loaded - ordered + first,
        "processor_s": worked + first_worked,
        "rss_imported_mib": rss_imported,
        "rss_loaded_mib": rss_loaded,
        "rss_peak_mib": peak_rss_mib(),
        "cuda_peak_mib": torch.cuda.max_memory_allocated(device) / MiB if device.type == "cuda" else None,
    }
    sys.stdout.write(json.dumps(parts) + "\n")


def _answer_twice(model: Any, corpus: Corpus, request: Request, device: torch.device) -> tuple[float, float, float, float]:
    """Seconds of encoding, of the first answer and of the second, and what the processor worked for the first."""
    side = side_of(model, request.batch_size)
    started = time.perf_counter()
    pictures = corpus.images(range(min(request.batch_size, request.num_images, corpus.num_images)))
    images = side.encode_images(model.preprocess.images(pictures).to(device))
    gallery = side.gallery(images, request.num_images)
    devices.synchronize(device)
    encoded, worked = time.perf_counter(), time.process_time()

    def search() -> Tensor:
        text = side.encode_texts(model.preprocess.texts([corpus.captions[0]]).to(device))
        return side.rank(gallery, text).topk(min(FIRST, request.num_images)).indices.cpu()

    search()
    answered, worked = time.perf_counter(), time.process_time() - worked
    search()
    return encoded - started, answered - encoded, time.perf_counter() - answered, worked


def peak_rss_mib() -> float:
    """Most memory that this process has held; 0 where the system does not tell.

    Linux tells it of this program alone; `getrusage` there starts from what the parent held.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    if resource is None:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MiB if sys.platform == "darwin" else 1024)
