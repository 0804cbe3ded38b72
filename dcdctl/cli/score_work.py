"""`dcdctl score-work`: score files of the work list, as a task of any engine."""

from __future__ import annotations

import os
import time
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Annotated

from dcdctl.cli import options
from dcdctl.cli.declare import Refs, assignments, many, path
from dcdctl.cli.option_groups import Passes
from dcdctl.cli.views.terminal import bar, note, show, show_json
from dcdctl.core.progress import counted

if TYPE_CHECKING:
    from dcdctl.core.progress import Say
    from dcdctl.core.teacher import ScoreWorkJob


@dataclass(frozen=True)
class ScoreWork(Passes):
    """Files of the work list, and the teacher that scores them."""

    work: Annotated[
        Refs,
        options.argument(
            "Files of the work list of `cache-teacher --plan-only --with captions,bytes`, folders or patterns.", "WORK"
        ),
        list[str],
    ]
    teacher: options.Teacher
    out: options.OutFiles
    _: KW_ONLY
    model_overrides: options.ModelSet = None

    def job(self, say: Say) -> ScoreWorkJob:
        """What to score, and where."""
        from dcdctl.core.teacher import ScoreWorkJob

        return ScoreWorkJob(
            work=many(self.work),
            teacher=os.fspath(self.teacher),
            out=path(self.out),
            model_set=assignments(self.model_overrides),
            compute=self.compute(say),
        )


def score_work(arguments: ScoreWork, json: options.Json = False) -> None:
    """Score files of a work list, as a task of any engine. `cache-teacher --scores` makes a cache of the scores."""
    from dcdctl.core.places import shown
    from dcdctl.core.teacher import score_work as score

    started = time.monotonic()
    scored = score(arguments.job(note), track=bar)
    if json:
        return show_json(
            {
                "scores": shown(scored.folder),
                "pairs": scored.num_pairs,
                "files": scored.num_files,
                "already_there": scored.num_there,
                "teacher": scored.teacher,
                "seconds": round(time.monotonic() - started, 3),
            }
        )
    there = f" ({scored.num_there:,} already there)" if scored.num_there else ""
    counts = f"{counted(scored.num_pairs, 'pairs')} in {counted(scored.num_files, 'files')}{there}"
    show(f"scores of {counts} -> {shown(scored.folder)}")
