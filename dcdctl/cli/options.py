"""Options that several commands share: one name, one help text, one check.

`cli/option_groups.py` has the groups of those that travel together, and `cli/declare.py` describes the annotations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from dcdctl.cli.completion import complete_recipe, complete_split, complete_teacher
from dcdctl.cli.declare import Overrides, Ref, many, named

if TYPE_CHECKING:
    from dcdctl.core.training import Recipe


def _declare(panel: str, names: str, help: str, metavar: str | None = None, **more: Any) -> Any:
    """An option in a panel of the help: its names ("--out -o"), its sentence, and what stands for its value. A number
    has a maximum, because arrays are made of its size, and Python's integers have none."""
    if "min" in more:
        more.setdefault("max", MOST)
    return typer.Option(*names.split(), help=help, metavar=metavar, rich_help_panel=panel, **more)


def argument(help: str, metavar: str, **more: Any) -> Any:
    """An argument of a command: its sentence, and what stands for it."""
    return typer.Argument(help=help, metavar=metavar, **more)


# An option is declared by what it is for, which is its panel in the help.
reads, configures, computes = (partial(_declare, panel) for panel in ("Input", "Settings", "Compute"))

READ_FROM_URLS = ("data", "validation_data", "csv", "jsonl", "karpathy")
"""Parameters that also take a URL, in every command that has them."""
ALSO_READ_FROM_URLS = (("prepare", "images"),)
MOST = 10**9
"""As `core.config.MOST`, which is not imported for --help."""
MOST_WORKERS = 256
"""More processes than a machine takes end in its errors, or end others."""
CODE = re.compile(r"(?!.*\.py:)[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
"""A reference to Python code, module:function; one that names a file is refused."""


def check_output_file(path: Path | None) -> Path | None:
    """Callback of an option that names a file to write: an error before any work if it cannot be written."""
    if path is not None:
        from dcdctl.core import files

        files.check_output_file(path)
    return path


def refuse_urls(context: typer.Context) -> None:
    """InputError for a URL as the value of a parameter that takes a path of this machine."""
    for parameter in context.command.params:
        if parameter.name in READ_FROM_URLS or (context.info_name, parameter.name) in ALSO_READ_FROM_URLS:
            continue
        value = context.params.get(parameter.name)
        values = value if isinstance(value, list | tuple) else [value]
        for given in values:
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


def settings_like(command: str, option: str) -> list[str]:
    """The settings of a command that an option which it lacks may stand for: exif for --exif-place, model.vision for
    --vision."""
    from dcdctl.core import config

    words = set(option.strip("-").split("-"))
    found = {key: set(key.rpartition(".")[2].split("_")) for key in config.dotted_keys(_settings_of(command))}
    exact = [key for key, parts in found.items() if parts == words]
    return exact or [key for key, parts in found.items() if parts <= words]


def _settings_of(command: str) -> type:
    """What `--set` of a command sets."""
    from dcdctl.core import bench, data, search, serve, training

    of_commands: dict[str, type] = {
        "prepare": data.Manifest,
        "index": search.IndexConfig,
        "change": search.IndexConfig,
        "bench": bench.BenchConfig,
        "serve": serve.ServiceConfig,
    }
    return of_commands.get(command, training.Recipe)


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


def check_device(context: typer.Context, name: str) -> str:
    """Callback of `--device`: an error if this machine lacks the device, or if no machine of an engine can have it. The
    names that every machine has need no import of torch."""
    if name not in ("auto", "cpu"):
        from dcdctl.core import devices

        # The device is that of an engine's workers. `--engine` is read before all others.
        if context.params.get("engine"):
            devices.named(name)
        else:
            devices.choose(name)
    return name


def check_precision(name: str) -> str:
    """Callback of `--precision`: an error if there is no such precision. The defaults need no import of torch; auto is
    that of a training."""
    if name not in ("fp32", "auto"):
        from dcdctl.core import devices

        devices.precision(name)
    return name


def announce_code(refs: Any) -> Any:
    """Callback of an option that names models: a line on stderr for each that names Python code, which runs."""
    for ref in many(refs):
        if CODE.fullmatch(ref) and not Path(ref).exists():
            typer.echo(f"runs code: {ref}", err=True)
    return refs


def check_query_model(ref: str | None) -> str | None:
    """Callback of `--query-model`: an error before torch is imported if there is no such model, or another kind."""
    announce_code(ref)
    if ref is not None:
        from dcdctl.core import models

        models.check_ref(ref, kind="query")
    return ref


# Texts of options whose type differs between commands
DEPTH_HELP = "Candidates to re-rank per query."
TEACHER_HELP = (
    "Name (dcdctl models), Hub id, transformers folder, official .ckpt, run folder, or module:function "
    "(code that runs)."
)

# What a command reads
Data = Annotated[Ref, reads("--data", "Folder written by `dcdctl prepare`.", "DIR"), Path]
reads_split = partial(reads, "--split", "Split; train+val reads both.", "NAME", autocompletion=complete_split)
Split = Annotated[str, reads_split()]
MaxImages = Annotated[int | None, reads("--max-images", "Use only the first N images of a split.", "N", min=1)]
RecipeRef: TypeAlias = "Ref | Recipe"
recipe_argument = partial(argument, metavar="RECIPE", callback=check_recipe, autocompletion=complete_recipe)
RecipeArgument = Annotated[RecipeRef, recipe_argument("Recipe: a name or a .toml file."), str]
reads_model = partial(reads, callback=announce_code, autocompletion=complete_teacher)
model_argument = argument("Run folder, or another model reference.", "RUN", callback=announce_code)
ModelRef = Annotated[Ref, model_argument, str]
AnyIndex = Annotated[
    str, argument("Folder written by `dcdctl index`, or the URL of a store (docs/indexing.md).", "INDEX")
]
IndexFolder = Annotated[str, argument("Folder written by `dcdctl index`.", "INDEX")]
Teacher = Annotated[Ref, reads_model("--teacher", TEACHER_HELP, "REF"), str]
Rerank = Annotated[
    Ref | None,
    reads_model(
        "--rerank",
        "Model that re-ranks the first candidates: any run, or module:function (code that runs).",
        "REF",
    ),
    str,
]
QueryRef = Annotated[
    Ref | None,
    reads_model(
        "--query-model", "Query encoder that embeds texts in the model's place.", "REF", callback=check_query_model
    ),
    str,
]
RerankSet = Annotated[
    Overrides | None,
    configures("--rerank-set", "With --rerank: what its files lack: dtype=bfloat16; repeatable.", "NAME=VALUE"),
    list[str],
]
Features = Annotated[
    Ref | None,
    computes("--features", "Folder that keeps the outputs of frozen encoders.", "DIR"),
    Path,
]

# Settings
Dims = Annotated[int | None, configures("--dims", "Use only the first N numbers of each vector.", "N", min=1)]
Sets = Annotated[
    list[str] | None,
    configures(
        "--set", "Override a recipe field (`dcdctl recipes NAME --all`): loss.alpha=0.5; repeatable.", "KEY=VALUE"
    ),
]
ModelSet = Annotated[
    Overrides | None,
    configures("--model-set", "What model files lack: image_size=384; repeatable.", "NAME=VALUE"),
    list[str],
]

# Where and how to compute
Device = Annotated[
    str,
    computes("--device", "auto (the GPU if there is one), cpu, cuda, cuda:1 or mps.", "NAME", callback=check_device),
]
Precision = Annotated[str, computes("--precision", "fp32, bf16 or fp16.", "NAME", callback=check_precision)]
BATCH_SIZE_HELP = "Images or pairs in a forward pass."
BatchSize = Annotated[int, computes("--batch-size", BATCH_SIZE_HELP, "N", min=1)]
PairBatchSize = Annotated[int | None, computes("--batch-size", BATCH_SIZE_HELP, "N", show_default="the model's", min=1)]
Workers = Annotated[
    int | None,
    computes(
        "--workers",
        "Threads that read images ahead.",
        "N",
        show_default="one per core but one, at most 8",
        min=0,
        max=MOST_WORKERS,
    ),
]
Engine = Annotated[
    str | None,
    computes(
        "--engine",
        "Compute elsewhere: files:DIR, whose tasks `dcdctl work` does on any machine; or on a cluster: ray, "
        "'ray?workers=4&gpus=0.5&cpus=2' or ray://HOST:PORT of its head (extra ray).",
        "NAME",
        is_eager=True,
    ),
]

# Where it goes
Out = Annotated[Ref, configures("--out -o", "Folder to write.", "DIR", callback=check_output_folder), Path]
NewOut = Annotated[Ref, configures("--out -o", "New folder to write.", "DIR"), Path]
Page = Annotated[
    Ref | None, configures("--html", "Also write a page with the images.", "FILE", callback=check_output_file), Path
]
DryRun = Annotated[bool, configures("--dry-run", "Show steps and cost, and stop; --data may name a manifest.")]
Json = Annotated[bool, configures("--json", "Print the result as one JSON document.")]


def sizes(text: str) -> tuple[int, ...]:
    """Whole numbers between commas.

    >>> sizes("1, 8,32")
    (1, 8, 32)
    """
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a list of whole numbers, such as 1,8,32") from error
