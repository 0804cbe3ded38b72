"""What a reader of the package meets: modules, classes, functions, fields of recipes, and options of commands.

`make check` prints it and enforces nothing. Whoever adds says what went.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[2] / "dcdctl"


def count_definitions(folder: Path) -> dict[str, int]:
    """The modules, classes and functions below a folder; methods and inner functions are functions too."""
    modules = sorted(folder.rglob("*.py"))
    nodes = [node for path in modules for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    return {
        "modules": len(modules),
        "classes": sum(isinstance(node, ast.ClassDef) for node in nodes),
        "functions": sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in nodes),
    }


def recipe_fields() -> set[str]:
    """The names that a recipe can set, such as loss.alpha; a name that several kinds of models have is one."""
    from dcdctl.core.training import Recipe

    return set(_fields_of(Recipe, ""))


def _fields_of(table: Any, prefix: str) -> Iterator[str]:
    hints = typing.get_type_hints(table)
    for field in dataclasses.fields(table):
        kinds = [kind for kind in (hints[field.name], *typing.get_args(hints[field.name])) if isinstance(kind, type)]
        tables = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
        if not tables:
            yield f"{prefix}{field.name}"
        for kind in tables:
            yield from _fields_of(kind, f"{prefix}{field.name}.")


def command_options() -> dict[str, int]:
    """The number of options of each command, without --help."""
    import typer

    from dcdctl.cli.app import app

    group: Any = typer.main.get_command(app)
    return {
        name: sum(
            any(option.startswith("-") for option in parameter.opts) and parameter.name != "help"
            for parameter in command.params
        )
        for name, command in group.commands.items()
    }


def main() -> None:
    """Print the counts of the package, or of the definitions below one folder of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=PACKAGE)
    folder = parser.parse_args().folder
    counts = count_definitions(folder)
    if folder == PACKAGE:
        counts["recipe fields"] = len(recipe_fields())
        counts["options of commands"] = sum(command_options().values())
    listed = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    sys.stdout.write(f"{folder.name}: {listed}\n")


if __name__ == "__main__":
    main()
