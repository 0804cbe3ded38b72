"""What the user sees: results on stdout, progress and messages on stderr, and the one place that shows errors.

Rich is imported where it draws, so that `--help` does not wait for it. It never gets user text as markup.
"""

from __future__ import annotations

import difflib
import json
import os
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any
from unicodedata import category

import typer
from typer.core import TyperGroup

from dcdctl.cli.views.help import SHARED, write_panels
from dcdctl.core.errors import DcdError, as_user_error, first_line
from dcdctl.core.progress import Advance, byte_size

if TYPE_CHECKING:
    from dcdctl.core.templates import Table

# Tiny models need 2.5 GB with two threads, of which each takes some of it; a benchmark needs 4 GB.
ENOUGH_ADDRESS_SPACE = 4 * 10**9
INDENT = "  "
JOINERS = "\u200c\u200d"
SECONDS_BETWEEN_LINES = 10.0
"""How often a line of progress is printed if stderr is a file or a pipe."""
SECONDS_BETWEEN_FRAMES = 0.2
"""How often it is redrawn on a terminal: this takes milliseconds, and a step of a small model no longer."""


class ErrorGroup(TyperGroup):
    """Shows what a user can put right as one line and exits with 1; any other exception is a bug and keeps its
    traceback.

    A thread that fails, such as one that writes for TensorBoard, lets the command fail when it ends.
    Help lists commands by panel.
    """

    def invoke(self, ctx: Any) -> Any:
        of_threads: list[DcdError] = []
        if limit := _small_address_space():
            # Before all: libraries that find no memory end a process without a word.
            note(f"{limit}: commands with a model may end for lack of memory")
        try:
            with _user_errors_of_threads(of_threads):
                result = super().invoke(ctx)
            if of_threads:
                raise of_threads[0]
            return result
        # A usage error is shown by Typer, with exit code 2.
        except (typer.TyperException, typer.Exit, typer.Abort, SystemExit):
            raise
        except KeyboardInterrupt as interrupt:
            note("interrupted: finished work, if any, is kept")
            # 128 + SIGINT, as shells report an interrupted program.
            raise typer.Exit(130) from interrupt
        # A panic of a library in Rust is a BaseException.
        except BaseException as error:
            # An error of a thread came first, and explains what follows.
            user_error = as_user_error(of_threads[0] if of_threads else error)
            if user_error is None and limit:
                # What libraries raise then has no list: a SystemError, a KeyError for an image format, and others.
                what = f"this ended with {type(error).__name__}: {first_line(error)}"
                user_error = DcdError(f"{what}, perhaps for lack of memory", hint=f"{limit}; raise it and try again")
            if user_error is None:
                raise
            show_error(user_error)
            raise typer.Exit(1) from error

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        # Typer suggests `index` for `mine`.
        self.suggest_commands = bool(difflib.get_close_matches(args[0], self.commands, cutoff=0.7))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The panels of Typer's Rich help as plain sections: importing Rich takes longer than the rest of `--help`."""
        panels: dict[str, list[tuple[str, str]]] = {}
        longest = max(map(len, self.commands), default=0)
        for name, command in self.commands.items():
            panel = getattr(command, "rich_help_panel", None)
            summary = " ".join((command.help or "").split()).partition(". ")[0].rstrip(".") + "."
            panels.setdefault(panel if isinstance(panel, str) else "Commands", []).append(
                (name.ljust(longest), summary)
            )
        write_panels(formatter, panels | {"Options of many commands": self._shared_options(ctx)})

    def _shared_options(self, ctx: Any) -> list[tuple[str, str]]:
        """The options that the help of a command only names."""
        records = {
            parameter.name: parameter.get_help_record(ctx)
            for command in self.commands.values()
            for parameter in command.params
            if parameter.name in SHARED
        }
        return [record for record in records.values() if record is not None]


def _small_address_space() -> str:
    """The limit of the address space, if that is too small for some commands, else an empty string."""
    from dcdctl.core import machine

    limit = machine.address_space()
    return "" if limit is None or limit >= ENOUGH_ADDRESS_SPACE else f"`ulimit -v` is {byte_size(limit)}"


