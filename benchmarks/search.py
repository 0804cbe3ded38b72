"""Speed, recall and size of an image index, and of the stores that take an index: one table.

    python benchmarks/search.py --images 10000 100000
    python benchmarks/search.py --images 100000 --stores 'postgresql://user@host/db?table=trial'
        'lancedb:/tmp/trial?table=trial'
    python benchmarks/search.py --images 1000000

The vectors are made up, and written and searched as `dcdctl index` and `dcdctl search` do it. They are a mixture of
2,000 centers with images around each. Centers and images have a spectrum that falls off like the principal components
of image embeddings: standard deviation i^-0.5 in direction i, so about 23 of 256 dimensions count (participation ratio
of the variances). A query is a new sample of the mixture, moved like a caption: noise of 0.4 of its length, and half of
its length in a direction that all queries share. So no query is close to an image (the best cosine is about 0.67), and
images of many centers compete.

The exact answer comes from a flat index over the same files. Latencies are for single queries one after the other,
without the encoder, with the files in the system's cache: p50 and p95 of ten hits with their names and columns.
Filtered queries have a condition on a column that one image in a hundred meets. Processor milliseconds are the sum over
all threads of this process, without those of a server, and hardly grow when other work runs beside. The opening time is
measured in a warm process. A store is filled by the upload of `dcdctl upload`, which replaces what the URL holds;
its build time includes the upload. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import dcdctl  # noqa: F401  # before torch: it sets how long torch's threads spin

# isort: split

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from reports import commit, say

from dcdctl.core import config as config_module
from dcdctl.core import devices
from dcdctl.core.search import FolderIndex, Hit, ImageIndex, ImageSource, StoredVectors, parse_where, part_files
from dcdctl.core.search import commit as search_commit
from dcdctl.core.search.columns.table import write_columns
from dcdctl.core.search.entries import IndexedModel, Part
from dcdctl.core.search.exact import token_type
from dcdctl.core.search.index_config import IndexConfig
from dcdctl.core.search.part_files import ROWS_PER_PART, SourceImage
from dcdctl.core.search.storage import IndexDocument
from dcdctl.core.stores import open_index, open_store, upload_index
from dcdctl.core.toml import apply_sets

K = 10
NUM_CENTERS = 2000
OPENINGS = 5
BUCKETS = 100
CONDITION = f"bucket = {BUCKETS // 2}"
"""Met by one image in `BUCKETS`."""


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
        return unit(
            self.center_CD[rng.integers(NUM_CENTERS, size=count)]
            + 0.7 * rng.normal(size=(count, self.dim)) * self.spectrum_D
        )

    def queries(self, count: int) -> NDArray[np.floating]:
        noise_QD = np.random.default_rng([7, 2**32]).normal(size=(count, self.dim)) * self.dim**-0.5
        return unit(self.images(count, 2**31) + 0.4 * noise_QD + 0.5 * self.gap_D)


def unit(vectors: NDArray[np.floating]) -> NDArray[np.floating]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_vectors(folder: Path, num_images: int, mixture: Mixture) -> list[Part]:
    """Write the files of vectors. Returns their entries in index.json."""
    parts = []
    for number, first in enumerate(range(0, num_images, ROWS_PER_PART)):
        vectors = mixture.images(min(ROWS_PER_PART, num_images - first), number).astype(np.float16)
        paths = [f"{row // 1000:05d}/{row:09d}.jpg" for row in range(first, first + len(vectors))]
        path = folder / "vectors" / part_files.part_name(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        part_files.write_part(path, [SourceImage(image_id=name, path=name) for name in paths], StoredVectors(vectors))
        parts.append(part_files.describe_part(path, 0, token_type(mixture.dim, "float16"))[0])
    return parts


def seal(folder: Path, parts: list[Part], dim: int, config: IndexConfig) -> None:
    """Write an index of these vectors, without a model and without images."""
    document = IndexDocument(
        generation=1,
        model=IndexedModel(dim=dim, fingerprint="0" * 64),
        precision="float32",
        settings=config,
        sources=(ImageSource(kind="folder", path=str(folder)),),
        parts=tuple(parts),
    )
    document = search_commit.commit(folder, document)
    buckets = np.random.default_rng([7, 2**33]).integers(BUCKETS, size=document.num_rows)
    columns = write_columns(folder, 2, pa.table({"bucket": pa.array(buckets)}))
    search_commit.seal(folder, replace(document, generation=2, columns=columns))


def linked(folder: Path, vectors: Path) -> Path:
    """A folder for another index over the same files of vectors, as hard links."""
    (folder / "vectors").mkdir(parents=True)
    for path in vectors.iterdir():
        os.link(path, folder / "vectors" / path.name)
    return folder


def opening_ms(place: str | Path) -> float:
    seconds = []
    for _ in range(OPENINGS):
        started = time.perf_counter()
        open_index(place)
        seconds.append(time.perf_counter() - started)
    return 1000 * float(np.median(seconds))


def measure(
    place: str | Path, queries_QD: NDArray[np.floating]
) -> tuple[dict[str, Any], list[list[int]], list[list[int]]]:
    """Search times of an index or a store, and the rows of the nearest images without and with the condition."""
    numbers: dict[str, Any] = {"open_ms": opening_ms(place)}
    index = open_index(place)
    started = time.perf_counter()
    index.search(queries_QD[:1], K)
    numbers["first_query_ms"] = 1000 * (time.perf_counter() - started)
    processor = time.process_time()
    wall, rows = one_by_one(index, queries_QD)
    numbers["processor_ms"] = 1000 * (time.process_time() - processor) / len(queries_QD)
    numbers |= {f"p{share}_ms": float(np.percentile(wall, share)) for share in (50, 95)}
    started = time.perf_counter()
    index.search(queries_QD[:1], K, parse_where(CONDITION, index.columns))  # reads the column
    numbers["filtered_first_ms"] = 1000 * (time.perf_counter() - started)
    processor = time.process_time()
    wall, filtered = one_by_one(index, queries_QD, CONDITION)
    numbers["filtered_processor_ms"] = 1000 * (time.process_time() - processor) / len(queries_QD)
    numbers |= {f"filtered_p{share}_ms": float(np.percentile(wall, share)) for share in (50, 95)}
    started = time.perf_counter()
    batch = index.search(queries_QD, K)
    numbers["batch_queries_per_s"] = len(queries_QD) / (time.perf_counter() - started)
    if isinstance(index, FolderIndex):  # engines that search by a graph may find others for a batch
        assert [rows_of(hits) for hits in batch] == rows
    return numbers | {"searched_by": index.kind}, rows, filtered


def one_by_one(
    index: ImageIndex, queries_QD: NDArray[np.floating], condition: str | None = None
) -> tuple[list[float], list[list[int]]]:
    """The milliseconds and the rows of each query."""
    wall, rows = [], []
    where = None if condition is None else parse_where(condition, index.columns)
    for query_D in queries_QD:
        started = time.perf_counter()
        hits = index.search(query_D[None], K, where)[0]
        wall.append(1000 * (time.perf_counter() - started))
        rows.append(rows_of(hits))
    return wall, rows


def rows_of(hits: tuple[Hit, ...]) -> list[int]:
    return [hit.row for hit in hits]


def fill(index: FolderIndex, url: str) -> dict[str, Any]:
    """Fill a store with an index. Returns its build time and its bytes per image."""
    store = open_store(url)
    wall, processor = time.perf_counter(), time.process_time()
    upload_index(index, store, replace=True)
    built = {"build_seconds": time.perf_counter() - wall, "build_processor_seconds": time.process_time() - processor}
    return built | {"bytes": num_bytes(store) / len(index)}


def num_bytes(store: Any) -> int:
    """The size of a store on disk."""
    if store.kind == "postgresql":
        ((size,),) = store._run("SELECT pg_total_relation_size(to_regclass(%s))", [store._regclass])
        return int(size)
    return int(store._open().stats()["total_bytes"])


def recall(found: list[list[int]], true: list[list[int]]) -> float:
    return float(
        np.mean([len(set(rows) & set(expected)) / len(expected) for rows, expected in zip(found, true, strict=False)])
    )


def run(root: Path, num_images: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    mixture = Mixture(args.dim)
    started = time.perf_counter()
    flat = root / f"{num_images}-flat"
    parts = write_vectors(flat, num_images, mixture)
    say(f"{num_images:,} images written in {time.perf_counter() - started:.1f} s")
    seal(flat, parts, args.dim, IndexConfig(flat_up_to=num_images))
    (flat / "model").mkdir()  # stores note where it is
    bytes_of_vectors = sum(part.bytes for part in parts) / num_images
    queries_QD = mixture.queries(args.queries)
    exact, *true = measure(flat, queries_QD[: args.exact_queries])
    results: list[dict[str, Any]] = []

    def add(
        kind: str, built: dict[str, Any], measured: tuple[dict[str, Any], list[list[int]], list[list[int]]]
    ) -> None:
        numbers, *found = measured
        recalls = {"recall@10": recall(found[0], true[0]), "filtered_recall@10": recall(found[1], true[1])}
        results.append({"images": num_images, "dim": args.dim, "kind": kind, **built, **recalls, **numbers})

    add("flat", {"build_seconds": 0.0, "build_processor_seconds": 0.0, "bytes": bytes_of_vectors}, (exact, *true))
    folder = linked(root / f"{num_images}-codes", flat / "vectors")
    wall, processor = time.perf_counter(), time.process_time()
    seal(folder, parts, args.dim, config_module.build(IndexConfig, apply_sets({}, args.sets)))
    built = {"build_seconds": time.perf_counter() - wall, "build_processor_seconds": time.process_time() - processor}
    say(f"{num_images:,} images: built in {built['build_seconds']:.1f} s")
    size = sum(path.stat().st_size for path in folder.glob("ann/*")) / num_images
    add("codes", {**built, "bytes": bytes_of_vectors + size}, measure(folder, queries_QD))
    for url in args.stores:
        built = fill(FolderIndex.open(flat), url)
        say(f"{num_images:,} images, {open_store(url).location}: filled in {built['build_seconds']:.1f} s")
        add(open_store(url).kind, built, measure(url, queries_QD))
    shutil.rmtree(root)
    return results


def show(results: list[dict[str, Any]]) -> None:
    columns = {
        "images": ",",
        "kind": "",
        "searched_by": "",
        "build_seconds": ",.1f",
        "build_processor_seconds": ",.1f",
        "bytes": ",.0f",
        "recall@10": ".4f",
        "p50_ms": ".2f",
        "p95_ms": ".2f",
        "filtered_recall@10": ".4f",
        "filtered_p50_ms": ".2f",
        "filtered_p95_ms": ".2f",
        "processor_ms": ".2f",
        "open_ms": ".1f",
        "first_query_ms": ",.1f",
        "batch_queries_per_s": ",.0f",
    }
    rows = [list(columns), *([format(result[name], form) for name, form in columns.items()] for result in results)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    for row in rows:
        say("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument(
        "--stores",
        nargs="+",
        default=[],
        metavar="URL",
        help="stores to fill and search; what the URL holds is replaced",
    )
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument(
        "--exact-queries", type=int, default=200, help="number of queries for recall; these are also searched exactly"
    )
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results: list[dict[str, Any]] = []
    for num_images in args.images:
        with tempfile.TemporaryDirectory() as folder:
            results += run(Path(folder) / "indices", num_images, args)
    show(results)
    facts = {
        "commit": commit(),
        "load": os.getloadavg()[0],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    sys.stdout.write(json.dumps({"machine": devices.describe(torch.device("cpu")), **facts, "results": results}) + "\n")


if __name__ == "__main__":
    main()
