"""What a finished training gave, for programs: its best validation and its model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dcdctl.core import models
from dcdctl.core.data import Direction
from dcdctl.core.evaluation import KS
from dcdctl.core.training.runs import Run


def run_document(run: Run) -> dict[str, Any]:
    """The result of a finished run for JSON. Loads the model, whose fingerprint is that of caches and indexes made with
    it.

    `best` is the validation with the highest sum of recalls, None for a run without one; `kept` says which weights the
    model has. InputError for a damaged log.
    """
    facts, metrics = run.facts(), run.metrics()
    return {
        "run": str(run.folder),
        "model": str(run.model_folder),
        "model_digest": models.load(str(run.folder)).digest,
        "steps": metrics[-1]["step"] + 1,
        "kept": facts["recipe"]["validation"]["keep"] if facts["recipe"]["validation"]["every"] else "last",
        "best": _best(metrics, facts.get("batches_per_epoch")),
    }


@dataclass(frozen=True)
class _Validation:
    """A line of metrics.jsonl with recalls; the names of those of the initial model begin with start_, of others with
    val_."""

    step: int
    """Steps done before it."""
    prefix: str
    line: dict[str, Any]

    @property
    def rsum(self) -> float:
        return float(self.line[f"{self.prefix}_rsum"])

    def to_json(self, batches_per_epoch: float | None) -> dict[str, Any]:
        recalls = {
            direction.key: {f"R@{k}": self.line[f"{self.prefix}_{direction}_r{k}"] for k in KS}
            for direction in Direction
        }
        epoch = None if batches_per_epoch is None else round(self.step / batches_per_epoch, 3)
        return {"step": self.step, "epoch": epoch, **recalls, "rsum": self.rsum}


def _best(metrics: list[dict[str, Any]], batches_per_epoch: float | None) -> dict[str, Any] | None:
    found = [_Validation(0, "start", line) for line in metrics if "start_rsum" in line]
    found += [_Validation(line["step"] + 1, "val", line) for line in metrics if "val_rsum" in line]
    # The first of equals: later weights replace earlier ones only if they are better.
    return max(found, key=lambda each: each.rsum).to_json(batches_per_epoch) if found else None
