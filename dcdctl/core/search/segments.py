"""Building the segments of an index: a graph or a file of codes over each range of rows.

One thread builds a segment from the vectors of its rows alone, so its bytes are reproducible. Several segments are
built in parallel. Shape letters: R rows, D width.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dcdctl.core import scoring
from dcdctl.core.artifacts import Build, Parts, seal_of
from dcdctl.core.progress import Advance, Track
from dcdctl.core.scoring import HIGHEST
from dcdctl.core.search import ann
from dcdctl.core.search.entries import Segment
from dcdctl.core.search.exact import Floats, Rows
from dcdctl.core.search.graph_file import check_graph
from dcdctl.core.search.index_config import IndexConfig
from dcdctl.core.search.readers import BLOCK, READERS
from dcdctl.core.search.storage import INDEX, IndexDocument, save_array

SAMPLES, ROUNDS = 40, 8
"""Tokens per centroid from which k-means starts, and its rounds."""
Blocks = Callable[[], Iterator[Any]]
"""Reads what is stored of the rows of a segment, of the type that its kind of index needs; again at each call."""


def segment_ranges(num_rows: int, existing: Sequence[Segment], config: IndexConfig) -> list[range]:
    """The ranges of rows that need a segment. Full segments never change; the rows after the last have none while they
    are few.

    >>> config = IndexConfig(segment_rows=100, flat_up_to=30)
    >>> segment_ranges(250, [], config), segment_ranges(230, [], config), segment_ranges(30, [], config)
    ([range(0, 100), range(100, 200), range(200, 250)], [range(0, 100), range(100, 200)], [])
    """
    if config.kind == "flat" or num_rows <= config.flat_up_to:
        return []
    stop = existing[-1].stop if existing else 0
    if num_rows - stop > config.flat_up_to:
        stop = num_rows
    ranges = [range(first, min(first + config.segment_rows, stop)) for first in range(0, stop, config.segment_rows)]
    is_built = bool(existing) and existing[-1].stop == stop
    return ranges if is_built or len(ranges[-1]) > config.flat_up_to else ranges[:-1]


def fill(folder: Path, document: IndexDocument, track: Track) -> tuple[Segment, ...]:
    """The segments of an index; those that it lacks are built."""
    build, kind = Build(folder, {}, INDEX), document.settings.kind
    ranges = segment_ranges(document.num_rows, document.segments, document.settings)
    by_rows = {range(segment.first_row, segment.stop): segment for segment in document.segments}
    # The generation keeps the files of the index before.
    missing = [rows for rows in ranges if rows not in by_rows]
    names = {rows: f"ann/{kind}-{rows.start:012d}-{len(rows)}-{document.generation}" for rows in missing}
    if names:
        unwritten = [missing[number] for number in Parts(build, list(names.values())).missing()]
        with track(f"build {kind}", total=sum(map(len, unwritten)), unit="vectors") as advance:
            _build_all(build, document, {names[rows]: rows for rows in unwritten}, advance)
    for rows, name in names.items():
        path = build.written(name)
        by_rows[rows] = Segment(file=path.name, kind=kind, first_row=rows.start, rows=len(rows), **seal_of(path))
    return tuple(by_rows[rows] for rows in ranges)


def _build_all(build: Build, document: IndexDocument, rows_by_name: dict[str, range], advance: Advance) -> None:
    """Write segments atomically, as many in parallel as torch has threads."""
    reader = READERS[document.model.kind](build.folder, document)
    lock, is_stopped = threading.Lock(), threading.Event()

    def report(count: int) -> None:
        # The only way to stop a thread in the middle of a segment.
        if is_stopped.is_set():
            raise InterruptedError("another segment failed")
        with lock:
            advance(count)

    def build_one(name: str, rows: range) -> None:
        with build.write(name) as path:
            BUILDERS[document.settings.kind](path, partial(reader.blocks, rows), document, report)

    with ThreadPoolExecutor(max(1, min(torch.get_num_threads(), len(rows_by_name)))) as pool:
        try:
            for future in [pool.submit(build_one, *each) for each in rows_by_name.items()]:
                future.result()
        except BaseException:
            # Otherwise the program would wait minutes for the segments in progress.
            is_stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _build_graph(path: Path, blocks: Blocks, document: IndexDocument, advance: Advance) -> None:
    from usearch.index import Index as Usearch

    settings = document.settings.hnsw
    # Candidates are scored again, so one byte per number finds as much as float16 and takes three fifths of the bytes.
    graph = Usearch(
        ndim=document.model.dim,
        metric="ip",
        dtype="i8",
        connectivity=settings.neighbors,
        expansion_add=settings.build_width,
        # Kept in the file, but each view sets its own (`ann.Graph`).
        expansion_search=settings.search_width,
        enable_key_lookups=False,
    )
    # usearch itself would scale 1.0 to 127, but the numbers of a unit vector are much smaller.
    scale = HIGHEST / max(float(np.abs(block.unit_RD).max()) for block in blocks())
    first = 0
    for block in blocks():
        codes_RD = np.rint(block.unit_RD * np.float32(scale)).astype(np.int8)
        # One thread: several would add the vectors in an order that differs from run to run.
        graph.add(np.arange(first, first + len(codes_RD), dtype=np.uint64), codes_RD, threads=1)
        first += len(codes_RD)
        advance(len(codes_RD))
    graph.save(str(path))
    try:
        # The check relies on how usearch lays out a file.
        check_graph(path, first, document.model.dim, settings)
    except ValueError as error:
        raise AssertionError("this version of usearch lays out graphs in another way") from error


def _build_codes(
    path: Path, blocks: Blocks, _: IndexDocument, advance: Advance, *, to_codes: Callable[[Floats], NDArray[Any]]
) -> None:
    parts = []
    for block in blocks():
        parts.append(to_codes(block.unit_RD))
        advance(len(block))
    save_array(np.concatenate(parts), path)


def _build_centroids(path: Path, blocks: Blocks, document: IndexDocument, advance: Advance) -> None:
    """Two arrays: K centroids of a sample of the tokens, by k-means, and the nearest one of each token, N x R. An image
    of fewer than N tokens ends with K."""
    rng, size = np.random.default_rng(0), document.settings.tokens.centroids
    counts_R = np.concatenate([block.counts_R for block in blocks()])
    share, most = SAMPLES * size / counts_R.sum(), counts_R.max()
    sample_SD = np.concatenate([block.tokens_ND[rng.random(len(block.data)) < share] for block in blocks()])
    centroids_KD = rng.permutation(sample_SD)[:size]
    for _ in range(ROUNDS):
        nearest_S = _nearest(sample_SD, centroids_KD)
        sums_KD, num_K = np.zeros_like(centroids_KD), np.bincount(nearest_S, minlength=len(centroids_KD))
        torch.from_numpy(sums_KD).index_add_(0, torch.from_numpy(nearest_S), torch.from_numpy(sample_SD))
        centroids_KD = np.where(num_K[:, None] > 0, sums_KD / np.maximum(num_K, 1)[:, None], centroids_KD)
        centroids_KD = centroids_KD.astype(np.float16).astype(np.float32)
    codes = []
    for block in blocks():
        codes_RN = np.full((len(block), most), len(centroids_KD), dtype=np.uint16)
        codes_RN[np.arange(most) < block.counts_R[:, None]] = _nearest(block.tokens_ND, centroids_KD)
        codes.append(codes_RN.T)
        advance(len(block))
    with path.open("wb") as file:
        np.save(file, centroids_KD.astype(np.float16))
        np.save(file, np.concatenate(codes, axis=1))


def _nearest(tokens_ND: Floats, centroids_KD: Floats) -> Rows:
    """The nearest centroid of each token."""
    halves_K = np.square(centroids_KD).sum(axis=1) / 2
    parts = np.split(tokens_ND, range(BLOCK, len(tokens_ND), BLOCK))
    return np.concatenate([(part_BD @ centroids_KD.T - halves_K).argmax(axis=1) for part_BD in parts])


BUILDERS: dict[str, Callable[[Path, Blocks, IndexDocument, Advance], None]] = {
    "hnsw": _build_graph,
    "int8": partial(_build_codes, to_codes=scoring.int8_codes),
    "binary": partial(_build_codes, to_codes=ann.binary_words),
    "centroids": _build_centroids,
}
