"""What of an index can change what is found: saved in index.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dcdctl.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """How many vectors are searched."""

    kind: Literal["flat", "hnsw", "ivf-pq"] = "hnsw"
    """flat: every vector is looked at."""
    flat_up_to: int = 50_000
    """So many vectors, or as many that came last, are searched one by one whatever the kind: that is fast enough, and exact."""

    def __post_init__(self) -> None:
        if self.flat_up_to < 0:
            raise ConfigError(f"flat_up_to must be at least 0, got {self.flat_up_to}")
