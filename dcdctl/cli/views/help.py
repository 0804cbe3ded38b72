"""The help of a command as plain text: metavars instead of Python types, options in panels, and words that are never
cut or split.

Typer's own help either imports Rich, which takes longer than the rest of `--help`, or has no panels and breaks names at
their hyphens.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import typer
from typer.core import TyperCommand

from dcdctl.cli.options import settings_like

MAX_COLUMNS = 100
"""Widest line of the help, however wide the terminal is."""
NAME_COLUMNS = 26
"""Longest name that has its text on the same line."""
PATHS = re.compile("CACHE|CKPT|DATA|DIR|FILE|FOLDER|INDEX|MANIFEST|PATH|PLACE|RECIPE|REF|RUN|SYSTEM")
"""Metavars of parameters that name a file or a folder."""
ORDER = ("Common", "Input", "Settings", "Compute")
SHARED = ("device", "json", "help")
"""Options that mean the same in every command that has them. `dcdctl --help` explains them, and the help of a command
names them in a line."""
COMMON = [
    "data",
    "images",
    "csv",
    "recipe",
    "teacher",
    "cache",
    "vision",
    "text",
    "start",
    "split",
    "add",
    "moved",
    "watch",
    "remove",
    "metadata",
    "image",
    "where",
    "rerank",
    "features",
    "set",
    "to",
    "html",
    "out",
    "resume",
    "dry-run",
    "port",
    "k",
]
"""Options that come first, in every command that has them."""


class HelpCommand(TyperCommand):
    """A command whose help is laid out here."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of a command; a usage error for two kinds that Typer takes: an empty path, which would be the
        current folder, and a number such as 1_000. The error for an unknown option names the settings it may mean."""
        try:
            words = self.make_parser(ctx).parse_args(list(args))[0]
        except typer.TyperException as error:
            unknown: Any = error
            # Only the error for an unknown option has this attribute.
            if hasattr(unknown, "possibilities") and any("--set" in each.opts for each in self.params):
                settings = settings_like(str(self.name), unknown.option_name)
                unknown.possibilities = [f"--set {name}=VALUE" for name in settings] or unknown.possibilities
            raise
        parameters: list[Any] = [] if ctx.resilient_parsing else self.params
        for parameter in parameters:
            given = words.get(parameter.name)
            several = given if isinstance(given, list | tuple) else [given]
            for word in several:
                if word == "" and PATHS.fullmatch(parameter.metavar):
                    raise typer.BadParameter("is empty, expected a path or a name", ctx=ctx, param=parameter)
                limits = parameter.type_descriptor.parameter_info
                if isinstance(word, str) and "_" in word and limits.min is not None:
                    allowed = f"from {limits.min}" + (f" to {limits.max}" if limits.max is not None else "")
                    raise typer.BadParameter(f"{word!r} is not a number {allowed}", ctx=ctx, param=parameter)
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """[OPTIONS], then the arguments: optional ones in brackets, repeated ones with dots."""
        pieces = [self.options_metavar] if self.options_metavar else []
        for argument in _arguments(self):
            piece = argument.metavar + ("..." if argument.nargs == -1 else "")
            pieces.append(piece if argument.required else f"[{piece}]")
        return pieces

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """The docstring of the command."""
        # Joined, because the lines of a docstring are cut for the width of our code.
        lines = _wrapped(" ".join((self.help or "").split()), formatter.width - 2)
        formatter.write("\n" + "".join(f"  {line}\n" for line in lines))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The arguments, the options that most people use, and the others by panel."""
        panels: dict[str, list[tuple[str, str]]] = {panel: [] for panel in ("Arguments", *ORDER)}
        for argument in _arguments(self):
            # The record's name has the type, and its text the notes on default and range.
            panels["Arguments"].append((argument.metavar, (argument.get_help_record(ctx) or ("", ""))[1]))
        shared = []
        for parameter in self.get_params(ctx):
            if parameter.param_type_name == "option" and (record := parameter.get_help_record(ctx)) is not None:
                if parameter.name in SHARED:
                    shared.append(record[0])
                    continue
                is_first = parameter.opts[0].lstrip("-") in COMMON
                name, text = record
                # A range is told by the error for a number outside of it.
                text = re.sub(r"(; |  \[)[\d<=x>]+\]$", lambda match: "]" if match[1] == "; " else "", text)
                row = name, re.sub(r"\[default: \((.*)\)\]$", r"[default: \1]", text)
                panels["Common" if is_first else str(vars(parameter)["rich_help_panel"])].append(row)
        write_panels(formatter, panels)
        formatter.write(f"\nAlso (dcdctl --help): {'; '.join(shared)}\n")

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The example, a command that runs when it is copied."""
        formatter.write(f"\nExample:\n  {self.epilog}\n")


def _arguments(command: Any) -> list[Any]:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    return [argument for argument in arguments if not argument.hidden]


def write_panels(formatter: Any, panels: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """Write the rows of each panel below its name; nothing of an empty one."""
    for panel, rows in panels.items():
        if rows:
            formatter.write(f"\n{panel}:\n" + "".join(f"{line}\n" for line in lines_of(rows, formatter.width)))


def lines_of(rows: Sequence[tuple[str, str]], width: int) -> Iterator[str]:
    """Two columns, name and text; a name that is too long has a line of its own."""
    # One long name must not push the texts of all others to the right.
    column = min(max((len(name) for name, _ in rows), default=0), NAME_COLUMNS) + 4
    for name, text in rows:
        first, *rest = _wrapped(text, width - column) or [""]
        if len(name) > column - 4:
            yield f"  {name}"
            yield " " * column + first
        else:
            yield f"  {name}".ljust(column) + first
        yield from (" " * column + line for line in rest)


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of whole words: a name is not broken at its hyphens, so that it can be copied."""
    # textwrap fails below a width of 1, and the help of a terminal as narrow as that cannot be read anyway.
    return textwrap.wrap(text, max(width, 20), break_on_hyphens=False, break_long_words=False)
