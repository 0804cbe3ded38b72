"""The models behind a search, which `dcdctl search` and `dcdctl serve` take alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from dcdctl.cli.options import refuse
from dcdctl.core.arguments import Ref, configures, optional_ref
from dcdctl.core.engines import Machine
from dcdctl.core.options import (
    DEPTH_HELP,
    Rerank,
    RerankSet,
)

if TYPE_CHECKING:
    from dcdctl.core.search import ImageIndex, IndexSearcher


@dataclass(frozen=True, kw_only=True)
class SearchModels(Machine):
    """The models behind a search."""

    model: Annotated[
        Ref | None,
        configures(
            "--model", "With a store: the folder of its dual encoder, if the index is on another machine.", "DIR"
        ),
    ] = None
    rerank: Rerank = None
    rerank_overrides: RerankSet = None
    depth: Annotated[int | None, configures("--depth", DEPTH_HELP, "N", show_default="50", min=1)] = None

    def check_depth(self) -> None:
        """A usage error for a depth without a re-ranker."""
        if self.rerank is None:
            refuse({"--depth": self.depth}, "is the number of candidates to re-rank: add --rerank REF")

    def searcher(self, index: ImageIndex) -> IndexSearcher:
        """The searcher of an index with these models."""
        from dcdctl.core.search import IndexSearcher

        return IndexSearcher.for_index(
            index,
            device=self.device,
            rerank=optional_ref(self.rerank),
            depth=self.depth,
            rerank_set=self.rerank_overrides,
        )
