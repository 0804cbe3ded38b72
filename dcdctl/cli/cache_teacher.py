"""`dcdctl cache-teacher`: score candidates with the teacher, once."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from dcdctl.cli.options import DryRun, Json, check_overrides, refuse
from dcdctl.cli.views.scoring import show_estimate
from dcdctl.cli.views.terminal import bar, note, show, show_json, tasks_shown
from dcdctl.core.arguments import Ref, named, reads
from dcdctl.core.progress import counted
from dcdctl.core.training import CacheTeacher

if TYPE_CHECKING:
    from dcdctl.core.teacher import CacheJob

Outcome = tuple[str, dict[str, Any]]
"""What a command prints, and its JSON document."""


Scores = Annotated[
    list[str] | None,
    reads("--scores", "Take scores by ids: Parquet, CSV or JSON lines, a folder or a pattern; repeatable.", "FILE"),
]


def check_scores(arguments: CacheTeacher, scores: list[str] | None, *, dry_run: bool) -> None:
    """A usage error for options that do not go together."""
    # `refuse` lets None pass; a flag and an option with a default are None here unless they were given.
    of_teacher: dict[str, object] = {
        "--model-set": arguments.model_overrides,
        "--features": arguments.features,
        "--precision": None if arguments.precision == "fp32" else arguments.precision,
        "--batch-size": arguments.batch_size,
        "--workers": arguments.workers,
    }
    if scores:
        of_teacher |= {"--dry-run": dry_run or None, "--engine": arguments.engine}
        refuse(of_teacher, "is for a model that dcdctl runs, and --scores runs none")
    if arguments.teacher is None and not dry_run:
        if scores or not (arguments.engine or "").startswith("files:"):
            raise typer.BadParameter("name the model that scores, or that gave --scores", param_hint="--teacher")
        refuse(of_teacher, "is for a model that dcdctl runs: name it with --teacher")


def cache_teacher(
    arguments: CacheTeacher,
    scores: Scores = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Score candidates with a teacher. Training reads the scores and never runs the teacher."""
    check_scores(arguments, scores, dry_run=dry_run)
    with tasks_shown(json=json):
        text, document = _pairs(arguments, scores, dry_run=dry_run)
        if json:
            show_json(document)
        elif text:
            show(text)


def _pairs(arguments: CacheTeacher, scores: list[str] | None, *, dry_run: bool) -> Outcome:
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
    if dry_run:
        return "", _estimate(job)
    if arguments.teacher is None:
        return _plan(job)
    if scores:  # dcdctl runs no teacher
        job = replace(job, teacher="")
    text, document = _score(job, scores, os.fspath(arguments.teacher))
    document["next"] = command_after_cache(job, os.fspath(cast("Ref", arguments.recipe)), arguments.sets or ())
    return f"{text}; next: {document['next']}", document


def _plan(job: CacheJob) -> Outcome:
    """The pairs as tasks for another program."""
    from dcdctl.core.engines import FilesEngine
    from dcdctl.core.teacher import plan_scores

    engine = job.compute.engine
    assert isinstance(engine, FilesEngine), "check_scores has refused others"
    num_pairs, num_tasks = plan_scores(job, engine, track=bar)
    text = (
        f"{counted(num_pairs, 'pairs')} without a score in {counted(num_tasks, 'tasks')} -> {engine.folder}; next: the "
        "same command with --scores FILES --teacher NAME in place of --engine"
    )
    return text, {"folder": str(engine.folder), "pairs": num_pairs, "tasks": num_tasks}


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
