"""Options that several commands share: one name, one help text, one check; and groups of those that travel together.

`cli/declare.py` describes the annotations.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from dcdctl.cli.completion import complete_recipe, complete_set, complete_split, complete_teacher
from dcdctl.cli.declare import Overrides, Ref, Refs, assignments, many, optional_path, path

if TYPE_CHECKING:
    from dcdctl.core.devices import Compute
    from dcdctl.core.progress import Say
    from dcdctl.core.training import InputRefs, Recipe, TrainingJob, TrainingOptions

# An option is declared by what it is for, which is its panel in the help.
reads = partial(typer.Option, rich_help_panel="Input")
configures = partial(typer.Option, rich_help_panel="Settings")
computes = partial(typer.Option, rich_help_panel="Compute")
writes = partial(typer.Option, rich_help_panel="Output")

TrainingKind: TypeAlias = Literal["distill", "finetune-teacher"]
READ_FROM_URLS = ("data", "validation_data", "csv", "jsonl", "karpathy")
"""Parameters that also take a URL, in every command that has them."""
ALSO_READ_FROM_URLS = (("prepare", "images"),)
CODE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
"""A reference to Python code, module:function."""


def check_output_file(path: Path | None) -> Path | None:
    """Callback of an option that names a file to write: an error before any work if it cannot be written."""
    if path is not None:
        from dcdctl.core import files

        files.check_output_file(path)
    return path


def refuse_urls(context: Any) -> None:
    """InputError for a URL as the value of a parameter that takes a path of this machine."""
    for parameter in context.command.params:
        if parameter.name in READ_FROM_URLS or (context.info_name, parameter.name) in ALSO_READ_FROM_URLS:
            continue
        value = context.params.get(parameter.name)
        for given in value if isinstance(value, list | tuple) else [value]:
            if isinstance(given, Path):
                from dcdctl.core.places import refuse_url

                name = parameter.opts[0] if parameter.param_type_name == "option" else parameter.metavar
                refuse_url(
                    given, f"and {name} takes a path of this machine", "copy it to this machine, and name the copy"
                )


# Typer has no options that exclude each other.
def refuse(options: Mapping[str, object], why: str) -> None:
    """A usage error for an option that was given and has no effect here."""
    for name, value in options.items():
        if value is not None:
            raise typer.BadParameter(why, param_hint=name)


# These callbacks run before a command imports any model, so a misspelled name is an error as soon as torch is imported.


def check_recipe(context: typer.Context, ref: str | None) -> str | None:
    """Callback of a recipe argument: an error if there is no such recipe."""
    if ref is not None and not context.resilient_parsing:  # completion reads unfinished lines
        from dcdctl.core.training import check_recipe_name

        check_recipe_name(ref)
    return ref


def check_overrides(recipe: Ref | Recipe, sets: list[str] | None) -> None:
    """An error for an override that the recipe does not take. Call it first in a command: the imports of a training
    take seconds."""
    from dcdctl.core.training import load_recipe

    load_recipe(named(recipe), sets or [])


def check_output_folder(path: Path) -> Path:
    """Callback of `--out`: an error before any work if the folder cannot be written."""
    from dcdctl.core import files

    files.check_output_folder(path)
    return path


def check_device(name: str) -> str:
    """Callback of `--device`: an error if this machine lacks the device. The names that every machine has need no
    import of torch."""
    if name not in ("auto", "cpu"):
        from dcdctl.core import devices

        devices.choose(name)
    return name


def check_precision(name: str) -> str:
    """Callback of `--precision`: an error if there is no such precision. The defaults need no import of torch; auto is
    that of a training."""
    if name not in ("fp32", "auto"):
        from dcdctl.core import devices

        devices.precision(name)
    return name


def check_accumulate(text: str) -> str:
    """Callback of `--accumulate`: a usage error for anything but auto and a number of at least 1."""
    if text != "auto" and not (text.isdecimal() and int(text)):
        raise typer.BadParameter(f"expected auto or a number of at least 1, got {text!r}", param_hint="--accumulate")
    return text


def announce_code(refs: Any) -> Any:
    """Callback of an option that names models: a line on stderr for each that names Python code, which runs."""
    for ref in many(refs):
        if CODE.fullmatch(ref) and not Path(ref).exists():
            typer.echo(f"runs code: {ref}", err=True)
    return refs


# Texts of options that take a number in one command and a list in another
DEPTH_HELP = "Number of candidates to re-rank per query."
COLUMNS_HELP = "Take only these columns: year,owner."
DIMS_HELP = "Use only the first N numbers of each vector."
CODES_HELP = "Form in which vectors are compared; int8 and binary take less memory."
SPLIT_HELP = "Split of the corpus; train+val reads two as one."
TEACHER_HELP = (
    "Name (dcdctl models), Hub id, transformers folder, official .ckpt, run folder, or module:function "
    "(code that runs)."
)

# What a command reads
Data = Annotated[Ref, reads("--data", help="Folder written by `dcdctl prepare`.", metavar="DIR"), Path]
Split = Annotated[str, reads("--split", help=SPLIT_HELP, autocompletion=complete_split, metavar="NAME")]
MaxImages = Annotated[
    int | None, reads("--max-images", help="Use only the first N images of a split.", min=1, metavar="N")
]
RecipeRef: TypeAlias = "Ref | Recipe"
RecipeArgument = Annotated[
    RecipeRef,
    typer.Argument(
        help="Recipe: a name or a .toml file.", callback=check_recipe, autocompletion=complete_recipe, metavar="RECIPE"
    ),
    str,
]
model_argument = typer.Argument(help="Run folder, or another model reference.", callback=announce_code, metavar="RUN")
ModelRef = Annotated[Ref, model_argument, str]
AnyIndex = Annotated[
    str,
    typer.Argument(help="Folder written by `dcdctl index`, or the URL of a store (docs/stores.md).", metavar="INDEX"),
]
Teacher = Annotated[
    Ref,
    reads("--teacher", help=TEACHER_HELP, callback=announce_code, autocompletion=complete_teacher, metavar="REF"),
    str,
]
Rerank = Annotated[
    Ref | None,
    reads(
        "--rerank",
        help="Model that re-ranks the first candidates of each query: fusion, dual, or module:function (code that "
        "runs).",
        callback=announce_code,
        autocompletion=complete_teacher,
        metavar="REF",
    ),
    str,
]
RerankSet = Annotated[
    Overrides | None,
    configures(
        "--rerank-set", help="With --rerank: set what its files lack: dtype=bfloat16; repeatable.", metavar="NAME=VALUE"
    ),
    list[str],
]
Features = Annotated[
    Ref | None,
    computes(
        "--features",
        help="Folder that stores the outputs of frozen encoders; created if it does not exist.",
        metavar="DIR",
    ),
    Path,
]

# Settings
Sets = Annotated[
    list[str] | None,
    configures(
        "--set",
        help="Override a recipe field: loss.alpha=0.5; repeatable.",
        autocompletion=complete_set,
        metavar="KEY=VALUE",
    ),
]
ModelSet = Annotated[
    Overrides | None,
    configures(
        "--model-set", help="Set what the model's files lack: image_size=384; repeatable.", metavar="NAME=VALUE"
    ),
    list[str],
]

# Where and how to compute
Device = Annotated[
    str,
    computes(
        "--device",
        help="auto (the GPU if there is one), cpu, cuda, cuda:1 or mps.",
        callback=check_device,
        metavar="NAME",
    ),
]
Precision = Annotated[
    str,
    computes(
        "--precision",
        help="fp32, or bf16 or fp16 if the hardware supports it.",
        callback=check_precision,
        metavar="NAME",
    ),
]
BATCH_SIZE_HELP = "Images, captions or pairs in one forward pass."
BatchSize = Annotated[int, computes("--batch-size", help=BATCH_SIZE_HELP, min=1, metavar="N")]
PairBatchSize = Annotated[
    int | None, computes("--batch-size", help=BATCH_SIZE_HELP, show_default="the model's, 256", min=1, metavar="N")
]
Workers = Annotated[
    int | None,
    computes(
        "--workers",
        help="Threads that read and decode images ahead; a training starts as many processes.",
        show_default="one per core but one, at most 8; 0 processes",
        min=0,
        metavar="N",
    ),
]
# The most is machine.MOST_THREADS, which is not imported for --help.
Threads = Annotated[
    int | None,
    computes("--threads", help="CPU threads of torch; by default torch decides.", min=1, max=1024, metavar="N"),
]

# What a command writes
Out = Annotated[Ref, writes("--out", "-o", help="Folder to write.", callback=check_output_folder, metavar="DIR"), Path]
NewOut = Annotated[Ref, writes("--out", "-o", help="New folder to write.", metavar="DIR"), Path]
Page = Annotated[
    Ref | None,
    writes("--html", help="Also write a page with the images.", callback=check_output_file, metavar="FILE"),
    Path,
]
DryRun = Annotated[bool, writes("--dry-run", help="Show the steps and their cost, then stop.")]
Json = Annotated[bool, writes("--json", help="Print the result as one JSON document.")]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The device, and the threads of torch."""

    device: Device = "auto"
    threads: Threads = None
    progress: bool = False
    """Show bars. A command always shows them."""


