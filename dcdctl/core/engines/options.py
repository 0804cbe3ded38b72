"""What a user says about where and how to run a model, and the `Compute` that it becomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dcdctl.core.arguments import Ref, optional_path
from dcdctl.core.options import Device, Engine, Features, PairBatchSize, Precision, Workers
from dcdctl.core.progress import Say, unsaid

if TYPE_CHECKING:  # torch
    from dcdctl.core.engines.compute import Compute


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The device."""

    device: Device = "auto"
    progress: bool = False
    """Show bars. A command always shows them."""


@dataclass(frozen=True, kw_only=True)
class Embeddings(Machine):
    """Passes without gradients over images and captions, by this process or by an engine."""

    workers: Workers = None
    batch_size: PairBatchSize = None
    precision: Precision = "fp32"
    engine: Engine = None

    def compute(self, say: Say = unsaid) -> Compute:
        """Where and how to run the model; a line to `say` for a precision that is slower than fp32 on this
        processor."""
        return self._compute(say)

    def _compute(self, say: Say, features: Ref | None = None) -> Compute:
        # Here, because torch takes a second to import.
        from dcdctl.core.engines.choice import EngineChoice
        from dcdctl.core.engines.compute import Compute

        return Compute.chosen(
            EngineChoice.parse(self.engine),
            device=self.device,
            precision=self.precision,
            batch_size=self.batch_size,
            workers=self.workers,
            features=optional_path(features),
            say=say,
        )


@dataclass(frozen=True, kw_only=True)
class Inference(Embeddings):
    """Passes without gradients over the images and captions of a corpus, by this process or by an engine."""

    features: Features = None

    def compute(self, say: Say = unsaid) -> Compute:
        """Where and how to compute, with the folder of features; a line to `say` for a slow precision."""
        return self._compute(say, self.features)
