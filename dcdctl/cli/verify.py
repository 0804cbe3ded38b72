"""`dcdctl verify`: compares all files of an artifact with their checksums."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dcdctl.cli.options import Json, argument
from dcdctl.cli.views.terminal import bar, show, show_json, show_table

Folder = Annotated[
    Path, argument("Corpus, cache, features, index, run, model or evaluation, or a folder of them.", "PATH")
]


def verify(path: Folder, json: Json = False) -> None:
    """Compare the files with their checksums. The command reads all of an artifact and names every damage."""
    from dcdctl.core.integrity import verify as verify_artifacts

    verification = verify_artifacts(path, bar)
    if json:
        show_json(verification.to_json())
    else:
        rows = [[item.path, item.kind, item.state] for item in verification.artifacts]
        show_table("", ["path", "kind", "state"], rows)
        for problem in verification.problems:
            show(f"problem: {problem}")
    # For scripts. A damage is the result of the command, on stdout, and no error of it.
    if not verification.is_well:
        raise typer.Exit(1)
