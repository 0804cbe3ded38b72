"""What of an index can change what is found: saved in index.json."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from dcdctl.core.config import AtLeast, Count, check_fields
from dcdctl.core.errors import ConfigError

LEAST_FOR_CODES = 1000
"""Vectors of a segment of ivf-pq, at least."""


@dataclass(frozen=True, kw_only=True)
class HnswConfig:
    """A graph of neighbours (Malkov & Yashunin 2016) over vectors of one byte a number."""

    neighbours: Count = 16
    """Edges of a vector, twice as many on the lowest level."""
    build_width: Count = 128
    """Candidates that are kept while a vector's neighbours are looked for."""
    search_width: Count = 128
    """Candidates that are kept while a query's are: more find more, and take longer."""

    def __post_init__(self) -> None:
        check_fields(self, "hnsw")


@dataclass(frozen=True, kw_only=True)
class IvfPqConfig:
    """Lists of codes around centroids (Jégou et al. 2011): the smallest index, and the quickest to build."""

    lists_per_root: Count = 4
    """Lists, as a multiple of the square root of the number of vectors."""
    numbers_per_byte: Count = 4
    """Numbers of a vector that one byte of its code stands for."""
    probes: Count = 64
    """Lists that a query looks into."""
    train_per_list: Count = 64
    """Vectors that centroids are learned from, for each list."""

    def __post_init__(self) -> None:
        check_fields(self, "ivf_pq")


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """How vectors are searched. What `hnsw` and `ivf-pq` find is scored anew by the stored vectors."""

    kind: Literal["flat", "hnsw", "ivf-pq"] = "hnsw"
    """flat: every vector is looked at."""
    flat_up_to: Annotated[int, AtLeast(0)] = 50_000
    """So many vectors, or as many that came last, are looked at one by one whatever the kind: that is fast enough, and exact."""
    segment_rows: Count = 262_144
    """Vectors of a graph or of a set of lists: each is built by itself, and a query asks all of them."""
    candidates: Count = 50
    """What each segment gives to be scored anew, at least; no fewer than twice what is asked for."""
    hnsw: HnswConfig = field(default_factory=HnswConfig)
    ivf_pq: IvfPqConfig = field(default_factory=IvfPqConfig)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.kind == "ivf-pq" and min(self.flat_up_to, self.segment_rows) < LEAST_FOR_CODES:
            raise ConfigError(f"of ivf-pq flat_up_to and segment_rows must be at least {LEAST_FOR_CODES:,}: codes are learned from vectors")

    @property
    def is_flat(self) -> bool:
        return self.kind == "flat"

    def builds_as(self, other: IndexConfig) -> bool:
        """Whether both make the same bytes of a segment: what is only asked at a query does not count."""
        return self._of_building == other._of_building

    @property
    def _of_building(self) -> IndexConfig:
        same = IndexConfig()
        hnsw = replace(self.hnsw, search_width=same.hnsw.search_width)
        lists = replace(self.ivf_pq, probes=same.ivf_pq.probes)
        return replace(self, hnsw=hnsw, ivf_pq=lists, candidates=same.candidates, flat_up_to=same.flat_up_to)
