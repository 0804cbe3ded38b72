"""What to train, and what a teacher scores for it: the requests of `dcdctl distill`, `dcdctl finetune-teacher` and
`dcdctl cache-teacher`, and what every training is asked for."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from dcdctl.core.arguments import (
    MOST_WORKERS,
    Ref,
    Refs,
    argument,
    computes,
    configures,
    many,
    named,
    optional_path,
    path,
    paths,
    reads,
)
from dcdctl.core.engines import Inference, Machine
from dcdctl.core.options import TEACHER_HELP, Data, Features, MaxImages, ModelSet, Out, Sets, Split
from dcdctl.core.progress import Say, unsaid

if TYPE_CHECKING:  # torch
    from dcdctl.core.teacher import CacheJob
    from dcdctl.core.training.inputs import InputRefs
    from dcdctl.core.training.loop import TrainingOptions
    from dcdctl.core.training.recipe import Recipe
    from dcdctl.core.training.runs import TrainingJob

RecipeRef: TypeAlias = "Ref | Recipe"
OptionalRecipe: TypeAlias = "Ref | Recipe | None"
RecipeArgument = Annotated[RecipeRef, argument("Recipe: a name or a .toml file.", "RECIPE", "recipe")]


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
            "precision",
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
        ),
    ] = "auto"
    checkpoint_activations: Annotated[
        bool,
        computes("--checkpoint-activations", "Recompute activations instead of storing them: less memory, more time."),
    ] = False

    def options(self, *, batch_size: int | None = None, wandb: str | None = None) -> TrainingOptions:
        """How to train, with the device and the precision of this machine."""
        # Here, because torch takes a second to import.
        from dcdctl.core import devices
        from dcdctl.core.engines import Compute
        from dcdctl.core.training.loop import TrainingOptions

        tries_precision = self.precision == "auto"
        device = devices.choose(self.device)
        return TrainingOptions(
            micro_batches=1 if self.accumulate == "auto" else self.accumulate,
            compute=Compute(
                device=device,
                precision=devices.precision("fp32" if tries_precision else self.precision, device),
                batch_size=batch_size,
                workers=self.workers,
                features=optional_path(self.features),
            ),
            tries_micro_batches=self.accumulate == "auto",
            tries_precision=tries_precision,
            checkpoint_activations=self.checkpoint_activations,
            wandb=wandb,
        )


@dataclass(frozen=True)
class TrainingRun(Training, ABC):
    """A run of its own: what it reads of a corpus, and how it is logged and resumed."""

    kind: ClassVar[Literal["distill", "finetune-teacher"]]

    recipe: RecipeArgument
    data: Refs | None
    out: Out
    _: KW_ONLY
    sets: Sets = None
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
            "place",
        ),
    ] = None
    wandb: Annotated[
        str | None, configures("--wandb", "Also log to this Weights & Biases project (extra wandb).", "PROJECT")
    ] = None
    resume: Annotated[bool, configures("--resume", "Resume an interrupted run.")] = False

    @abstractmethod
    def further_refs(self) -> dict[str, Any]:
        """What this training reads beside the arguments of all trainings, by the fields of `InputRefs`."""

    def check(self) -> None:
        """An error for a taken folder, or an override that the recipe does not take. Call it first in a command: the
        imports of a training take seconds."""
        from dcdctl.core.training.recipe import load_recipe
        from dcdctl.core.training.runs import check_folder

        check_folder(path(self.out), {}, resume=self.resume)
        load_recipe(named(self.recipe), self.sets or ())

    def settle(self) -> tuple[TrainingJob, InputRefs, TrainingOptions]:
        """What to train, on what, and how. Raises what `InputRefs` raises, and ConfigError for a device or a precision
        that this machine lacks."""
        from dcdctl.core.toml import assignments
        from dcdctl.core.training.inputs import InputRefs
        from dcdctl.core.training.runs import TrainingJob

        refs = InputRefs(
            split=self.split,
            max_images=self.max_images,
            model_set=assignments(self.model_overrides),
            validation_data=paths(self.validation_data),
            **self.further_refs(),
        )
        job = TrainingJob(self.kind, named(self.recipe), sets=self.sets or [], out=path(self.out), resume=self.resume)
        return job, refs, self.options(wandb=self.wandb)


@dataclass(frozen=True)
class Distill(TrainingRun):
    """A student, its data, and the teachers that it learns from."""

    kind: ClassVar[Literal["distill", "finetune-teacher"]] = "distill"

    data: Annotated[
        Refs | None,
        reads(
            "--data",
            "Folder written by `dcdctl prepare`, or its URL; or tars or Parquet files to stream: "
            "'a-{000..331}.tar'; repeatable. Left out where --cache has texts.",
            "DATA",
            "place",
        ),
    ]
    _: KW_ONLY
    cache: Annotated[
        Refs | None,
        reads("--cache", "Folder written by `dcdctl cache-teacher`; repeatable.", "DIR"),
    ] = None
    teacher: Annotated[
        Refs | None,
        reads(
            "--teacher",
            "With --cache: the model that made it, from which a fusion student starts. Without: a dual encoder "
            "to learn from; repeatable. Query encoder: the model of the images.",
            "REF",
            "model",
        ),
    ] = None
    pool: Annotated[
        Ref | None,
        reads("--pool", "Also learn from this pool: images without captions, and texts without images.", "DIR"),
    ] = None

    def further_refs(self) -> dict[str, Any]:
        """Data, pool, caches and teachers."""
        return {
            "data": many(self.data),
            "pool": optional_path(self.pool),
            "caches": paths(self.cache),
            "teachers": many(self.teacher),
        }


@dataclass(frozen=True)
class FinetuneTeacher(TrainingRun):
    """A teacher and its data."""

    kind: ClassVar[Literal["distill", "finetune-teacher"]] = "finetune-teacher"

    data: Data
    _: KW_ONLY
    teacher: Annotated[
        Ref | None, reads("--teacher", "Model to start from, instead of the recipe's model.start.", "REF", "model")
    ] = None

    def further_refs(self) -> dict[str, Any]:
        """Data and teacher."""
        return {"data": path(self.data), "teachers": many(self.teacher or None)}


@dataclass(frozen=True)
class CacheTeacher(Inference):
    """A teacher, a corpus, and the pairs to score. A command without a teacher or a recipe names what is missing."""

    teacher: Annotated[
        Ref | None,
        reads("--teacher", f"{TEACHER_HELP} With --scores, the name of what gave them.", "REF", "model"),
    ]
    data: Data
    out: Out
    _: KW_ONLY
    recipe: Annotated[
        OptionalRecipe,
        reads(
            "--recipe",
            "Recipe of the student, a name or a .toml file: its [candidates] say what to score. Required.",
            "RECIPE",
            "recipe",
        ),
    ] = None
    sets: Sets = None
    split: Split = "train"
    max_images: MaxImages = None
    model_overrides: ModelSet = None
    extend: Annotated[Ref | None, reads("--extend", "Finished cache whose scores are reused.", "CACHE")] = None
    max_pairs: Annotated[
        int | None,
        configures(
            "--max-pairs",
            "Score at most N pairs, beside those of --extend: first where student and teacher may disagree.",
            "N",
            min=1,
        ),
    ] = None

    def settle(self, say: Say = unsaid) -> CacheJob:
        """What to score, and where; ConfigError without a recipe."""
        from dcdctl.core.teacher import CacheJob
        from dcdctl.core.training.recipe import load_recipe, require_recipe_of_cache

        if self.recipe is None:
            require_recipe_of_cache()
        return CacheJob(
            data=path(self.data),
            candidates=load_recipe(named(self.recipe), self.sets or ()).candidates,
            max_images=self.max_images,
            max_pairs=self.max_pairs,
            out=path(self.out),
            teacher=os.fspath(self.teacher or ""),
            split=self.split,
            model_set=self.model_overrides,
            extend=optional_path(self.extend),
            compute=self.compute(say),
        )
