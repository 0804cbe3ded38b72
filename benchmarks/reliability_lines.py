"""Wrong command lines for benchmarks/reliability.py: wrong types, ranges, names, kinds of folders, and missing
values."""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.extend(
    str(Path(__file__).parent.parent / "tests" / name) for name in ("support", "ground", "data", "models", "cli")
)

import typer
from reliability_trials import Stage, Trial, dcdctl, in_fork, outcome_of
from test_resolve import MISTAKES, OWN, UNSET, VALID, line

from dcdctl.cli.app import app
from dcdctl.core.config import to_table
from dcdctl.core.training import load_recipe

TREE: Any = typer.main.get_command(app)
Words = dict[str, str]
NUMBERS = ["x", "1.5x", "", "½", "0x", "1,5", "--", "1e", "NaN?", "one", "1 2", "\u0661x"]
NAMED = {
    *(
        "--device",
        "--precision",
        "--split",
        "--splits",
        "--protocol",
        "--clock",
        "--to",
        "--on-error",
        "--source",
        "--recipe",
        "recipe",
    ),
    *("name", "--depth", "--batch-sizes", "--gallery-sizes"),
}
"""Options that take one of several names, or numbers between commas."""
WRONG_NAMES = ["absent", "CPU0", "tést", "\0", "a" * 5000, "../x", "cuda:x", "-", "*", "\u202e", "\ud800", "trai n"]
MODELS = ("DUAL", "FUSION", "PAIR", "INDEX")  # an index holds its model
PLACES = {
    "--data": ("CORPUS",), "--teacher": ("FUSION", "PAIR"), "--rerank": ("FUSION", "PAIR"), "--cache": ("CACHE",),
    "--extend": ("CACHE",),
    "index": ("INDEX",), "model": MODELS, "run": MODELS, "checkpoint": MODELS,
    "folder": ("CORPUS", "CACHE"), "systems": ("EVALUATION", "DUAL"), "runs": ("EVALUATION", "DUAL", "FUSION"),
    "target": ("DUAL", "INDEX"), "--baseline": ("EVALUATION", "DUAL"), "--base": ("EVALUATION", "DUAL"),
}  # fmt: skip
"""Options that take a folder, and the kinds that are right."""
KINDS = [
    "CORPUS",
    "FUSION",
    "DUAL",
    "CACHE",
    "INDEX",
    "EVALUATION",
    "PAIR",
    "PHOTOS",
    "TAKEN",
    "FILE",
    "PAIRS.csv",
    "ABSENT",
    "",
]
TEXTS = ["\0", "a\0b", "\ud800", "a" * 100_000, "\x1b[2J", "\u202e", "", "-", "%s%n", "{0}", "\n"]
OUTPUTS = {"--out", "out", "--html", "--to-markdown"}
OF_RECIPE = ["distill", "finetune-teacher", "cache-teacher"]


def _table(stage: Stage, rng: random.Random) -> tuple[list[object], str]:
    """A row of the table of tests/cli/test_resolve.py."""
    command = rng.choice(list(VALID))
    rows = [
        (option, one) for option in _options(command) for one in OWN.get((command, option), MISTAKES.get(option, []))
    ]
    if not rows:
        return _table(stage, rng)
    option, mistake = rng.choice(rows)
    return _line(stage, command, {**mistake.needs, option: mistake.value}), ""


def _options(command: str) -> list[str]:
    return [
        next(iter(one.opts), one.name) for one in TREE.commands[command].params if not getattr(one, "is_flag", False)
    ]


def _line(stage: Stage, command: str, changes: Words) -> list[object]:
    words: list[object] = [command, *line({**VALID[command], **changes}, stage.folder)]
    return [*words, stage.folder / "EVALUATION2"] if command == "compare" else words


def _typed(
    stage: Stage, rng: random.Random, choose: Callable[[Any], bool], value: Callable[[Any], str]
) -> list[object]:
    """A valid line with another value for one of the chosen options."""
    chosen = [(name, one) for name, command in TREE.commands.items() for one in command.params if choose(one)]
    command, option = rng.choice(chosen)
    return _line(stage, command, {option.opts[0]: value(option)})


def wrong_type(stage: Stage, rng: random.Random) -> list[object]:
    return _typed(stage, rng, lambda one: one.min is not None, lambda one: rng.choice(NUMBERS))


def out_of_range(stage: Stage, rng: random.Random) -> list[object]:
    return _typed(
        stage, rng, lambda one: one.min is not None, lambda one: str(one.min - rng.choice([1, 2, 10**6, 10**30]))
    )


def unknown_name(stage: Stage, rng: random.Random) -> list[object]:
    return _typed(stage, rng, lambda one: one.opts[0] in NAMED, lambda one: rng.choice(WRONG_NAMES))


def other_kind(stage: Stage, rng: random.Random) -> list[object]:
    command, option = rng.choice([(name, option) for name in VALID for option in _options(name) if option in PLACES])
    right = PLACES["runs"] if (command, option) == ("report", "--teacher-eval") else PLACES[option]
    return _line(stage, command, {option: rng.choice([name for name in KINDS if name not in right])})


