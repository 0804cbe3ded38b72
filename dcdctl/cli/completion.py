"""What the shell completes: recipes and their fields, data sets, teachers, and the splits of a corpus. Nothing here
imports torch."""

from __future__ import annotations

import json
import os
from collections.abc import MutableMapping
from pathlib import Path

import typer

BEFORE = "_DCDCTL_COMPLETE_BEFORE"
"""Environment variable: the part of the last word that bash keeps and does not replace."""


def join_split_words(environment: MutableMapping[str, str]) -> None:
    """Undo how bash splits the words of a line at = and : (COMP_WORDBREAKS), so that `--set loss.terms=` is one word
    again.

    Bash replaces only what follows the last = or : of the word at the cursor. The part before it goes into `BEFORE`.
    """
    if environment.get("_DCDCTL_COMPLETE") != "complete_bash":
        return
    words, place = environment["COMP_WORDS"].split("\n"), int(environment["COMP_CWORD"])
    joined: list[tuple[str, str]] = []
    """Each word as the part up to its last = or :, and the rest."""
    for word in words[: place + 1]:
        is_break = bool(word) and not word.strip("=:")
        before, rest = joined[-1] if joined else ("", "")
        if is_break and joined:
            joined[-1] = before + rest + word, ""
        elif before and not rest and word and not word.startswith("-"):  # an empty word follows a space
            joined[-1] = before, word
        else:
            joined.append(("", word))
    before, rest = joined.pop()
    lines = [before + rest for before, rest in joined]
    if before.startswith("-"):  # --set=loss.terms={: the option is a word of its own
        option, _, before = before.partition("=")
        lines.append(option)
    environment.update({"COMP_WORDS": "\n".join([*lines, rest]), "COMP_CWORD": str(len(lines)), BEFORE: before})


def complete_recipe(incomplete: str) -> list[str]:
    """The names of recipes, and .toml files."""
    from dcdctl.core import training

    return _starting_or_paths([entry.name for entry in training.list_recipes()], ".toml", incomplete)


def complete_manifest(incomplete: str) -> list[str]:
    """The names of data sets, and .toml files."""
    from dcdctl.core import files

    names = [path.stem for path in files.packaged("data_manifests").glob("*.toml")]
    return _starting_or_paths(sorted(names), ".toml", incomplete)


def complete_teacher(incomplete: str) -> list[str]:
    """The names of teachers, built in and published, folders, and .ckpt files."""
    from dcdctl.core import files

    built_in = [path.name for path in files.packaged("teachers").iterdir()]
    published = [path.stem for path in (files.packaged("data_manifests") / "teachers").glob("*.toml")]
    return _starting_or_paths([*sorted(built_in), *sorted(published)], ".ckpt", incomplete)


def complete_split(ctx: typer.Context, incomplete: str) -> list[str]:
    """The splits of the corpus that `--data` (or `--images` of an index) names; after a +, the others."""
    data = ctx.params.get("data") or ctx.params.get("images")
    folder = data[0] if isinstance(data, list | tuple) and data else data
    try:
        splits = list(json.loads((Path(folder) / "corpus.json").read_text(encoding="utf-8"))["splits"])  # type: ignore[arg-type]
    except (OSError, TypeError, ValueError, KeyError):  # no corpus yet: nothing to propose
        return []
    *joined, _ = _whole(incomplete).split("+")
    return _starting(["+".join([*joined, split]) for split in splits if split not in joined], incomplete)


def complete_set(incomplete: str) -> list[str]:
    """The fields of a recipe as `table.field=`; after `loss.terms=`, each loss with the weight 1."""
    from dcdctl.core import training

    key, equals, _ = _whole(incomplete).partition("=")
    if not equals:
        return _starting([f"{name}=" for name in training.field_names()], incomplete)
    if key != "loss.terms":
        return []
    return _starting([f"{key}={{{name}=1.0}}" for name in training.loss_names()], incomplete)


def _whole(incomplete: str) -> str:
    """The word at the cursor, of which bash may replace only the end."""
    return os.environ.get(BEFORE, "") + incomplete


def _starting(names: list[str], incomplete: str) -> list[str]:
    """What may replace `incomplete`."""
    return [name.removeprefix(os.environ.get(BEFORE, "")) for name in names if name.startswith(_whole(incomplete))]


def _starting_or_paths(names: list[str], suffix: str, incomplete: str) -> list[str]:
    """What may replace `incomplete`: a name, a folder, or a file with a suffix."""
    word = _whole(incomplete)
    # Not Path(word).parent alone: that of `data/` is the folder above.
    parent = Path(word) if word.endswith("/") else Path(word).parent
    prefix = word[: word.rfind("/") + 1]
    try:
        paths = [path for path in sorted(parent.iterdir()) if not path.name.startswith(".")]
    except OSError:
        paths = []
    folders_and_files = [
        f"{prefix}{path.name}{'/' if path.is_dir() else ''}" for path in paths if path.is_dir() or path.suffix == suffix
    ]
    return _starting([*names, *folders_and_files], incomplete)
