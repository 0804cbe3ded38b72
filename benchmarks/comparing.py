"""How long `dcdctl compare` takes on a test set as large as COCO's.

    OMP_NUM_THREADS=1 python benchmarks/comparing.py [--images 5000] [--captions 25010] [--sides 2] [--resamples 10000] [--repeats 5]

Ranks are drawn, geometric, and written as `dcdctl eval` writes them. Timed is all between the files and the tables of words, medians of
the repeats; starting the program is not counted. Ends with one JSON line.
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
    for name, default in (("images", 5000), ("captions", 25_010), ("sides", 2), ("resamples", 10_000), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    sizes = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = [write(Path(folder, f"{side}.parquet"), sizes.images, sizes.captions, seed=side) for side in range(sizes.sides)]
        turns = [timed(lambda: compare(files, sizes.resamples)) for _ in range(sizes.repeats)]
    wall_s, processor_s = (round(statistics.median(each), 2) for each in zip(*turns, strict=True))
    sys.stdout.write(json.dumps({**vars(sizes), "wall_s": wall_s, "processor_s": processor_s}) + "\n")


def compare(files: list[Path], resamples: int) -> None:
    report = evaluation_compare.compare_systems([str(path) for path in files], resamples=resamples)
    compare_tables.comparison_document(report)
    for pairwise in report.comparisons:
        compare_tables.comparison_details(report, pairwise)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the wall clock and of the processor; the latter are disturbed less by other work."""
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
