"""How a command's arguments are declared: metadata on the fields of a frozen dataclass, which is the job itself.

    @dataclass(frozen=True)
    class EvalJob(Inference):
        model: Annotated[Ref, argument("Run folder, or another model reference.", "RUN", kind="model")]
        dims: Annotated[int | None, configures("--dims", "Use only the first N numbers.", "N", min=1)] = None

`dcdctl.cli` makes the options of a command of the fields, and `dcdctl.api` the keywords of a function, so the two
cannot differ in a name or a default. A field without an `Argument` is for Python only. A module that declares a job
imports nothing heavy, because `--help` reads it.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from dcdctl.core.errors import InputError

T = TypeVar("T")

Ref = str | os.PathLike[str]
"""A path, a URL, or the name of a model; runs, caches, corpora and indexes name their folder."""
Refs = Ref | Sequence[Ref]
Overrides = Mapping[str, Any]
"""Settings by dotted name: {"optimizer.steps": 20}."""
Settings = Overrides | Sequence[str]
"""Settings by dotted name, or as a command line has them: ["optimizer.steps=20"]."""
Kind = Literal[
    "path",
    "place",
    "model",
    "query model",
    "recipe",
    "manifest",
    "split",
    "output folder",
    "output file",
    "device",
    "precision",
    "engine",
]
CODE = re.compile(r"(?!.*\.py:)[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
"""A reference to Python code, module:function; one that names a file is refused."""
MOST = 10**9
"""As `core.config.MOST`, which is not imported for --help."""
MOST_WORKERS = 256
"""More processes than a machine takes end in its errors, or end others."""


@dataclass(frozen=True, kw_only=True)
class Argument:
    """What a user reads about an argument, and what its value may be."""

    help: str
    metavar: str | None = None
    """What stands for the value in the help; None for a flag."""
    names: tuple[str, ...] = ()
    """Such as --out and -o; empty for an argument by position."""
    group: Literal["Arguments", "Input", "Settings", "Compute"] = "Arguments"
    """What it is for: its part of the help."""
    kind: Kind | None = None
    """What the value names, which a command line checks at once and completes. None: a `Ref` is a path of this
    machine, and any other value has no meaning beyond its type."""
    min: int | None = None
    max: int | None = None
    """A number has both or neither, because arrays are made of its size, and Python's integers have no end."""
    show_default: str | bool = True
    """The default in words, if the value does not say it; False shows none."""
    is_keyword: bool = True
    """False for an option alone: in Python, a recipe or a config in memory says the same."""


def argument(help: str, metavar: str, kind: Kind | None = None) -> Argument:
    """An argument by position."""
    return Argument(help=help, metavar=metavar, kind=kind)


def _option(
    group: Literal["Input", "Settings", "Compute"],
    names: str,
    help: str,
    metavar: str | None = None,
    kind: Kind | None = None,
    *,
    min: int | None = None,
    max: int | None = None,
    show_default: str | bool = True,
    is_keyword: bool = True,
) -> Argument:
    most = MOST if max is None and min is not None else max
    return Argument(
        help=help,
        metavar=metavar,
        names=tuple(names.split()),
        group=group,
        kind=kind,
        min=min,
        max=most,
        show_default=show_default,
        is_keyword=is_keyword,
    )


# An option is declared by what it is for: its names ("--out -o"), its sentence, and what stands for its value.
reads, configures, computes = partial(_option, "Input"), partial(_option, "Settings"), partial(_option, "Compute")


def declared(cls: Any) -> dict[str, tuple[Any, Argument | None]]:
    """The type and the argument of each field of a dataclass: its own, those that it inherits, and last those that
    are options alone."""
    found: dict[str, tuple[Any, Argument | None]] = {}
    for base in cls.__mro__:
        # Not `get_type_hints`, which also evaluates names in quotes, such as Recipe, which only type checkers import.
        for name, annotation in inspect.get_annotations(base, eval_str=True).items():
            found.setdefault(name, parts_of(annotation))
    return dict(sorted(found.items(), key=lambda field: field[1][1] is not None and not field[1][1].is_keyword))


def parts_of(annotation: Any) -> tuple[Any, Argument | None]:
    """The type in an annotation, and the `Argument` beside it."""
    if get_origin(annotation) is not Annotated:
        return annotation, None
    hint, *marks = get_args(annotation)
    return hint, next((mark for mark in marks if isinstance(mark, Argument)), None)


def path(ref: Ref) -> Path:
    """The path that a reference names; ~ is the user's folder. InputError for an empty one, which would be the current
    folder."""
    if not os.fspath(ref):
        raise InputError("a path is empty", hint="name a file or a folder; . is the current folder")
    return Path(ref).expanduser()


def optional_path(ref: Ref | None) -> Path | None:
    """The path that a reference names, if there is one."""
    return None if ref is None else path(ref)


def optional_ref(ref: Ref | None) -> str | None:
    """The text of a reference, if there is one."""
    return None if ref is None else os.fspath(ref)


def many(refs: Refs | None) -> list[str]:
    """The names of one reference, of several, or of none."""
    if refs is None:
        return []
    return [os.fspath(refs)] if isinstance(refs, str | os.PathLike) else [os.fspath(ref) for ref in refs]


def paths(refs: Refs | None) -> list[Path]:
    """The paths that one reference, several, or none name."""
    return [path(ref) for ref in many(refs)]


def named(ref: Ref | T) -> str | T:
    """A reference by its name, or what is in memory."""
    return os.fspath(ref) if isinstance(ref, os.PathLike) else ref
