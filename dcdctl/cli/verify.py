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
MOST_NAMED = 100
"""Files that belong to no artifact: a folder may be a whole disk."""


def verify(path: Folder, json: Json = False) -> None:
    """Compare the files with their checksums. The command reads all of an artifact and names every damage."""
    from dcdctl.core.verify import verify as verify_artifacts

    verification = verify_artifacts(path, bar)
    if json:
        show_json(verification.to_json())
    else:
        rows = [
            [item.path, item.kind, f"{len(item.files):,}", f"{item.num_bytes:,}", item.state]
            for item in verification.artifacts
        ]
        show_table("", ["path", "kind", "files", "bytes", "state"], rows)
        for unknown in verification.unknown[:MOST_NAMED]:
            show(f"not part of it: {unknown}")
        if (more := len(verification.unknown) - MOST_NAMED) > 0:
            show(f"not part of it: {more:,} more files, which --json names")
        for skipped in verification.skipped:
            show(f"skipped: {skipped}")
        for problem in verification.problems:
            show(f"problem: {problem}")
    # For scripts. A damage is the result of the command, on stdout, and no error of it.
    if not verification.is_well:
        raise typer.Exit(1)
