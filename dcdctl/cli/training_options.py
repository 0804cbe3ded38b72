"""The options of every training, and what the core takes for them: `--vision` and `--text` become `model.vision` and
`model.text` of the recipe."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from dcdctl.cli.declare import Ref, Refs, assignments, many, named, optional_path, path
from dcdctl.cli.option_groups import Machine
from dcdctl.cli.options import (
    Features,
    MaxImages,
    ModelSet,
    Out,
    RecipeArgument,
    Split,
    Workers,
    check_overrides,
    check_precision,
    computes,
    reads,
    writes,
)

if TYPE_CHECKING:
    from dcdctl.core.training import InputRefs, TrainingJob, TrainingOptions

TrainingKind: TypeAlias = Literal["distill", "finetune-teacher"]
Vision = Annotated[
    Ref | None,
    reads("--vision", "Image encoder of a recipe of two encoders: a folder, timm or Hub id (model.vision).", "REF"),
    str,
]
Text = Annotated[
    Ref | None, reads("--text", "Text encoder of such a recipe: a folder or Hub id (model.text).", "REF"), str
]


def check_accumulate(text: str) -> str:
    """Callback of `--accumulate`: a usage error for anything but auto and a number of at least 1."""
    is_number = text.isdecimal() and len(text) < 10 and int(text) > 0
    if text != "auto" and not is_number:
        raise typer.BadParameter(f"expected auto or a number of at least 1, got {text!r}", param_hint="--accumulate")
    return text


@dataclass(frozen=True, kw_only=True)
class Training(Machine):
    """How to train; a trial of the first step chooses what is auto."""

    vision: Vision = None
    text: Text = None
    features: Features = None
    precision: Annotated[
        str,
        computes(
            "--precision",
            "auto (bf16 on a GPU where a step is faster in it, else fp32), fp32, or bf16 or fp16 if the hardware "
            "supports it.",
            "NAME",
            callback=check_precision,
        ),
    ] = "auto"
    workers: Workers = None
    accumulate: Annotated[
        int | Literal["auto"],
        computes(
            "--accumulate",
            "Split each batch into N micro-batches to save memory (GradCache, same loss); auto doubles N until "
            "the first step fits.",
            "N",
            callback=check_accumulate,
        ),
        str,
    ] = "auto"
    checkpoint_activations: Annotated[
        bool,
        computes("--checkpoint-activations", "Recompute activations instead of storing them: less memory, more time."),
    ] = False

    def with_encoders(self, sets: Sequence[str] | None) -> list[str]:
        """The overrides of the recipe, and after them, so that they win, its two encoders."""
        given = {"model.vision": self.vision, "model.text": self.text}
        return [*(sets or ()), *(f"{name}={named(ref)}" for name, ref in given.items() if ref is not None)]

    def options(self, *, batch_size: int | None = None, wandb: str | None = None) -> TrainingOptions:
        """The same as the core takes it, with the threads set."""
        from dcdctl.core import devices
        from dcdctl.core.engines import Compute
        from dcdctl.core.training import TrainingOptions

        devices.use_threads(self.threads)
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
            "Corpus to validate on, if it is not that of --data: folder or URL. Repeatable: the first chooses the "
            "weights, and further ones show what is lost elsewhere.",
            "DIR",
        ),
        list[Path],
    ] = None
    wandb: Annotated[
        str | None, writes("--wandb", "Also log to this Weights & Biases project (extra wandb).", "PROJECT")
    ] = None
    resume: Annotated[bool, writes("--resume", "Resume an interrupted run.")] = False

    @abstractmethod
    def further_refs(self) -> dict[str, Any]:
        """What this command reads beside the options of all trainings, by the fields of `InputRefs`."""

    def check(self, sets: list[str] | None) -> None:
        """An error for a taken folder, or an override that the recipe does not take. Call it first in a command: the
        imports of a training take seconds."""
        from dcdctl.core.training import check_folder

        check_folder(path(self.out), {}, resume=self.resume)
        check_overrides(self.recipe, self.with_encoders(sets))

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
        job = TrainingJob(
            kind, named(self.recipe), sets=self.with_encoders(sets), out=path(self.out), resume=self.resume
        )
        return job, refs, self.options(wandb=self.wandb)