@contextmanager
def _user_errors_of_threads(errors: list[DcdError]) -> Iterator[None]:
    """Collect the errors of threads that a user can put right, such as a full disk, without their traceback."""
    show = threading.excepthook

    def note_error(args: threading.ExceptHookArgs) -> None:
        error = None if args.exc_value is None else as_user_error(args.exc_value)
        if error is None:
            show(args)
        else:
            errors.append(error)

    threading.excepthook = note_error
    try:
        yield
    finally:
        threading.excepthook = show


def show_error(error: DcdError) -> None:
    """One line on stderr: what is wrong, and the next step. Several reasons and the step after them have a line
    each."""
    lines = [f"{error.args[0]}:", *error.details, error.hint] if error.details else [str(error)]
    # https://no-color.org: any value but the empty one.
    color = None if os.environ.get("NO_COLOR") else "red"
    for i, line in enumerate(filter(None, lines)):
        typer.secho(("  " if i else "error: ") + printable(" ".join(line.splitlines())), fg=color, err=True)


def printable(text: str) -> str:
    """The text with every character that does not print escaped as in JSON, so that a file name cannot control the
    terminal.

    >>> print(printable("caf\\u00e9 \\x1b[31m \\u202e"))
    café \\u001b[31m \\u202e
    """
    if text.isprintable():
        return text
    characters = []
    for char in text:
        # Joiners belong to some scripts and to emoji; unusual spaces are harmless.
        is_harmless = char.isprintable() or char in JOINERS or category(char) == "Zs"
        characters.append(char if is_harmless else json.dumps(char)[1:-1])
    return "".join(characters)


def printable_lines(text: str) -> str:
    """The same for text of several lines; line breaks and tabs stay."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def show(text: str) -> None:
    """Print lines of the result on stdout; characters that do not print are escaped."""
    if is_main():
        typer.echo(printable_lines(text))


@contextmanager
def tasks_shown(*, json: bool) -> Iterator[None]:
    """A block that may end when its tasks are written, which is its result."""
    from dcdctl.core.engines import TasksWrittenError

    try:
        yield
    except TasksWrittenError as written:
        if json:
            show_json({"folder": str(written.folder), "tasks": written.num_tasks, "next": written.hint})
        else:
            show(str(written))


def show_exactly(text: str, *, on_terminal: str) -> None:
    """Print a text that other programs read, byte by byte as file names are; a terminal gets another, with characters
    that do not print escaped."""
    if sys.stdout.isatty():
        show(on_terminal)
    elif is_main():
        # A path may hold bytes that are not UTF-8.
        typer.echo(os.fsencode(text), nl=False)


def show_csv(rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows as CSV, without formulas."""
    from dcdctl.core.report import csv_text

    text = csv_text(rows)
    show_exactly(text, on_terminal=text.replace("\r\n", "\n").rstrip("\n"))


def show_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Print named values, one per line."""
    for name, value in facts:
        show(printable(f"  {name}: {value}"))


def note(text: str) -> None:
    """Print a message on stderr; characters that do not print are escaped."""
    if is_main():
        typer.echo(printable_lines(text), err=True)


def is_main() -> bool:
    """Whether this process prints: the first of several (`core/distributed.py`). Errors are printed by the process that
    has them."""
    # torchrun sets RANK; asking torch.distributed would import torch, which takes seconds.
    return os.environ.get("RANK", "0") == "0"


def show_json(value: Any, *, indent: int | None = 2) -> None:
    """Print one JSON document on stdout, on one line if `indent` is None; ValueError for nan and infinity, which JSON
    lacks."""
    document = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    if not is_main():
        return
    # Unprintable characters occur only inside strings, where JSON has the same escapes.
    typer.echo("\n".join(map(printable, document.split("\n"))))


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> None:
    """Print a table on stdout; cells are shown by `str`, columns of numbers right-aligned."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = []
    for row in rows:
        cells.append([printable_lines(str(cell)) for cell in row])
    table = Table()
    for i, column in enumerate(columns):
        is_text = any(row[i][:1].isalpha() or row[i].startswith("#") for row in cells)
        table.add_column(
            Text(printable_lines(column)), justify="left" if i == 0 or is_text else "right", overflow="fold"
        )
    for row in cells:
        table.add_row(*map(Text, row))
    # A file has no width: make the table as wide as it needs, so that a script never reads a folded cell.
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 400, highlight=False)
    for part in (Text(printable_lines(title)), table, Text(printable_lines(caption))):
        if part:
            console.print(part)


