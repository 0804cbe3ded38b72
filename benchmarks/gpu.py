"""What a GPU computes and how fast: one command for a machine with a GPU, which ends with one JSON file and one
Markdown table.

    make gpu
    python benchmarks/gpu.py --out DIR [--device auto] [--size auto] [--parts parity memory cache ...]

Models with random weights, of the sizes of the papers (`full`, the default on a GPU) or tiny (`toy`, the default
elsewhere), on the built-in scenes. No download.

- parity: scores of the same pairs by ViLT, METER, CLIP and late interaction.
- memory: a batch that is too large for the memory is halved, and the scores stay the same. A CPU halves nothing.
- cache: `cache-teacher` by ViLT, METER and CLIP, by precision and batch size; some pairs are scored again.
- distill: fusion students of ViLT and METER, and CLIP: the losses of the first steps, and the time of a step.
- late: a late-interaction student of ViLT.
- query: vectors of texts by a dual encoder and by late interaction, and a query student of each.
- pool: the cache of a pool of images without captions and texts without images, and a student of it.
- rounds: a late-interaction student proposes pairs, which its teacher scores during the training.
- picks: a CLIP of a pool in two rounds, whose teacher picks an image for each text.
- ray: `cache-teacher` by one worker of Ray with one GPU, or without one. Needs the extra ray.
- maxsim: MaxSim of all images with all texts and its gradients; a search of a late-interaction index, where the device
  encodes images and queries.
- vlm: a vision-language reranker with one prefix per image, against the plain way of its library.
- resume: a run that is stopped at a checkpoint and resumed, against one that is not stopped.
- processes: the losses of two processes with NCCL, against one. Needs two GPUs, or --gloo.
- eval, bench: seconds of an evaluation, and the speed-up per query that `dcdctl bench` reports.

A row compares numbers of the device, in float32 or bfloat16, with those of the CPU in float32: the largest difference
relative to max(1, |number|), or of losses as a share of how far the first steps move them, and its limit. Beside it
stand the rate on the device and the peak of the memory: allocated on the GPU, or of this process.

Writes DIR/gpu.json and DIR/gpu.md. Exit code 1 if a check fails.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gpu_parts as parts
import gpu_rounds as rounds
import gpu_students as students
from gpu_machine import COLUMNS, Machine, Row
from gpu_models import SIZES
from reports import facts, say, table

from dcdctl.core import devices

PARTS: dict[str, Callable[[Machine], Iterator[Row]]] = {
    "parity": parts.parity,
    "memory": parts.memory,
    "cache": students.each(students.scored, "vilt", "meter", "clip"),
    "distill": students.each(students.trained, "vilt", "meter", "clip"),
    "late": students.each(students.trained, "late"),
    "query": students.each(students.learned, students.QUERY, students.QUERY_LATE),
    "pool": students.each(students.learned, "pool"),
    "rounds": students.each(rounds.asked, "late-mined"),
    "picks": students.each(rounds.asked, "pool-picked"),
    "ray": rounds.ray,
    "maxsim": parts.maxsim,
    "vlm": parts.vlm,
    "resume": students.each(students.resumed, "vilt", "clip"),
    "processes": students.processes,
    "eval": parts.evaluate,
    "bench": parts.bench,
}
NEEDS = (
    "no GPU here: tiny models run on the CPU, and their numbers say nothing about a GPU; full sizes need an NVIDIA GPU "
    "with 24 GB and 30 GB of disk"
)


def markdown(document: dict[str, Any], rows: list[tuple[str, Row]]) -> str:
    """The rows as a table, under a line that names the machine."""
    machine = document["machine"]
    head = f"{machine['device']}, {machine['cpu']}, torch {machine['torch']}, CUDA {machine['cuda']}"
    cells = table(["part", *COLUMNS], [[part, *row.cells] for part, row in rows])
    return f"{head}, size {document['size']}, commit {document['commit']}\n\n{cells}\n"


def main(words: list[str] | None = None) -> int:
    """Run the parts one after another; what one has measured is written before the next one starts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the models, caches and runs, and for gpu.json and gpu.md"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", choices=["auto", *SIZES], default="auto", help="auto: full on a GPU, toy elsewhere")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--gloo", action="store_true", help="run the part `processes` without GPUs")
    options = parser.parse_args(words)
    device = devices.choose(options.device)
    if device.type != "cuda":
        say(NEEDS)
    size = options.size if options.size != "auto" else "full" if device.type == "cuda" else "toy"
    options.out.mkdir(parents=True, exist_ok=True)
    machine = Machine(options.out, device, SIZES[size], options.gloo)
    described = devices.describe(device)
    document: dict[str, Any] = {**facts("sentence-transformers"), "machine": described, "size": size}
    rows: list[tuple[str, Row]] = []
    for part in options.parts:
        for row in PARTS[part](machine):
            rows.append((part, row))
            say(" | ".join([part, *filter(None, row.cells)]))
            listed = [{"part": part, **asdict(row), "check": row.check} for part, row in rows]
            text = json.dumps({**document, "rows": listed}, indent=1)
            (options.out / "gpu.json").write_text(text + "\n", encoding="utf-8")
            (options.out / "gpu.md").write_text(markdown(document, rows), encoding="utf-8")
    sys.stdout.write(markdown(document, rows))
    return 1 if any(row.check == "FAIL" for _, row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
