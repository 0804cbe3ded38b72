"""`dcdctl work`: score or embed files of a work list, as a task of any engine."""

from __future__ import annotations

import os
import time
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from dcdctl.cli.options import Json
from dcdctl.cli.views.terminal import bar, note, show, show_json
from dcdctl.core.arguments import Ref, Refs, argument, many, path, reads
from dcdctl.core.engines import Passes
from dcdctl.core.options import ModelSet, OutFiles
from dcdctl.core.progress import counted

if TYPE_CHECKING:
    from dcdctl.core.progress import Say, Track
    from dcdctl.core.search import EmbeddedWork
    from dcdctl.core.teacher import ScoredWork


@dataclass(frozen=True)
class Work(Passes):
    """Files of a work list, and the model that scores their pairs or embeds their images."""

    files: Annotated[
        Refs,
        argument(
            "Files of `cache-teacher --plan-only --with captions,bytes` or of `index --plan-only`, or Parquet files of "
            "a corpus; folders or patterns.",
            "FILE",
            "place",
        ),
    ]
    model: Annotated[Ref, reads("--model", "Teacher of pairs, or dual encoder of images.", "REF", "model")]
    out: OutFiles
    _: KW_ONLY
    model_overrides: ModelSet = None

    def run(self, say: Say, track: Track) -> ScoredWork | EmbeddedWork:
        """Do it, by what the first file holds."""
        from dcdctl.core import search, teacher

        files, model, out = many(self.files), os.fspath(self.model), path(self.out)
        if teacher.holds_pairs(files, out):
            return teacher.score_work(
                teacher.ScoreWorkJob(
                    work=files,
                    teacher=model,
                    out=out,
                    model_set=self.model_overrides,
                    compute=self.compute(say),
                ),
                track=track,
            )
        if self.model_overrides:
            from dcdctl.core.errors import ConfigError

            raise ConfigError(
                "model settings are for the teacher of pairs, and these files list images", hint="leave --model-set out"
            )
        return search.embed_work(
            search.EmbedWorkJob(lists=files, model=model, out=out, compute=self.compute(say)), track=track
        )


def work(arguments: Work, json: Json = False) -> None:
    """Score pairs or embed images that --plan-only listed, on any machine. `cache-teacher --scores` and
    `index --vectors` take the results."""
    from dcdctl.core.data import left_out_lines
    from dcdctl.core.places import shown
    from dcdctl.core.search import EmbeddedWork

    started = time.monotonic()
    done = arguments.run(note, bar)
    if json:
        return show_json(_document(done) | {"seconds": round(time.monotonic() - started, 3)})
    there = f" ({done.num_there:,} already there)" if done.num_there else ""
    if isinstance(done, EmbeddedWork):
        for line in left_out_lines(done.left_out):
            note(line)
        what, count = "vectors", counted(done.num_images, "images")
    else:
        what, count = "scores", counted(done.num_pairs, "pairs")
    show(f"{what} of {count} in {counted(done.num_files, 'files')}{there} -> {shown(done.folder)}")


def _document(done: ScoredWork | EmbeddedWork) -> dict[str, Any]:
    from dcdctl.core.places import shown
    from dcdctl.core.search import EmbeddedWork

    counts = {"files": done.num_files, "already_there": done.num_there}
    if isinstance(done, EmbeddedWork):
        return {
            "vectors": shown(done.folder),
            "images": done.num_images,
            "left_out": sum(done.left_out.values()),
            "left_out_by_kind": done.left_out,
            **counts,
            "model": done.model,
        }
    return {"scores": shown(done.folder), "pairs": done.num_pairs, **counts, "model": done.teacher}