def show_tables(tables: Sequence[Table]) -> None:
    """Print tables on stdout, each with its title and the note below it."""
    for table in tables:
        show_table(table.title, table.columns, table.rows, caption=table.note)


def show_entries(title: str, entries: Iterable[tuple[str, Mapping[str, str]]]) -> None:
    """Print a title, then each name with its facts below it, "label: text"; a fact without a label is a line of text.

    A terminal gets wrapped lines. A file has no width, so that a script never reads a broken line.
    """
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    show(f"{title}\n")
    for name, facts in entries:
        show(name)
        for label, text in facts.items():
            if text:
                line = f"{label}: {text}" if label else text
                # Names contain hyphens, and are copied from here.
                show(
                    textwrap.fill(
                        line, width, initial_indent=INDENT, subsequent_indent=INDENT * 2, break_on_hyphens=False
                    )
                )
        show("")


@contextmanager
def bar(label: str, *, total: int | None, unit: str) -> Iterator[Advance]:
    """A Track on stderr, with rate and time left; silent where there is nothing to do."""
    if total == 0:
        yield lambda count: None
        return
    label = printable(label)  # it may have the name of a file
    started, done = time.monotonic(), 0

    def line() -> str:
        return f"{label}: {so_far(done, total, unit, time.monotonic() - started)}" if unit else f"{label} ..."

    def last() -> str:
        seconds = time.monotonic() - started
        count = f"{amount(done, unit)} in {clock(seconds)}{rate(done, unit, seconds)}"
        return f"{label}: {count}" if unit else f"{label}: {clock(seconds)}"

    # Work without a unit may last as long as another run does.
    with changing_line(line, last, is_shown_first=not unit) as show_line:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            show_line()

        yield advance


@contextmanager
def changing_line(
    line: Callable[[], str], last: Callable[[], str], *, is_shown_first: bool = False
) -> Iterator[Callable[[], None]]:
    """A function that shows what `line` gives on stderr: on a terminal in place of the line before, otherwise below it
    every few seconds. When the block succeeds, `last` is shown."""
    is_moving = is_main() and sys.stderr.isatty()
    with _moving_line() if is_moving else nullcontext(note) as draw:
        interval = SECONDS_BETWEEN_FRAMES if is_moving else SECONDS_BETWEEN_LINES
        if is_moving or is_shown_first:
            draw(line())
        shown = time.monotonic()

        def show_line() -> None:
            nonlocal shown
            if time.monotonic() - shown >= interval:
                shown = time.monotonic()
                draw(line())

        yield show_line
        draw(last())


@contextmanager
def _moving_line() -> Iterator[Callable[[str], None]]:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(file=sys.stderr, highlight=False)
    # Rich would redirect stdout to this console, which is stderr: only right if both are the same screen.
    with Live("", console=console, auto_refresh=False, redirect_stdout=sys.stdout.isatty()) as live:
        yield lambda text: live.update(Text(text), refresh=True)


def so_far(done: int, total: int | None, unit: str, seconds: float) -> str:
    """How far a bar is.

    >>> so_far(10, 100, "pairs", 60.0)
    '10/100 pairs, 0.17 pairs/s, 9:00 left'
    """
    count = (
        amount(done, unit) if total is None else f"{amount(done, unit).removesuffix(f' {unit}')}/{amount(total, unit)}"
    )
    left = "" if total is None or not 0 < done < total else f", {clock((total - done) * seconds / done)} left"
    return count + rate(done, unit, seconds) + left


def amount(count: int, unit: str) -> str:
    """A count with its unit.

    >>> amount(1234, "pairs"), amount(56_700_000, "bytes")
    ('1,234 pairs', '56.7 MB')
    """
    return byte_size(count) if unit == "bytes" else f"{count:,} {unit}"


def rate(done: int, unit: str, seconds: float) -> str:
    """A comma and the units per second with at least two digits; empty if no time has passed."""
    if seconds <= 0:
        return ""
    per_second = done / seconds
    if unit == "bytes":
        return f", {byte_size(per_second)}/s"
    return f", {per_second:,.0f} {unit}/s" if per_second >= 10 else f", {per_second:.2g} {unit}/s"


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours if there are any.

    >>> clock(3725.4), clock(9.6)
    ('1:02:05', '0:10')
    """
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
