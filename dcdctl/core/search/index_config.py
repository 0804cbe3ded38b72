"""The settings of an index that can change what a search finds; saved in index.json."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from dcdctl.core.config import Count, Natural, settle_fields
from dcdctl.core.errors import ConfigError

ExifColumns = Literal["camera", "place", "none"]


@dataclass(frozen=True, kw_only=True)
class HnswConfig:
    """A graph of neighbors (Malkov & Yashunin 2016) over vectors with one byte per number."""

    neighbors: Count = 16
    """Edges per vector; twice as many on the lowest level."""
    build_width: Count = 128
    """Candidates kept during the search for the neighbors of a vector, when the graph is built."""
    search_width: Count = 128
    """Candidates kept during a query; more give a higher recall and take longer."""

    def __post_init__(self) -> None:
        settle_fields(self, "hnsw")


@dataclass(frozen=True, kw_only=True)
class TokenConfig:
    """The token vectors of a late-interaction model."""

    codes: Literal["float16", "int8"] = "float16"
    """int8: a byte per number, and a scale per token. Fixed when an index is made."""
    pooling: Count | None = None
    """The number of tokens of an image is divided by this, see `models.pool_tokens`; None for the model's own. Fixed
    when an index is made."""
    centroids: Count = 1024
    """Centroids of the tokens of a segment, of kind `centroids`."""

    def __post_init__(self) -> None:
        settle_fields(self, "tokens")
        if self.centroids >= 2**16:
            raise ConfigError(f"tokens.centroids must be below 65,536, got {self.centroids:,}")


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """How vectors are searched. Candidates of all kinds but `flat` are scored again with the stored vectors."""

    kind: Literal["flat", "hnsw", "int8", "binary", "centroids"] = "hnsw"
    """flat: exact search over all vectors. int8, binary: search over the codes of all vectors, see
    `scoring.quantize`. centroids: of tokens, see `ann.Centroids`."""
    dims: Count | None = None
    """Only the first numbers of each vector are stored and searched, divided by their length; None for all. Fixed when
    an index is made."""
    flat_up_to: Natural = 50_000
    """Up to this many vectors are searched exactly for every kind, which is fast enough: all vectors of a small index,
    or the last ones."""
    segment_rows: Count = 262_144
    """Vectors of a segment. A segment is a graph or a file of codes that is built by itself; a query searches all
    segments."""
    candidates: Count = 50
    """Minimum number of candidates per segment that are scored again; at least twice the number of answers."""
    keywords: bool = False
    """Whether the words of captions and file names are indexed too, for hybrid search."""
    exif: ExifColumns = "camera"
    """Which columns the files of image folders give: taken, year and camera; with place also latitude and longitude."""
    hnsw: HnswConfig = field(default_factory=HnswConfig)
    tokens: TokenConfig = field(default_factory=TokenConfig)

    def __post_init__(self) -> None:
        settle_fields(self)

    def builds_as(self, other: IndexConfig) -> bool:
        """Whether both build the same bytes of a segment; settings of other kinds, of words and of queries are
        ignored."""

        def relevant(config: IndexConfig) -> tuple[object, ...]:
            # The width of a query is set when a graph is opened.
            graph = replace(config.hnsw, search_width=1) if config.kind == "hnsw" else None
            centroids = config.tokens.centroids if config.kind == "centroids" else None
            return config.kind, config.dims, config.segment_rows, graph, centroids

        return relevant(self) == relevant(other)
