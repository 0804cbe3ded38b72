"""Options that travel together, each group with what the core takes for it: where a command computes (device, threads,
cluster, batches), and the models behind a search."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dcdctl.cli.declare import Ref, assignments, optional_path, optional_ref
from dcdctl.cli.options import (
    DEPTH_HELP,
    MOST_CLUSTER_WORKERS,
    Device,
    Features,
    PairBatchSize,
    Precision,
    Rerank,
    RerankSet,
    Threads,
    Workers,
    computes,
    configures,
    refuse,
)

if TYPE_CHECKING:
    from dcdctl.core.engines import Compute, EngineChoice
    from dcdctl.core.progress import Say
    from dcdctl.core.search import ImageIndex, IndexSearcher


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The device, and the threads of torch."""

    device: Device = "auto"
    threads: Threads = None
    progress: bool = False
    """Show bars. A command always shows them."""


@dataclass(frozen=True, kw_only=True)
class CpuCluster:
    """The engine that computes shards without a model, and its workers."""

    workers: Annotated[
        int | None,
        computes(
            "--workers",
            "With --engine: its workers. Else: threads that read and decode images ahead.",
            "N",
            show_default="as many as fit; one thread per core but one, at most 8",
            min=0,
            max=MOST_CLUSTER_WORKERS,
        ),
    ] = None
    engine: Annotated[
        str | None,
        computes(
            "--engine",
            "Compute on a cluster: ray, or ray://HOST:PORT of its head (extra ray).",
            "NAME",
            is_eager=True,
        ),
    ] = None

    def choice(self) -> EngineChoice:
        """The same as the core takes it; ConfigError for options that need an engine."""
        from dcdctl.core.engines import EngineChoice

        choice = EngineChoice(
            engine=self.engine,
            workers=self.workers,
            worker_gpus=self.gpus_of_worker(),
            worker_cpus=self.cpus_of_worker(),
        )
        choice.check()
        return choice

    def gpus_of_worker(self) -> float | None:
        """GPUs of each worker; None for the engine's default."""
        return None if self.engine is None else 0

    def cpus_of_worker(self) -> int | None:
        """CPU cores of each worker; None for the engine's default."""
        return None


@dataclass(frozen=True, kw_only=True)
class Cluster(Machine, CpuCluster):
    """The engine that computes shards, and its workers."""

    worker_gpus: Annotated[
        float | None,
        computes(
            "--worker-gpus",
            "GPUs of each worker of an engine, such as 1 or 0.5.",
            "N",
            show_default="1 where the cluster has GPUs",
            min=0,
        ),
    ] = None

    def gpus_of_worker(self) -> float | None:
        """GPUs of each worker; None for the engine's default."""
        return self.worker_gpus

    def cpus_of_worker(self) -> int | None:
        """CPU cores of each worker, as many as its threads; None for the engine's default."""
        return self.threads


@dataclass(frozen=True, kw_only=True)
class Passes(Machine):
    """Passes without gradients over images and captions, by this process."""

    workers: Workers = None
    batch_size: PairBatchSize = None
    precision: Precision = "fp32"

    def compute(self, say: Say) -> Compute:
        """The same as the core takes it, with the threads set; a message for a precision that is slower than fp32 on
        this processor."""
        from dcdctl.core.engines import Compute, EngineChoice

        return Compute.chosen(
            EngineChoice(workers=self.workers),
            device=self.device,
            threads=self.threads,
            precision=self.precision,
            batch_size=self.batch_size,
            say=say,
        )


@dataclass(frozen=True, kw_only=True)
class Embeddings(Cluster):
    """Passes without gradients, by this process or by an engine."""

    batch_size: PairBatchSize = None
    precision: Precision = "fp32"

    def compute(self, say: Say) -> Compute:
        """The same as the core takes it, with the threads set; a message for a precision that is slower than fp32 on
        this processor."""
        from dcdctl.core.engines import Compute

        return Compute.chosen(
            self.choice(),
            device=self.device,
            threads=self.threads,
            precision=self.precision,
            batch_size=self.batch_size,
            say=say,
        )


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
            threads=self.threads,
            rerank=optional_ref(self.rerank),
            depth=self.depth,
            rerank_set=assignments(self.rerank_overrides),
        )
