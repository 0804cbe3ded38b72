"""`dcdctl cache-teacher`: score candidates with the teacher, once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcdctl.cli.completion import complete_recipe, complete_teacher
from dcdctl.cli.options import (
    Data,
    Device,
    DryRun,
    Features,
    Json,
    MaxImages,
    ModelSet,
    Out,
    PairBatchSize,
    Precision,
    Sets,
    Split,
    Threads,
    Workers,
    announce_code,
    check_overrides,
    check_recipe,
    refuse,
)

if TYPE_CHECKING:
    from dcdctl.core.teacher import CacheJob, TeacherCache

Teacher = Annotated[
    str | None,
    typer.Option(
        "--teacher",
        help="Name (dcdctl models), Hub id, transformers folder, official .ckpt, run folder, or module:function "
        "(code that runs). "
        "Not with --plan-only and --scores.",
        callback=announce_code,
        autocompletion=complete_teacher,
        metavar="REF",
    ),
]
RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="Recipe of the student, whose [candidates] say what to score: a name or a .toml file. Required except "
        "with --verify.",
        callback=check_recipe,
        autocompletion=complete_recipe,
        metavar="RECIPE",
    ),
]
Extend = Annotated[
    Path | None, typer.Option("--extend", help="Finished cache whose scores are reused.", metavar="CACHE")
]
Verify = Annotated[
    int | None,
    typer.Option("--verify", help="Compute N scores of a finished cache again and compare them.", min=1, metavar="N"),
]
PlanOnly = Annotated[
    bool, typer.Option("--plan-only", help="Write the pairs without a score to OUT/work, for another program to score.")
]
With = Annotated[
    str | None,
    typer.Option(
        "--with",
        help="With --plan-only: also write captions, paths, bytes (of the images); comma-separated.",
        metavar="NAMES",
    ),
]
Scores = Annotated[
    list[str] | None,
    typer.Option(
        "--scores",
        help="Take scores by ids: Parquet, CSV or JSON lines, a folder or a pattern; repeatable.",
        metavar="FILE",
    ),
]
TeacherName = Annotated[
    str | None, typer.Option("--teacher-name", help="With --scores: the model that gave them.", metavar="NAME")
]


@dataclass(frozen=True)
class _Result:
    """What the command prints."""

    text: str
    """Empty where stderr has all that there is to say."""
    document: dict[str, Any]
    next_step: Callable[[str, Sequence[str]], str] = lambda recipe, sets: ""
    """The next command, from the recipe and its overrides; empty if there is none."""


EXTERNAL = "is for a model that dcdctl runs, and --plan-only and --scores run none"


def cache_teacher(
    data: Data,
    out: Out,
    teacher: Teacher = None,
    recipe: RecipeName = None,
    sets: Sets = None,
    split: Split = "train",
    max_images: MaxImages = None,
    model_set: ModelSet = None,
    features: Features = None,
    extend: Extend = None,
    dry_run: DryRun = False,
    verify: Verify = None,
    plan_only: PlanOnly = False,
    with_columns: With = None,
    scores: Scores = None,
    teacher_name: TeacherName = None,
    workers: Workers = None,
    batch_size: PairBatchSize = None,
    device: Device = "auto",
    threads: Threads = None,
    precision: Precision = "fp32",
    json: Json = False,
) -> None:
    """Score candidates with the teacher, once. Training reads the scores and never runs the teacher."""
    own: dict[str, object] = {
        "--teacher": teacher,
        "--model-set": model_set,
        "--features": features,
        "--dry-run": dry_run or None,
    }
    own |= {
        "--verify": verify,
        "--precision": None if precision == "fp32" else precision,
        "--batch-size": batch_size,
        "--workers": workers,
    }
    _check_external(own, plan_only, with_columns, scores, teacher_name)
    _check_recipe(recipe, sets, verify)
    from dcdctl.cli.views.scoring import precision_on
    from dcdctl.cli.views.terminal import show, show_json
    from dcdctl.core import devices, training
    from dcdctl.core.devices import Compute
    from dcdctl.core.teacher import CacheJob

    devices.use_threads(threads)
    candidates = None if recipe is None else training.load_recipe(recipe, sets or ()).candidates
    if teacher is None:
        assert candidates is not None
        job = CacheJob(
            data=data,
            out=out,
            candidates=candidates,
            split=split,
            max_images=max_images,
            extend=extend,
            compute=Compute(device=devices.choose(device)),
        )
        result = _plan(job, with_columns) if plan_only else _take(job, scores or [], teacher_name or "")
    else:
        place = devices.choose(device)
        cache_job = CacheJob(
            teacher=teacher, model_set=model_set or (), data=data, split=split, max_images=max_images, out=out,
            candidates=candidates, extend=extend,
            compute=Compute(
                device=place, precision=precision_on(precision, place), batch_size=batch_size, workers=workers,
                features=features,
            ),
        )  # fmt: skip
        result = _verify(cache_job, verify) if verify is not None else _score(cache_job, dry_run)
    next_step = result.next_step(recipe or "", sets or ())
    if json:
        show_json({**result.document, **({"next": next_step} if next_step else {})})
    elif result.text:
        show(f"{result.text}; next: {next_step}" if next_step else result.text)


def _check_external(
    own: dict[str, object], plan_only: bool, with_columns: str | None, scores: list[str] | None, name: str | None
) -> None:
    """A usage error for options that do not go together; `own` are those of a model that dcdctl runs."""
    if not plan_only:
        refuse({"--with": with_columns}, "is for a work list: add --plan-only")
    if not scores:
        refuse({"--teacher-name": name}, "is for scores from elsewhere: name their files with --scores")
    if plan_only or scores:
        refuse(own, EXTERNAL)
    elif own["--teacher"] is None:
        raise typer.BadParameter("name the model that scores, or use --plan-only or --scores", param_hint="--teacher")
    if plan_only:
        refuse({"--scores": scores}, "and --plan-only are two steps: plan first, then give the scores")
    elif scores and not name:
        raise typer.BadParameter("name the model that gave the scores", param_hint="--teacher-name")


def _plan(job: CacheJob, with_columns: str | None) -> _Result:
    from dcdctl.cli.views.terminal import bar
    from dcdctl.core.teacher import parse_extras, plan_work
    from dcdctl.core.training import command_after_plan

    work = plan_work(job, parse_extras(with_columns), track=bar)
    text = f"{work.num_pairs:,} pairs without a score in {work.num_files:,} files -> {work.folder}"
    document = {"work": str(work.folder), "pairs": work.num_pairs, "files": work.num_files}
    return _Result(text, document, partial(command_after_plan, job))


def _take(job: CacheJob, scores: list[str], teacher_name: str) -> _Result:
    from dcdctl.cli.views.terminal import bar
    from dcdctl.core.teacher import take_scores

    return _of_cache(job, lambda: take_scores(job, scores, teacher_name, track=bar))


def _verify(job: CacheJob, num_pairs: int) -> _Result:
    from dcdctl.cli.views.terminal import bar
    from dcdctl.core.teacher import verify_cache

    difference = verify_cache(job, num_pairs, track=bar)
    text = f"{job.out}: {num_pairs:,} pairs scored again, the largest difference is {difference:.1e}"
    return _Result(text, {"cache": str(job.out), "pairs": num_pairs, "largest_difference": difference})


def _score(job: CacheJob, dry_run: bool) -> _Result:
    from dcdctl.cli.views.scoring import estimate_document, show_estimate
    from dcdctl.cli.views.terminal import bar
    from dcdctl.core.teacher import CacheCost, cache_scores

    estimates: list[CacheCost] = []

    def on_estimate(estimate: CacheCost) -> None:
        estimates.append(estimate)
        show_estimate(estimate)

    if dry_run:
        cache_scores(job, dry_run=True, track=bar, on_estimate=on_estimate)
        return _Result("", estimate_document(*estimates))
    return _of_cache(job, lambda: cache_scores(job, track=bar, on_estimate=show_estimate))


def _of_cache(job: CacheJob, make: Callable[[], TeacherCache | None]) -> _Result:
    """The cache that `make` makes in the folder of a job."""
    from dcdctl.core.teacher import CACHE
    from dcdctl.core.training import command_after_cache

    started, already_there = time.monotonic(), (job.out / CACHE.seal_file).exists()
    cache = make()
    assert cache is not None  # only a dry run has none
    counts = {"pairs": cache.num_pairs, "images": cache.num_images, "captions": cache.num_texts}
    document = {"cache": str(cache.folder), **counts, "teacher": cache.teacher_name or cache.plan["teacher"]}
    document |= {"seconds": round(time.monotonic() - started, 3), "already_there": already_there}
    text = (
        f"{cache.num_pairs:,} scored pairs of {cache.num_images:,} images and {cache.num_texts:,} captions -> "
        f"{cache.folder}"
    )
    return _Result(text, document, partial(command_after_cache, job))


def _check_recipe(recipe: str | None, sets: list[str] | None, verify: int | None) -> None:
    """An error, before any import of a model, for a missing recipe or an override that it does not take."""
    if recipe is not None:
        return check_overrides(recipe, sets)
    # The cache that is verified has its own plan.
    if verify is None or sets:
        from dcdctl.core.training import require_recipe_of_cache

        require_recipe_of_cache()
