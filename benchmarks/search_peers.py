"""Search of image vectors: an index of dcdctl against faiss, usearch and LanceDB themselves, on the same vectors; and
of token vectors by MaxSim, against LanceDB, Qdrant's local mode, sentence-transformers and a plain einsum.

    OMP_NUM_THREADS=1 python benchmarks/search_peers.py [--images 52000] [--dim 512] [--ways flat hnsw]
    OMP_NUM_THREADS=1 python benchmarks/search_peers.py --ways tokens centroids --work work/late
    OMP_NUM_THREADS=1 python benchmarks/search_peers.py --ways tokens --images 2000 --tokens 49 --dim 128

The vectors are those of benchmarks/search.py: made up, rounded to float16, of unit length. All libraries get the same
ones as float32, and search them with one thread. Settings are those of dcdctl's index: graphs with 16 edges (32 on the
lowest level), 128 candidates while building and 128 per query. LanceDB has the settings of the store `lancedb:`. dcdctl
scores 50 candidates again with the float16 vectors in float64. It needs `pip install faiss-cpu`.

Token vectors are those of a model and drawn scenes (--work), or made up: an image is a point of the same mixture, each
of its --tokens lies between it and another point, and a query has --length tokens of one image with noise. Made-up
tokens serve to compare times; they have no clusters, so few candidates of two stages are right. `tokens` compares all
images, and `centroids` is the default of a late index in two stages. Qdrant's local mode is the Python client
without its server. LanceDB compares tokens by cosine; all other ways by the inner product. Bytes are those of the
files, or of the arrays in memory.

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
import late_index
from search import K, Mixture, linked, rows_of, seal, unit, write_vectors
from side_by_side import Spent, facts, in_turns, median_processor, ratios, say, spent, table

from dcdctl.core import config as config_module
from dcdctl.core.search import FolderIndex, exact
from dcdctl.core.search.index_config import IndexConfig

Floats = NDArray[np.float32]
Search = Callable[[Floats], list[int]]
"""The rows nearest to one query of shape 1 x D."""
CONFIG = IndexConfig()
TOKEN_KINDS = ("tokens", "centroids")
KINDS = ("flat", "hnsw", *TOKEN_KINDS)
VECTOR_PACKAGES = ("faiss-cpu", "usearch", "lancedb")
TOKEN_PACKAGES = ("lancedb", "qdrant-client", "sentence-transformers")


class Vectors:
    """The vectors in the files of an index, and as float32."""

    def __init__(self, root: Path, num_images: int, dim: int) -> None:
        mixture = Mixture(dim)
        self.root, self.dim, self.flat = root, dim, root / "flat"
        self.parts = write_vectors(self.flat, num_images, mixture)
        seal(self.flat, self.parts, dim, IndexConfig(kind="flat"))
        self.unit_RD = exact.unit_rows(FolderIndex.open(self.flat).stored(np.arange(num_images)).data)
        self.queries = mixture.queries(1000).astype(np.float32)
        self.bytes: dict[str, int] = {}


class Tokens:
    """Token vectors of images, I x N x D, and of queries, Q x L x D; an exact index of them is in `flat`."""

    def __init__(self, root: Path, args: argparse.Namespace) -> None:
        self.root, self.flat = root, root / "tokens"
        self.bytes: dict[str, int] = {}
        self.tokens_IND, self.queries = self.made_up(args) if args.work is None else self.encoded(args.work)
        self.dim = self.tokens_IND.shape[2]
        late_index.build(self.flat, self.tokens_IND, "float16", "kind=flat")

    def encoded(self, work: Path) -> tuple[Floats, Floats]:
        """Those that benchmarks/late_index.py wrote."""
        return np.load(work / "tokens.npy").astype(np.float16).astype(np.float32), np.load(work / "queries.npy")

    def made_up(self, args: argparse.Namespace) -> tuple[Floats, Floats]:
        mixture, rng, count = Mixture(args.dim), np.random.default_rng(8), args.images * args.tokens
        parts = mixture.images(count, 0).reshape(args.images, args.tokens, args.dim)
        tokens = unit((parts + mixture.images(args.images, 1)[:, None]).reshape(count, args.dim))
        tokens_IND = tokens.astype(np.float16).astype(np.float32).reshape(parts.shape)
        images = rng.integers(args.images, size=(1000, 1))
        seen = tokens_IND[images, rng.integers(args.tokens, size=(1000, args.length))]
        noise = rng.normal(size=seen.shape) * args.dim**-0.5
        return tokens_IND, unit((seen + noise).reshape(-1, args.dim)).reshape(seen.shape).astype(np.float32)

    def in_memory(self, name: str, search: Search) -> dict[str, Search]:
        """A way that holds the tokens as float32."""
        self.bytes[name] = self.tokens_IND.nbytes
        return {name: search}


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

    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatIP(vectors.dim)
    index.add(vectors.unit_RD)
    return {"faiss Flat": lambda query: index.search(query, K)[1][0].tolist()}


def faiss_hnsw(vectors: Vectors) -> dict[str, Search]:
    import faiss

    faiss.omp_set_num_threads(1)
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


def dcdctl_tokens(tokens: Tokens, kind: str) -> dict[str, Search]:
    """A late index of dcdctl."""
    ways: dict[str, Search] = {}
    for name, codes in {f"dcdctl {kind}": "float16", f"dcdctl {kind}, int8": "int8"}.items():
        folder = tokens.root / f"{kind}-{codes}"
        late_index.build(
            folder, tokens.tokens_IND, codes, f"kind={'flat' if kind == 'tokens' else kind}", "flat_up_to=1000"
        )
        index = FolderIndex.open(folder)
        tokens.bytes[name] = sum(size or 0 for size, _ in index.document.files.values())
        ways[name] = lambda query, index=index: index.nearest(query, K)[1][0].tolist()
    return ways


def numpy_einsum(tokens: Tokens) -> dict[str, Search]:
    def search(query: Floats) -> list[int]:
        products_INL = np.einsum("ind,ld->inl", tokens.tokens_IND, query[0], optimize=True)
        return np.argsort(-products_INL.max(axis=1).sum(axis=1), kind="stable")[:K].tolist()

    return tokens.in_memory("einsum, NumPy", search)


def torch_einsum(tokens: Tokens) -> dict[str, Search]:
    tokens_IND = torch.from_numpy(tokens.tokens_IND)

    def search(query: Floats) -> list[int]:
        products_INL = torch.einsum("ind,ld->inl", tokens_IND, torch.from_numpy(query[0]))
        return products_INL.amax(dim=1).sum(dim=1).topk(K).indices.tolist()

    return tokens.in_memory("einsum, torch", search)


def sentence_transformers(tokens: Tokens) -> dict[str, Search]:
    from sentence_transformers import util

    tokens_IND = torch.from_numpy(tokens.tokens_IND)

    def search(query: Floats) -> list[int]:
        found = util.semantic_search(torch.from_numpy(query), tokens_IND, top_k=K, score_function=util.maxsim)
        return [hit["corpus_id"] for hit in found[0]]

    return tokens.in_memory("sentence-transformers", search)


def qdrant_local(tokens: Tokens) -> dict[str, Search]:
    from qdrant_client import QdrantClient, models

    client, name = QdrantClient(":memory:"), "Qdrant, local mode"
    maxsim = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
    vectors = models.VectorParams(size=tokens.dim, distance=models.Distance.DOT, multivector_config=maxsim)
    client.create_collection("tokens", vectors_config=vectors)
    for first in range(0, len(tokens.tokens_IND), 1000):
        block = tokens.tokens_IND[first : first + 1000].tolist()
        client.upsert("tokens", models.Batch(ids=list(range(first, first + len(block))), vectors=block))

    def search(query: Floats) -> list[int]:
        found = client.query_points("tokens", query=query[0], limit=K, with_payload=False)
        return [int(point.id) for point in found.points]

    return tokens.in_memory(name, search)


def lancedb_tokens(tokens: Tokens, is_indexed: bool) -> dict[str, Search]:
    import lancedb
    from lancedb.index import HnswSq

    from dcdctl.core.stores.lancedb import PROBES

    num_images, num_tokens, dim = tokens.tokens_IND.shape
    values = pa.FixedSizeListArray.from_arrays(pa.array(tokens.tokens_IND.astype(np.float16).ravel()), dim)
    ends = pa.array(np.arange(num_images + 1, dtype=np.int32) * num_tokens)
    rows = pa.table({"row": pa.array(np.arange(num_images)), "vector": pa.ListArray.from_arrays(ends, values)})
    name = "LanceDB, IVF and HNSW" if is_indexed else "LanceDB, no index"
    stored = lancedb.connect(tokens.root / name).create_table("tokens", rows)
    if is_indexed:
        stored.create_index("vector", config=HnswSq(distance_type="cosine"))

    def search(query: Floats) -> list[int]:
        found = stored.search(query[0]).distance_type("cosine").nprobes(PROBES).ef(max(2 * K, 200))
        return found.select(["row", "_distance"]).limit(K).to_arrow()["row"].to_pylist()

    tokens.bytes[name] = sum(path.stat().st_size for path in (tokens.root / name).rglob("*") if path.is_file())
    return {name: search}


MAKERS: dict[str, list[tuple[str, Callable[[Any], dict[str, Search]]]]] = {
    "flat": [("dcdctl flat", lambda vectors: dcdctl(vectors, "flat")), ("faiss Flat", faiss_flat)],
    "hnsw": [
        ("dcdctl hnsw", lambda vectors: dcdctl(vectors, "hnsw")),
        ("faiss HNSW", faiss_hnsw),
        ("usearch f16", lambda vectors: usearch_graph(vectors, "f16")),
        ("usearch i8", lambda vectors: usearch_graph(vectors, "i8")),
        ("LanceDB", lancedb_table),
    ],
    "tokens": [
        ("dcdctl tokens", lambda tokens: dcdctl_tokens(tokens, "tokens")),
        ("einsum, NumPy", numpy_einsum),
        ("einsum, torch", torch_einsum),
        ("sentence-transformers", sentence_transformers),
        ("LanceDB", lambda tokens: lancedb_tokens(tokens, False)),
        ("Qdrant", qdrant_local),
    ],
    "centroids": [
        ("dcdctl centroids", lambda tokens: dcdctl_tokens(tokens, "centroids")),
        ("LanceDB", lambda tokens: lancedb_tokens(tokens, True)),
    ],
}
IS_ROUNDED = ("int8", "LanceDB, no index")
"""Exact ways that compare other numbers: codes, and cosines of tokens whose lengths are rounded."""


def compare(
    vectors: Vectors | Tokens, kind: str, true: list[list[int]], args: argparse.Namespace
) -> tuple[list[list[str]], list[dict[str, Any]]]:
    """Rows of the table, and numbers, of all ways of a kind."""
    # Without the padding of token vectors.
    queries = [(query if query.ndim == 1 else query[query.any(axis=1)])[None] for query in vectors.queries]
    queries = queries[: args.queries]
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
    exact_ways = [name for name in recalls if kind in ("flat", "tokens") and not name.endswith(IS_ROUNDED)]
    if any(recalls[name] < 1 for name in exact_ways):
        raise SystemExit(f"exact searches disagree: {recalls}")
    rounds = in_turns(
        {name: lambda search=search: [search(query) for query in queries] for name, search in searches.items()},
        args.repeats,
    )
    factor = ratios(rounds, f"dcdctl {kind}")
    rows, numbers = [], []
    for name in searches:
        ms = 1000 * median_processor(rounds[name]) / len(queries)
        build = "" if kind in ("flat", "tokens") else f"{built[name].processor:.1f} s"
        rows.append(
            [
                name,
                f"{ms:.2f} ms",
                f"{factor[name].processor:.2f}",
                f"{factor[name].wall:.2f}",
                f"{recalls[name]:.4f}",
                build,
                f"{vectors.bytes[name] / 1e6:.1f} MB" if name in vectors.bytes else "",
            ]
        )
        numbers.append(
            {
                "way": name,
                "processor_ms": ms,
                "recall@10": recalls[name],
                "build": vars(built[name]),
                "bytes": vectors.bytes.get(name),
                **vars(factor[name]),
            }
        )
    return rows, numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=52_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--ways", nargs="+", choices=KINDS, default=["flat", "hnsw"])
    parser.add_argument("--tokens", type=int, default=17, help="vectors per image, of kinds tokens and centroids")
    parser.add_argument("--work", type=Path, help="real token vectors: the --work of benchmarks/late_index.py")
    parser.add_argument("--length", type=int, default=12, help="vectors per query, of these kinds")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    packages: set[str] = set()
    results: dict[str, list[dict[str, Any]]] = {}
    lines: list[list[str]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for group in (KINDS[:2], TOKEN_KINDS):
            kinds = [kind for kind in args.ways if kind in group]
            if kinds:
                packages |= {*(TOKEN_PACKAGES if group is TOKEN_KINDS else VECTOR_PACKAGES)}
                root = Path(scratch)
                vectors = Tokens(root, args) if group is TOKEN_KINDS else Vectors(root, args.images, args.dim)
                flat = FolderIndex.open(vectors.flat)
                true = [rows.tolist() for rows in flat.nearest(vectors.queries[: args.queries], K)[1]]
            for kind in kinds:
                rows, results[kind] = compare(vectors, kind, true, args)
                lines += rows
    columns = [
        "way",
        "processor time per query",
        "to dcdctl",
        "to dcdctl by the clock",
        "recall@10",
        "processor time to build",
        "bytes",
    ]
    sizes = {name: str(getattr(args, name)) for name in ("work", "images", "dim", "tokens", "length", "queries")}
    sys.stdout.write(f"{sizes}\n\n{table(columns, lines)}\n")
    sys.stdout.write(json.dumps({**facts(*sorted(packages)), **sizes, "results": results}) + "\n")


if __name__ == "__main__":
    main()
