"""Speed, recall and size of an image index: exact search, and approximate kinds beside it.

    python benchmarks/search.py --images 10000 100000
    python benchmarks/search.py --images 1000000 --kinds hnsw
    python benchmarks/search.py --images 100000 --kinds ivf-pq --set ivf_pq.probes=128

The vectors are made up, and written and searched as `dcdctl index` and `dcdctl search` do it. They are a mixture of 2,000 centers with
images around each. Centers and images have a spectrum that falls off like the principal components of image embeddings: standard deviation
i^-0.5 in direction i, so about 23 of 256 dimensions count (participation ratio of the variances). A query is a new sample of the mixture,
moved like a caption: noise of 0.4 of its length, and half of its length in a direction that all queries share. So no query is close to an
image (the best cosine is about 0.67), and images of many centers compete.

The exact answer comes from a flat index over the same files. Latencies are for single queries one after the other, without the encoder,
with the files in the system's cache. Processor milliseconds are the sum over all threads and hardly grow when other work runs beside. The
opening time is measured in a warm process. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from dcdctl.core import config as config_module
from dcdctl.core import devices
from dcdctl.core.search import Index, parse_where, storage
from dcdctl.core.search import commit as search_commit
from dcdctl.core.search.config import IndexConfig
from dcdctl.core.search.storage import ROWS_PER_PART, SourceImage

K = 10
NUM_CENTERS = 2000
OPENINGS = 5


class Mixture:
    """Made-up embeddings; the same numbers for the same arguments."""

    def __init__(self, dim: int) -> None:
        rng = np.random.default_rng(7)
        self.dim, self.spectrum_D = dim, np.arange(1, dim + 1) ** -0.5
        self.center_CD = rng.normal(size=(NUM_CENTERS, dim)) * self.spectrum_D
        gap_D = rng.normal(size=dim) * self.spectrum_D[::-1]
        self.gap_D = gap_D / np.linalg.norm(gap_D)

    def images(self, count: int, seed: int) -> NDArray[np.floating]:
        """Unit vectors."""
        rng = np.random.default_rng([7, seed])
        return unit(self.center_CD[rng.integers(NUM_CENTERS, size=count)] + 0.7 * rng.normal(size=(count, self.dim)) * self.spectrum_D)

    def queries(self, count: int) -> NDArray[np.floating]:
        noise_QD = np.random.default_rng([7, 2**32]).normal(size=(count, self.dim)) * self.dim**-0.5
        return unit(self.images(count, 2**31) + 0.4 * noise_QD + 0.5 * self.gap_D)


def unit(vectors: NDArray[np.floating]) -> NDArray[np.floating]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_vectors(folder: Path, num_images: int, mixture: Mixture) -> list[dict[str, Any]]:
    """Write the files of vectors. Returns their entries in index.json."""
    parts = []
    for number, first in enumerate(range(0, num_images, ROWS_PER_PART)):
        vectors = mixture.images(min(ROWS_PER_PART, num_images - first), number).astype(np.float16)
        paths = [f"{row // 1000:05d}/{row:09d}.jpg" for row in range(first, first + len(vectors))]
        path = folder / "vectors" / storage.part_name(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_part(path, [SourceImage(image_id=name, path=name) for name in paths], vectors)
        parts.append(asdict(storage.describe_part(path, 0, mixture.dim)[0]))
    return parts


def seal(folder: Path, parts: list[dict[str, Any]], dim: int, config: IndexConfig) -> None:
    """Write an index of these vectors, without a model and without images."""
    nothing = asdict(storage.Listed())
    document = {
        "format": storage.INDEX.format,
        "generation": 1,
        "model": {"kind": "dual", "dim": dim, "fingerprint": "0" * 64},
        "precision": "float32",
        "settings": config_module.to_table(config),
        "sources": [{"kind": "folder", "path": str(folder), "split": None, "fingerprint": None}],
        "skipped": nothing,
        "removed": nothing,
        "parts": parts,
        "segments": [],
    }
    search_commit.commit(folder, document)


def linked(folder: Path, vectors: Path) -> Path:
    """A folder for another index over the same files of vectors, as hard links."""
    (folder / "vectors").mkdir(parents=True)
    for path in vectors.iterdir():
        os.link(path, folder / "vectors" / path.name)
    return folder


def opening_ms(folder: Path) -> float:
    seconds = []
    for _ in range(OPENINGS):
        started = time.perf_counter()
        Index.open(folder)
        seconds.append(time.perf_counter() - started)
    return 1000 * float(np.median(seconds))


def measure(folder: Path, queries_QD: NDArray[np.floating]) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """Search times, and the rows of the nearest images."""
    numbers: dict[str, Any] = {"open_ms": opening_ms(folder)}
    index = Index.open(folder)
    started = time.perf_counter()
    index.nearest(queries_QD[:1], K)
    numbers["first_query_ms"] = 1000 * (time.perf_counter() - started)
    wall, rows, processor = [], [], time.process_time()
    for query_D in queries_QD:
        started = time.perf_counter()
        rows.append(index.nearest(query_D[None], K).rows_QK[0])
        wall.append(1000 * (time.perf_counter() - started))
    numbers["processor_ms"] = 1000 * (time.process_time() - processor) / len(queries_QD)
    numbers |= {f"p{share}_ms": float(np.percentile(wall, share)) for share in (50, 95)}
    started = time.perf_counter()
    batch = index.nearest(queries_QD, K)
    numbers["batch_queries_per_s"] = len(queries_QD) / (time.perf_counter() - started)
    assert np.array_equal(batch.rows_QK, rows)
    started = time.perf_counter()
    assert all(index.name(row) for row in rows[-1])
    numbers["names_ms"] = 1000 * (time.perf_counter() - started)
    return numbers | {"searched_by": index.kind}, np.array(rows)


def filtered_ms(folder: Path, queries_QD: NDArray[np.floating], share: float = 0.01) -> dict[str, float]:
    """Milliseconds of single queries under a condition that this share of the rows meets: wall clock (median) and processor.

    The index gets a column `number`, 0 to 9,999 in no order. The condition is met once before, as for a page that filters all searches.
    """
    index = Index.open(folder)
    numbers = np.random.default_rng(7).permutation(index.num_rows) % 10_000
    search_commit.commit_columns(folder, index.document, pa.table({"number": numbers}))
    index = Index.open(folder)
    condition = parse_where(f"number < {round(share * 10_000)}", index.columns)
    started = time.perf_counter()
    index.nearest(queries_QD[:1], K, condition)
    first = 1000 * (time.perf_counter() - started)
    wall, processor = [], time.process_time()
    for query_D in queries_QD:
        started = time.perf_counter()
        index.nearest(query_D[None], K, condition)
        wall.append(1000 * (time.perf_counter() - started))
    used = 1000 * (time.process_time() - processor) / len(queries_QD)
    return {"filtered_first_ms": first, "filtered_p50_ms": float(np.median(wall)), "filtered_processor_ms": used}


def recall(found_QK: NDArray[np.int64], true_QK: NDArray[np.int64]) -> float:
    return float(
        np.mean([len(set(found) & set(true)) / len(true) for found, true in zip(found_QK.tolist(), true_QK.tolist(), strict=True)])
    )


def run(root: Path, num_images: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    mixture = Mixture(args.dim)
    started = time.perf_counter()
    flat = root / f"{num_images}-flat"
    parts = write_vectors(flat, num_images, mixture)
    say(f"{num_images:,} images written in {time.perf_counter() - started:.1f} s")
    seal(flat, parts, args.dim, IndexConfig(kind="flat"))
    bytes_of_vectors = sum(part["bytes"] for part in parts) / num_images
    queries_QD = mixture.queries(args.queries)
    exact, true_QK = measure(flat, queries_QD[: args.exact_queries])
    shared = {"images": num_images, "dim": args.dim, "vector_bytes": bytes_of_vectors}
    results = [
        {**shared, "kind": "flat", "build_seconds": 0.0, "build_processor_seconds": 0.0, "ann_bytes": 0.0, "recall@10": 1.0, **exact}
    ]
    for kind in args.kinds:
        folder = linked(root / f"{num_images}-{kind}", flat / "vectors")
        config = config_module.build(IndexConfig, config_module.apply_sets({"kind": kind}, args.sets))
        wall, processor = time.perf_counter(), time.process_time()
        seal(folder, parts, args.dim, config)
        built = {"build_seconds": time.perf_counter() - wall, "build_processor_seconds": time.process_time() - processor}
        say(f"{num_images:,} images, {kind}: built in {built['build_seconds']:.1f} s")
        size = sum(path.stat().st_size for path in folder.glob("ann/*")) / num_images
        numbers, rows_QK = measure(folder, queries_QD)
        if args.filtered:
            numbers |= filtered_ms(folder, queries_QD)
        results.append(
            {**shared, "kind": kind, **built, "ann_bytes": size, "recall@10": recall(rows_QK[: len(true_QK)], true_QK), **numbers}
        )
    shutil.rmtree(root)
    return results


def show(results: list[dict[str, Any]]) -> None:
    columns = {
        "images": ",",
        "kind": "",
        "searched_by": "",
        "build_seconds": ",.1f",
        "build_processor_seconds": ",.1f",
        "vector_bytes": ",.0f",
        "ann_bytes": ",.0f",
        "recall@10": ".4f",
        "p50_ms": ".2f",
        "p95_ms": ".2f",
        "processor_ms": ".2f",
        "open_ms": ".1f",
        "first_query_ms": ",.1f",
        "batch_queries_per_s": ",.0f",
        "names_ms": ".1f",
    }
    rows = [list(columns), *([format(result[name], form) for name, form in columns.items()] for result in results)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    for row in rows:
        say("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def commit() -> str | None:
    """The measured commit; None outside of a repository."""
    process = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return process.stdout.strip() or None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--kinds", nargs="+", default=["hnsw"], choices=["hnsw", "ivf-pq", "int8", "binary"])
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--exact-queries", type=int, default=200, help="number of queries for recall; these are also searched exactly")
    parser.add_argument("--filtered", action="store_true", help="also time queries under a condition that 1%% of the images meet")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results: list[dict[str, Any]] = []
    for num_images in args.images:
        with tempfile.TemporaryDirectory() as folder:
            results += run(Path(folder) / "indices", num_images, args)
    show(results)
    facts = {"commit": commit(), "load": devices.load_average(), "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    sys.stdout.write(json.dumps({"machine": devices.describe(torch.device("cpu")), **facts, "results": results}) + "\n")


def say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
