"""`dcdctl cache-teacher`: score candidates with the teacher, once."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from dcdctl.cli.options import DryRun, Json, check_overrides, refuse
from dcdctl.cli.views.scoring import show_estimate
from dcdctl.cli.views.terminal import bar, note, show, show_json
from dcdctl.core.arguments import Ref, configures, named, reads
from dcdctl.core.progress import counted
from dcdctl.core.training import CacheTeacher

if TYPE_CHECKING:
    from dcdctl.core.teacher import CacheJob

Outcome = tuple[str, dict[str, Any]]
"""What a command prints, and its JSON document."""


@dataclass(frozen=True, kw_only=True)
class External:
    """Scores that another program gives."""

    plan_only: Annotated[
        bool, configures("--plan-only", "Write the pairs without a score to OUT/work, for another program to score.")
    ] = False
    with_columns: Annotated[
        str | None,
        configures(
            "--with", "With --plan-only: also write captions, paths, bytes (of the images); comma-separated.", "NAMES"
        ),
    ] = None
    scores: Annotated[
        list[str] | None,
        reads("--scores", "Take scores by ids: Parquet, CSV or JSON lines, a folder or a pattern; repeatable.", "FILE"),
    ] = None

    def check(self, teacher: Ref | None, of_teacher: Mapping[str, object]) -> None:
        """A usage error for options that do not go together; `of_teacher` are for a model that dcdctl runs."""
        if not self.plan_only:
            refuse({"--with": self.with_columns}, "is for a work list: add --plan-only")
        if self.plan_only or self.scores:
            refuse(of_teacher, "is for a model that dcdctl runs, and --plan-only and --scores run none")
        if self.plan_only:
            refuse({"--teacher": teacher}, "scores, and --plan-only lists the pairs for another program")
            refuse({"--scores": self.scores}, "and --plan-only are two steps: plan first, then give the scores")
        elif teacher is None and not of_teacher["--dry-run"]:
            raise typer.BadParameter("name the model that scores, or that gave --scores", param_hint="--teacher")


def cache_teacher(
    arguments: CacheTeacher,
    external: External,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Score candidates with a teacher. Training reads the scores and never runs the teacher."""
    # `refuse` lets None pass; a flag and an option with a default are None here unless they were given.
    external.check(
        arguments.teacher,
        {
            "--model-set": arguments.model_overrides,
            "--features": arguments.features,
            "--dry-run": dry_run or None,
            "--precision": None if arguments.precision == "fp32" else arguments.precision,
            "--batch-size": arguments.batch_size,
            "--workers": arguments.workers,
            "--engine": arguments.engine,
        },
    )
    text, document = _pairs(arguments, external, dry_run=dry_run)
    if json:
        show_json(document)
    elif text:
        show(text)


def _pairs(arguments: CacheTeacher, external: External, *, dry_run: bool) -> Outcome:
    """The cache of scores, its plan, or its cost."""
    from dcdctl.core.training import check_cache_job, command_after_cache, load_recipe, require_recipe_of_cache

    # After the options, whose mistakes need no recipe to be told.
    if arguments.recipe is None:
        require_recipe_of_cache()
    check_overrides(arguments.recipe, arguments.sets)
    job = arguments.settle(note)
    # With other candidates than the recipe's, the training may have other batches, too.
    if not arguments.sets:
        check_cache_job(job, load_recipe(named(arguments.recipe)))
    # What changes nothing has no next command.
    if external.plan_only:
        return _plan(job, external.with_columns)
    if dry_run:
        return "", _estimate(job)
    if external.scores:  # dcdctl runs no teacher
        job = replace(job, teacher="")
    text, document = _score(job, external.scores, os.fspath(arguments.teacher or ""))
    document["next"] = command_after_cache(job, os.fspath(cast("Ref", arguments.recipe)), arguments.sets or ())
    return f"{text}; next: {document['next']}", document


def _plan(job: CacheJob, with_columns: str | None) -> Outcome:
    from dcdctl.core.teacher import WORK_FOLDER, parse_extras, plan_work

    num_pairs, num_files = plan_work(job, parse_extras(with_columns), track=bar)
    folder = job.out / WORK_FOLDER
    text = (
        f"{counted(num_pairs, 'pairs')} without a score in {counted(num_files, 'files')} -> {folder}; next: the same "
        "command with --scores FILES --teacher NAME in place of --plan-only"
    )
    return text, {"work": str(folder), "pairs": num_pairs, "files": num_files}


def _estimate(job: CacheJob) -> dict[str, Any]:
    """The cost for JSON; stderr has it in words."""
    from dcdctl.core.teacher import preview_cost

    cost = preview_cost(job, bar)
    show_estimate(cost)
    return {name.removeprefix("num_"): value for name, value in vars(cost).items()}


def _score(job: CacheJob, scores: Sequence[str] | None, teacher: str) -> Outcome:
    """The cache of a job, by its teacher or from the files of another program."""
    from dcdctl.core.teacher import CACHE, cache_scores, lack_of_order, take_scores

    # Before the work, since the seal is always there afterwards.
    started, already_there = time.monotonic(), (job.out / CACHE.seal_file).exists()
    if scores:
        cache = take_scores(job, scores, teacher, track=bar)
    else:
        cache = cache_scores(job, track=bar, on_estimate=show_estimate)
    if not already_there and (lack := lack_of_order(cache.score_P)):
        note(lack)
    counts = {"pairs": cache.num_pairs, "images": cache.num_images, "captions": cache.num_texts}
    document = {"cache": str(cache.folder), **counts, "teacher": cache.teacher_name or cache.plan["teacher"]}
    document |= {"seconds": round(time.monotonic() - started, 3), "already_there": already_there}
    text = (
        f"{counted(cache.num_pairs, 'scored pairs')} of {counted(cache.num_images, 'images')} and "
        f"{counted(cache.num_texts, 'captions')} -> "
        f"{cache.folder}"
    )
    return text, document