def missing_value(stage: Stage, rng: random.Random) -> list[object]:
    command, option = rng.choice(
        [(command, option) for command in VALID for option in _options(command) if option.startswith("--")]
    )
    return [*_line(stage, command, {option: UNSET}), option]


def unknown_option(stage: Stage, rng: random.Random) -> list[object]:
    command = rng.choice(list(VALID))
    option = rng.choice([name for name in _options(command) if name.startswith("--")] or ["--json"])
    at = rng.randrange(2, len(option))
    wrong = rng.choice(
        [option[:at] + option[at + 1 :] + "q", option[:at] + "x" + option[at:], "--nonsense", f"{option}s"]
    )
    return [*_line(stage, command, {}), wrong, "1"]


def missing_argument(stage: Stage, rng: random.Random) -> list[object]:
    required = [(name, one) for name, command in TREE.commands.items() for one in command.params if one.required]
    command, option = rng.choice(required)
    words = _line(stage, command, {option.opts[0]: UNSET})
    return words[:1] if command == "compare" else words


def unknown_command(stage: Stage, rng: random.Random) -> list[object]:
    command = rng.choice(list(VALID))
    return [
        rng.choice([command[:-1] + "q", command + "s", command.upper(), "", "--nonsense", f"{command} "]),
        *_line(stage, command, {})[1:],
    ]


def extra_argument(stage: Stage, rng: random.Random) -> list[object]:
    command = rng.choice([name for name in VALID if name not in ("compare", "report", "search", "prepare")])
    return [*_line(stage, command, {}), "extra", *(["more"] if command in ("demo",) else [])]


def wrong_setting(stage: Stage, rng: random.Random) -> list[object]:
    """A field of a recipe with a value of another type, an unknown field, or no value."""
    command = rng.choice(OF_RECIPE)
    field, value = rng.choice(list(_leaves(to_table(load_recipe("demo-dual", [])))))
    other = '"text"' if not isinstance(value, str) else rng.choice(["7", "[[1]]", "true"])
    wrong = [
        f"{field}={other}",
        f"{field}={{a={{b=1}}}}",
        f"{field}x=1",
        f"{field}",
        f"={field}",
        f"{field}.deeper=1",
        f".{field}=1",
    ]
    return [*_line(stage, command, {}), "--set", rng.choice(wrong)]


def _leaves(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        elif value is not None and key not in ("terms",):
            yield f"{prefix}{key}", value


def odd_text(stage: Stage, rng: random.Random) -> list[object]:
    """Odd characters for any option that takes text or a path. Some take any text."""

    def takes_text(one: Any) -> bool:
        return not getattr(one, "is_flag", False) and one.min is None and one.opts[0] not in OUTPUTS

    return _typed(stage, rng, takes_text, lambda one: rng.choice(TEXTS))


def wrong_place(stage: Stage, rng: random.Random) -> list[object]:
    """An output that cannot be written: below a file, a name that is too long, a place of the system."""
    where = ["FILE/new", "/proc/x", "x" * 300, "a\0b", "TAKEN/letter.txt/new"]
    return _typed(stage, rng, lambda one: one.opts[0] in OUTPUTS, lambda one: rng.choice(where))


MISTAKES_BY_NAME: dict[str, tuple[Callable[[Stage, random.Random], Any], bool]] = {
    "a row of the table of mistakes": (lambda stage, rng: _table(stage, rng)[0], True),
    "wrong type": (wrong_type, True),
    "out of range": (out_of_range, True),
    "unknown name": (unknown_name, True),
    "folder of another kind": (other_kind, True),
    "missing value": (missing_value, True),
    "unknown option": (unknown_option, True),
    "missing argument": (missing_argument, True),
    "unknown command": (unknown_command, True),
    "extra argument": (extra_argument, True),
    "wrong setting of a recipe": (wrong_setting, True),
    "wrong output": (wrong_place, True),
    "odd characters": (odd_text, False),
}
"""How a line is made, and whether it must be refused."""


def wrong_lines(stage: Stage, rng: random.Random, trials: int) -> Iterator[Trial]:
    """Lines of every command with one mistake. A mistake that is accepted counts as wrong."""
    for name, (make, is_refused) in MISTAKES_BY_NAME.items():
        for trial in range(trials):
            scratch = stage.folder / "lines" / str(trial)
            scratch.mkdir(parents=True)
            words = make(stage, rng)

            def work(words: list[object] = words, scratch: Path = scratch) -> str:
                os.chdir(scratch)
                return dcdctl(*words)

            ended = in_fork(work, cpu_s=30, wall_s=120)
            shown = " ".join(str(word).replace(f"{stage.folder}/", "") for word in words)[:300]
            outcome = "wrong" if is_refused and ended.kind == "ok" else outcome_of(ended)
            yield f"command line, {name}", outcome, f"{shown!r}: {ended}"
            shutil.rmtree(scratch, ignore_errors=True)
