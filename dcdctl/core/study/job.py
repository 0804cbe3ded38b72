"""What to study: the job of `dcdctl study` and `dcdctl.study`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Annotated

from dcdctl.core.arguments import Ref, configures, reads
from dcdctl.core.options import DEPTH_HELP, Data, ModelSet, Out, PairBatchSize, Sets, Split, Teacher
from dcdctl.core.training import RecipeArgument, Training


@dataclass(frozen=True)
class StudyJob(Training):
    """A start, its teacher, and the data to study them on. The recipe is of a dual or late student with a loss that has
    a teacher."""

    recipe: RecipeArgument
    teacher: Teacher
    data: Data
    out: Out
    _: KW_ONLY
    sets: Sets = None
    start: Annotated[
        Ref | None,
        reads(
            "--start",
            "Dual encoder to train: a Hub id, folder or run; by default the recipe's model.start.",
            "REF",
            "model",
        ),
    ] = None
    seeds: Annotated[Sequence[int], configures("--seeds", "Seeds of the trainings.", "N,N,...")] = (0, 1, 2)
    train_split: Annotated[str, reads("--train-split", "Split to train on.", "NAME", "split")] = "train"
    split: Split = "test"
    depth: Annotated[int, configures("--depth", DEPTH_HELP, "N", min=1)] = 20
    model_overrides: ModelSet = None
    batch_size: PairBatchSize = None
