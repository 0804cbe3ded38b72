"""Where the time of a first answer of `dcdctl search` goes, in fresh processes.

    python benchmarks/first_answer.py INDEX --processes 5

Each process imports, opens, loads and answers twice, as the command does, and tells wall and processor milliseconds of each part, files
being in the system's cache; processor time is that of all threads, and hardly grows when other work runs beside. Parts are medians over the
processes. Ends with one JSON line.
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
    "python": "the interpreter",
    "commands": "dcdctl's command line",
    "index_modules": "NumPy, pyarrow, the index's modules",
    "open": "the index opened",
    "torch": "torch",
    "transformers": "transformers",
    "model_modules": "dcdctl's models",
    "load": "the dual encoder loaded",
    "fingerprint": "its fingerprint compared",
    "encode": "the text encoded",
    "find": "the nearest found, and named",
    "encode_again": "another text encoded",
    "find_again": "the nearest found, and named",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index", type=Path)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--text", default="a dog in the snow")
    arguments = parser.parse_args()
    found = [_run(arguments.index, arguments.text) for _ in range(arguments.processes)]
    parts = {name: {kind: median(one[name][kind] for one in found) for kind in ("wall_ms", "processor_ms")} for name in PARTS}
    for name, what in PARTS.items():
        sys.stdout.write(f"{what:<38}{parts[name]['wall_ms']:>9,.0f} ms{parts[name]['processor_ms']:>9,.0f} ms of the processor\n")
    sys.stdout.write(json.dumps({"processes": arguments.processes, "cpus": os.cpu_count(), **parts}) + "\n")


def _run(index: Path, text: str) -> dict[str, dict[str, float]]:
    ordered = time.time()
    command = [sys.executable, __file__, "--answer", str(index), text, str(ordered)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def _answer(index: str, text: str, ordered: float) -> None:
    """One process: each part is timed where the command has it; imports are what is timed, so they stand here."""
    parts = {"python": {"wall_ms": 1000 * (_BEGUN - ordered), "processor_ms": 1000 * _PROCESSOR}}

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
        processor, whole = time.process_time() - processor, answer.encode_seconds + answer.find_seconds
        for name, seconds in (("encode", answer.encode_seconds), ("find", answer.find_seconds)):
            parts[name + suffix] = {"wall_ms": 1000 * seconds, "processor_ms": 1000 * processor * seconds / whole}
    sys.stdout.write(json.dumps(parts) + "\n")


if __name__ == "__main__":
    _BEGUN, _PROCESSOR = time.time(), time.process_time()
    if sys.argv[1:2] == ["--answer"]:
        _answer(sys.argv[2], sys.argv[3], float(sys.argv[4]))
    else:
        main()
