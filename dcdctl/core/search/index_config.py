"""The settings of an index that can change what a search finds; saved in index.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dcdctl.core.config import Count, Natural, settle_fields
from dcdctl.core.errors import ConfigError

ExifColumns = Literal["camera", "place", "none"]


@dataclass(frozen=True, kw_only=True)
class TokenConfig:
    """The token vectors of a late-interaction model."""

    codes: Literal["float16", "int8"] = "float16"
    """int8: a byte per number, and a scale per token. Fixed when an index is made."""
    pooling: Count | None = None
    """The number of tokens of an image is divided by this, see `models.pool_tokens`; None for the model's own. Fixed
    when an index is made."""
    centroids: Count = 1024
    """Centroids of the tokens of a segment."""

    def __post_init__(self) -> None:
        settle_fields(self, "tokens")
        if self.centroids >= 2**16:
            raise ConfigError(f"tokens.centroids must be below 65,536, got {self.centroids:,}")


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """How vectors are searched. The candidates of codes and centroids are scored exactly, with the stored vectors."""

    dims: Count | None = None
    """Only the first numbers of each vector are stored and searched, divided by their length; None for all. Fixed when
    an index is made."""
    flat_up_to: Natural = 20_000
    """Up to this many vectors are searched exactly, without candidates, which is fast enough: all vectors of a small
    index, or the last ones."""
    segment_rows: Count = 262_144
    """Vectors of a segment, a file of codes or centroids that is built by itself; a query searches all segments."""
    keywords: bool = False
    """Whether the words of captions and file names are indexed too, for hybrid search."""
    exif: ExifColumns = "camera"
    """Which columns the files of image folders give: taken, year and camera; with place also latitude and longitude."""
    tokens: TokenConfig = field(default_factory=TokenConfig)

    def __post_init__(self) -> None:
        settle_fields(self)

    def builds_as(self, other: IndexConfig) -> bool:
        """Whether both build the same bytes of a segment; settings of words and of queries are ignored."""

        def relevant(config: IndexConfig) -> tuple[object, ...]:
            return config.dims, config.segment_rows, config.tokens.centroids

        return relevant(self) == relevant(other)
