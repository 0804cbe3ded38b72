"""The file of a graph by usearch, checked before native code maps it: an edge that leads nowhere would end the process.

rows, numbers per vector                          uint32 each, then the vectors
"usearch", versions, kinds, counts                64 bytes
nodes, edges per node, edges per node of the      uint64 each
    lowest level, highest level, first node
level of each node                                int16 each
nodes: key, level, and for each level from the    uint64, int16, then uint32: a count and as many places as a node
    lowest its edges                              of the level may have edges, of which the first ones count
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcdctl.core.search.index_config import HnswConfig

_HEAD = np.dtype([("magic", "S7"), ("versions", "V6"), ("kinds", "u1", 4), ("present", "<u8"), ("rest", "V39")])
_GRAPH = np.dtype([(name, "<u8") for name in ("nodes", "edges", "base_edges", "highest", "first")])
_KINDS = [ord("i"), 23, 14, 15]
"""Inner product, int8, keys of 64 bits and edges of 32."""
_TOGETHER = 1 << 12
"""Nodes that are checked together: 0.6 MB, which fit a cache."""


def check_graph(path: Path, rows: int, dim: int, config: HnswConfig) -> None:
    """ValueError unless all keys and edges of a graph are of its `rows` nodes, as `segments` builds it."""
    raw: NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")
    start = 8 + rows * dim + _HEAD.itemsize + _GRAPH.itemsize + 2 * rows
    if len(raw) < start or raw[:8].view("<u4").tolist() != [rows, dim]:
        raise ValueError(f"it is no graph of {rows:,} vectors of {dim:,} numbers")
    place = 8 + rows * dim
    head = np.frombuffer(raw, _HEAD, 1, place)[0]
    graph = np.frombuffer(raw, _GRAPH, 1, place + _HEAD.itemsize)[0]
    level_R = np.frombuffer(raw, "<i2", rows, start - 2 * rows).astype(np.int64)
    if head["magic"] != b"usearch" or head["kinds"].tolist() != _KINDS or head["present"] != rows:
        raise ValueError("its kind is another")
    if level_R.min() < 0 or graph.tolist()[:4] != (rows, config.neighbors, 2 * config.neighbors, level_R.max()):
        raise ValueError("its levels or numbers of edges are others")
    if graph["first"] >= rows or level_R[int(graph["first"])] != level_R.max():
        raise ValueError("its first node is not on the highest level")
    node = np.dtype([("key", "<u8"), ("level", "<i2"), ("edges", _edges(2 * config.neighbors))])
    above = _edges(config.neighbors)
    size_R = node.itemsize + level_R * above.itemsize
    start_R = start + np.cumsum(size_R) - size_R
    if start_R[-1] + size_R[-1] != len(raw):
        raise ValueError("its nodes have another size")
    for first in range(0, rows, _TOGETHER):
        some = np.arange(first, min(first + _TOGETHER, rows))
        nodes = _at(raw, node, start_R[some])
        if (nodes["key"] != some).any() or (nodes["level"] != level_R[some]).any():
            raise ValueError("its nodes are not in order")
        _check_edges(nodes["edges"], level_R, 0)
    for level in range(1, int(level_R.max()) + 1):
        some = np.flatnonzero(level_R >= level)
        _check_edges(_at(raw, above, start_R[some] + node.itemsize + (level - 1) * above.itemsize), level_R, level)


def _edges(most: int) -> np.dtype[Any]:
    return np.dtype([("count", "<u4"), ("to", "<u4", most)])


def _at(raw: NDArray[np.uint8], record: np.dtype[Any], starts: NDArray[np.int64]) -> NDArray[Any]:
    """The records at these places, which are even."""
    windows = np.ndarray((1 + (len(raw) - record.itemsize) // 2,), record, raw, strides=(2,))
    # Places are even or odd alike, and the first is the beginning of a window.
    shift = int(starts[0]) % 2
    if shift:
        windows = np.ndarray((1 + (len(raw) - 1 - record.itemsize) // 2,), record, raw, offset=1, strides=(2,))
    return windows[(starts - shift) // 2]


def _check_edges(edges_R: NDArray[Any], level_R: NDArray[np.int64], level: int) -> None:
    """ValueError for an edge to no node, or to one that is not on this level."""
    most = edges_R["to"].shape[1]
    if edges_R["count"].max(initial=0) > most:
        raise ValueError("a node has too many edges")
    if level == 0 and edges_R["to"].max(initial=0) < len(level_R):
        return  # places without an edge too, which usearch leaves zero
    to = edges_R["to"][np.arange(most) < edges_R["count"][:, None]]
    if to.max(initial=0) >= len(level_R) or (level_R[to] < level).any():
        raise ValueError("an edge leads nowhere")
