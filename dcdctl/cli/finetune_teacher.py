"""`dcdctl finetune-teacher`: train a cross-encoder to rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Annotated

from dcdctl.cli import options
from dcdctl.cli.declare import Ref, assignments, many, path

if TYPE_CHECKING:
    from dcdctl.core.training import InputRefs, TrainingJob, TrainingOptions


@dataclass(frozen=True)
class FinetuneTeacher(options.TrainingRun):
    """A teacher and its data."""

    recipe: options.RecipeArgument
    data: options.Data
    out: options.Out
    _: KW_ONLY
    teacher: Annotated[
        Ref | None,
        options.reads("--teacher", help="Model to start from, instead of the recipe's model.start.", metavar="REF"),
        str,
    ] = None

    def request(self, sets: Sequence[str] | None = None) -> tuple[TrainingJob, InputRefs, TrainingOptions]:
        """What to train, on what, and how."""
        from dcdctl.core.training import InputRefs, TrainingJob

        refs = InputRefs(
            data=path(self.data),
            split=self.split,
            max_images=self.max_images,
            teachers=many(self.teacher or None),
            model_set=assignments(self.model_overrides),
        )
        job = TrainingJob("finetune-teacher", options.named(self.recipe), sets or (), path(self.out), self.resume)
        return job, refs, self.options(wandb=self.wandb)


def finetune_teacher(
    arguments: FinetuneTeacher, sets: options.Sets = None, dry_run: options.DryRun = False, json: options.Json = False
) -> None:
    """Train a cross-encoder to rank. The true caption or image competes with sampled or mined ones."""
    options.check_overrides(arguments.recipe, sets)
    from dcdctl.cli.views.training import run_training

    run_training(*arguments.request(sets), dry_run=dry_run, json=json)
