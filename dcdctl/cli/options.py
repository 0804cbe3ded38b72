"""Options that several commands share: one name, one help text, one check.

Typer reads the options of a command from its signature, so each command lists the options that it has.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcdctl.cli.completion import complete_recipe, complete_set, complete_split, complete_teacher

if TYPE_CHECKING:
    from dcdctl.core.devices import Compute
    from dcdctl.core.training import TrainingOptions

RENAMED = {
    ("bench", "--headline"): "--reference-gallery",
    ("bench", "--images"): "--num-images",
    ("eval", "--vectors"): "--codes",
    ("inspect", "--num-images"): "--show-images",
    ("inspect", "--pictures"): "--show-images",
    ("report", "--csv"): "--to-csv",
    ("report", "--markdown"): "--to-markdown",
    ("report", "--teacher"): "--teacher-eval",
}
"""Options of earlier versions -> the option that replaced them, named in the error."""


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
        for path in value if isinstance(value, list | tuple) else [value]:
            if isinstance(path, Path):
                from dcdctl.core.files import refuse_url

                name = parameter.opts[0] if parameter.param_type_name == "option" else parameter.metavar
                refuse_url(
                    path, f"and {name} takes a path of this machine", "copy it to this machine, and name the copy"
                )


def refuse(options: dict[str, object], why: str) -> None:
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


def check_overrides(recipe: str, sets: list[str] | None) -> None:
    """An error for an override that the recipe does not take. Call it first in a command: the imports of a training
    take seconds."""
    from dcdctl.core.training import load_recipe

    load_recipe(recipe, sets or [])


def check_output_folder(path: Path) -> Path:
    """Callback of `--out`: an error before any work if the folder cannot be written."""
    from dcdctl.core import files

    files.check_output_folder(path)
    return path


def new_folder(out: Path | None, former: Path | None) -> Path:
    """The folder of `--out`, or of its former place after the model; a usage error unless there is exactly one."""
    if out is not None and former is not None:
        raise typer.BadParameter(f"is given twice: {former} and {out}", param_hint="--out")
    folder = out or former
    if folder is None:
        raise typer.BadParameter("name the new folder to write", param_hint="--out")
    return folder


def check_device(name: str) -> str:
    """Callback of `--device`: an error if this machine lacks the device. The names that every machine has need no
    import of torch."""
    if name not in ("auto", "cpu"):
        from dcdctl.core import devices

        devices.choose(name)
    return name


def check_precision(name: str) -> str:
    """Callback of `--precision`: an error if there is no such precision. The default needs no import of torch."""
    if name != "fp32":
        from dcdctl.core import devices

        devices.precision(name)
    return name


def check_training_precision(name: str) -> str:
    """Callback of `--precision` of a training, which may be auto."""
    return name if name == "auto" else check_precision(name)


def check_accumulate(text: str) -> str:
    """Callback of `--accumulate`: a usage error for anything but auto and a number of at least 1."""
    if text != "auto" and not (text.isdecimal() and int(text)):
        raise typer.BadParameter(f"expected auto or a number of at least 1, got {text!r}", param_hint="--accumulate")
    return text


def training_options(
    compute: Compute, precision: str, accumulate: str, checkpoint_activations: bool, wandb: str | None
) -> TrainingOptions:
    """Where and how to train; a trial of the first step chooses what is auto."""
    from dcdctl.core.training import TrainingOptions

    num_parts = None if accumulate == "auto" else int(accumulate)
    return TrainingOptions.choose(
        compute, precision, num_parts, checkpoint_activations=checkpoint_activations, wandb=wandb
    )


def announce_code(ref: str | None) -> str | None:
    """Callback of an option that names a model: one line on stderr if it names Python code, which runs."""
    if ref is not None and CODE.fullmatch(ref) and not Path(ref).exists():
        typer.echo(f"runs code: {ref}", err=True)
    return ref


# Texts of options that take a number in one command and a list in another
DEPTH_HELP = "Number of candidates to re-rank per query."
COLUMNS_HELP = "Take only these columns: year,owner."
DIMS_HELP = "Use only the first N numbers of each vector."
CODES_HELP = "Form in which vectors are compared; int8 and binary take less memory."

# What a command reads
Data = Annotated[Path, typer.Option("--data", help="Folder written by `dcdctl prepare`.", metavar="DIR")]
TrainingData = Annotated[
    list[str],
    typer.Option(
        "--data",
        help="Folder written by `dcdctl prepare`, or its URL; or tars or Parquet files to stream: "
        "'a-{000..331}.tar'; repeatable.",
        metavar="DATA",
    ),
]
ValidationData = Annotated[
    Path | None,
    typer.Option(
        "--validation-data", help="Corpus to validate on, if it is not that of --data: folder or URL.", metavar="DIR"
    ),
]
Split = Annotated[
    str,
    typer.Option(
        "--split",
        help="Split of the corpus; train+val reads two as one.",
        autocompletion=complete_split,
        metavar="NAME",
    ),
]
MaxImages = Annotated[
    int | None, typer.Option("--max-images", help="Use only the first N images of a split.", min=1, metavar="N")
]
RecipeArgument = Annotated[
    str,
    typer.Argument(
        help="Recipe: a name or a .toml file.", callback=check_recipe, autocompletion=complete_recipe, metavar="RECIPE"
    ),
]
ModelRef = Annotated[
    str, typer.Argument(help="Run folder, or another model reference.", callback=announce_code, metavar="RUN")
]
AnyIndex = Annotated[
    str,
    typer.Argument(help="Folder written by `dcdctl index`, or the URL of a store (docs/stores.md).", metavar="INDEX"),
]
StoreModel = Annotated[
    Path | None,
    typer.Option(
        "--model",
        help="With a store: the folder of its dual encoder, if the index is on another machine.",
        metavar="DIR",
    ),
]
Teacher = Annotated[
    str,
    typer.Option(
        "--teacher",
        help="Name (dcdctl models), Hub id, transformers folder, official .ckpt, run folder, or module:function "
        "(code that runs).",
        callback=announce_code,
        autocompletion=complete_teacher,
        metavar="REF",
    ),
]
Rerank = Annotated[
    str | None,
    typer.Option(
        "--rerank",
        help="Model that re-ranks the first candidates of each query: fusion, dual, or module:function (code that "
        "runs).",
        callback=announce_code,
        autocompletion=complete_teacher,
        metavar="REF",
    ),
]
RerankSet = Annotated[
    list[str] | None,
    typer.Option(
        "--rerank-set", help="With --rerank: set what its files lack: dtype=bfloat16; repeatable.", metavar="NAME=VALUE"
    ),
]
Depth = Annotated[int | None, typer.Option("--depth", help=DEPTH_HELP, show_default="50", min=1, metavar="N")]
Features = Annotated[
    Path | None,
    typer.Option(
        "--features",
        help="Folder that stores the outputs of frozen encoders; created if it does not exist.",
        metavar="DIR",
    ),
]

# Settings
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Override a recipe field: loss.alpha=0.5; repeatable.",
        autocompletion=complete_set,
        metavar="KEY=VALUE",
    ),
]
ModelSet = Annotated[
    list[str] | None,
    typer.Option(
        "--model-set", help="Set what the model's files lack: image_size=384; repeatable.", metavar="NAME=VALUE"
    ),
]

# Where and how to compute
Device = Annotated[
    str,
    typer.Option(
        "--device",
        help="auto (the GPU if there is one), cpu, cuda, cuda:1 or mps.",
        callback=check_device,
        metavar="NAME",
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        help="fp32, or bf16 or fp16 if the hardware supports it.",
        callback=check_precision,
        metavar="NAME",
    ),
]
TrainingPrecision = Annotated[
    str,
    typer.Option(
        "--precision",
        help="auto (bf16 on a GPU where a step is faster in it, else fp32), fp32, or bf16 or fp16 if the hardware "
        "supports it.",
        callback=check_training_precision,
        metavar="NAME",
    ),
]
BatchSize = Annotated[
    int, typer.Option("--batch-size", help="Images, captions or pairs in one forward pass.", min=1, metavar="N")
]
PairBatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        help="Images, captions or pairs in one forward pass.",
        show_default="the model's, 256",
        min=1,
        metavar="N",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        help="Threads that read and decode images ahead; a training starts as many processes.",
        show_default="one per core but one, at most 8; 0 processes",
        min=0,
        metavar="N",
    ),
]
Threads = Annotated[
    int | None, typer.Option("--threads", help="CPU threads of torch; by default torch decides.", min=1, metavar="N")
]
Accumulate = Annotated[
    str,
    typer.Option(
        "--accumulate",
        help="Split each batch into N micro-batches to save memory (GradCache, same loss); auto doubles N until the "
        "first step fits.",
        callback=check_accumulate,
        metavar="N",
    ),
]
CheckpointActivations = Annotated[
    bool,
    typer.Option(
        "--checkpoint-activations", help="Recompute activations instead of storing them: less memory, more time."
    ),
]

# What a command writes
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write.", callback=check_output_folder, metavar="DIR")]
FormerOut = Annotated[Path | None, typer.Argument(hidden=True, metavar="OUT")]
"""The place of --out in earlier versions."""
NewOut = Annotated[Path | None, typer.Option("--out", "-o", help="New folder to write.", metavar="DIR")]
Page = Annotated[
    Path | None,
    typer.Option("--html", help="Also write a page with the images.", callback=check_output_file, metavar="FILE"),
]
Resume = Annotated[bool, typer.Option("--resume", help="Resume an interrupted run.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the steps and their cost, then stop.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
Wandb = Annotated[
    str | None,
    typer.Option("--wandb", help="Also log to this Weights & Biases project (extra wandb).", metavar="PROJECT"),
]


def names_in(text: str | None) -> tuple[str, ...] | None:
    """The names in a list such as "year,owner"; None for no list."""
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())
