"""A recipe as a TOML file with every field and its sentences, which `dcdctl recipes NAME` prints."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dcdctl.core.config import to_table
from dcdctl.core.toml import toml_value
from dcdctl.core.training.recipe.packaged import check_recipe_name, head_of
from dcdctl.core.training.recipe.recipe import load_recipe

WIDTH = 100
"""Columns of the comments."""


def recipe_text(ref: str, sets: Sequence[str] = (), *, with_defaults: bool = True) -> str:
    """A recipe by name or from a .toml file, as TOML that loads as an equal recipe: with all its fields, or with those
    that differ from the defaults.

    It opens with the head of the file. Above each field are the sentences of its docstring.
    """
    recipe = load_recipe(ref, sets)
    head = [f"# {line}".rstrip() for line in head_of(check_recipe_name(ref))]
    changed = ["#", "# Changed here: " + ", ".join(sets)] if sets else []
    return "\n".join([*head, *changed, *_table(recipe, "", with_defaults=with_defaults)]) + "\n"


@functools.cache
def field_docs(cls: type) -> Mapping[str, str]:
    """The docstring under each field of a dataclass, on one line; no entry for a field without one."""
    docs: dict[str, str] = {}
    for parent in cls.__bases__:
        if dataclasses.is_dataclass(parent):
            docs |= field_docs(parent)
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(node, ast.ClassDef)
    for statement, following in itertools.pairwise(node.body):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                docs[name] = " ".join(text.split())
    return docs


def _table(config: Any, name: str, *, with_defaults: bool) -> Iterator[str]:
    """The lines of a table: its values, then its inner tables. Without defaults, an inner table of defaults has no
    lines; `kind` has one, since it decides which fields there are."""
    kind: Any = type(config)  # mypy does not count type[Any] as hashable
    docs = field_docs(kind)
    values = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if with_defaults or field.name == "kind" or value != _default(field):
            values[field.name] = value
    # Values first: in TOML a key after a table belongs to that table.
    for key, value in values.items():
        if not dataclasses.is_dataclass(value):
            yield from ["", *_lines(docs.get(key, "")), f"{key} = {toml_value(to_table(value))}"]
    for key, value in values.items():
        if dataclasses.is_dataclass(value):
            # "The `[batch]` table: what one step sees." becomes "What one step sees."
            title = (type(value).__doc__ or "").split(": ", 1)[-1]
            yield from ["", "", *_lines(f"{title[:1].upper()}{title[1:]}"), f"[{name}{key}]"]
            yield from _table(value, f"{name}{key}.", with_defaults=with_defaults)


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _lines(text: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent="# ",
        subsequent_indent="# ",
        # A long URL or option is copied from here, so it stays in one piece.
        break_long_words=False,
        break_on_hyphens=False,
    )
