"""Building the segments of an index: a file of codes or centroids over each range of rows.

One thread builds a segment from the vectors of its rows alone, so its bytes are reproducible. Several segments are
built in parallel.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from dcdctl.core.artifacts import Build, Parts, seal_of
from dcdctl.core.progress import Advance, Track
from dcdctl.core.search.entries import Segment
from dcdctl.core.search.index_config import IndexConfig
from dcdctl.core.search.proposers import PROPOSERS
from dcdctl.core.search.readers import READERS
from dcdctl.core.search.storage import INDEX, IndexDocument


def segment_ranges(num_rows: int, existing: Sequence[Segment], config: IndexConfig) -> list[range]:
    """The ranges of rows that need a segment. Full segments never change; the rows after the last have none while they
    are few.

    >>> config = IndexConfig(segment_rows=100, flat_up_to=30)
    >>> segment_ranges(250, [], config), segment_ranges(230, [], config), segment_ranges(30, [], config)
    ([range(0, 100), range(100, 200), range(200, 250)], [range(0, 100), range(100, 200)], [])
    """
    if num_rows <= config.flat_up_to:
        return []
    stop = existing[-1].stop if existing else 0
    if num_rows - stop > config.flat_up_to:
        stop = num_rows
    ranges = [range(first, min(first + config.segment_rows, stop)) for first in range(0, stop, config.segment_rows)]
    is_built = bool(existing) and existing[-1].stop == stop
    return ranges if is_built or len(ranges[-1]) > config.flat_up_to else ranges[:-1]


def fill(folder: Path, document: IndexDocument, track: Track) -> tuple[Segment, ...]:
    """The segments of an index; those that it lacks are built."""
    build, name = Build(folder, {}, INDEX), PROPOSERS[document.model.kind].name
    ranges = segment_ranges(document.num_rows, document.segments, document.settings)
    by_rows = {range(segment.first_row, segment.stop): segment for segment in document.segments}
    # The generation keeps the files of the index before.
    missing = [rows for rows in ranges if rows not in by_rows]
    paths = {rows: f"ann/{name}-{rows.start:012d}-{len(rows)}-{document.generation}" for rows in missing}
    if paths:
        unwritten = [missing[number] for number in Parts(build, list(paths.values())).missing()]
        with track(f"build {name}", total=sum(map(len, unwritten)), unit="vectors") as advance:
            _build_all(build, document, {paths[rows]: rows for rows in unwritten}, advance)
    for rows, file in paths.items():
        path = build.written(file)
        by_rows[rows] = Segment(file=path.name, first_row=rows.start, rows=len(rows), **seal_of(path))
    return tuple(by_rows[rows] for rows in ranges)


def _build_all(build: Build, document: IndexDocument, rows_by_name: dict[str, range], advance: Advance) -> None:
    """Write segments atomically, as many in parallel as torch has threads."""
    reader, proposer = READERS[document.model.kind](build.folder, document), PROPOSERS[document.model.kind]
    lock, is_stopped = threading.Lock(), threading.Event()

    def report(count: int) -> None:
        # The only way to stop a thread in the middle of a segment.
        if is_stopped.is_set():
            raise InterruptedError("another segment failed")
        with lock:
            advance(count)

    def build_one(name: str, rows: range) -> None:
        with build.write(name) as path:
            proposer.build(path, partial(reader.blocks, rows), document.model.dim, document.settings, report)

    with ThreadPoolExecutor(max(1, min(torch.get_num_threads(), len(rows_by_name)))) as pool:
        try:
            for future in [pool.submit(build_one, *each) for each in rows_by_name.items()]:
                future.result()
        except BaseException:
            # Otherwise the program would wait minutes for the segments in progress.
            is_stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
