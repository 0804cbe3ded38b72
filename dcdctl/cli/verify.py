"""`dcdctl verify`: compares all files of an artifact with their checksums, and scores with their teacher."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dcdctl.cli.options import Json, refuse
from dcdctl.cli.views.terminal import bar, show, show_json, show_table
from dcdctl.core.arguments import argument
from dcdctl.core.progress import counted
from dcdctl.core.teacher import Recheck

Folder = Annotated[
    Path, argument("Corpus, cache, features, index, run, model or evaluation, or a folder of them.", "PLACE")
]


def check_options(again: Recheck) -> None:
    """A usage error for options that do not go together."""
    if again.scores is None:
        of_scores = {
            "--teacher": again.teacher,
            "--data": again.data,
            "--model-set": again.model_overrides,
            "--features": again.features,
            "--batch-size": again.batch_size,
            "--device": None if again.device == "auto" else again.device,
        }
        refuse(of_scores, "is for scores that are computed again: add --scores N")
    elif again.teacher is None:
        raise typer.BadParameter("name the model that gave the scores", param_hint="--teacher")


def verify(place: Folder, again: Recheck, json: Json = False) -> None:
    """Compare the files with their checksums. The command reads all of an artifact and names every damage."""
    from dcdctl.core.integrity import verify as verify_artifacts

    check_options(again)
    if again.scores is not None:
        # Before all files are read.
        from dcdctl.core.teacher import check_recheck

        check_recheck(place, again)
    verification, rechecked = verify_artifacts(place, bar), None
    if again.scores is not None and verification.is_well:
        from dcdctl.core.teacher import recheck

        rechecked = recheck(place, again, track=bar)
    if json:
        show_json(verification.to_json() | ({} if rechecked is None else {"again": asdict(rechecked)}))
    else:
        rows = [[item.path, item.kind, item.state] for item in verification.artifacts]
        show_table("", ["path", "kind", "state"], rows)
        for problem in verification.problems:
            show(f"problem: {problem}")
        if rechecked is not None:
            difference = f"the largest difference is {rechecked.largest_difference:.1e}"
            show(f"{counted(rechecked.count, rechecked.what)} computed again, {difference}")
    # For scripts. A damage is the result of the command, on stdout, and no error of it.
    if not verification.is_well:
        raise typer.Exit(1)
