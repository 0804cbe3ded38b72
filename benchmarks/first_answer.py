"""Time of the first answer of `dcdctl search` by part, in fresh processes.

    python benchmarks/first_answer.py INDEX --processes 5

Each process imports, opens, loads and answers twice, like the command, and reports wall-clock and processor
milliseconds of each part. Processes take turns: one reads texts with the text side of the index and ONNX Runtime, as
the command does, the next with the model and torch, as for an index without a text side. The files are in the system's
cache. Processor time is the sum over all threads and hardly grows when other work runs beside. The numbers are medians
over the processes. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

PARTS = {
    "python": "Python interpreter",
    "commands": "dcdctl's command line",
    "index_modules": "NumPy, pyarrow, the index's modules",
    "open": "opening the index",
    "runtime": "ONNX Runtime and tokenizers, or torch and transformers",
    "load": "checksums and loading, of the text side or the model",
    "encode": "encoding the text",
    "find": "finding and naming the nearest images",
    "encode_again": "encoding another text",
    "find_again": "finding and naming its nearest images",
}

FIRST = [name for name in PARTS if not name.endswith("_again")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index", type=Path)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--text", default="a dog in the snow")
    arguments = parser.parse_args()
    results: dict[str, list[dict[str, dict[str, float]]]] = {"onnx": [], "torch": []}
    for _ in range(arguments.processes):
        for way in results:
            results[way].append(_run(arguments.index, arguments.text, way))
    found = {
        way: {name: _median(results[way], [name]) for name in PARTS} | {"first": _median(results[way], FIRST)}
        for way in results
    }
    for name, label in {**PARTS, "first": "all until the first answer"}.items():
        times = "".join(f"{found[way][name][kind]:>10,.0f}" for way in results for kind in ("wall_ms", "processor_ms"))
        sys.stdout.write(f"{label:<58}{times}\n")
    ratio = {kind: found["torch"]["first"][kind] / found["onnx"]["first"][kind] for kind in ("wall_ms", "processor_ms")}
    sys.stdout.write("columns: wall-clock and processor ms with ONNX Runtime, the same with torch\n")
    sys.stdout.write(
        json.dumps({"processes": arguments.processes, "cpus": os.cpu_count(), "ratio": ratio, **found}) + "\n"
    )


def _median(processes: list[dict[str, dict[str, float]]], parts: Sequence[str]) -> dict[str, float]:
    return {
        kind: median(sum(process[part][kind] for part in parts) for process in processes)
        for kind in ("wall_ms", "processor_ms")
    }


def _run(index: Path, text: str, way: str) -> dict[str, dict[str, float]]:
    started_at = time.time()
    command = [sys.executable, __file__, "--answer", str(index), text, way, str(started_at)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def _answer(index: str, text: str, way: str, started_at: float) -> None:
    """Measure one process and print its parts as JSON. The imports are part of the measurement, so they are not at the
    top of the file."""
    parts = {"python": {"wall_ms": 1000 * (_STARTED - started_at), "processor_ms": 1000 * _PROCESSOR}}

    @contextmanager
    def part(name: str) -> Iterator[None]:
        wall, processor = time.perf_counter(), time.process_time()
        yield
        parts[name] = {
            "wall_ms": 1000 * (time.perf_counter() - wall),
            "processor_ms": 1000 * (time.process_time() - processor),
        }

    with part("commands"):
        import dcdctl.cli.app  # noqa: F401
    with part("index_modules"):
        from dcdctl.core.search import Index, query
        from dcdctl.core.search.searcher import IndexModel
    with part("open"):
        opened = Index.open(Path(index))
    with part("runtime"):
        if way == "torch":
            import torch  # noqa: F401

            from dcdctl.core.search.dual_vectors import DualVectors  # noqa: F401
        else:
            import onnxruntime  # noqa: F401
            import tokenizers  # noqa: F401
        from dcdctl.core.search import Searcher
    with part("load"):
        if way == "torch":
            own = IndexModel(opened, "cpu")
            searcher = Searcher(opened, own.load(), own)
        else:
            searcher = Searcher.for_index(opened, device="cpu")
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
        _answer(sys.argv[2], sys.argv[3], sys.argv[4], float(sys.argv[5]))
    else:
        main()
