"""What README and docs tell the user to type is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from dcdctl.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))] if path.exists()]
BLOCK = re.compile(r"^[ \t]*```[^\n]*\n(.*?)^[ \t]*```", re.MULTILINE | re.DOTALL)


def typed_lines(page: Path) -> list[str]:
    """The lines of a page's code blocks, continued lines joined, prompts removed."""
    text = "\n".join(BLOCK.findall(page.read_text(encoding="utf-8"))).replace("\\\n", " ")
    return [line.strip().removeprefix("$ ") for line in text.splitlines()]


def commands() -> list[str]:
    return [line for page in PAGES for line in typed_lines(page) if line.startswith("dcdctl ")]


def parse(line: str) -> None:
    """Let the real command tree read a line without running it; a usage error is raised."""
    shell_words = shlex.split(line, comments=True)
    end = next((i for i, word in enumerate(shell_words) if word in ("|", ">", "&&", ";")), len(shell_words))
    tree = typer.main.get_command(app)
    try:
        with tree.make_context("dcdctl", shell_words[1:end]) as context:
            name, command, rest = tree.resolve_command(context, [*context._protected_args, *context.args])
            command.make_context(name, rest, parent=context)
    except typer.Exit:  # --help and --version
        pass


@pytest.mark.parametrize("line", commands())
def test_every_command_in_the_docs_parses(line):
    parse(line)


@pytest.mark.parametrize("line", ["dcdctl distill r --data d --out o --alpha 1", "dcdctl search x --images y", "dcdctl bench run --data d"])
def test_a_wrong_command_would_be_found(line):
    with pytest.raises(typer.TyperException):
        parse(line)


def test_the_readme_shows_commands():
    assert any(line.startswith("dcdctl ") for line in typed_lines(ROOT / "README.md"))


def test_the_make_targets_in_the_docs_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {line.split()[1] for page in PAGES for line in typed_lines(page) if re.match(r"make [a-z]", line)}
    named |= {target for page in PAGES for target in re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8"))}
    assert named <= targets


def test_the_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("fixture", sorted({path.stem for path in (ROOT / "tests" / "fixtures").iterdir()}))
def test_the_page_on_fidelity_says_what_became_of_each_fixture(fixture):
    assert f"`{fixture}`" in (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8")