@dataclass(frozen=True, kw_only=True)
class Inference(Machine):
    """Passes without gradients."""

    workers: Workers = None
    batch_size: PairBatchSize = None
    precision: Precision = "fp32"
    features: Features = None

    def compute(self, say: Say) -> Compute:
        """The same as the core takes it, with the threads set; a message for a precision that is slower than fp32 on
        this processor."""
        from dcdctl.core import devices

        devices.use_threads(self.threads)
        device = devices.choose(self.device)
        if slower := devices.slower_half(self.precision, device):
            say(slower)
        return devices.Compute(
            device=device,
            precision=devices.precision(self.precision),
            batch_size=self.batch_size,
            workers=self.workers,
            features=optional_path(self.features),
        )


@dataclass(frozen=True, kw_only=True)
class Training(Machine):
    """How to train; a trial of the first step chooses what is auto."""

    features: Features = None
    precision: Annotated[
        str,
        computes(
            "--precision",
            help="auto (bf16 on a GPU where a step is faster in it, else fp32), fp32, or bf16 or fp16 if the hardware "
            "supports it.",
            callback=check_precision,
            metavar="NAME",
        ),
    ] = "auto"
    workers: Workers = None
    accumulate: Annotated[
        int | Literal["auto"],
        computes(
            "--accumulate",
            help="Split each batch into N micro-batches to save memory (GradCache, same loss); auto doubles N until "
            "the first step fits.",
            callback=check_accumulate,
            metavar="N",
        ),
        str,
    ] = "auto"
    checkpoint_activations: Annotated[
        bool,
        computes(
            "--checkpoint-activations", help="Recompute activations instead of storing them: less memory, more time."
        ),
    ] = False

    def options(self, *, batch_size: int | None = None, wandb: str | None = None) -> TrainingOptions:
        """The same as the core takes it, with the threads set."""
        from dcdctl.core import devices
        from dcdctl.core.training import TrainingOptions

        devices.use_threads(self.threads)
        compute = devices.Compute(
            device=devices.choose(self.device),
            batch_size=batch_size,
            workers=self.workers,
            features=optional_path(self.features),
        )
        return TrainingOptions.choose(
            compute,
            self.precision,
            None if self.accumulate == "auto" else int(self.accumulate),
            checkpoint_activations=self.checkpoint_activations,
            wandb=wandb,
        )


