"""`dcdctl cache-texts`: the vectors of texts by a teacher, once, for a query student."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Any

import typer

from dcdctl.cli.options import Json, refuse
from dcdctl.cli.views.terminal import bar, note, show, show_json
from dcdctl.core.progress import counted
from dcdctl.core.teacher import TextCacheJob

if TYPE_CHECKING:
    from dcdctl.core.teacher import TextCache


def check_options(job: TextCacheJob) -> None:
    """A usage error for options that do not go together."""
    if not (job.texts or job.vectors):
        raise typer.BadParameter("name the texts, or their vectors with --vectors", param_hint="--texts")
    if job.vectors:
        of_teacher = {
            "--texts": job.texts,
            "--model-set": job.model_overrides,
            "--precision": None if job.precision == "fp32" else job.precision,
            "--batch-size": job.batch_size,
            "--engine": job.engine,
        }
        refuse(of_teacher, "is for a model that dcdctl runs, and --vectors runs none")
    if job.teacher is None:
        raise typer.BadParameter(
            "name the model that encodes the texts, or that gave --vectors", param_hint="--teacher"
        )


def cache_texts(job: TextCacheJob, json: Json = False) -> None:
    """Encode texts with a teacher. Training a query student reads the vectors and never runs the teacher."""
    from dcdctl.core import teacher

    check_options(job)
    cache = teacher.cache_texts(job, track=bar, say=note)
    document = _document(job, cache)
    if json:
        return show_json(document)
    vectors = f"vectors of {counted(cache.num_texts, 'texts')}, {cache.space.dim} numbers each"
    show(f"{vectors} -> {cache.folder}; next: {document['next']}")


def _document(job: TextCacheJob, cache: TextCache) -> dict[str, Any]:
    # Its student reads the tokens that it reads.
    of_tokens = []
    if cache.space.has_tokens:
        of_tokens = ["--teacher", os.fspath(job.teacher or ""), "--set", "model.text=teacher"]
    recipe = "query-static" if of_tokens else "query-minilm"
    out = str(cache.folder)
    return {
        "cache": out,
        "texts": cache.num_texts,
        "languages": cache.plan["languages"],
        "teacher": cache.space.teacher_name or cache.space.teacher,
        "next": shlex.join(["dcdctl", "distill", recipe, "--cache", out, *of_tokens, "--out", "RUN"]),
    }
