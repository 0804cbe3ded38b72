"""`dcdctl recipes`: the recipes that come with the package, and one with all its fields."""

from __future__ import annotations

from typing import Annotated

from dcdctl.cli.options import Json, Sets, recipe_argument, refuse
from dcdctl.cli.views.terminal import show, show_entries, show_json

Name = Annotated[str | None, recipe_argument("Recipe to print with all its fields: a name or a .toml file.")]


def recipes(name: Name = None, sets: Sets = None, json: Json = False) -> None:
    """List the recipes, or print one as TOML. The TOML has every field with its explanation, to edit and to train
    with."""
    from dcdctl.core import training
    from dcdctl.core.config import to_table

    if name is None:
        # A list has no recipe that it could change.
        refuse({"--set": sets}, "changes a field of one recipe: name it")
        return _list(json)
    if json:
        return show_json(to_table(training.load_recipe(name, sets or ())))
    show(training.recipe_text(name, sets or ()).rstrip("\n"))


def _list(json: bool) -> None:
    from dcdctl.core import training
    from dcdctl.core.config import to_table

    entries = training.list_recipes()
    if json:
        return show_json({"recipes": [to_table(entry) for entry in entries]})
    shown = []
    for entry in entries:
        facts = {"": entry.description, "needs": entry.needs, "minutes": entry.minutes, "expected": entry.expected}
        shown.append((entry.name, facts))
    show_entries("recipes: dcdctl recipes NAME > mine.toml, then dcdctl distill mine.toml", shown)
