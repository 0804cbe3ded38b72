"""`dcdctl distill`: train a student on cached scores."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any

from dcdctl.cli import options
from dcdctl.cli.completion import complete_teacher
from dcdctl.cli.declare import Ref, Refs, many, optional_path, path
from dcdctl.cli.options import reads
from dcdctl.cli.training_options import TrainingRun


@dataclass(frozen=True)
class Distill(TrainingRun):
    """A student, its data, and the teachers that it learns from."""

    data: Annotated[
        Refs | None,
        reads(
            "--data",
            "Folder written by `dcdctl prepare`, or its URL; or tars or Parquet files to stream: "
            "'a-{000..331}.tar'; repeatable. Left out where --cache has texts.",
            "DATA",
        ),
        list[str] | None,
    ]
    _: KW_ONLY
    cache: Annotated[
        Refs | None,
        reads("--cache", "Folder written by `dcdctl cache-teacher`; repeatable.", "DIR"),
        list[Path],
    ] = None
    teacher: Annotated[
        Refs | None,
        reads(
            "--teacher",
            "With --cache: the model that made it, from which a fusion student starts. Without: a dual encoder "
            "to learn from; repeatable. Query encoder: the model of the images.",
            "REF",
            autocompletion=complete_teacher,
        ),
        list[str],
    ] = None
    pool: Annotated[
        Ref | None,
        reads("--pool", "Also learn from this pool: images without captions, and texts without images.", "DIR"),
        Path,
    ] = None

    def further_refs(self) -> dict[str, Any]:
        """Data, pool, caches and teachers."""
        return {
            "data": many(self.data),
            "pool": optional_path(self.pool),
            "caches": [path(folder) for folder in many(self.cache)],
            "teachers": many(self.teacher),
        }


def distill(
    arguments: Distill, sets: options.Sets = None, dry_run: options.DryRun = False, json: options.Json = False
) -> None:
    """Train a student on a teacher's scores. They come from a cache, or from a dual encoder, which needs none."""
    arguments.check(sets)
    from dcdctl.cli.views.training import run_training

    run_training(*arguments.request("distill", sets), dry_run=dry_run, json=json)
