"""Memory, time to the first batch, rate and time to resume of a training's stream, for more and more pairs.

    python benchmarks/streaming.py OUT [--parquet 100000 1000000 5000000] [--tar 100000 400000] [--window 8192]
        [--batch 256]

Each case writes shards of made-up pairs below OUT (PNGs of 8 x 8 pixels, one caption each; 50,000 pairs per Parquet
file, 10,000 per tar), reads them in a process of its own, and removes them. Memory is the peak of that process, beside
what it had after its imports. The first batch is counted from before the shards are opened until its images are decoded
and its captions are tokenized. The rate is that of one epoch of image files and captions, without decoding; a second
rate decodes 100 batches in the same process. Resuming is counted from before the shards are opened until the image
files of the batch in the middle of the epoch are read, with the counts that a run keeps. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import platform
import resource
import shutil
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dcdctl.core import devices, models
from dcdctl.core.data import ShardStream, StreamConfig, open_shards
from dcdctl.core.machine import num_cores
from dcdctl.core.training.batches.stream import StreamBatches
from dcdctl.core.training.recipe import BatchConfig

NUM_DISTINCT = 2000
"""Images that are encoded; pairs repeat them."""
PER_SHARD = {"parquet": 50_000, "tar": 10_000}
DECODED_BATCHES = 100
MiB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--parquet", type=int, nargs="*", default=[100_000, 1_000_000, 5_000_000])
    parser.add_argument("--tar", type=int, nargs="*", default=[100_000, 400_000])
    parser.add_argument("--window", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=256)
    options = parser.parse_args()
    measured = []
    for form, num_pairs in [
        *(("parquet", pairs) for pairs in options.parquet),
        *(("tar", pairs) for pairs in options.tar),
    ]:
        folder = options.out / f"{form}-{num_pairs}"
        try:
            num_bytes = write_shards(folder, form, num_pairs)
            # A process of its own, because a process never has less memory than at its peak.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found = pool.apply(measure, (folder, form, num_pairs, options.window, options.batch))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        measured.append({"form": form, "pairs": num_pairs, "gigabytes": round(num_bytes / 1e9, 2), **found})
        sys.stderr.write(f"{measured[-1]}\n")
    sys.stdout.write(
        json.dumps({"cases": measured, "window": options.window, "batch": options.batch, "machine": machine()}) + "\n"
    )


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    return {**devices.versions(), "cpu": devices.cpu_name(), "cores": num_cores(), "system": platform.platform()}


def write_shards(folder: Path, form: str, num_pairs: int) -> int:
    """Write the shards of a case; returns their size in bytes."""
    folder.mkdir(parents=True)
    images = list(made_up_images())
    for shard, first in enumerate(range(0, num_pairs, PER_SHARD[form])):
        rows = range(first, min(first + PER_SHARD[form], num_pairs))
        path = folder / f"{shard:05}.{form}"
        if form == "parquet":
            files = pa.array([images[row % NUM_DISTINCT] for row in rows], pa.binary())
            image = pa.StructArray.from_arrays([files, pa.nulls(len(rows), pa.string())], ["bytes", "path"])
            pq.write_table(
                pa.table({"image": image, "caption": [caption(row) for row in rows]}), path, row_group_size=1000
            )
        else:
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
                for row in rows:
                    for suffix, data in (("png", images[row % NUM_DISTINCT]), ("txt", caption(row).encode())):
                        info = tarfile.TarInfo(f"{row:09}.{suffix}")
                        info.size = len(data)
                        archive.addfile(info, io.BytesIO(data))
    return sum(path.stat().st_size for path in folder.iterdir())


def made_up_images() -> Iterator[bytes]:
    """PNGs of one color each, about 75 bytes."""
    for color in np.random.default_rng(0).integers(0, 256, (NUM_DISTINCT, 3)).tolist():
        stream = io.BytesIO()
        Image.new("RGB", (8, 8), tuple(color)).save(stream, "PNG")
        yield stream.getvalue()


def caption(row: int) -> str:
    """The caption of a pair; no two are equal."""
    return f"a small square, number {row} of its kind"


def peak_mib() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(folder: Path, form: str, num_pairs: int, window: int, size: int) -> dict[str, Any]:
    """Read the shards of a case."""
    shape = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 32,
        "patch_size": 16,
        "max_text_len": 24,
    }
    small = models.DualSize(num_vision_layers=1, num_text_layers=1, projection_dim=8, **shape)
    model = models.new_dual(small, models.word_piece([caption(row) for row in range(1000)], 200))
    pattern, before = str(folder / f"*.{form}"), peak_mib()
    started = time.perf_counter()
    stream = ShardStream(open_shards([pattern]), StreamConfig(window=window), size, 0)
    batches = StreamBatches(stream, model.preprocess, BatchConfig(size=size))
    read = batches.read(range(DECODED_BATCHES + 1), 0)
    next(read)
    first_s = time.perf_counter() - started
    started = time.perf_counter()
    num_decoded = sum(1 for _ in read)
    decoded_s = time.perf_counter() - started
    num_steps = num_pairs // size
    started = time.perf_counter()
    source = stream.read(0)
    seen = sum(len(batch.samples) for _, batch in zip(range(num_steps), source, strict=False))
    epoch_s, peak = time.perf_counter() - started, peak_mib()
    assert seen == num_steps * size
    next(source)  # of the next epoch: all shards have ended, and their counts are known
    source.close()
    started = time.perf_counter()
    resumed = ShardStream(open_shards([pattern]), StreamConfig(window=window), size, 0, dict(stream.counts))
    middle = resumed.read(num_steps // 2)
    next(middle)
    resume_s = time.perf_counter() - started
    middle.close()
    return {
        "shards": len(stream.shards),
        "peak_mib": round(peak),
        "beside_imports_mib": round(peak - before),
        "first_batch_s": round(first_s, 2),
        "pairs_per_s": round(seen / epoch_s),
        "decoded_pairs_per_s": round(num_decoded * size / decoded_s),
        "resume_s": round(resume_s, 2),
    }


if __name__ == "__main__":
    main()
