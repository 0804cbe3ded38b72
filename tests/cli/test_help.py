"""The help of every command: metavars, panels, whole sentences at any width, and one meaning for each option."""

from __future__ import annotations

import re
import shlex

import pytest
import typer
from paths import ROOT
from typed_commands import parse
from typer.testing import CliRunner

from dcdctl.cli.app import COMMANDS, app
from dcdctl.cli.views.help import SHARED

TREE = typer.main.get_command(app)
NAMES = [name for name, *_ in COMMANDS]


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


@pytest.mark.parametrize("command", NAMES)
def test_help_names_no_python_type(command):
    assert re.findall(r"<\w+.*?>|\{\w+\}|\b(?:str|bool|Path|list\[)\b", shown(command)) == []


@pytest.mark.parametrize("command", NAMES)
def test_every_line_of_help_fits_and_every_sentence_is_whole(command, width):
    printed = shown(command).partition("\nExample:\n")[0]
    assert max(map(len, printed.splitlines())) <= width
    flat = " ".join(printed.split())
    for parameter in TREE.commands[command].params:
        # Those of many commands are explained once.
        if not parameter.hidden and parameter.name not in SHARED:
            assert re.sub(r"\W*$", "", parameter.help) != parameter.help, f"{parameter.name} has no period"
            assert parameter.help in flat
    assert " ".join(TREE.commands[command].help.split()) in flat


@pytest.mark.parametrize(("command", "example"), [(command, example) for command, *_, example in COMMANDS])
def test_help_ends_with_an_example_that_parses_when_it_is_copied(command, example, width):
    *_, copied = shown(command).partition("\nExample:\n")
    assert shlex.split(copied) == ["dcdctl", *shlex.split(example)]
    parse(copied)


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
        ("serve x --processes 99999999", "Input should be less than or equal to 256"),
        ("serve x --processes 1_0", "'1_0' is not a number from 1 to 256"),
        ("eval x --data y --batch-size=1_000", "'1_000' is not a number from 1"),
        (f"eval x --data y --dims {10**20}", "Input should be less than or equal to 1000000000"),
        ("distill photos --data y --out z --workers 100000", "Input should be less than or equal to 256"),
        (f"distill photos --data y --out z --accumulate {'9' * 5000}", "expected auto or a number of at least 1"),
    ],
)
def test_a_number_out_of_range_or_with_underscores_is_refused(line, message):
    result = CliRunner().invoke(app, shlex.split(line))
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize("command", NAMES)
def test_every_number_has_a_range_with_two_ends(command):
    """Typer takes integers of any size, and arrays, threads and processes are made by them."""
    for parameter in TREE.commands[command].params:
        if getattr(vars(parameter).get("type_descriptor"), "annotation", None) is int:
            assert parameter.min is not None, parameter.name
            assert parameter.max is not None, parameter.name
            assert parameter.max <= 10**9, parameter.name


def test_help_begins_as_the_readme_and_names_photos_first():
    title, _, first, *_ = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert (title, NAMES[0]) == ("# dcdctl", "photos")
    assert first in re.sub(r"\s+", " ", shown())
    # Its first sentence is what it does: what a teacher brings, in numbers, comes later.
    assert not re.search(r"\d", first)


@pytest.mark.parametrize("command", NAMES)
def test_the_help_of_a_command_fits_a_page_and_names_what_the_program_explains(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    printed = shown(command)
    assert printed.count("\n") + 1 <= 50
    (also,) = re.findall(r"(?m)^Also \(dcdctl --help\): (.*)$", printed)
    taken = {parameter.name for parameter in TREE.commands[command].params} & {*SHARED}
    assert {word.split()[-1] if "," in word else word.split()[0] for word in also.split("; ")} == {
        f"--{name}" for name in (*taken, "help")
    }
    for name in taken:
        assert re.search(rf"(?m)^  --{name}\b.*  \S", shown())


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("index x --keywords", "--set keywords=VALUE"),
        ("index x --exif-place", "--set exif=VALUE"),
        ("distill x --vision y", "--set model.vision=VALUE"),
        ("distill x --alpha 3", "--set loss.alpha=VALUE"),
        ("bench x --batch-size 3", "--set batch_size=VALUE"),
        ("serve x --max-k 3", "--set max_k=VALUE"),
        ("eval x --dats y", "--data"),
    ],
)
def test_an_unknown_option_names_the_setting_that_it_may_mean(line, named):
    result = CliRunner().invoke(app, shlex.split(line))
    assert result.exit_code == 2
    assert f"No such option: {line.split()[2]} (Possible options: {named}" in " ".join(result.stderr.split())