@dataclass(frozen=True)
class TrainingRun(Training, ABC):
    """A run of its own: what it reads of a corpus, and how it is logged and resumed."""

    recipe: RecipeArgument
    data: Refs
    out: Out
    _: KW_ONLY
    split: Split = "train"
    max_images: MaxImages = None
    model_overrides: ModelSet = None
    validation_data: Annotated[
        Refs | None,
        reads(
            "--validation-data",
            help="Corpus to validate on, if it is not that of --data: folder or URL. Repeatable: the first chooses the "
            "weights, and further ones show what is lost elsewhere.",
            metavar="DIR",
        ),
        list[Path],
    ] = None
    wandb: Annotated[
        str | None,
        writes("--wandb", help="Also log to this Weights & Biases project (extra wandb).", metavar="PROJECT"),
    ] = None
    resume: Annotated[bool, writes("--resume", help="Resume an interrupted run.")] = False

    @abstractmethod
    def own_refs(self) -> dict[str, Any]:
        """What this command reads beside the options of all trainings, by the fields of `InputRefs`."""

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
            **self.own_refs(),
        )
        job = TrainingJob(kind, named(self.recipe), sets or (), path(self.out), self.resume)
        return job, refs, self.options(wandb=self.wandb)


@dataclass(frozen=True, kw_only=True)
class SearchModels(Machine):
    """The models behind a search."""

    model: Annotated[
        Ref | None,
        configures(
            "--model",
            help="With a store: the folder of its dual encoder, if the index is on another machine.",
            metavar="DIR",
        ),
        Path,
    ] = None
    rerank: Rerank = None
    rerank_overrides: RerankSet = None
    depth: Annotated[int | None, configures("--depth", help=DEPTH_HELP, show_default="50", min=1, metavar="N")] = None

    def check_depth(self) -> None:
        """A usage error for a depth without a re-ranker."""
        if self.depth is not None and self.rerank is None:
            raise typer.BadParameter("is the number of candidates to re-rank: add --rerank REF", param_hint="--depth")

    def reranking(self) -> dict[str, Any]:
        """The device and the re-ranker, for `Searcher.for_index` and a service."""
        return {
            "device": self.device,
            "rerank": None if self.rerank is None else os.fspath(self.rerank),
            "depth": self.depth,
            "rerank_set": assignments(self.rerank_overrides),
        }


def named(recipe: Ref | Recipe) -> str | Recipe:
    """A recipe by its name, or one in memory."""
    return os.fspath(recipe) if isinstance(recipe, os.PathLike) else recipe


def names_in(text: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """The names in a list such as "year,owner", or in a sequence of Python; None for no list."""
    names = text.split(",") if isinstance(text, str) else text
    return None if names is None else tuple(name.strip() for name in names if name.strip())


def sizes(text: str) -> tuple[int, ...]:
    """Whole numbers between commas.

    >>> sizes("1, 8,32")
    (1, 8, 32)
    """
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a list of whole numbers, such as 1,8,32") from error
