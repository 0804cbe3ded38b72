"""Approximate search over a range of rows: graphs by usearch, inverted lists of codes by faiss. Both only propose candidates.

A segment is built by one thread from the vectors of its rows alone, so its bytes follow from them. Several are built side by side.
Shape letters: Q queries, R rows, D width, C candidates.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dcdctl.core import files
from dcdctl.core.artifacts import seal_of
from dcdctl.core.errors import require_extra
from dcdctl.core.progress import Advance
from dcdctl.core.search.config import HnswConfig, IndexConfig, IvfPqConfig
from dcdctl.core.search.exact import Floats, Rows
from dcdctl.core.search.storage import INDEX, Segment

Blocks = Iterable[Floats]
"""The unit vectors of a segment's rows, in order, in blocks."""
HIGHEST = 127
"""The largest number of a signed byte that has its negative."""
SEED = 1234


class Opened(Protocol):
    """A segment that is ready to be asked, by several threads at once."""

    def candidates(self, queries_QD: Floats, count: int) -> Rows:
        """Q x C rows counted from the segment's first, nearest first; -1 where there are fewer."""
        ...


def describe(folder: Path, kind: str, rows: range, generation: int) -> Segment:
    """What index.json says of a segment that was written."""
    name = file_name(kind, rows, generation)
    return Segment(file=name, kind=kind, first_row=rows.start, rows=len(rows), **seal_of(folder / name))


def wanted(num_rows: int, there: Sequence[Segment], config: IndexConfig) -> list[range]:
    """The ranges of rows that shall have a segment: full ones are for ever, and what is behind the last stays without while it is short.

    >>> config = IndexConfig(segment_rows=100, flat_up_to=30)
    >>> wanted(250, [], config), wanted(230, [], config), wanted(30, [], config)
    ([range(0, 100), range(100, 200), range(200, 250)], [range(0, 100), range(100, 200)], [])
    """
    if config.is_flat or num_rows <= config.flat_up_to:
        return []
    stop = there[-1].stop if there else 0
    if num_rows - stop > config.flat_up_to:
        stop = num_rows
    found = [range(first, min(first + config.segment_rows, stop)) for first in range(0, stop, config.segment_rows)]
    is_there = bool(there) and there[-1].stop == stop
    return found if is_there or len(found[-1]) > config.flat_up_to else found[:-1]


def file_name(kind: str, rows: range, generation: int) -> str:
    """
    >>> file_name("hnsw", range(0, 1000), 2)
    'hnsw-000000000000-1000-2'
    """
    return f"{kind}-{rows.start:012d}-{len(rows)}-{generation}"


def build_all(
    folder: Path,
    ranges: Sequence[range],
    blocks_of: Callable[[range], Blocks],
    dim: int,
    config: IndexConfig,
    generation: int,
    *,
    threads: int,
    advance: Advance,
) -> None:
    """Write the segments that are not there, `threads` at a time, each whole or not at all."""
    lock, is_over = threading.Lock(), threading.Event()

    def told(count: int) -> None:
        if is_over.is_set():
            raise InterruptedError("another segment was not built")
        with lock:
            advance(count)

    def build(rows: range) -> None:
        path = folder / file_name(config.kind, rows, generation)
        if not path.exists():
            with files.atomic_path(path) as partial:
                _BUILD[config.kind](partial, rows, blocks_of, dim, config, told)

    with ThreadPoolExecutor(max(1, min(threads, len(ranges)))) as pool:
        try:
            for one in [pool.submit(build, rows) for rows in ranges]:
                one.result()
        except BaseException:
            # Those that are at work would go on for minutes, and the program would wait for them.
            is_over.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def open_segment(folder: Path, segment: Segment, config: IndexConfig) -> Opened:
    """A segment, memory-mapped; StaleError if the file is damaged."""
    path = INDEX.checked(folder / segment.file, segment.sha256)
    return Graph(path, config.hnsw) if segment.kind == "hnsw" else InvertedLists(path, config.ivf_pq)


def packages(kind: str) -> dict[str, str]:
    """The package that a kind needs, with its version; MissingError if it is not installed."""
    if kind == "flat":
        return {}
    module, package, extra = ("usearch", "usearch", "index") if kind == "hnsw" else ("faiss", "faiss-cpu", "index-pq")
    require_extra(extra, module, needed_by=f"an index of kind {kind}", or_else="search exactly with --set kind=flat")
    try:
        return {package: version(package)}
    except PackageNotFoundError:  # conda gives the distribution another name
        return {package: str(importlib.import_module(module).__version__)}


