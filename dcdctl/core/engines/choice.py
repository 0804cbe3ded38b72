"""The engine that a user chooses by name."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from dcdctl.core.engines.engine import Engine
from dcdctl.core.engines.processes import TorchProcesses
from dcdctl.core.errors import ConfigError, require_extra
from dcdctl.core.machine import num_threads
from dcdctl.core.progress import Say

MOST_THREADS = 256
"""Threads that read ahead: with more, a machine ends in its errors, or ends others."""


_ADDRESS = re.compile(r"ray://.+:\d+")


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """An engine and its workers, as options name them."""

    engine: str | None = None
    """`ray`, or the address of a cluster, such as ray://HEAD:10001; None for this process or those of torchrun."""
    workers: int | None = None
    """Workers of the engine; None for as many as the cluster has room for."""
    worker_gpus: float | None = None
    """GPUs of each worker, which may be a fraction; None for one where the cluster has GPUs, else none."""
    worker_cpus: int | None = None
    """CPU cores of each worker, as many as its threads; None for one."""

    def check(self) -> None:
        """ConfigError for an unknown engine or options without one, MissingError without its package."""
        if self.engine is None:
            if self.worker_gpus is not None:
                raise ConfigError("--worker-gpus is for the workers of an engine", hint="add --engine ray")
            if (self.workers or 0) > MOST_THREADS:
                raise ConfigError(f"--workers must be at most {MOST_THREADS} threads, got {self.workers:,}")
            return
        if self.workers == 0:
            raise ConfigError("--workers must be at least 1 with --engine, got 0")
        if self.engine != "ray" and not _ADDRESS.fullmatch(self.engine):
            raise ConfigError(
                f"engine {self.engine!r} is unknown", hint="known are ray, and ray://HOST:PORT for a cluster elsewhere"
            )
        if self.worker_gpus is not None and self.worker_gpus > 1 and self.worker_gpus % 1:
            raise ConfigError(
                f"--worker-gpus must be a share of one GPU or a whole number of them, got {self.worker_gpus:g}"
            )
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError("--engine and torchrun both start processes", hint="leave one of them out")
        require_extra("ray", "ray", needed_by="--engine ray")


def threads_of_worker(choice: EngineChoice, threads: int | None) -> int:
    """CPU threads that a worker computes with: those that the user names, else one for each of its cores."""
    return threads if threads is not None else num_threads(choice.worker_cpus or 1)


def open_engine(choice: EngineChoice, say: Say) -> Engine:
    """The engine of a choice; a cluster is joined when the first task is given to it. The errors of
    `EngineChoice.check`, and SourceError if nobody listens at the address of the cluster."""
    choice.check()
    if choice.engine is None:
        return TorchProcesses()
    from dcdctl.core.engines.cluster import check_address
    from dcdctl.core.engines.ray_engine import RayEngine

    check_address(choice)
    return RayEngine(choice, say)
