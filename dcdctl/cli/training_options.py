"""The options of every training, and what the core takes for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from dcdctl.cli.declare import Refs, assignments, many, named, optional_path, path
from dcdctl.cli.option_groups import Machine
from dcdctl.cli.options import (
    MOST_WORKERS,
    Features,
    MaxImages,
    ModelSet,
    Out,
    RecipeArgument,
    Split,
    check_overrides,
    check_precision,
    computes,
    configures,
    reads,
)

if TYPE_CHECKING:
    from dcdctl.core.training import InputRefs, TrainingJob, TrainingOptions

TrainingKind: TypeAlias = Literal["distill", "finetune-teacher"]


def check_accumulate(text: str) -> str:
    """Callback of `--accumulate`: a usage error for anything but auto and a number of at least 1."""
    is_number = text.isdecimal() and len(text) < 10 and int(text) > 0
    if text != "auto" and not is_number:
        raise typer.BadParameter(f"expected auto or a number of at least 1, got {text!r}", param_hint="--accumulate")
    return text


@dataclass(frozen=True, kw_only=True)
class Training(Machine):
    """How to train; a trial of the first step chooses what is auto."""

    features: Features = None
    precision: Annotated[
        str,
        computes(
            "--precision",
            "fp32, bf16, fp16, or auto: bf16 on a GPU where a step is faster in it, else fp32.",
            "NAME",
            callback=check_precision,
        ),
    ] = "auto"
    workers: Annotated[
        int | None,
        computes("--workers", "Processes that read images ahead.", "N", show_default="0", min=0, max=MOST_WORKERS),
    ] = None
    accumulate: Annotated[
        int | Literal["auto"],
        computes(
            "--accumulate",
            "Micro-batches of a batch, to save memory (GradCache, same loss); auto doubles N until a step fits.",
            "N",
            callback=check_accumulate,
        ),
        str,
    ] = "auto"
    checkpoint_activations: Annotated[
        bool,
        computes("--checkpoint-activations", "Recompute activations instead of storing them: less memory, more time."),
    ] = False

    def options(self, *, batch_size: int | None = None, wandb: str | None = None) -> TrainingOptions:
        """How to train, as the core takes it."""
        from dcdctl.core import devices
        from dcdctl.core.engines import Compute
        from dcdctl.core.training import TrainingOptions

        tries_precision, tries_micro_batches = self.precision == "auto", self.accumulate == "auto"
        device = devices.choose(self.device)
        return TrainingOptions(
            micro_batches=1 if tries_micro_batches else int(self.accumulate),
            compute=Compute(
                device=device,
                precision=devices.precision("fp32" if tries_precision else self.precision, device),
                batch_size=batch_size,
                workers=self.workers,
                features=optional_path(self.features),
            ),
            tries_micro_batches=tries_micro_batches,
            tries_precision=tries_precision,
            checkpoint_activations=self.checkpoint_activations,
            wandb=wandb,
        )


@dataclass(frozen=True)
class TrainingRun(Training, ABC):
    """A run of its own: what it reads of a corpus, and how it is logged and resumed."""

    recipe: RecipeArgument
    data: Refs | None
    out: Out
    _: KW_ONLY
    split: Split = "train"
    max_images: MaxImages = None
    model_overrides: ModelSet = None
    validation_data: Annotated[
        Refs | None,
        reads(
            "--validation-data",
            "Corpus to validate on, folder or URL; by default that of --data. Repeatable: the first chooses the "
            "weights.",
            "DIR",
        ),
        list[Path],
    ] = None
    wandb: Annotated[
        str | None, configures("--wandb", "Also log to this Weights & Biases project (extra wandb).", "PROJECT")
    ] = None
    resume: Annotated[bool, configures("--resume", "Resume an interrupted run.")] = False

    @abstractmethod
    def further_refs(self) -> dict[str, Any]:
        """What this command reads beside the options of all trainings, by the fields of `InputRefs`."""

    def check(self, sets: list[str] | None) -> None:
        """An error for a taken folder, or an override that the recipe does not take. Call it first in a command: the
        imports of a training take seconds."""
        from dcdctl.core.training import check_folder

        check_folder(path(self.out), {}, resume=self.resume)
        check_overrides(self.recipe, sets)

    def request(
        self, kind: TrainingKind, sets: Sequence[str] | None = None
    ) -> tuple[TrainingJob, InputRefs, TrainingOptions]:
        """What `kind` of training to do, on what, and how."""
        from dcdctl.core.training import InputRefs, TrainingJob

        refs = InputRefs(
            split=self.split,
            max_images=self.max_images,
            model_set=assignments(self.model_overrides),
            validation_data=[path(folder) for folder in many(self.validation_data)],
            **self.further_refs(),
        )
        job = TrainingJob(kind, named(self.recipe), sets=list(sets or ()), out=path(self.out), resume=self.resume)
        return job, refs, self.options(wandb=self.wandb)
