"""What the user sees: the result on stdout, the talk on stderr, and one place that shows errors.

Rich is imported where it draws, so that `--help` does not wait for it, and never given user text to read as markup.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unicodedata import category

import typer
from typer.core import TyperGroup

from dcdctl.core.errors import DcdError
from dcdctl.core.progress import Advance

JOINERS = "\u200c\u200d"
SECONDS_BETWEEN_LINES = 10.0
"""How often a bar tells where it is when stderr is a file or a pipe."""
RENAMED = {("bench", "--headline"): "--reference-gallery"}
"""Options of earlier versions, by command, and what they are called now."""


class ErrorGroup(TyperGroup):
    """Shows a DcdError as one line and ends with 1; anything else is our bug and keeps its traceback. Help lists commands by panel."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DcdError as error:
            show_error(error)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as interrupt:
            note("interrupted: finished work is kept")
            raise typer.Exit(130) from interrupt

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        command, *words = args
        for word in itertools.takewhile(lambda word: word != "--", words):
            option = word.partition("=")[0]
            if (command, option) in RENAMED:
                ctx.fail(f"{option} is now called {RENAMED[command, option]}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The panels of Typer's Rich help as plain sections: Rich alone would take longer than all the rest of `--help`."""
        panels: dict[str, list[tuple[str, str]]] = {}
        longest = max(map(len, self.commands), default=0)
        width = formatter.width - 6 - longest
        for name, command in self.commands.items():
            panel = getattr(command, "rich_help_panel", None)
            panels.setdefault(panel if isinstance(panel, str) else "Commands", []).append(
                (name.ljust(longest), command.get_short_help_str(width))
            )
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows, col_max=20)


def show_error(error: DcdError) -> None:
    """One line on stderr: what is wrong and what to do next."""
    typer.secho(f"error: {printable(' '.join(str(error).splitlines()))}", fg="red", err=True)


def printable(text: str) -> str:
    """Text with control characters, and all else that does not print, escaped as JSON has it: a file's name cannot steer the terminal.

    >>> print(printable("caf\\u00e9 \\x1b[31m \\u202e"))
    café \\u001b[31m \\u202e
    """
    if text.isprintable():
        return text
    # Joiners are a part of some scripts and of emoji; other spaces than the usual one are harmless.
    return "".join(one if one.isprintable() or one in JOINERS or category(one) == "Zs" else _escaped(one) for one in text)


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def show(text: str) -> None:
    """A line of the result, on stdout, as it is."""
    if is_main():
        typer.echo(text)


def note(text: str) -> None:
    """A line of talk, on stderr, as it is."""
    if is_main():
        typer.echo(text, err=True)


def is_main() -> bool:
    """Of several processes at one job (`core/distributed.py`) the first speaks; errors are shown by whoever has them."""
    return os.environ.get("RANK", "0") == "0"


def show_json(value: Any, *, indent: int | None = 2) -> None:
    """One JSON document on stdout, on one line without an indent; a value JSON has no word for (nan, infinity) is a ValueError."""
    document = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    # What does not print stands inside strings only, where JSON has the same escapes.
    typer.echo("\n".join(map(printable, document.split("\n"))))


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> None:
    """A table on stdout; cells are shown as `str` gives them, columns of numbers to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [[str(cell) for cell in row] for row in rows]
    table = Table()
    for i, column in enumerate(columns):
        is_words = any(row[i][:1].isalpha() or row[i].startswith("#") for row in cells)
        table.add_column(Text(column), justify="left" if i == 0 or is_words else "right", overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    # A file has no width: as wide as the table needs, so that a script never reads a folded cell.
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 400, highlight=False)
    for part in (Text(title), table, Text(caption)):
        if part:
            console.print(part)


@contextmanager
def bar(label: str, *, total: int | None, unit: str) -> Iterator[Advance]:
    """A Track on stderr, with rate and time left: a moving bar on a terminal, else a line now and then and one at the end."""
    with _moving_bar(label, total, unit) if is_main() and sys.stderr.isatty() else _sparse_lines(label, total, unit) as advance:
        yield advance


@contextmanager
def _moving_bar(label: str, total: int | None, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[so_far]}", markup=False))
    # Rich would send prints on stdout to this console too, that is to stderr: only right where both are the same screen.
    with Progress(*columns, console=Console(file=sys.stderr), redirect_stdout=sys.stdout.isatty()) as progress:
        task = progress.add_task(label, total=total, so_far="")
        started, done = time.monotonic(), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress.update(task, advance=count, so_far=so_far(done, total, unit, time.monotonic() - started))

        yield advance


@contextmanager
def _sparse_lines(label: str, total: int | None, unit: str) -> Iterator[Advance]:
    started = last_line = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, last_line
        done += count
        now = time.monotonic()
        if now - last_line >= SECONDS_BETWEEN_LINES:
            last_line = now
            note(f"{label}: {so_far(done, total, unit, now - started)}")

    yield advance
    seconds = time.monotonic() - started
    note(f"{label}: {amount(done, unit)} in {clock(seconds)}{rate(done, unit, seconds)}")


def so_far(done: int, total: int | None, unit: str, seconds: float) -> str:
    """How far a bar is, in words.

    >>> so_far(250, 1000, "pairs", 5.0)
    '250/1,000 pairs, 50 pairs/s, 0:15 left'
    """
    count = amount(done, unit) if total is None else f"{amount(done, unit).removesuffix(f' {unit}')}/{amount(total, unit)}"
    left = "" if total is None or not done or done >= total else f", {clock((total - done) * seconds / done)} left"
    return count + rate(done, unit, seconds) + left


def amount(count: int, unit: str) -> str:
    """A count with its unit; bytes as MB or GB.

    >>> amount(1234, "pairs"), amount(56_700_000, "bytes"), amount(13_500_000_000, "bytes")
    ('1,234 pairs', '56.7 MB', '13.50 GB')
    """
    if unit != "bytes":
        return f"{count:,} {unit}"
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def rate(done: int, unit: str, seconds: float) -> str:
    """Units a second with at least two digits, after a comma; empty where no time has passed."""
    if seconds <= 0:
        return ""
    per_second = done / seconds
    if unit == "bytes":
        return f", {amount(round(per_second), unit)}/s"
    return f", {per_second:,.0f} {unit}/s" if per_second >= 10 else f", {per_second:.2g} {unit}/s"


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any.

    >>> clock(3725.4), clock(9.6)
    ('1:02:05', '0:10')
    """
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
