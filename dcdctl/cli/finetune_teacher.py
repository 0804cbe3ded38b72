"""`dcdctl finetune-teacher`: train a cross-encoder to rank."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Any

from dcdctl.cli import options
from dcdctl.cli.declare import Ref, many, path
from dcdctl.cli.training_options import TrainingRun


@dataclass(frozen=True)
class FinetuneTeacher(TrainingRun):
    """A teacher and its data."""

    data: options.Data
    _: KW_ONLY
    teacher: Annotated[
        Ref | None, options.reads("--teacher", "Model to start from, instead of the recipe's model.start.", "REF"), str
    ] = None

    def further_refs(self) -> dict[str, Any]:
        """Data and teacher."""
        return {"data": path(self.data), "teachers": many(self.teacher or None)}


def finetune_teacher(
    arguments: FinetuneTeacher, sets: options.Sets = None, dry_run: options.DryRun = False, json: options.Json = False
) -> None:
    """Train a cross-encoder to rank. The true caption or image competes with sampled or mined ones."""
    arguments.check(sets)
    from dcdctl.cli.views.training import run_training

    run_training(*arguments.request("finetune-teacher", sets), dry_run=dry_run, json=json)
