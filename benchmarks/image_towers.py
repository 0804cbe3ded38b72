"""What an image costs: the images of two dual encoders, embedded in turns in one process.

    python benchmarks/image_towers.py runs/large runs/image
    python benchmarks/image_towers.py runs/large runs/image --batch 1 8 32 --threads 1 --repeats 5

Pixels are in memory and random: decoding and resizing, which cost both models the same, are left out. A time is the
lowest of the repeats, per image; processor time counts less of what else runs. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import dcdctl  # noqa: F401  # before torch: it sets how long torch's threads spin

# isort: split

import torch
from reports import facts, table

from dcdctl.core import models


@torch.inference_mode()
def measure(embedders: dict[str, Any], batch: int, repeats: int) -> dict[str, tuple[float, float]]:
    """Milliseconds per image of each model, by the clock and of the processor."""
    lowest = dict.fromkeys(embedders, (float("inf"), float("inf")))
    for _ in range(repeats + 1):  # the first round warms up, and cannot be the lowest
        for name, model in embedders.items():
            size = model.preprocess.image_size_px
            images = models.ImageBatch(torch.rand(batch, 3, size, size))
            clock, processor = time.perf_counter(), time.process_time()
            model.embed_images(images)
            times = time.perf_counter() - clock, time.process_time() - processor
            lowest[name] = tuple(min(old, 1000 * new / batch) for old, new in zip(lowest[name], times, strict=True))
    return lowest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs=2, type=Path)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    embedders = {str(ref): models.load_dual(ref) for ref in args.models}
    results = {batch: measure(embedders, batch, args.repeats) for batch in args.batch}
    large, small = embedders
    rows = []
    for batch, times in results.items():
        ratios = [a / b for a, b in zip(times[large], times[small], strict=True)]
        rows.append([str(batch), *(f"{times[name][1]:.1f} ms" for name in embedders), *(f"{r:.1f}" for r in ratios)])
    columns = ["batch", *(f"{name}, processor" for name in embedders), "ratio, clock", "ratio, processor"]
    sys.stdout.write(table(columns, rows) + "\n")
    sys.stdout.write(json.dumps({**facts("torch"), "threads": args.threads, "results": results}) + "\n")


if __name__ == "__main__":
    main()
