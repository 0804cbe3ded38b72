"""The command lines in the documentation, and the real command tree that reads them."""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path

import typer
from paths import ROOT

from dcdctl.cli.app import app

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
BLOCK = re.compile(r"^[ \t]*```[^\n]*\n(.*?)^[ \t]*```", re.MULTILINE | re.DOTALL)


def typed_lines(page: Path) -> list[str]:
    """The lines of a page's code blocks, continued lines joined, prompts removed."""
    text = "\n".join(BLOCK.findall(page.read_text(encoding="utf-8"))).replace("\\\n", " ")
    return [line.strip().removeprefix("$ ") for line in text.splitlines()]


def commands() -> list[str]:
    return [line for page in PAGES for line in typed_lines(page) if line.startswith("dcdctl ")]


def commands_of_head(path: Path) -> list[str]:
    """The commands in the first comment of a recipe or manifest, without the note in parentheses after them."""
    head = path.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    return [re.sub(r"\s{2,}\(.*", "", line[2:]) for line in head if line.startswith("# dcdctl ")]


@functools.cache
def command_tree() -> typer.core.TyperGroup:
    """The real command tree, which takes a moment to build."""
    return typer.main.get_command(app)


def parse(line: str) -> None:
    """Let the real command tree read a line without running it; a usage error is raised."""
    shell_words = shlex.split(line, comments=True)
    end = next((i for i, word in enumerate(shell_words) if word in ("|", ">", "&&", ";")), len(shell_words))
    tree = command_tree()
    try:
        with tree.make_context("dcdctl", shell_words[1:end]) as context:
            name, command, rest = tree.resolve_command(context, [*context._protected_args, *context.args])
            command.make_context(name, rest, parent=context)
    except typer.Exit:  # --help and --version
        pass
