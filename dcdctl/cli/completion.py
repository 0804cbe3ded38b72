"""What the shell completes: recipes, data sets, teachers, and the splits of a corpus. Nothing here
imports torch."""

from __future__ import annotations

import glob
import json
from pathlib import Path

import typer

# Typer leaves out the proposals that do not begin as the word at the cursor does.


def complete_recipe(incomplete: str) -> list[str]:
    """The names of recipes, and .toml files."""
    from dcdctl.core import training

    return _or_paths([entry.name for entry in training.list_recipes()], ".toml", incomplete)


def complete_manifest(incomplete: str) -> list[str]:
    """The names of data sets, and .toml files."""
    return _or_paths(_names_in("data_manifests"), ".toml", incomplete)


def complete_teacher(incomplete: str) -> list[str]:
    """The names of teachers, built in and published, folders, and .ckpt files."""
    return _or_paths(_names_in("data_manifests/teachers"), ".ckpt", incomplete)


def complete_path(incomplete: str) -> list[str]:
    """Files and folders, for an argument that may also be a URL."""
    return _or_paths([], "", incomplete)


def _names_in(folder: str) -> list[str]:
    from dcdctl.core import files

    # published.toml is no manifest.
    return sorted(path.stem for path in files.packaged(folder).glob("*.toml") if path.stem != "published")


def complete_split(ctx: typer.Context) -> list[str]:
    """The splits of the corpus that `--data` (or `--images` of an index) names."""
    data = ctx.params.get("data") or ctx.params.get("images")
    folder = data[0] if isinstance(data, list | tuple) and data else data
    try:
        return list(json.loads((Path(folder) / "corpus.json").read_text(encoding="utf-8"))["splits"])  # type: ignore[arg-type]
    except (OSError, TypeError, ValueError, KeyError):  # no corpus yet: nothing to propose
        return []


def _or_paths(names: list[str], suffix: str, incomplete: str) -> list[str]:
    """What may replace `incomplete`: a name, a folder, or a file with a suffix, which may be empty."""
    # Not Path.glob, which would drop the ./ and .. that were typed, and with them the match.
    paths = sorted(glob.glob(f"{glob.escape(incomplete)}*"))  # noqa: PTH207
    folders = [f"{path}/" for path in paths if Path(path).is_dir()]
    return [*names, *folders, *(path for path in paths if path.endswith(suffix) and not Path(path).is_dir())]
