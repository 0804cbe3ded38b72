"""The recipes that come with the package: their files, and what the head of each says. Imports no torch, for completion
and lists."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from dcdctl.core import files, models
from dcdctl.core.errors import ConfigError
from dcdctl.core.toml import read_toml

RECIPES = files.packaged("recipes")
FACTS = ("needs", "minutes", "expected")
"""What the head of a recipe says in a line of its own: "# Needs: ...". Comments, because no training depends on
them."""


@dataclass(frozen=True, kw_only=True)
class RecipeEntry:
    """A recipe in a list."""

    name: str
    description: str
    needs: str
    """Data, models, extras and hardware."""
    minutes: str
    """Duration in minutes on named hardware, and whether it was measured."""
    expected: str
    """The result, and where it was measured."""
    commands: tuple[str, ...]


def names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def check_recipe_name(ref: str) -> Path:
    """The file of a recipe; ConfigError with the most similar names if there is none."""
    path = Path(ref) if ref.endswith(".toml") else RECIPES / f"{ref}.toml"
    if not path.is_file():
        near = " or ".join(difflib.get_close_matches(Path(ref).stem, names()))
        problem = f"{ref} does not exist" if ref.endswith(".toml") else f"no recipe {ref}"
        if ref in models.list_teachers():
            problem += ", which is a model (`dcdctl models`)"
        question = f"did you mean {near}? " if near else ""
        raise ConfigError(
            problem,
            hint=f"{question}`dcdctl recipes` lists all, and `dcdctl recipes NAME` writes one for a .toml file of "
            "yours",
        )
    return path


def list_recipes() -> list[RecipeEntry]:
    """All recipes that come with the package, by name."""
    return [_read_entry(RECIPES / f"{name}.toml") for name in names()]


def head_of(path: Path) -> list[str]:
    """The comment lines at the top of a file, without their number sign."""
    head = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        head.append(line[1:].strip())
    return head


def _read_entry(path: Path) -> RecipeEntry:
    head = head_of(path)
    facts = {fact: "" for fact in FACTS}
    for line in head:
        label, colon, text = line.partition(": ")
        if colon and label.lower() in facts and label == label.capitalize():
            facts[label.lower()] = text
    commands = tuple(line for line in head if line.startswith("dcdctl "))
    return RecipeEntry(name=path.stem, description=read_toml(path)["description"], commands=commands, **facts)
