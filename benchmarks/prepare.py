"""Rate and memory of `dcdctl prepare`, and the time to read a random image back.

    python benchmarks/prepare.py OUT [--images 20000] [--photos ZIP] [--sides 0 384] [--repeats 2]
        [--workers N]

The input is JPEGs of 640 x 480 pixels: enlarged photos of a zip, or made-up images with detail at every scale. No two
files are equal. They are written below OUT, `dcdctl prepare --csv` runs on them and is timed from start to end, and
everything is removed again. A side of 0 keeps the files unchanged. Rates are the best of the repeats. Memory is the
maximum of the sum over the command and its workers, where shared pages count for each process. Reading covers 1,000
random images in one process, with the files in the system's cache. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image
from reports import commit, processor

from dcdctl.core.data import Corpus

IMAGE_SIZE = (640, 480)
JPEG_QUALITY = 90
NUM_DISTINCT = 500
"""Images that are encoded; further files repeat them with another JPEG comment."""
MiB = 2**20
ROOT = Path(__file__).resolve().parents[1]


def made_up(seed: int) -> Image.Image:
    """An image with detail at every scale; its JPEG is about as large as that of a photo."""
    rng = np.random.default_rng(seed)
    width, height = IMAGE_SIZE
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (height // cell, width // cell, 3), dtype=np.uint8)).resize(
                IMAGE_SIZE, Image.Resampling.BICUBIC
            )
        )
        for cell in (160, 40, 10, 4)
    ]
    return Image.fromarray(np.average(layers, axis=0, weights=[12, 6, 3, 2]).astype(np.uint8))


def distinct_jpegs(photos: Path | None) -> list[bytes]:
    """The JPEGs that the files repeat."""
    jpegs: list[bytes] = []
    if photos is None:
        return [to_jpeg(made_up(seed)) for seed in range(NUM_DISTINCT)]
    with zipfile.ZipFile(photos) as archive:
        names = [name for name in archive.namelist() if name.lower().endswith(".jpg")][:NUM_DISTINCT]
        for name in names:
            with archive.open(name) as file, Image.open(file) as image:
                jpegs.append(to_jpeg(image.convert("RGB").resize(IMAGE_SIZE, Image.Resampling.BICUBIC)))
    return jpegs


def to_jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def files(jpegs: list[bytes], count: int) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of all files; a comment makes each file unique."""
    for i in range(count):
        data = jpegs[i % len(jpegs)]
        yield f"{i:07}.jpg", data[:2] + b"\xff\xfe\x00\x0a" + f"{i:08}".encode() + data[2:]


@dataclass(frozen=True)
class Run:
    """Time and memory of one run of the command."""

    seconds: float
    peak_mib: float
    """Maximum of the sum over its processes."""
    processor_seconds: float


def prepare(images: Path, pairs: Path, out: Path, side_px: int, workers: int) -> Run:
    """Run the command, and sample its processes while it runs."""
    command = [
        sys.executable,
        "-m",
        "dcdctl",
        "prepare",
        "--csv",
        str(pairs),
        "--images",
        str(images),
        "--out",
        str(out),
    ]
    command += ["--workers", str(workers)] + (["--image-size", str(side_px)] if side_px else [])
    started, peak_mib = time.perf_counter(), 0.0
    processor_seconds: dict[int, float] = {}
    # Python looks for the package in the working directory first.
    with (
        tempfile.TemporaryFile() as messages,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=messages, cwd=ROOT) as process,
    ):
        while process.poll() is None:
            tree = processes_below(process.pid)
            peak_mib = max(peak_mib, sum(mib for mib, _ in tree.values()))
            processor_seconds |= {pid: seconds for pid, (_, seconds) in tree.items()}
            time.sleep(0.05)
        seconds = time.perf_counter() - started
        if process.returncode:
            messages.seek(0)
            raise SystemExit(f"prepare ended with {process.returncode}: {messages.read().decode()[-1000:]}")
    return Run(seconds, peak_mib, sum(processor_seconds.values()))


def processes_below(root: int) -> dict[int, tuple[float, float]]:
    """Memory in MiB and processor seconds of a process and its descendants; empty on systems without /proc."""
    parents, usage = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # the process has ended
            continue
        process = int(path.parent.name)
        parents[process] = int(fields[1])
        mib = int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / MiB
        usage[process] = mib, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    tree, generation = set(), {root}
    while generation:
        tree |= generation
        generation = {process for process, parent in parents.items() if parent in generation}
    return {process: usage[process] for process in tree if process in usage}


def random_read_ms(folder: Path, *, decoded: bool) -> float:
    """Median milliseconds to read the bytes or the pixels of a random image."""
    corpus = Corpus.open(folder, "train")
    rng = random.Random(0)
    corpus.image_bytes(corpus.num_images - 1)
    spans = []
    for _ in range(1000):
        image = rng.randrange(corpus.num_images)
        started = time.perf_counter()
        if decoded:
            corpus.image(image)
        else:
            corpus.image_bytes(image)
        spans.append(time.perf_counter() - started)
    return round(statistics.median(spans) * 1e3, 2)


def summary(runs: list[Run], num_images: int) -> dict[str, Any]:
    """Rate, processor time and memory of some runs."""
    return {
        "images_per_s": round(num_images / min(run.seconds for run in runs)),
        "processor_ms": round(min(run.processor_seconds for run in runs) / num_images * 1e3, 2),
        "peak_mib": round(max(run.peak_mib for run in runs)),
    }


def measure(options: argparse.Namespace, jpegs: list[bytes]) -> dict[str, Any]:
    """Measurements by side."""
    images, pairs, out = (options.out / name for name in ("images", "pairs.csv", "corpus"))
    images.mkdir()
    for name, data in files(jpegs, options.images):
        (images / name).write_bytes(data)
    lines = [f"{i:07}.jpg,caption {j} of {i}\n" for i in range(options.images) for j in range(5)]
    pairs.write_text("image,caption\n" + "".join(lines))
    results: dict[str, Any] = {}
    for side_px in options.sides:
        runs = []
        for _ in range(options.repeats):
            shutil.rmtree(out, ignore_errors=True)
            runs.append(prepare(images, pairs, out, side_px, options.workers))
        row = summary(runs, options.images)
        row |= {f"random_{part}_ms": random_read_ms(out, decoded=part == "pixels") for part in ("bytes", "pixels")}
        side = f"{side_px} px" if side_px else "original size"
        results[side] = row
        sys.stdout.write(f"{side}: {row}\n")
        sys.stdout.flush()
    shutil.rmtree(out)
    shutil.rmtree(images)
    pairs.unlink()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--sides", nargs="+", type=int, default=[0, 384])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    )
    options = parser.parse_args()
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    jpegs = distinct_jpegs(options.photos)
    results = measure(options, jpegs)
    setting = {
        "images": options.images,
        "workers": options.workers,
        "mean_bytes": round(statistics.mean(map(len, jpegs))),
    }
    setting |= {"content": "made up" if options.photos is None else "photos", "pillow": PIL.__version__}
    sys.stdout.write(json.dumps({"machine": processor(), "commit": commit(), **setting, "results": results}) + "\n")


if __name__ == "__main__":
    main()
