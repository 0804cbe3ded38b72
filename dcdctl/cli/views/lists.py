"""Lists of things that have a name, readable in a terminal of 80 columns: a block of lines for each."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping

from dcdctl.cli.views.terminal import show

INDENT = "  "


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
