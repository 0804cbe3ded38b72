"""`dcdctl recipes`: the recipes that come with the package, and the settings of one."""

from __future__ import annotations

from typing import Annotated

from dcdctl.cli.options import Json, refuse
from dcdctl.cli.views.terminal import show, show_json
from dcdctl.core.arguments import argument, configures
from dcdctl.core.options import Sets

Name = Annotated[str | None, argument("Recipe to print: a name or a .toml file.", "RECIPE", "recipe")]


def recipes(
    name: Name = None,
    sets: Sets = None,
    every: Annotated[
        bool, configures("--all", "With RECIPE: print all settings, not only those that it changes.")
    ] = False,
    json: Json = False,
) -> None:
    """List the recipes, or print one as TOML. The TOML explains each setting, to edit and to train with."""
    from dcdctl.core import training
    from dcdctl.core.config import to_table

    if name is None:
        # A list has no recipe that it could change.
        refuse({"--set": sets, "--all": every or None}, "is for one recipe: name it")
        return _list(json)
    if json:
        return show_json(to_table(training.load_recipe(name, sets or ())))
    show(training.recipe_text(name, sets or (), with_defaults=every).rstrip("\n"))


def _list(json: bool) -> None:
    from dcdctl.core import training
    from dcdctl.core.config import to_table

    entries = training.list_recipes()
    if json:
        return show_json({"recipes": [to_table(entry) for entry in entries]})
    width = max(len(entry.name) for entry in entries)
    for entry in entries:
        show(f"{entry.name.ljust(width)}  {entry.description}")
