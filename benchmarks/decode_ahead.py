"""Time to read, decode and resize images for a model: when they are needed, ahead by threads, and ahead by processes.

    python benchmarks/decode_ahead.py                    JPEGs of 640 x 480, and matrix products for 60 ms a batch
        in place of a model
    python benchmarks/decode_ahead.py --sleep-ms 20      each image takes 20 ms longer, as from a slow disk

Ways alternate within each repeat, so that other work of the machine slows all of them. Seconds are wall clock from the
first request to the last batch, with the start of processes; processor seconds are those of this process alone. Every
way must give the same bytes. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import CLIPImageProcessorPil

from dcdctl.core import devices, machine, threads
from dcdctl.core.data import decode_image

BATCH = 32
WAYS = ("needed", "1 threads", "2 threads", "4 threads", "1 processes", "2 processes")


class Batches(Dataset[torch.Tensor]):
    """Batches of decoded and resized images."""

    def __init__(self, jpegs: list[bytes], sleep_s: float) -> None:
        self.jpegs, self.sleep_s, self.processor = jpegs, sleep_s, CLIPImageProcessorPil()

    def __getitem__(self, number: int) -> torch.Tensor:
        images = []
        for position in range(BATCH):
            time.sleep(self.sleep_s)
            images.append(decode_image(self.jpegs[(number * BATCH + position) % len(self.jpegs)]))
        return self.processor(images=images, return_tensors="pt")["pixel_values"]


def reading(way: str, batches: Batches, count: int) -> Iterator[torch.Tensor]:
    """The batches in one of the ways."""
    number, _, kind = way.partition(" ")
    if kind == "processes":
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        return devices.read_ahead(batches, range(count), int(number), start_method=method)
    return threads.read_in_threads(batches.__getitem__, range(count), int(number) if kind else 0)


def jpegs(count: int) -> list[bytes]:
    """Made-up photos: noise at several scales."""
    found = []
    for seed in range(count):
        rng, stream = np.random.default_rng(seed), io.BytesIO()
        small = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        small.resize((640, 480), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
        found.append(stream.getvalue())
    return found


def compute(seconds: float, weights: torch.Tensor) -> None:
    """Stands for a model: products of matrices for about so long on an idle core."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        weights @ weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--sleep-ms", type=float, default=0)
    parser.add_argument("--model-ms", type=float, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    batches, weights = Batches(jpegs(64), args.sleep_ms / 1e3), torch.randn(256, 256)
    walls: dict[str, list[float]] = {way: [] for way in args.ways}
    spent: dict[str, list[float]] = {way: [] for way in args.ways}
    digests = set()
    for _ in range(args.repeats):
        for way in args.ways:
            started, before, digest = time.perf_counter(), time.process_time(), hashlib.sha256()
            for pixels in reading(way, batches, args.batches):
                compute(args.model_ms / 1e3, weights)
                digest.update(pixels.numpy().tobytes())
            walls[way].append(time.perf_counter() - started)
            spent[way].append(time.process_time() - before)
            digests.add(digest.hexdigest())
            sys.stderr.write(f"{way}: {walls[way][-1]:.2f} s, {spent[way][-1]:.2f} s of processors\n")
    assert len(digests) == 1, "the ways differ"
    first = args.ways[0]
    ratio = {way: round(median(a / b for a, b in zip(walls[way], walls[first], strict=True)), 2) for way in args.ways}
    numbers = {
        way: {"seconds": median(walls[way]), "processor_seconds": median(spent[way]), "ratio": ratio[way]}
        for way in args.ways
    }
    setting = {
        "images": args.batches * BATCH,
        "sleep_ms": args.sleep_ms,
        "model_ms": args.model_ms,
        "cores": machine.num_cores(),
    }
    sys.stdout.write(json.dumps({**setting, **numbers}) + "\n")


if __name__ == "__main__":
    main()
