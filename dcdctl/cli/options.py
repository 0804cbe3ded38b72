"""What the command line adds to the arguments of the core: what a value that names something is checked by and
completed to, and the options that only commands have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcdctl.cli.completion import (
    complete_manifest,
    complete_path,
    complete_recipe,
    complete_split,
    complete_teacher,
)
from dcdctl.core.arguments import CODE, Kind, argument, configures, many, named

if TYPE_CHECKING:
    from dcdctl.core.training import RecipeRef


def check_output_file(path: Path | None) -> Path | None:
    """Callback of an option that names a file to write: an error before any work if it cannot be written."""
    if path is not None:
        from dcdctl.core import files

        files.check_output_file(path)
    return path


def check_path(context: typer.Context, param: typer.CallbackParam, value: Any) -> Any:
    """Callback of an option that takes a path of this machine: InputError for a URL."""
    from dcdctl.core.places import refuse_url

    name = param.opts[0] if param.param_type_name == "option" else param.metavar
    for given in value if isinstance(value, list | tuple) else [value]:
        if given is not None and not context.resilient_parsing:
            refuse_url(given, f"and {name} takes a path of this machine", "copy it to this machine, and name the copy")
    return value


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


def check_overrides(recipe: RecipeRef, sets: list[str] | None) -> None:
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


@dataclass(frozen=True, kw_only=True)
class Named:
    """How the command line takes a value that names something."""

    word: type = str
    check: Callable[..., Any] | None = None
    """An error before any work."""
    complete: Callable[..., list[str]] | None = None
    is_first: bool = False
    """Whether it is checked before all others, whose checks ask for it."""


KINDS: dict[Kind, Named] = {
    "path": Named(word=Path, check=check_path),
    "place": Named(complete=complete_path),
    "model": Named(check=announce_code, complete=complete_teacher),
    "query model": Named(check=check_query_model, complete=complete_teacher),
    "recipe": Named(check=check_recipe, complete=complete_recipe),
    "manifest": Named(complete=complete_manifest),
    "split": Named(complete=complete_split),
    "output folder": Named(word=Path, check=check_output_folder),
    "output file": Named(word=Path, check=check_output_file),
    "device": Named(check=check_device),
    "precision": Named(check=check_precision),
    "engine": Named(is_first=True),
}
"""By what an argument says of its value."""

IndexFolder = Annotated[str, argument("Folder written by `dcdctl index`.", "INDEX")]
AnyIndex = Annotated[
    str, argument("Folder written by `dcdctl index`, or the URL of a store (docs/indexing.md).", "INDEX")
]
DryRun = Annotated[bool, configures("--dry-run", "Show steps and cost, and stop; --data may name a manifest.")]
Json = Annotated[bool, configures("--json", "Print the result as one JSON document.")]
