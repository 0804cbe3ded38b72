"""The list of commands."""

from __future__ import annotations

from typing import Annotated

import typer

from dcdctl import __version__
from dcdctl.cli.bench import bench
from dcdctl.cli.cache_teacher import cache_teacher
from dcdctl.cli.compare import compare
from dcdctl.cli.convert import convert
from dcdctl.cli.demo import demo
from dcdctl.cli.distill import distill
from dcdctl.cli.evaluate import evaluate
from dcdctl.cli.export import export
from dcdctl.cli.finetune_teacher import finetune_teacher
from dcdctl.cli.index import index
from dcdctl.cli.inspect import inspect
from dcdctl.cli.prepare import prepare
from dcdctl.cli.report import report
from dcdctl.cli.search import search
from dcdctl.cli.serve import serve
from dcdctl.cli.views.terminal import ErrorGroup, show

app = typer.Typer(
    cls=ErrorGroup,
    no_args_is_help=True,
    rich_markup_mode=None,  # importing Rich takes longer than the rest of --help; ErrorGroup keeps the panels
    pretty_exceptions_enable=False,  # a bug shows Python's own traceback
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(is_requested: bool) -> None:
    if is_requested:
        show(f"dcdctl {__version__}")
        raise typer.Exit


@app.callback()
def dcdctl(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop.")] = False,
) -> None:
    """Turn a slow image-text cross-encoder into search in milliseconds, by Dynamic Contrastive Distillation."""


app.command("demo", rich_help_panel="Start here")(demo)
app.command("prepare", rich_help_panel="Data")(prepare)
app.command("convert", rich_help_panel="Teacher")(convert)
app.command("finetune-teacher", rich_help_panel="Teacher")(finetune_teacher)
app.command("cache-teacher", rich_help_panel="Teacher")(cache_teacher)
app.command("inspect", rich_help_panel="Teacher")(inspect)
app.command("distill", rich_help_panel="Student")(distill)
app.command("eval", rich_help_panel="Proof")(evaluate)
app.command("bench", rich_help_panel="Proof")(bench)
app.command("compare", rich_help_panel="Proof")(compare)
app.command("report", rich_help_panel="Proof")(report)
app.command("export", rich_help_panel="Search")(export)
app.command("index", rich_help_panel="Search")(index)
app.command("search", rich_help_panel="Search")(search)
app.command("serve", rich_help_panel="Search")(serve)


def main() -> None:
    """The console script."""
    app(prog_name="dcdctl")
