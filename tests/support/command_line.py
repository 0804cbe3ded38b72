"""Command lines of dcdctl, run in this process."""

from __future__ import annotations

import json
import shlex
from typing import Any

from typer.testing import CliRunner

from dcdctl.cli.app import app

QUICK_BENCH = (
    "--set num_images=2 --set batch_size=2 --set batch_sizes=[2] --set gallery_sizes=[10] --set reference_gallery=10 "
    "--set budget_s=0.02 --set num_repeats=2 --set is_onnx_timed=false --device cpu"
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