class Graph:
    """A graph of usearch. Calls of several threads use views of their own: one view is for one call at a time."""

    def __init__(self, path: Path, config: HnswConfig) -> None:
        self._path, self._width = path, config.search_width
        self._views = [self._view()]

    def candidates(self, queries_QD: Floats, count: int) -> Rows:
        codes_QD = np.rint(queries_QD * (HIGHEST / np.abs(queries_QD).max(axis=1, keepdims=True))).astype(np.int8)
        with self._borrowed() as view:
            found = view.search(codes_QD, min(count, len(view)), threads=1)
        keys_QC = np.atleast_2d(found.keys).astype(np.int64)
        counts_Q = np.atleast_1d(found.counts if hasattr(found, "counts") else keys_QC.shape[1])
        return np.where(np.arange(keys_QC.shape[1]) < counts_Q[:, None], keys_QC, -1)

    @contextmanager
    def _borrowed(self) -> Iterator[Any]:
        try:
            view = self._views.pop()
        except IndexError:
            view = self._view()
        try:
            yield view
        finally:
            self._views.append(view)

    def _view(self) -> Any:
        packages("hnsw")
        from usearch.index import Index

        try:
            view = Index.restore(str(self._path), view=True, enable_key_lookups=False)
        except (ValueError, RuntimeError, OSError) as error:
            raise INDEX.damaged(self._path, str(error)) from error
        view.expansion_search = self._width
        return view


def _build_graph(path: Path, rows: range, blocks_of: Callable[[range], Blocks], dim: int, config: IndexConfig, advance: Advance) -> None:
    packages("hnsw")
    from usearch.index import Index

    settings = config.hnsw
    graph = Index(
        ndim=dim,
        metric="ip",
        dtype="i8",
        connectivity=settings.neighbours,
        expansion_add=settings.build_width,
        expansion_search=settings.search_width,
        enable_key_lookups=False,
    )
    # usearch's own conversion takes 127 for a number of 1, which numbers of a unit vector are far from.
    scale = HIGHEST / max(float(np.abs(block_RD).max()) for block_RD in blocks_of(rows))
    first = 0
    for block_RD in blocks_of(rows):
        codes_RD = np.rint(block_RD * np.float32(scale)).astype(np.int8)
        graph.add(np.arange(first, first + len(codes_RD), dtype=np.uint64), codes_RD, threads=1)
        first += len(codes_RD)
        advance(len(codes_RD))
    graph.save(str(path))


class InvertedLists:
    """Inverted lists of faiss, with product-quantised codes."""

    def __init__(self, path: Path, config: IvfPqConfig) -> None:
        faiss = _faiss()
        try:
            self._index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise INDEX.damaged(path, str(error).splitlines()[0]) from error
        self._parameters = faiss.SearchParametersIVF(nprobe=config.probes)

    def candidates(self, queries_QD: Floats, count: int) -> Rows:
        _one_thread(_faiss())
        found: NDArray[np.int64] = self._index.search(queries_QD, min(count, self._index.ntotal), params=self._parameters)[1]
        return found


def _build_lists(path: Path, rows: range, blocks_of: Callable[[range], Blocks], dim: int, config: IndexConfig, advance: Advance) -> None:
    faiss, settings = _faiss(), config.ivf_pq
    _one_thread(faiss)
    num_lists = max(1, min(round(settings.lists_per_root * len(rows) ** 0.5), len(rows) // 40))
    num_bytes = max(1, round(dim / settings.numbers_per_byte))
    while dim % num_bytes:  # a code's bytes stand for equally many numbers
        num_bytes += 1
    lists = faiss.index_factory(dim, f"IVF{num_lists},PQ{num_bytes}", faiss.METRIC_INNER_PRODUCT)
    lists.cp.seed = lists.pq.cp.seed = SEED
    lists.do_polysemous_training = False  # minutes of simulated annealing, for a filter that nothing here uses
    count = min(len(rows), max(settings.train_per_list * num_lists, 64 * 256))
    lists.train(_sample(blocks_of(rows), len(rows), count))
    for block_RD in blocks_of(rows):
        lists.add(block_RD)
        advance(len(block_RD))
    faiss.write_index(lists, str(path))


def _sample(blocks: Blocks, num_rows: int, count: int) -> Floats:
    """So many vectors, spread evenly."""
    places = np.linspace(0, num_rows - 1, count).round().astype(np.int64)
    taken, first = [], 0
    for block_RD in blocks:
        inside = places[np.searchsorted(places, first) : np.searchsorted(places, first + len(block_RD))]
        taken.append(block_RD[inside - first])
        first += len(block_RD)
    return np.concatenate(taken)


def _faiss() -> Any:
    packages("ivf-pq")
    import faiss

    return faiss


def _one_thread(faiss: Any) -> None:
    # A setting of the calling thread: searches of one query gain nothing from several, and builds are the same bytes with one.
    faiss.omp_set_num_threads(1)


_BUILD: dict[str, Callable[..., None]] = {"hnsw": _build_graph, "ivf-pq": _build_lists}
