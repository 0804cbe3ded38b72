"""Where and how a model runs."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from dcdctl.core import devices, machine
from dcdctl.core.devices import CPU
from dcdctl.core.engines.choice import EngineChoice, open_engine
from dcdctl.core.engines.engine import Engine
from dcdctl.core.engines.this_process import ThisProcess
from dcdctl.core.progress import Say

MOST_READERS = 8
"""Threads that read ahead by default; each has a batch of images in memory."""


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where and how to run a model. Only `precision` and `features` may change a number beyond rounding."""

    device: torch.device = CPU
    precision: str = "float32"
    """Torch name of the type to compute in: float32 without autocast, bfloat16 or float16 under autocast."""
    batch_size: int | None = None
    """Images, captions or pairs in one forward pass without gradients; None for the model's choice. A recipe sets that
    of training."""
    workers: int | None = None
    """Threads of a pass without gradients, or processes of a training, that read and decode images ahead; 0 reads them
    when they are needed. None: as many threads as `readers` says, no processes."""
    features: Path | None = None
    """Folder that stores the outputs of frozen encoders; None computes them each time."""
    engine: Engine = field(default=ThisProcess(), compare=False)
    """Who does what is divided into shards."""
    of_worker: OfWorker | None = None
    """What the workers of an engine compute with; None in this process."""

    @classmethod
    def chosen(
        cls,
        choice: EngineChoice,
        *,
        device: str = "auto",
        precision: str = "fp32",
        batch_size: int | None = None,
        workers: int | None = None,
        features: Path | None = None,
        say: Say,
    ) -> Compute:
        """What options say, by the names that users type. A line to `say` for a precision that is slower than fp32 on
        this processor.

        With an engine, the device and the threads that read ahead are those of each worker, and this process uses its
        CPU.
        """
        if choice.engine is None or choice.is_files:
            chosen = devices.choose(device)
            return cls(
                device=chosen,
                precision=devices.precision_on(precision, chosen, say),
                batch_size=batch_size,
                workers=workers,
                features=features,
                engine=open_engine(choice, say),
            )
        return cls(
            device=devices.choose("cpu"),
            precision=devices.precision(precision),
            batch_size=batch_size,
            workers=workers,
            features=features,
            engine=open_engine(choice, say),
            of_worker=OfWorker(device=device, threads=choice.cpus),
        )

    @property
    def readers(self) -> int:
        """Threads that read and decode images ahead in a pass without gradients."""
        if self.workers is not None:
            return self.workers
        # Processes of a training share the cores, and one core of each computes.
        num_own = machine.num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return max(0, min(MOST_READERS, num_own - 1))

    def forward_pass(self) -> torch.autocast:
        """A block for a forward pass: autocast in this precision, none in float32.

        Each pass needs its own block: a block caches the weights that it has cast, and those cast without a graph have
        no gradient.
        """
        return torch.autocast(self.device.type, getattr(torch, self.precision), enabled=self.precision != "float32")

    def plain(self, batch_size: int | None = None) -> Compute:
        """This place and engine without what may change a number: for vectors that candidates are chosen by."""
        return replace(self, precision="float32", batch_size=batch_size, features=None)

    def for_workers(self) -> Compute:
        """What travels to a worker, which calls `in_worker`: all but the engine."""
        return replace(self, engine=ThisProcess())

    def in_worker(self) -> Compute:
        """What a worker computes with: its own device and threads. This one in a process that is no worker.
        ConfigError if the machine lacks the device."""
        if self.of_worker is None:
            return self
        torch.set_num_threads(self.of_worker.threads)
        device = devices.choose(self.of_worker.device)
        workers = self.of_worker.readers if self.workers is None else self.workers
        return replace(self, device=device, workers=workers, of_worker=None)


@dataclass(frozen=True, kw_only=True)
class OfWorker:
    """What a worker of an engine computes with."""

    device: str
    """As the user names it; `auto` is the GPU that the worker has, else the CPU."""
    threads: int

    @property
    def readers(self) -> int:
        """Threads that read and decode images ahead: one at least, since reading waits for the network, too."""
        return max(1, min(MOST_READERS, self.threads - 1))


ON_CPU = Compute()
