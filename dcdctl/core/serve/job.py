"""What a service answers from: an index, its models, and the settings. Each process of the service opens the same."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from dcdctl.core.arguments import Settings
from dcdctl.core.search import ImageIndex
from dcdctl.core.serve.service_config import ServiceConfig
from dcdctl.core.stores import open_index


@dataclass(frozen=True)
class Job:
    """What each process of a service opens. It can be pickled."""

    place: str
    """The folder of an index, or the URL of a store."""
    config: ServiceConfig
    _: KW_ONLY
    device: str
    model_folder: Path | None = None
    """The folder of the dual encoder of a store, if it is not where the store was filled."""
    rerank: str | None = None
    """The model that re-ranks, besides the index's own."""
    depth: int | None = None
    """Candidates per query to re-rank."""
    rerank_set: Settings | None = None
    """Settings that the files of `rerank` lack: dtype=bfloat16."""

    def index(self) -> ImageIndex:
        """The index, opened and compared with its checksums, so that no query waits for that; the errors of
        `open_index`."""
        index = open_index(self.place, self.model_folder)
        index.check()
        return index
