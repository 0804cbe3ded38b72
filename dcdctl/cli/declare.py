"""One declaration of the arguments of a command, for the command line and for Python.

A command declares its arguments once, as a frozen dataclass beside its function. `as_typer` turns the fields into
options for Typer. `takes` turns the same fields into the keywords of the function of `dcdctl.api`.

    out: Annotated[Ref, typer.Option("--out", help="Folder to write."), Path]

The first type is for Python. A type behind the option is the narrower one that Typer parses; if it admits None, the
option may be left out, even where Python requires the value. A field without an option is for Python only. Further
parameters of a command's function are for the command line only.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, ParamSpec, TypeVar, get_args, get_origin

P = ParamSpec("P")
A = TypeVar("A")
R = TypeVar("R")

Ref = str | os.PathLike[str]
"""A path, a URL, or the name of a model; runs, caches, corpora and indexes name their folder."""
Refs = Ref | Sequence[Ref]
Overrides = Mapping[str, Any]
"""Settings by dotted name: {"optimizer.steps": 20}."""


def as_typer(function: Callable[..., None]) -> Callable[..., None]:
    """A command's function as Typer reads it: each parameter that is a dataclass gives way to its options."""
    declared: dict[str, tuple[Any, list[str]]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        if dataclasses.is_dataclass(parameter.annotation):
            defaults = {field.name: field.default for field in dataclasses.fields(parameter.annotation)}
            options = []
            for name, annotation in _annotations(parameter.annotation).items():
                if get_origin(annotation) is Annotated:
                    options.append(_option(name, annotation, defaults[name]))
            declared[parameter.name] = parameter.annotation, [option.name for option in options]
            parameters += options
        else:
            parameters.append(_option(parameter.name, parameter.annotation, parameter.default))

    def command(**values: Any) -> None:
        for name, (arguments, options) in declared.items():
            values[name] = arguments(**{option: values.pop(option) for option in options})
        function(**values)

    command.__module__, command.__doc__ = function.__module__, function.__doc__
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def takes(declared: Callable[P, A]) -> Callable[[Callable[[A], R]], Callable[P, R]]:
    """A decorator for a function of one dataclass: it takes the fields of the dataclass instead, also for type
    checkers and `help`."""

    def decorate(function: Callable[[A], R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if unknown := [name for name in kwargs if name not in signature.parameters]:
                near = difflib.get_close_matches(unknown[0], signature.parameters, n=1)
                question = f"did you mean {near[0]}?" if near else f"it takes {', '.join(signature.parameters)}"
                raise TypeError(f"{function.__name__}() has no argument {unknown[0]}; {question}")
            return function(declared(*args, **kwargs))

        types = _annotations(declared)
        signature = inspect.signature(declared)
        parameters = []
        for name, parameter in signature.parameters.items():
            type_ = _parts(types[name])[0]
            # "Ref | Recipe", not ForwardRef("Ref | Recipe").
            parameters.append(parameter.replace(annotation=getattr(type_, "__forward_arg__", type_)))
        returned = inspect.signature(function).return_annotation
        call.__signature__ = inspect.Signature(parameters, return_annotation=returned)  # type: ignore[attr-defined]
        return call

    return decorate


def _annotations(declared: Any) -> dict[str, Any]:
    """The annotation of each field; the fields of the class come before those that it inherits."""
    annotations: dict[str, Any] = {}
    for base in declared.__mro__:
        # Not `get_type_hints`, which also evaluates names in quotes, such as Recipe, which only type checkers import.
        for name, annotation in inspect.get_annotations(base, eval_str=True).items():
            annotations.setdefault(name, annotation)
    return annotations


def _option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    python_type, info, *narrower = _parts(annotation)
    parsed = narrower[0] if narrower else python_type
    if default in (dataclasses.MISSING, inspect.Parameter.empty):
        default = None if NoneType in get_args(parsed) else inspect.Parameter.empty
    elif isinstance(default, tuple):
        default = ",".join(map(str, default))  # as it is typed, and shown in the help
    # Parameters by position could not follow those that have a default.
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=Annotated[parsed, info])


def _parts(annotation: Any) -> tuple[Any, ...]:
    """The type for Python; and of a field with an option, the option, and the type that Typer parses if it differs."""
    return get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)


def path(ref: Ref) -> Path:
    """The path that a reference names; ~ is the user's folder. InputError for an empty one, which would be the current
    folder."""
    if not os.fspath(ref):
        from dcdctl.core.errors import InputError

        raise InputError("a path is empty", hint="name a file or a folder; . is the current folder")
    return Path(ref).expanduser()


def optional_path(ref: Ref | None) -> Path | None:
    """The same where there may be none."""
    return None if ref is None else path(ref)


def optional_ref(ref: Ref | None) -> str | None:
    """A reference as the core takes it, where there may be none."""
    return None if ref is None else os.fspath(ref)


def many(refs: Refs | None) -> list[str]:
    """The names of one reference, of several, or of none."""
    if refs is None:
        return []
    return [os.fspath(refs)] if isinstance(refs, str | os.PathLike) else [os.fspath(ref) for ref in refs]


def assignments(overrides: Overrides | Sequence[str] | None) -> tuple[str, ...]:
    """Overrides as the options of a command, which come as they are.

    >>> assignments({"loss.terms": {"kl": 1.0}, "model.start": "new", "batch.size": 8, "loss.weight_group": None})
    ('loss.terms={ kl = 1.0 }', 'model.start="new"', 'batch.size=8', 'loss.weight_group="none"')
    """
    if isinstance(overrides, Mapping):
        from dcdctl.core.config import to_table
        from dcdctl.core.training import toml_value

        return tuple(f"{name}={toml_value(to_table(value))}" for name, value in overrides.items())
    return tuple(overrides or ())


def named(ref: Ref | A) -> str | A:
    """A reference by its name, or what is in memory."""
    return os.fspath(ref) if isinstance(ref, os.PathLike) else ref


def names_in(text: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """The names in a list such as "year,owner", or in a sequence of Python; None for no list."""
    names = text.split(",") if isinstance(text, str) else text
    return None if names is None else tuple(name.strip() for name in names if name.strip())
