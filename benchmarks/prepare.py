"""How fast pictures become a corpus, in how much memory, and how fast one is read back at random.

    python benchmarks/prepare.py OUT [--images 20000] [--photos ZIP] [--forms folder zip tar] [--sides 0 384] [--repeats 2] [--workers N]

JPEGs of 640 x 480 pixels: photos of a zip, enlarged, or made-up pictures with detail at every scale; no two files are equal. Each form is
written below OUT, `dcdctl prepare --csv` is run on it and timed from its start to its end, and all of it is removed again. A side of 0
keeps the files as they are. Rates are the best of the repeats, memory is the most that the command and its workers held together (pages
that they share count for each), reading is of 1,000 images at random in one process, files in the system's cache. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from dcdctl.core.data import Corpus

PICTURE_SIZE = (640, 480)
JPEG_QUALITY = 90
NUM_DISTINCT = 500
"""Pictures that are encoded; files beyond that are these again, each with a comment of its own."""
MiB = 2**20


def made_up(seed: int) -> Image.Image:
    """A picture with detail at every scale, about as large as a photo when it is a JPEG."""
    rng = np.random.default_rng(seed)
    width, height = PICTURE_SIZE
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (height // cell, width // cell, 3), dtype=np.uint8)).resize(
                PICTURE_SIZE, Image.Resampling.BICUBIC
            )
        )
        for cell in (160, 40, 10, 4)
    ]
    return Image.fromarray(np.average(layers, axis=0, weights=[12, 6, 3, 2]).astype(np.uint8))


def distinct_jpegs(photos: Path | None) -> list[bytes]:
    """The pictures that the files are made of."""
    found: list[bytes] = []
    if photos is None:
        return [to_jpeg(made_up(seed)) for seed in range(NUM_DISTINCT)]
    with zipfile.ZipFile(photos) as archive:
        names = [name for name in archive.namelist() if name.lower().endswith(".jpg")][:NUM_DISTINCT]
        for name in names:
            with archive.open(name) as file, Image.open(file) as image:
                found.append(to_jpeg(image.convert("RGB").resize(PICTURE_SIZE, Image.Resampling.BICUBIC)))
    return found


def to_jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def files(jpegs: list[bytes], count: int) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of all files: a comment makes each its own."""
    for i in range(count):
        data = jpegs[i % len(jpegs)]
        yield f"{i:07}.jpg", data[:2] + b"\xff\xfe\x00\x0a" + f"{i:08}".encode() + data[2:]


def write_folder(path: Path, content: Iterator[tuple[str, bytes]]) -> None:
    path.mkdir()
    for name, data in content:
        (path / name).write_bytes(data)


def write_zip(path: Path, content: Iterator[tuple[str, bytes]]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content:
            archive.writestr(name, data)


def write_tar(path: Path, content: Iterator[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in content:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


FORMS: dict[str, tuple[str, Callable[[Path, Iterator[tuple[str, bytes]]], None]]] = {
    "folder": ("images", write_folder),
    "zip": ("images.zip", write_zip),
    "tar": ("images.tar", write_tar),
}


@dataclass(frozen=True)
class Run:
    """What a run of the command took."""

    seconds: float
    peak_mib: float
    """The most that its processes held together."""
    processor_seconds: float


def prepare(images: Path, pairs: Path, out: Path, side_px: int, workers: int) -> Run:
    """Run the command, with an eye on it."""
    command = [sys.executable, "-c", "from dcdctl.cli.app import main; main()", "prepare", "--csv", pairs, "--images", images, "--out", out]
    command += ["--workers", str(workers)] + (["--image-size", str(side_px)] if side_px else [])
    started, peak_mib, processor_seconds = time.perf_counter(), 0.0, {}
    with tempfile.TemporaryFile() as talk, subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=talk) as process:
        while process.poll() is None:
            tree = processes_below(process.pid)
            peak_mib = max(peak_mib, sum(mib for mib, _ in tree.values()))
            processor_seconds |= {one: seconds for one, (_, seconds) in tree.items()}
            time.sleep(0.05)
        seconds = time.perf_counter() - started
        if process.returncode:
            talk.seek(0)
            raise SystemExit(f"prepare ended with {process.returncode}: {talk.read().decode()[-1000:]}")
    return Run(seconds, peak_mib, sum(processor_seconds.values()))


def processes_below(root: int) -> dict[int, tuple[float, float]]:
    """A process and all below it: the MiB that each holds, and the processor seconds it took so far. Empty where there is no /proc."""
    parents, found = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended
            continue
        process = int(path.parent.name)
        parents[process] = int(fields[1])
        mib = int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / MiB
        found[process] = mib, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    tree, generation = set(), {root}
    while generation:
        tree |= generation
        generation = {process for process, parent in parents.items() if parent in generation}
    return {process: found[process] for process in tree if process in found}


def random_read_ms(folder: Path, *, decoded: bool) -> float:
    """Milliseconds that an image takes, its bytes or its pixels: the median of many at random."""
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


def measure(options: argparse.Namespace, form: str, jpegs: list[bytes]) -> dict[str, Any]:
    """The figures of one form, by side."""
    name, write = FORMS[form]
    images, pairs, out = options.out / name, options.out / "pairs.csv", options.out / "corpus"
    write(images, files(jpegs, options.images))
    found: dict[str, Any] = {}
    for side_px in options.sides:
        runs: list[Run] = []
        for _ in range(options.repeats):
            shutil.rmtree(out, ignore_errors=True)
            runs.append(prepare(images, pairs, out, side_px, options.workers))
        row = {"images_per_s": round(options.images / min(run.seconds for run in runs))}
        row["processor_ms"] = round(min(run.processor_seconds for run in runs) / options.images * 1e3, 2)
        row["peak_mib"] = round(max(run.peak_mib for run in runs))
        row |= {f"random_{what}_ms": random_read_ms(out, decoded=what == "pixels") for what in ("bytes", "pixels")}
        found[f"{side_px} px" if side_px else "as they are"] = row
        sys.stdout.write(f"{form}, {side_px or 'as they are'}: {row}\n")
        sys.stdout.flush()
    shutil.rmtree(out)
    if images.is_dir():
        shutil.rmtree(images)
    else:
        images.unlink()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--sides", nargs="+", type=int, default=[0, 384])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    jpegs = distinct_jpegs(options.photos)
    lines = [f"{i:07}.jpg,caption {j} of {i}\n" for i in range(options.images) for j in range(5)]
    (options.out / "pairs.csv").write_text("image,caption\n" + "".join(lines))
    results = {form: measure(options, form, jpegs) for form in options.forms}
    (options.out / "pairs.csv").unlink()
    setting = {"images": options.images, "workers": options.workers, "mean_bytes": round(statistics.mean(map(len, jpegs)))}
    setting |= {"pictures": "made up" if options.photos is None else "photos", "pillow": PIL.__version__}
    sys.stdout.write(json.dumps({"machine": processor(), "commit": commit(), **setting, "results": results}) + "\n")


def processor() -> str:
    """The name of the processor."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor()


def commit() -> str:
    """The commit that was measured, with a + if files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
