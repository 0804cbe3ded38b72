"""The engine that a user chooses by name."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import parse_qsl

from dcdctl.core.config import between, build, check_fields
from dcdctl.core.engines.engine import Engine
from dcdctl.core.engines.processes import TorchProcesses
from dcdctl.core.errors import ConfigError, require_extra
from dcdctl.core.progress import Say
from dcdctl.core.toml import parse_value

_ADDRESS = re.compile(r"ray://.+:\d+")


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """An engine and its workers."""

    engine: str | None = None
    """`ray`, or the address of a cluster, such as ray://HEAD:10001; None for this process or those of torchrun."""
    workers: Annotated[int, between(1, 100_000)] | None = None
    """Workers of the engine; None for as many as the cluster has room for."""
    gpus: Annotated[float, between(0, 1024)] | None = None
    """GPUs of each worker, which may be a fraction; None for one where the cluster has GPUs, else none."""
    cpus: Annotated[int, between(1, 1024)] = 1
    """CPU cores of each worker, which computes with as many threads."""

    def __post_init__(self) -> None:
        check_fields(self, "--engine")
        if self.gpus is not None and self.gpus > 1 and self.gpus % 1:
            raise ConfigError(f"--engine.gpus must be a share of one GPU or a whole number of them, got {self.gpus:g}")

    @classmethod
    def parse(cls, text: str | None) -> EngineChoice:
        """The choice that a user types: ray, or ray://HEAD:10001?workers=4&gpus=0.5&cpus=2; None for no engine.

        ConfigError for an unknown engine or setting, and beside torchrun; MissingError without the engine's package.
        """
        if text is None:
            return cls()
        engine, _, query = text.partition("?")
        if engine != "ray" and not _ADDRESS.fullmatch(engine):
            raise ConfigError(
                f"engine {engine!r} is unknown", hint="known are ray, and ray://HOST:PORT for a cluster elsewhere"
            )
        settings = {name: parse_value(value) for name, value in parse_qsl(query, keep_blank_values=True)}
        choice = build(cls, {**settings, "engine": engine}, where="--engine")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError("--engine and torchrun both start processes", hint="leave one of them out")
        require_extra("ray", "ray", needed_by="--engine ray")
        return choice


def open_engine(choice: EngineChoice, say: Say) -> Engine:
    """The engine of a choice; a cluster is joined when the first task is given to it. SourceError if nobody listens at
    the address of the cluster."""
    if choice.engine is None:
        return TorchProcesses()
    from dcdctl.core.engines.cluster import check_address
    from dcdctl.core.engines.ray_engine import RayEngine

    check_address(choice)
    return RayEngine(choice, say)
