"""`dcdctl verify`: compares all files of an artifact with their checksums, and scores with their teacher."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcdctl.cli.options import Json, refuse
from dcdctl.cli.views.terminal import bar, note, show, show_json, show_table
from dcdctl.core.arguments import argument, configures, optional_path, reads
from dcdctl.core.options import Device, Features, ModelSet, PairBatchSize
from dcdctl.core.progress import counted

if TYPE_CHECKING:
    from dcdctl.core.teacher import Recheck

Folder = Annotated[
    Path, argument("Corpus, cache, features, index, run, model or evaluation, or a folder of them.", "PLACE")
]


@dataclass(frozen=True, kw_only=True)
class Again:
    """Scores of a cache to compute again, and their teacher."""

    scores: Annotated[
        int | None,
        configures("--scores", "Compute N scores of a cache again too, or the vectors of N texts.", "N", min=1),
    ] = None
    teacher: Annotated[str | None, reads("--teacher", "With --scores: the model that gave them.", "REF", "model")] = (
        None
    )
    data: Annotated[
        Path | None,
        reads("--data", "With --scores: the corpus of the pairs; a cache of texts needs none.", "DIR", "place"),
    ] = None
    model_overrides: ModelSet = None
    features: Features = None
    batch_size: PairBatchSize = None
    device: Device = "auto"

    def check(self) -> None:
        """A usage error for options that do not go together."""
        if self.scores is None:
            of_scores = {
                "--teacher": self.teacher,
                "--data": self.data,
                "--model-set": self.model_overrides,
                "--features": self.features,
                "--batch-size": self.batch_size,
                "--device": None if self.device == "auto" else self.device,
            }
            refuse(of_scores, "is for scores that are computed again: add --scores N")
        elif self.teacher is None:
            raise typer.BadParameter("name the model that gave the scores", param_hint="--teacher")

    def job(self, cache: Path) -> Recheck | None:
        """What to compute again; None for nothing."""
        if self.scores is None or self.teacher is None:
            return None
        from dcdctl.core.engines import Compute, EngineChoice
        from dcdctl.core.teacher import Recheck

        compute = Compute.chosen(
            EngineChoice(),
            device=self.device,
            batch_size=self.batch_size,
            features=optional_path(self.features),
            say=note,
        )
        return Recheck(
            cache=cache,
            count=self.scores,
            teacher=os.fspath(self.teacher),
            data=optional_path(self.data),
            model_set=self.model_overrides,
            compute=compute,
        )


def verify(place: Folder, again: Again, json: Json = False) -> None:
    """Compare the files with their checksums. The command reads all of an artifact and names every damage."""
    from dcdctl.core.integrity import verify as verify_artifacts

    again.check()
    job, rechecked = again.job(place), None
    if job is not None:
        # Before all files are read.
        job.check()
    verification = verify_artifacts(place, bar)
    if job is not None and verification.is_well:
        from dcdctl.core.teacher import recheck

        rechecked = recheck(job, track=bar)
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
