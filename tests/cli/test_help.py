"""The help of every command: metavars, panels, whole sentences at any width, and one meaning for each option."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typed_commands import parse
from typer.testing import CliRunner

from dcdctl.cli.app import COMMANDS, app
from dcdctl.cli.views import help as layout

TREE = typer.main.get_command(app)
NAMES = [name for name, *_ in COMMANDS]
SEVERAL_MEANINGS = {
    "--csv": "prepare reads pairs of images and captions, report writes numbers",
    "--data": "the corpus to read; of pages, checks and names where it is optional; also shards in distill",
    "--dry-run": "other trainings also take a manifest",
    "--images": "prepare also reads archives; index also reads a corpus",
    "--out": "what a command writes",
    "--plan-only": "what another program gets: pairs to score, or images to embed",
    "--precision": "training can choose; an index keeps its own",
    "--set": "what a command lets one override",
    "--teacher": "required or not, one or several",
    "--to": "export names a format, index a store",
    "--vectors": "of images with --images, or of texts",
    "--workers": "prepare starts processes, and at least one",
}
"""Options whose text differs between commands, with the reason."""


@pytest.fixture(params=[60, 80, 120])
def width(request, monkeypatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param


def shown(command: str = "") -> str:
    """The help of a command, or of the program; a CliRunner would have 80 columns in every terminal."""
    context = TREE.context_class(TREE, info_name="dcdctl", **TREE.context_settings)
    if not command:
        return str(TREE.get_help(context))
    found = TREE.commands[command]
    return str(found.get_help(found.context_class(found, info_name=command, parent=context)))


def options(command: str) -> Iterator[Any]:
    yield from (one for one in TREE.commands[command].params if one.param_type_name == "option")


@pytest.mark.parametrize("command", NAMES)
def test_help_names_no_python_type(command):
    assert re.findall(r"<\w+.*?>|\{\w+\}|\b(?:str|bool|Path|list\[)\b", shown(command)) == []


@pytest.mark.parametrize("command", NAMES)
def test_every_line_of_help_fits_and_every_sentence_is_whole(command, width):
    printed = shown(command).partition("\nExample:\n\n")[0]
    assert max(map(len, printed.splitlines())) <= width
    flat = " ".join(printed.split())
    for parameter in TREE.commands[command].params:
        if not parameter.hidden:
            assert re.sub(r"\W*$", "", parameter.help) != parameter.help, f"{parameter.name} has no period"
            assert parameter.help in flat
    assert " ".join(TREE.commands[command].help.split()) in flat


def test_the_list_of_commands_has_a_whole_sentence_of_each(width):
    printed = shown()
    flat = " ".join(printed.split())
    assert max(map(len, printed.splitlines())) <= width
    for command in NAMES:
        sentence, period, _ = " ".join(TREE.commands[command].help.split()).partition(".")
        assert len(sentence + period) < 50
        assert f"{command} {sentence}." in flat


@pytest.mark.parametrize(("command", "example"), [(command, example) for command, *_, example in COMMANDS])
def test_help_ends_with_an_example_that_parses_when_it_is_copied(command, example, width):
    *_, copied = shown(command).partition("\nExample:\n\n")
    assert shlex.split(copied) == ["dcdctl", *shlex.split(example)]
    parse(copied)


def test_options_are_in_panels_in_one_order():
    headings = re.findall(r"^(\w+):$", shown("index"), re.MULTILINE)
    assert headings == ["Arguments", "Common", "Input", "Settings", "Compute", "Output", "Other", "Example"]
    compute = shown("index").partition("Compute:\n")[2].partition("\n\n")[0]
    assert re.findall(r"^  (--[a-z-]+)", compute, re.MULTILINE) == [
        "--precision",
        "--workers",
        "--batch-size",
        "--device",
        "--threads",
    ]


@pytest.mark.parametrize("command", NAMES)
def test_the_options_of_the_example_are_among_the_first(command):
    first = shown(command).partition("Common:\n")[2].partition("\n\n")[0]
    example = next(example for name, *_, example in COMMANDS if name == command)
    for option in re.findall(r"--[a-z-]+", example):
        # What a command is about alone, such as the format of an export, is not.
        assert option in first or len([name for name in NAMES if option in shown(name)]) < 3, option
    assert set(layout.COMMON) <= {one.opts[0].lstrip("-") for name in NAMES for one in options(name)}


def test_an_option_is_in_one_panel_in_all_commands():
    panels: dict[str, set[str]] = defaultdict(set)
    for command in NAMES:
        for one in options(command):
            panels[one.opts[0]].add(getattr(one, "rich_help_panel", None) or "Other")
    # `prepare` reads a CSV, and `report` writes one.
    assert {name for name, found in panels.items() if len(found) > 1} == {"--csv"}
    assert {panel for found in panels.values() for panel in found} == {"Input", "Settings", "Compute", "Output"}


def test_an_option_has_one_text_in_all_commands():
    texts: dict[str, set[str]] = defaultdict(set)
    for command in NAMES:
        for one in options(command):
            texts[one.opts[0]].add(one.help)
    assert {name for name, found in texts.items() if len(found) > 1} == SEVERAL_MEANINGS.keys()


def test_a_name_with_hyphens_is_not_broken():
    assert list(layout.lines_of([("--x", "reads cache-teacher or finetune-teacher twice")], 30)) == [
        "  --x  reads cache-teacher or",
        "       finetune-teacher twice",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "verify ''",
        "eval '' --data x",
        "prepare --csv a.csv --out ''",
        "distill r --data= --out x",
        "index x --images ''",
    ],
)
def test_an_empty_path_is_not_the_current_folder(line):
    result = CliRunner().invoke(app, shlex.split(line))
    assert result.exit_code == 2
    assert "is empty, expected a path or a name" in result.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bench x --data y --threads 99999999", "Input should be less than or equal to 1024"),
        ("bench x --data y --threads 1_0", "'1_0' is not a number from 1 to 1024"),
        ("eval x --data y --batch-size=1_000", "'1_000' is not a number from 1"),
    ],
)
def test_a_number_out_of_range_or_with_underscores_is_refused(line, message):
    result = CliRunner().invoke(app, shlex.split(line))
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
