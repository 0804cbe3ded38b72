"""Command lines of dcdctl, run in this process."""

from __future__ import annotations

import json
import shlex
from typing import Any

from typer.testing import CliRunner

from dcdctl.cli.app import app

QUICK_BENCH = (
    "--num-images 2 --batch-size 2 --batch-sizes 2 --gallery-sizes 10 --reference-gallery 10 --budget 0.02 "
    "--fresh-processes 0 --repeats 2 --no-onnx --device cpu"
)
"""Options of `bench` for the shortest measurements, in no other process."""


def run(line: str, *more: object, code: int | None = 0, stdin: str | None = None, **options: Any) -> Any:
    """The result of a command line, which is split as a shell does, and further words; AssertionError if its exit code
    is another, unless that is None."""
    options = {"catch_exceptions": False, **options}
    result = CliRunner().invoke(app, [*shlex.split(line), *map(str, more)], input=stdin, **options)
    assert code in (None, result.exit_code), result.output
    return result


def document_of(line: str, *more: object) -> Any:
    """What a command prints with --json."""
    return json.loads(run(line, *more, "--json").stdout)


def error_of(line: str, *more: object, code: int = 1) -> str:
    """The message of a command that fails and prints nothing else."""
    result = run(line, *more, code=code)
    assert result.stdout == ""
    return result.stderr
