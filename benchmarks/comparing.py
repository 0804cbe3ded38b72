"""Run time of `dcdctl compare` on a test set of COCO's size.

    OMP_NUM_THREADS=1 python benchmarks/comparing.py [--images 5000] [--captions 25010] [--systems 2] [--resamples
        10000] [--repeats 5]

The ranks are drawn from a geometric distribution and written in the format of `dcdctl eval`. The measurement covers
everything from the files to the tables of words, without the start of the program. It reports medians of the repeats.
Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dcdctl.core.evaluation import compare as evaluation_compare
from dcdctl.core.report import compare_tables


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (
        ("images", 5000),
        ("captions", 25_010),
        ("systems", 2),
        ("resamples", 10_000),
        ("repeats", 5),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    sizes = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = [
            write(Path(folder, f"{system}.parquet"), sizes.images, sizes.captions, seed=system)
            for system in range(sizes.systems)
        ]
        rounds = [timed(lambda: compare(files, sizes.resamples)) for _ in range(sizes.repeats)]
    wall_s, processor_s = (round(statistics.median(seconds), 2) for seconds in zip(*rounds, strict=True))
    sys.stdout.write(json.dumps({**vars(sizes), "wall_s": wall_s, "processor_s": processor_s}) + "\n")


def compare(files: list[Path], resamples: int) -> None:
    report = evaluation_compare.compare_systems([str(path) for path in files], resamples=resamples)
    compare_tables.comparison_document(report)
    for pairwise in report.comparisons:
        compare_tables.comparison_details(report, pairwise)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock seconds and processor seconds; other work disturbs processor seconds less."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def write(path: Path, num_images: int, num_captions: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    owner = np.arange(num_captions) * num_images // num_captions
    ids = np.array([f"{image:012}.jpg" for image in range(num_images)])
    query = np.concatenate([np.arange(num_images), np.arange(num_captions)])
    columns = {
        "direction": ["text"] * num_images + ["image"] * num_captions,
        "query": query,
        "image_id": np.concatenate([ids, ids[owner]]),
        "caption_id": pa.array([None] * num_images + list(range(num_captions)), pa.int64()),
        "caption": pa.array([None] * num_images + [f"caption {text} of some words" for text in range(num_captions)]),
        "rank": rng.geometric(0.15, len(query)),
    }
    pq.write_table(pa.table(columns), path)
    return path


if __name__ == "__main__":
    main()
