"""Time of the first answer of `dcdctl search` by part, in fresh processes.

    python benchmarks/first_answer.py INDEX --processes 5

Each process imports, opens, loads and answers twice, like the command, and reports wall-clock and processor milliseconds of each part. The
files are in the system's cache. Processor time is the sum over all threads and hardly grows when other work runs beside. The numbers are
medians over the processes. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

PARTS = {
    "python": "Python interpreter",
    "commands": "dcdctl's command line",
    "index_modules": "NumPy, pyarrow, the index's modules",
    "open": "opening the index",
    "torch": "torch",
    "transformers": "transformers",
    "model_modules": "dcdctl's models",
    "load": "loading the dual encoder",
    "fingerprint": "comparing its fingerprint",
    "encode": "encoding the text",
    "find": "finding and naming the nearest images",
    "encode_again": "encoding another text",
    "find_again": "finding and naming its nearest images",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index", type=Path)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--text", default="a dog in the snow")
    arguments = parser.parse_args()
    results = [_run(arguments.index, arguments.text) for _ in range(arguments.processes)]
    parts = {name: {kind: median(result[name][kind] for result in results) for kind in ("wall_ms", "processor_ms")} for name in PARTS}
    for name, label in PARTS.items():
        sys.stdout.write(f"{label:<40}{parts[name]['wall_ms']:>9,.0f} ms{parts[name]['processor_ms']:>9,.0f} ms of the processor\n")
    sys.stdout.write(json.dumps({"processes": arguments.processes, "cpus": os.cpu_count(), **parts}) + "\n")


def _run(index: Path, text: str) -> dict[str, dict[str, float]]:
    started_at = time.time()
    command = [sys.executable, __file__, "--answer", str(index), text, str(started_at)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def _answer(index: str, text: str, started_at: float) -> None:
    """Measure one process and print its parts as JSON. The imports are part of the measurement, so they are not at the top of the file."""
    parts = {"python": {"wall_ms": 1000 * (_STARTED - started_at), "processor_ms": 1000 * _PROCESSOR}}

    @contextmanager
    def part(name: str) -> Iterator[None]:
        wall, processor = time.perf_counter(), time.process_time()
        yield
        parts[name] = {"wall_ms": 1000 * (time.perf_counter() - wall), "processor_ms": 1000 * (time.process_time() - processor)}

    with part("commands"):
        import dcdctl.cli.app  # noqa: F401
    with part("index_modules"):
        from dcdctl.core.search import Index, query
    with part("open"):
        opened = Index.open(Path(index))
    with part("torch"):
        import torch
    with part("transformers"):
        import transformers.modeling_utils  # noqa: F401
    with part("model_modules"):
        # By name: a room imports a file when one of its names is first read.
        from dcdctl.core.models import load_dual
        from dcdctl.core.search import Searcher
    with part("load"):
        model = load_dual(Path(index) / "model")
    with part("fingerprint"):
        opened.expect(model.digest)
    searcher = Searcher(opened, model, torch.device("cpu"))
    for suffix, words in (("", text), ("_again", f"{text} again")):
        processor = time.process_time()
        answer: query.Answer = searcher.by_text(words, 10)
        processor, total = time.process_time() - processor, answer.encode_seconds + answer.find_seconds
        for name, seconds in (("encode", answer.encode_seconds), ("find", answer.find_seconds)):
            parts[name + suffix] = {"wall_ms": 1000 * seconds, "processor_ms": 1000 * processor * seconds / total}
    sys.stdout.write(json.dumps(parts) + "\n")


if __name__ == "__main__":
    _STARTED, _PROCESSOR = time.time(), time.process_time()
    if sys.argv[1:2] == ["--answer"]:
        _answer(sys.argv[2], sys.argv[3], float(sys.argv[4]))
    else:
        main()
