"""What the Python functions share: keywords that a job of the core declares, messages as log records, and bars for
notebooks."""

from __future__ import annotations

import difflib
import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from dcdctl.core.arguments import declared
from dcdctl.core.errors import InputError
from dcdctl.core.progress import Advance, Track, Watch, silent, step_bar

P = ParamSpec("P")
J = TypeVar("J")
R = TypeVar("R")

say = logging.getLogger("dcdctl").warning
"""Shows a line that a command would print as a message."""


def takes(job: Callable[P, J]) -> Callable[[Callable[[J], R]], Callable[P, R]]:
    """A decorator for a function of a job: it takes the fields of the job instead, also for type checkers and
    `help`."""

    def decorate(function: Callable[[J], R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if unknown := [name for name in kwargs if name not in signature.parameters]:
                near = difflib.get_close_matches(unknown[0], signature.parameters, n=1)
                question = f"did you mean {near[0]}?" if near else f"it takes {', '.join(signature.parameters)}"
                raise TypeError(f"{function.__name__}() has no argument {unknown[0]}; {question}")
            return function(job(*args, **kwargs))

        parameters = []
        fields = declared(job)
        for name, parameter in inspect.signature(job).parameters.items():
            hint, argument = fields[name]
            if argument is None or argument.is_keyword:
                # "Ref | Recipe", not ForwardRef("Ref | Recipe").
                parameters.append(parameter.replace(annotation=getattr(hint, "__forward_arg__", hint)))
        returned = inspect.signature(function).return_annotation
        signature = inspect.Signature(parameters, return_annotation=returned)
        call.__signature__ = signature  # type: ignore[attr-defined]
        return call

    return decorate


def texts(given: str | Sequence[object]) -> tuple[str, ...]:
    """The texts of one, or of several; InputError for what is no text."""
    found = [given] if isinstance(given, str) else list(given)
    texts = [each for each in found if isinstance(each, str)]
    if len(texts) < len(found):
        wrong = next(type(each).__name__ for each in found if not isinstance(each, str))
        raise InputError(f"a list of texts has a {wrong}", hint="search by each image by itself")
    return tuple(texts)


def track(progress: bool) -> Track:
    """A bar of tqdm, which is a widget in a notebook and text elsewhere; nothing unless `progress` is set."""
    return _bar if progress else silent


def watch(progress: bool) -> Watch:
    """A bar of the steps of a training."""
    return step_bar(track(progress))


@contextmanager
def _bar(label: str, *, total: int | None, unit: str) -> Iterator[Advance]:
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=label, unit=f" {unit}", unit_scale=unit == "bytes") as bar:
        # tqdm returns whether it has drawn, and an Advance returns nothing.
        yield lambda count: bar.update(count) and None
