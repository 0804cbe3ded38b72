"""Text from the Jinja2 templates in assets/templates: HTML pages and Markdown."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from dcdctl.core import files

ASSETS = files.packaged("assets")


@dataclass(frozen=True)
class Table:
    """Cells of text for the terminal, pages, Markdown and notebooks; text after a line break is small print. The first
    column names the rows."""

    title: str
    columns: Sequence[str]
    """In "text\\nR@1", the first line is the head of a group of columns."""
    rows: Sequence[Sequence[str]]
    note: str = ""
    """Lines below it."""

    @property
    def names(self) -> tuple[str, ...]:
        """The full name of each column.

        >>> Table("", ("model", "text\\nR@1"), ()).names
        ('model', 'text R@1')
        """
        return tuple(column.replace("\n", " ") for column in self.columns)


def render(name: str, **values: object) -> Markup:
    """The text of a template. In .html templates every value is escaped, unless it is `Markup`; in .md templates none
    is.

    jinja2.UndefinedError if the template reads a value that is missing.
    """
    return Markup(_environment().get_template(name).render(values))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("dcdctl", "assets/templates"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
        # Jinja drops the last line break of a template by default.
        keep_trailing_newline=True,
    )
    environment.filters["thousands"] = "{:,}".format
    environment.filters["numeric_columns"] = numeric_columns
    environment.filters["column_groups"] = _column_groups
    environment.filters["with_code"] = _with_code
    # A style sheet or a script of ours goes into a page as it is.
    environment.globals["asset"] = lambda name: Markup((ASSETS / name).read_text(encoding="utf-8"))
    return environment


# Control characters, and those that turn the direction of all that follows them on the line.
_HIDDEN = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def _visible(value: object) -> object:
    """A value of a template; in a text, characters that hide or turn others are escaped as in JSON, so that the name of
    a run or a file cannot change what stands beside it.

    >>> _visible("a\u202egnp.exe"), _visible(3)
    ('a\\\\u202egnp.exe', 3)
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", value)


def _with_code(text: str) -> Markup:
    """A sentence as HTML, whose commands stand between backticks, as on the terminal.

    >>> _with_code("see `dcdctl eval DIR --out <b>`")
    Markup('see <code>dcdctl eval DIR --out &lt;b&gt;</code>')
    """
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(_visible(text)))))


def numeric_columns(rows: Sequence[Sequence[str]]) -> list[int]:
    """The indices of the columns that hold only numbers, one at least; the first column names the rows.

    >>> numeric_columns([["a", "1.5\\n1.2 to 1.8", "~2,000", "top 5", "[1, 2]"], ["b", "-0.5", "", "7", "[-1, 1]"]])
    [1, 2, 4]
    """
    numeric = []
    width = min((len(row) for row in rows), default=0)
    for number in range(1, width):
        cells = [row[number] for row in rows]
        has_number = any(_NUMBER.match(cell) for cell in cells)
        if has_number and all(_NUMBER.match(cell) or cell in ("", "\N{EN DASH}") for cell in cells):
            numeric.append(number)
    return numeric


_NUMBER = re.compile(
    r"[~<+\-\N{MINUS SIGN}]?\s?\d[\d.,]*(e-?\d+)?\s?(%|M|ms|\N{MULTIPLICATION SIGN})?(\n|\s[\[(]|$)|\[[^\]]*\]$"
)
"""A number with its sign, unit, and an interval in small print or in brackets; or an interval alone."""


def _column_groups(columns: Sequence[str]) -> list[tuple[str, int]]:
    """The heads of groups of columns, with the number of columns of each; in "text\\nR@1" the head is "text".

    >>> _column_groups(["model", "text\\nR@1", "text\\nR@5"])
    [('', 1), ('text', 2)]
    """
    heads = [column.partition("\n")[0] if "\n" in column else "" for column in columns]
    return [(head, len(list(group))) for head, group in itertools.groupby(heads)]
