"""The list of commands."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Annotated

import typer

from dcdctl import __version__
from dcdctl.cli.bench import bench
from dcdctl.cli.cache_teacher import cache_teacher
from dcdctl.cli.cache_texts import cache_texts
from dcdctl.cli.change import change
from dcdctl.cli.compare import compare
from dcdctl.cli.convert import convert
from dcdctl.cli.declare import as_typer
from dcdctl.cli.demo import demo
from dcdctl.cli.distill import distill
from dcdctl.cli.duplicates import duplicates
from dcdctl.cli.evaluate import evaluate
from dcdctl.cli.export import export
from dcdctl.cli.finetune_teacher import finetune_teacher
from dcdctl.cli.index import index
from dcdctl.cli.inspect import inspect
from dcdctl.cli.models import list_models
from dcdctl.cli.photos import photos
from dcdctl.cli.prepare import prepare
from dcdctl.cli.recipes import recipes
from dcdctl.cli.report import report
from dcdctl.cli.search import search
from dcdctl.cli.serve import serve
from dcdctl.cli.study import study
from dcdctl.cli.sync import sync
from dcdctl.cli.upload import upload
from dcdctl.cli.verify import verify
from dcdctl.cli.views.help import MAX_COLUMNS, HelpCommand
from dcdctl.cli.views.terminal import ErrorGroup, show
from dcdctl.cli.work import work

app = typer.Typer(
    cls=ErrorGroup,
    no_args_is_help=True,
    rich_markup_mode=None,  # importing Rich takes longer than the rest of --help; ErrorGroup keeps the panels
    pretty_exceptions_enable=False,  # a bug shows Python's own traceback
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": MAX_COLUMNS},
)


def _show_version(is_requested: bool) -> None:
    if is_requested:
        show(f"dcdctl {__version__}")
        raise typer.Exit


TRAININGS = ("distill", "finetune-teacher")
"""The commands of which torchrun starts several processes."""


@app.callback()
def dcdctl(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """dcdctl makes your images searchable by text, with a small model that answers in milliseconds, and turns slow
    image-text models into such small ones."""
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))  # torchrun and accelerate set it
    if num_processes > 1 and context.invoked_subcommand not in TRAININGS:
        from dcdctl.core.errors import ConfigError

        raise ConfigError(
            f"{context.invoked_subcommand} is one process, and WORLD_SIZE is {num_processes}: torchrun is for "
            f"{' and '.join(TRAININGS)}",
            hint="start it without torchrun; --engine processes:N takes several processes and GPUs of this machine",
        )


# Each function imports the core when it is called, so that --help loads no torch.
COMMANDS: list[tuple[str, str, Callable[..., None], str]] = [
    ("photos", "Start here", photos, "photos photos --out library"),
    ("demo", "Start here", demo, "demo --out demo"),
    ("recipes", "Start here", recipes, "recipes demo-dual > mine.toml"),
    ("models", "Start here", list_models, "models"),
    ("prepare", "Data", prepare, "prepare flickr30k --out data/flickr30k"),
    ("verify", "Data", verify, "verify data/flickr30k"),
    ("convert", "Teacher", convert, "convert vilt_irtr_f30k.ckpt --out models/vilt-flickr30k"),
    (
        "finetune-teacher",
        "Teacher",
        finetune_teacher,
        "finetune-teacher vilt-flickr30k-teacher --data data/flickr30k --out runs/teacher",
    ),
    (
        "cache-teacher",
        "Teacher",
        cache_teacher,
        "cache-teacher --data data/flickr30k --teacher runs/teacher --recipe vilt-flickr30k --out cache/flickr30k",
    ),
    (
        "cache-texts",
        "Teacher",
        cache_texts,
        "cache-texts --teacher runs/clip --texts data/flickr30k --out cache/texts",
    ),
    ("work", "Teacher", work, "work 'tasks/tasks-*'"),
    ("inspect", "Teacher", inspect, "inspect data/flickr30k"),
    ("distill", "Student", distill, "distill photos --data data/photos --features features --out runs/photos"),
    (
        "study",
        "Proof",
        study,
        "study clip-distilled --start openai/clip-vit-base-patch32 --teacher vilt-flickr30k --data data/flickr30k "
        "--out study",
    ),
    ("eval", "Proof", evaluate, "eval runs/student --data data/flickr30k"),
    ("bench", "Proof", bench, "bench runs/student --teacher runs/teacher --data data/flickr30k"),
    ("compare", "Proof", compare, "compare runs/student runs/teacher --html compared.html"),
    ("report", "Proof", report, "report runs/student --teacher-eval runs/teacher --out report.html"),
    ("export", "Search", export, "export runs/dual --to onnx --out dual-onnx"),
    ("index", "Search", index, "index runs/photos --images photos --out photos.index"),
    ("sync", "Search", sync, "sync photos.index"),
    ("change", "Search", change, "change photos.index --metadata photos.csv"),
    ("duplicates", "Search", duplicates, "duplicates photos.index"),
    ("upload", "Search", upload, "upload photos.index 'postgresql:///photos?table=photos'"),
    ("search", "Search", search, 'search photos.index "a dog in the snow"'),
    ("serve", "Search", serve, "serve photos.index"),
]
"""Name, panel of the help, function and example."""
for name, panel, function, example in COMMANDS:
    app.command(name, cls=HelpCommand, rich_help_panel=panel, epilog=f"dcdctl {example}")(as_typer(function))


NEW_OBJECTS = 20_000
"""How many objects a command makes between two searches for garbage: a megabyte or two."""


def main() -> None:
    """The console script."""
    # Python looks for garbage after 700 new objects; the modules of a model are a million that stay, and looking takes
    # a sixth of a start.
    gc.set_threshold(NEW_OBJECTS, *gc.get_threshold()[1:])
    app(prog_name="dcdctl")
