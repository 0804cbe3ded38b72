"""`dcdctl cache-teacher`: score candidates with the teacher, or encode texts, once."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from dcdctl.cli import options
from dcdctl.cli.completion import complete_recipe
from dcdctl.cli.declare import Ref, assignments, named, optional_path, path
from dcdctl.cli.option_groups import Inference
from dcdctl.cli.options import reads, refuse, writes
from dcdctl.cli.views.scoring import show_estimate
from dcdctl.cli.views.terminal import bar, note, show, show_json
from dcdctl.core.progress import counted

if TYPE_CHECKING:
    from dcdctl.core.progress import Say
    from dcdctl.core.teacher import CacheJob

Outcome = tuple[str, dict[str, Any]]
"""What a command prints, and its JSON document."""


@dataclass(frozen=True)
class CacheTeacher(Inference):
    """A teacher, a corpus, and the pairs to score. On the command line, the teacher, the corpus and the recipe may be
    None."""

    teacher: Annotated[
        Ref,
        options.reads_model(
            "--teacher", f"{options.TEACHER_HELP} Not with --plan-only, --scores and --vectors.", "REF"
        ),
        str | None,
    ]
    data: Annotated[
        Ref,
        reads("--data", "Folder written by `dcdctl prepare`. Required except with --texts and --vectors.", "DIR"),
        Path | None,
    ]
    out: options.Out
    _: KW_ONLY
    recipe: Annotated[
        options.RecipeRef,
        reads(
            "--recipe",
            "Recipe of the student, whose [candidates] say what to score: a name or a .toml file. Required except "
            "with --verify, --texts and --vectors.",
            "RECIPE",
            callback=options.check_recipe,
            autocompletion=complete_recipe,
        ),
        str | None,
    ]
    split: options.Split = "train"
    max_images: options.MaxImages = None
    model_overrides: options.ModelSet = None
    extend: Annotated[Ref | None, reads("--extend", "Finished cache whose scores are reused.", "CACHE"), Path] = None

    max_pairs: Annotated[
        int | None,
        options.configures(
            "--max-pairs",
            "Score at most N pairs, beside those of --extend: first where student and teacher may disagree.",
            "N",
            min=1,
        ),
    ] = None

    def job(self, say: Say, sets: Sequence[str] | None = None) -> CacheJob:
        """What to score, and where."""
        from dcdctl.core.teacher import CacheJob, CandidateConfig
        from dcdctl.core.training import load_recipe

        candidates = CandidateConfig()
        if self.recipe is not None:
            candidates = load_recipe(named(self.recipe), sets or ()).candidates
        return CacheJob(
            data=path(self.data),
            candidates=candidates,
            max_images=self.max_images,
            max_pairs=self.max_pairs,
            **self.with_teacher(say),
        )

    def with_teacher(self, say: Say) -> dict[str, Any]:
        """What every cache needs, by the fields of a `TeacherJob`."""
        return {
            "out": path(self.out),
            "teacher": os.fspath(self.teacher or ""),
            "split": self.split,
            "model_set": assignments(self.model_overrides),
            "extend": optional_path(self.extend),
            "compute": self.compute(say),
        }


@dataclass(frozen=True, kw_only=True)
class External:
    """Scores or vectors that another program gives; and texts, whose vectors are cached in place of scores."""

    plan_only: Annotated[
        bool, writes("--plan-only", "Write the pairs without a score to OUT/work, for another program to score.")
    ] = False
    with_columns: Annotated[
        str | None,
        writes(
            "--with", "With --plan-only: also write captions, paths, bytes (of the images); comma-separated.", "NAMES"
        ),
    ] = None
    scores: Annotated[
        list[str] | None,
        reads("--scores", "Take scores by ids: Parquet, CSV or JSON lines, a folder or a pattern; repeatable.", "FILE"),
    ] = None
    texts: Annotated[
        list[str] | None,
        reads(
            "--texts",
            "Cache the text vectors of the teacher, a dual encoder or a late-interaction model, for a query student: "
            ".txt, .csv, .tsv, .jsonl or .parquet with a column text, or the folder of a corpus; repeatable.",
            "PLACE",
        ),
    ] = None
    vectors: Annotated[
        list[str] | None,
        reads(
            "--vectors", "Take texts with their vectors: Parquet with the columns text and vector; repeatable.", "FILE"
        ),
    ] = None
    teacher_name: Annotated[
        str | None, reads("--teacher-name", "With --scores and --vectors: the model that gave them.", "NAME")
    ] = None

    def check(self, of_teacher: Mapping[str, object]) -> None:
        """A usage error for options that do not go together; `of_teacher` are for a model that dcdctl runs."""
        if not self.plan_only:
            refuse({"--with": self.with_columns}, "is for a work list: add --plan-only")
        given = self.scores or self.vectors
        if not given:
            why = "is for scores and vectors from elsewhere: name their files with --scores or --vectors"
            refuse({"--teacher-name": self.teacher_name}, why)
        if self.plan_only or given:
            refuse(of_teacher, "is for a model that dcdctl runs, and --plan-only, --scores and --vectors run none")
        elif of_teacher["--teacher"] is None and (of_teacher["--verify"] or not of_teacher["--dry-run"]):
            raise typer.BadParameter(
                "name the model that scores, or use --plan-only, --scores or --vectors", param_hint="--teacher"
            )
        if self.plan_only:
            refuse({"--scores": self.scores}, "and --plan-only are two steps: plan first, then give the scores")
        elif given and not self.teacher_name:
            raise typer.BadParameter("name the model that gave them", param_hint="--teacher-name")


def cache_teacher(
    arguments: CacheTeacher,
    external: External,
    sets: options.Sets = None,
    dry_run: options.DryRun = False,
    verify: Annotated[
        int | None,
        options.configures("--verify", "Compute N scores of a finished cache again and compare them.", "N", min=1),
    ] = None,
    json: options.Json = False,
) -> None:
    """Score candidates or encode texts with a teacher. Training reads the scores or the vectors and never runs the
    teacher."""
    # `refuse` lets None pass; a flag and an option with a default are None here unless they were given.
    external.check(
        {
            "--teacher": arguments.teacher,
            "--texts": external.texts,
            "--model-set": arguments.model_overrides,
            "--features": arguments.features,
            "--dry-run": dry_run or None,
            "--verify": verify,
            "--precision": None if arguments.precision == "fp32" else arguments.precision,
            "--batch-size": arguments.batch_size,
            "--workers": arguments.workers,
            "--engine": arguments.engine,
        }
    )
    if external.texts or external.vectors:
        of_pairs = {
            "--data": arguments.data,
            "--recipe": arguments.recipe,
            "--set": sets,
            "--max-images": arguments.max_images,
            "--max-pairs": arguments.max_pairs,
            "--scores": external.scores,
            "--plan-only": external.plan_only or None,
            "--features": arguments.features,
            # Of threads that read images; an engine's workers encode texts, too.
            "--workers": None if arguments.engine else arguments.workers,
            "--dry-run": dry_run or None,
        }
        refuse(of_pairs, "is for scores of images with captions, and a text cache has none")
        text, document = _encode(arguments, external, verify)
    elif arguments.data is None:
        raise typer.BadParameter("name the corpus to score, or texts with --texts", param_hint="--data")
    else:
        text, document = _pairs(arguments, external, sets, dry_run=dry_run, verify=verify)
    if json:
        show_json(document)
    elif text:
        show(text)


def _pairs(
    arguments: CacheTeacher, external: External, sets: list[str] | None, *, dry_run: bool, verify: int | None
) -> Outcome:
    """The cache of scores, its plan, its cost, or its check."""
    # After the options, whose mistakes need no recipe to be told.
    _check_recipe(arguments, sets, verify)
    job = arguments.job(note, sets)
    # With other candidates than the recipe's, the training may have other batches, too.
    if verify is None and not sets:
        from dcdctl.core.training import check_cache_job, load_recipe

        check_cache_job(job, load_recipe(named(cast("Ref", arguments.recipe))))
    if external.plan_only:
        text, document = _plan(job, external.with_columns)
    elif verify is not None:
        text, document = _verify(job, verify)
    elif dry_run:
        text, document = "", _estimate(job)
    else:
        text, document = _score(job, external)
    # What changes nothing has no next command.
    if verify is None and not dry_run and not external.plan_only:
        from dcdctl.core.training import command_after_cache

        document["next"] = command_after_cache(job, os.fspath(cast("Ref", arguments.recipe)), sets or ())
        text += f"; next: {document['next']}"
    return text, document


def _encode(arguments: CacheTeacher, external: External, verify: int | None) -> Outcome:
    """The cache of the vectors of texts, or its check."""
    from dcdctl.core.teacher import TextCacheJob, cache_texts, verify_texts

    job = TextCacheJob(
        texts=external.texts or (),
        vectors=external.vectors or (),
        teacher_name=external.teacher_name,
        **arguments.with_teacher(note),
    )
    if verify is not None:
        difference = verify_texts(job, verify, track=bar)
        text = f"{job.out}: {counted(verify, 'texts')} encoded again, the largest difference is {difference:.1e}"
        return text, {"cache": str(job.out), "texts": verify, "largest_difference": difference}
    cache = cache_texts(job, track=bar)
    document = {"cache": str(job.out), "texts": cache.num_texts, "languages": cache.plan["languages"]}
    document["teacher"] = cache.space.teacher_name or cache.space.teacher
    # Its student reads the tokens that it reads.
    of_tokens = ["--teacher", job.teacher, "--text", "teacher"] if cache.space.has_tokens else []
    recipe = "query-static" if of_tokens else "query-minilm"
    document["next"] = shlex.join(["dcdctl", "distill", recipe, "--cache", str(job.out), *of_tokens, "--out", "RUN"])
    vectors = f"vectors of {counted(cache.num_texts, 'texts')}, {cache.space.dim} numbers each"
    text = f"{vectors} -> {job.out}; next: {document['next']}"
    return text, document


def _verify(job: CacheJob, num_pairs: int) -> Outcome:
    from dcdctl.core.teacher import verify_cache

    difference = verify_cache(job, num_pairs, track=bar)
    text = f"{job.out}: {counted(num_pairs, 'pairs')} scored again, the largest difference is {difference:.1e}"
    return text, {"cache": str(job.out), "pairs": num_pairs, "largest_difference": difference}


def _check_recipe(arguments: CacheTeacher, sets: list[str] | None, verify: int | None) -> None:
    """An error, before any import of a model, for a missing recipe or an override that it does not take."""
    if arguments.recipe is not None:
        options.check_overrides(arguments.recipe, sets)
    elif verify is None or sets:  # the cache that is verified has its own plan
        from dcdctl.core.training import require_recipe_of_cache

        require_recipe_of_cache()


def _plan(job: CacheJob, with_columns: str | None) -> Outcome:
    from dcdctl.core.teacher import WORK_FOLDER, parse_extras, plan_work

    num_pairs, num_files = plan_work(job, parse_extras(with_columns), track=bar)
    folder = job.out / WORK_FOLDER
    text = (
        f"{counted(num_pairs, 'pairs')} without a score in {counted(num_files, 'files')} -> {folder}; next: the same "
        "command with --scores FILES --teacher-name NAME in place of --plan-only"
    )
    return text, {"work": str(folder), "pairs": num_pairs, "files": num_files}


def _estimate(job: CacheJob) -> dict[str, Any]:
    """The cost for JSON; stderr has it in words."""
    from dcdctl.core.teacher import preview_cost

    cost = preview_cost(job, bar)
    show_estimate(cost)
    return {name.removeprefix("num_"): value for name, value in vars(cost).items()}


def _score(job: CacheJob, external: External) -> Outcome:
    """The cache of a job, by its teacher or from the files of another program."""
    from dcdctl.core.teacher import CACHE, cache_scores, lack_of_order, take_scores

    # Before the work, since the seal is always there afterwards.
    started, already_there = time.monotonic(), (job.out / CACHE.seal_file).exists()
    if external.scores:
        cache = take_scores(job, external.scores, external.teacher_name or "", track=bar)
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
