"""What the shell completes: recipes and their fields, data sets, teachers, and the splits of a corpus. Nothing here imports torch."""

from __future__ import annotations

import json
from pathlib import Path

import typer


def complete_recipe(incomplete: str) -> list[str]:
    """The names of recipes, and .toml files."""
    from dcdctl.core import training

    return _starting([*(entry.name for entry in training.list_recipes()), *_paths(incomplete, ".toml")], incomplete)


def complete_manifest(incomplete: str) -> list[str]:
    """The names of data sets, and .toml files."""
    from dcdctl.core import files

    names = [path.stem for path in files.packaged("data_manifests").glob("*.toml")]
    return _starting([*sorted(names), *_paths(incomplete, ".toml")], incomplete)


def complete_teacher(incomplete: str) -> list[str]:
    """The names of teachers, built in and published, folders, and .ckpt files."""
    from dcdctl.core import files

    built_in = [path.name for path in files.packaged("teachers").iterdir()]
    published = [path.stem for path in (files.packaged("data_manifests") / "teachers").glob("*.toml")]
    return _starting([*sorted(built_in), *sorted(published), *_paths(incomplete, ".ckpt")], incomplete)


def complete_split(ctx: typer.Context, incomplete: str) -> list[str]:
    """The splits of the corpus that `--data` (or `--images` of an index) names; after a +, the others."""
    data = ctx.params.get("data") or ctx.params.get("images")
    folder = data[0] if isinstance(data, list | tuple) and data else data
    try:
        splits = list(json.loads((Path(folder) / "corpus.json").read_text(encoding="utf-8"))["splits"])  # type: ignore[arg-type]
    except (OSError, TypeError, ValueError, KeyError):  # no corpus yet: nothing to propose
        return []
    *joined, _ = incomplete.split("+")
    return _starting(["+".join([*joined, split]) for split in splits if split not in joined], incomplete)


def complete_set(incomplete: str) -> list[str]:
    """The fields of a recipe as `table.field=`; after `loss.terms=`, each loss with the weight 1."""
    from dcdctl.core import training

    key, equals, _ = incomplete.partition("=")
    if not equals:
        return _starting([f"{name}=" for name in training.field_names()], incomplete)
    if key != "loss.terms":
        return []
    return _starting([f"{key}={{{name}=1.0}}" for name in training.loss_names()], incomplete)


def _starting(names: list[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _paths(incomplete: str, suffix: str) -> list[str]:
    """The folders and the files with a suffix that a path may become."""
    parent = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    prefix = incomplete.rpartition("/")[0]
    try:
        found = sorted(parent.iterdir())
    except OSError:
        return []
    shown = [(path, f"{prefix}/{path.name}" if "/" in incomplete else path.name) for path in found if not path.name.startswith(".")]
    return [f"{name}/" if path.is_dir() else name for path, name in shown if path.is_dir() or path.suffix == suffix]
