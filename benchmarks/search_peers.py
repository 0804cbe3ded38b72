"""Search of image vectors: an index of dcdctl against faiss, usearch and LanceDB themselves, on the same vectors.

    OMP_NUM_THREADS=1 python benchmarks/search_peers.py [--images 52000] [--dim 512] [--ways flat hnsw]

The vectors are those of benchmarks/search.py: made up, rounded to float16, of unit length. All libraries get the same
ones as float32, and search them with one thread. Settings are those of dcdctl's index: graphs with 16 edges (32 on the
lowest level), 128 candidates while building and 128 per query. LanceDB has the settings of the store `lancedb:`. dcdctl
scores 50 candidates again with the float16 vectors in float64. It needs `pip install faiss-cpu`.

A query returns ten rows and scores; "with names" is `Index.search`, which also reads names and columns. Queries are
searched one after the other, in turns with the other ways. Recall is that of the first ten of the exact search, in
which dcdctl and faiss must agree. Build times have one thread, but LanceDB uses its own threads. Ends with one JSON
line.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
from search import K, Mixture, linked, rows_of, seal, write_vectors
from side_by_side import Spent, facts, in_turns, median_processor, ratios, say, spent, table

from dcdctl.core import config as config_module
from dcdctl.core.search import FolderIndex, exact
from dcdctl.core.search.config import IndexConfig

Floats = NDArray[np.float32]
Search = Callable[[Floats], list[int]]
"""The rows nearest to one query of shape 1 x D."""
CONFIG = IndexConfig()
KINDS = ("flat", "hnsw")
PACKAGES = ("faiss-cpu", "usearch", "lancedb")


class Vectors:
    """The vectors in the files of an index, and as float32."""

    def __init__(self, root: Path, num_images: int, dim: int) -> None:
        mixture = Mixture(dim)
        self.root, self.dim, self.flat = root, dim, root / "flat"
        self.parts = write_vectors(self.flat, num_images, mixture)
        seal(self.flat, self.parts, dim, IndexConfig(kind="flat"))
        self.unit_RD = exact.unit_rows(FolderIndex.open(self.flat).vectors(np.arange(num_images)))
        self.query_QD = mixture.queries(1000).astype(np.float32)


def dcdctl(vectors: Vectors, kind: str) -> dict[str, Search]:
    """An index of dcdctl: rows and scores, and hits with names."""
    folder = vectors.flat
    if kind != "flat":
        folder = linked(vectors.root / kind, vectors.flat / "vectors")
        sets = {"kind": kind, "flat_up_to": 1000}
        seal(folder, vectors.parts, vectors.dim, config_module.build(IndexConfig, sets))
    index = FolderIndex.open(folder)
    return {
        f"dcdctl {kind}": lambda query: index.nearest(query, K)[1][0].tolist(),
        f"dcdctl {kind}, with names": lambda query: rows_of(index.search(query, K)[0]),
    }


def faiss_flat(vectors: Vectors) -> dict[str, Search]:
    import faiss

    index = faiss.IndexFlatIP(vectors.dim)
    index.add(vectors.unit_RD)
    return {"faiss Flat": lambda query: index.search(query, K)[1][0].tolist()}


def faiss_hnsw(vectors: Vectors) -> dict[str, Search]:
    import faiss

    index = faiss.IndexHNSWFlat(vectors.dim, CONFIG.hnsw.neighbors, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = CONFIG.hnsw.build_width, CONFIG.hnsw.search_width
    index.add(vectors.unit_RD)
    return {"faiss HNSW, float32": lambda query: index.search(query, K)[1][0].tolist()}


def usearch_graph(vectors: Vectors, dtype: str) -> dict[str, Search]:
    from usearch.index import FolderIndex as Graph

    settings = CONFIG.hnsw
    widths = {"expansion_add": settings.build_width, "expansion_search": settings.search_width}
    graph = Graph(ndim=vectors.dim, metric="ip", dtype=dtype, connectivity=settings.neighbors, **widths)
    graph.add(np.arange(len(vectors.unit_RD), dtype=np.uint64), vectors.unit_RD, threads=1)
    return {f"usearch, {dtype}": lambda query: graph.search(query[0], K, threads=1).keys.tolist()}


def lancedb_table(vectors: Vectors) -> dict[str, Search]:
    import lancedb
    from lancedb.index import HnswSq

    from dcdctl.core.stores.lancedb import PROBES

    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.unit_RD.astype(np.float16).ravel()), vectors.dim)
    rows = pa.table({"row": pa.array(np.arange(len(vectors.unit_RD))), "vector": column})
    stored = lancedb.connect(vectors.root / "lance").create_table("vectors", rows)
    stored.create_index("vector", config=HnswSq(distance_type="cosine"))

    def search(query: Floats) -> list[int]:
        found = (
            stored.search(query[0]).distance_type("cosine").nprobes(PROBES).ef(max(2 * K, 200)).select(["row"]).limit(K)
        )
        return found.to_arrow()["row"].to_pylist()

    return {"LanceDB, IVF and HNSW": search}


MAKERS: dict[str, list[tuple[str, Callable[[Vectors], dict[str, Search]]]]] = {
    "flat": [("dcdctl flat", lambda vectors: dcdctl(vectors, "flat")), ("faiss Flat", faiss_flat)],
    "hnsw": [
        ("dcdctl hnsw", lambda vectors: dcdctl(vectors, "hnsw")),
        ("faiss HNSW", faiss_hnsw),
        ("usearch f16", lambda vectors: usearch_graph(vectors, "f16")),
        ("usearch i8", lambda vectors: usearch_graph(vectors, "i8")),
        ("LanceDB", lancedb_table),
    ],
}


def compare(
    vectors: Vectors, kind: str, true: list[list[int]], args: argparse.Namespace
) -> tuple[list[list[str]], list[dict[str, Any]]]:
    """Rows of the table, and numbers, of all ways of a kind."""
    queries = [query[None] for query in vectors.query_QD[: args.queries]]
    searches, built = dict[str, Search](), dict[str, Spent]()
    for name, make in MAKERS[kind]:
        made: dict[str, Search] = {}
        time = spent(lambda make=make, made=made: made.update(make(vectors)))
        say(f"{name}: made in {time.wall:.1f} s, {time.processor:.1f} s of processors")
        built |= dict.fromkeys(made, time)
        searches |= made
    found = {name: [search(query) for query in queries] for name, search in searches.items()}
    recalls = {
        name: float(np.mean([len(set(a) & set(b)) / K for a, b in zip(rows, true, strict=True)]))
        for name, rows in found.items()
    }
    if kind == "flat" and min(recalls.values()) < 1:
        raise SystemExit(f"exact searches disagree: {recalls}")
    rounds = in_turns(
        {name: lambda search=search: [search(query) for query in queries] for name, search in searches.items()},
        args.repeats,
    )
    factor = ratios(rounds, f"dcdctl {kind}")
    rows, numbers = [], []
    for name in searches:
        ms = 1000 * median_processor(rounds[name]) / len(queries)
        build = "" if kind == "flat" else f"{built[name].processor:.1f} s"
        rows.append(
            [
                name,
                f"{ms:.2f} ms",
                f"{factor[name].processor:.2f}",
                f"{factor[name].wall:.2f}",
                f"{recalls[name]:.4f}",
                build,
            ]
        )
        numbers.append(
            {
                "way": name,
                "processor_ms": ms,
                "recall@10": recalls[name],
                "build": vars(built[name]),
                **vars(factor[name]),
            }
        )
    return rows, numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=52_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--ways", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    import faiss

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    results: dict[str, list[dict[str, Any]]] = {}
    lines: list[list[str]] = []
    with tempfile.TemporaryDirectory() as scratch:
        vectors = Vectors(Path(scratch), args.images, args.dim)
        flat = FolderIndex.open(vectors.flat)
        true = [rows.tolist() for rows in flat.nearest(vectors.query_QD[: args.queries], K)[1]]
        for kind in args.ways:
            rows, results[kind] = compare(vectors, kind, true, args)
            lines += rows
    columns = [
        "way",
        "processor time per query",
        "to dcdctl",
        "to dcdctl by the clock",
        "recall@10",
        "processor time to build",
    ]
    sys.stdout.write(f"{args.images:,} vectors of {args.dim} numbers\n\n{table(columns, lines)}\n")
    sys.stdout.write(
        json.dumps({**facts(*PACKAGES), "images": args.images, "dim": args.dim, "queries": args.queries, **results})
        + "\n"
    )


if __name__ == "__main__":
    main()
