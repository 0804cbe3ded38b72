"""Options that travel together, each group with what the core takes for it: where a command computes (device, engine,
batches), and the models behind a search."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dcdctl.cli.declare import Ref, assignments, optional_path, optional_ref
from dcdctl.cli.options import (
    DEPTH_HELP,
    Device,
    Engine,
    Features,
    PairBatchSize,
    Precision,
    Rerank,
    RerankSet,
    Workers,
    configures,
    refuse,
)

if TYPE_CHECKING:
    from dcdctl.core.engines import Compute, EngineChoice
    from dcdctl.core.progress import Say
    from dcdctl.core.search import ImageIndex, IndexSearcher


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The device."""

    device: Device = "auto"
    progress: bool = False
    """Show bars. A command always shows them."""


@dataclass(frozen=True, kw_only=True)
class Passes(Machine):
    """Passes without gradients over images and captions, by this process."""

    workers: Workers = None
    batch_size: PairBatchSize = None
    precision: Precision = "fp32"

    def compute(self, say: Say) -> Compute:
        """Where and how to run the model; a message for a precision that is slower than fp32 on this processor."""
        from dcdctl.core.engines import EngineChoice

        return self.compute_on(EngineChoice(), say)

    def compute_on(self, choice: EngineChoice, say: Say) -> Compute:
        """Where and how to run the model, its shards by an engine."""
        from dcdctl.core.engines import Compute

        return Compute.chosen(
            choice,
            device=self.device,
            precision=self.precision,
            batch_size=self.batch_size,
            workers=self.workers,
            say=say,
        )


@dataclass(frozen=True, kw_only=True)
class Embeddings(Passes):
    """Passes without gradients, by this process or by an engine."""

    engine: Engine = None

    def compute(self, say: Say) -> Compute:
        """Where and how to run the model; a message for a precision that is slower than fp32 on this processor."""
        from dcdctl.core.engines import EngineChoice

        return self.compute_on(EngineChoice.parse(self.engine), say)


@dataclass(frozen=True, kw_only=True)
class Inference(Embeddings):
    """Passes without gradients over the images and captions of a corpus, by this process or by an engine."""

    features: Features = None

    def compute(self, say: Say) -> Compute:
        """What to compute on, as the core takes it, with the folder of features."""
        return replace(super().compute(say), features=optional_path(self.features))


@dataclass(frozen=True, kw_only=True)
class SearchModels(Machine):
    """The models behind a search."""

    model: Annotated[
        Ref | None,
        configures(
            "--model", "With a store: the folder of its dual encoder, if the index is on another machine.", "DIR"
        ),
        Path,
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
            rerank_set=assignments(self.rerank_overrides),
        )
