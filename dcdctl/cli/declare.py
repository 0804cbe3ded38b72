"""The options of a command, made of the arguments that a job of the core declares (`core/arguments.py`).

The function of a command takes the job, and further parameters with an `Argument`, which are for the command line
only. How the words of an option become a value follows from its type:

    Ref, Refs                 a path of this machine, or a text where `kind` says that it names something else
    Settings                  NAME=VALUE, repeatable
    list                      repeatable
    Sequence[int] or [str]    one word with commas: 1,8,32
    int | Literal["auto"]     a number of at least 1, or auto
    Literal                   any word; the core checks it, and its error names the choices
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ForwardRef, Literal, Union, get_args, get_origin

import typer

from dcdctl.cli.options import KINDS
from dcdctl.core.arguments import Argument, declared, parts_of

LISTS: dict[type, Any] = {str: list[str], Path: list[Path]}


def as_typer(function: Callable[..., None]) -> Callable[..., None]:
    """A command's function as Typer reads it: each parameter that is a dataclass gives way to its options."""
    jobs: dict[str, tuple[Any, list[str]]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        if dataclasses.is_dataclass(parameter.annotation):
            job: Any = parameter.annotation
            defaults = {field.name: field.default for field in dataclasses.fields(job)}
            options = []
            for name, (hint, argument) in declared(job).items():
                if argument is not None:
                    options.append(_option(name, hint, argument, defaults[name]))
            jobs[parameter.name] = job, [option.name for option in options]
            parameters += options
        else:
            hint, argument = parts_of(parameter.annotation)
            assert argument is not None, f"{parameter.name} of {function.__name__} has no Argument"
            parameters.append(_option(parameter.name, hint, argument, parameter.default))

    def command(**values: Any) -> None:
        for name, (job, options) in jobs.items():
            values[name] = job(**{option: values.pop(option) for option in options})
        function(**values)

    command.__module__, command.__doc__ = function.__module__, function.__doc__
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def _option(name: str, hint: Any, argument: Argument, default: Any) -> inspect.Parameter:
    """The parameter that Typer makes an option or an argument of."""
    parsed, calls = _reading(hint, argument)
    if default in (dataclasses.MISSING, inspect.Parameter.empty):
        default = None if NoneType in _types(hint) else inspect.Parameter.empty
    elif isinstance(default, tuple):
        default = ",".join(map(str, default))  # as it is typed, and shown in the help
    declare: Callable[..., Any] = typer.Option if argument.names else typer.Argument
    info = declare(
        *argument.names,
        help=argument.help,
        metavar=argument.metavar,
        rich_help_panel=argument.group,
        min=argument.min,
        max=argument.max,
        show_default=argument.show_default,
        **calls,
    )
    # Parameters by position could not follow those that have a default.
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[parsed, info])


def _reading(hint: Any, argument: Argument) -> tuple[Any, dict[str, Any]]:
    """The type that Typer parses, and what it calls to check, complete and convert the words."""
    types = _types(hint)
    is_ref, is_path = _has(hint, os.PathLike[str]), _has(hint, Path)
    if argument.kind is not None or is_ref or is_path:
        named = KINDS[argument.kind or "path"]
        calls = {"callback": named.check, "autocompletion": named.complete, "is_eager": named.is_first}
        # A type in quotes, such as "Ref | Recipe", is not evaluated here.
        if is_ref or isinstance(hint, ForwardRef):
            is_repeated = any(get_origin(each) is Sequence for each in types)
            return (LISTS[named.word] if is_repeated else named.word), calls
        return hint, calls
    if any(get_origin(each) is Mapping for each in types):
        return list[str], {}
    if any(get_origin(each) is Literal for each in types):
        return str, {"callback": _number_or_word} if int in types else {}
    if Sequence[int] in types:
        # Any, because Typer takes a list in one word by `parser`, not by its type.
        return Any, {"parser": _numbers}
    if Sequence[str] in types:
        return str, {"callback": _names}
    return hint, {}


def _types(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _has(hint: Any, type_: Any) -> bool:
    """Whether a type is in another one, at any depth."""
    return hint == type_ or any(_has(each, type_) for each in get_args(hint))


def _numbers(text: str) -> tuple[int, ...]:
    """Whole numbers between commas.

    >>> _numbers("1, 8,32")
    (1, 8, 32)
    """
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a list of whole numbers, such as 1,8,32") from error


def _names(text: str | None) -> tuple[str, ...] | None:
    """Names between commas.

    >>> _names("year, owner,"), _names(None)
    (('year', 'owner'), None)
    """
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def _number_or_word(param: typer.CallbackParam, text: str) -> int | str:
    """A number, or the word auto."""
    if text.isdecimal() and len(text) < 10 and int(text) > 0:
        return int(text)
    if text != "auto":
        problem = f"expected auto or a number of at least 1, got {text!r}"
        raise typer.BadParameter(problem, param_hint=param.opts[0])
    return text
