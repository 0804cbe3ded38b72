"""`dcdctl cache-texts`: the vectors of texts by a teacher, once, for a query student."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcdctl.cli.options import Json, refuse
from dcdctl.cli.views.terminal import bar, note, show, show_json
from dcdctl.core.arguments import Ref, optional_path, path, reads
from dcdctl.core.engines import Embeddings
from dcdctl.core.options import TEACHER_HELP, ModelSet, Out, Split
from dcdctl.core.progress import counted

if TYPE_CHECKING:
    from dcdctl.core.progress import Say
    from dcdctl.core.teacher import TextCache, TextCacheJob


@dataclass(frozen=True, kw_only=True)
class CacheTexts(Embeddings):
    """Texts, and the teacher that encodes them; or texts with their vectors."""

    teacher: Annotated[
        Ref | None,
        reads(
            "--teacher",
            f"Dual or late-interaction model, or with --vectors the name of what gave them. {TEACHER_HELP}",
            "REF",
            "model",
        ),
    ] = None
    texts: Annotated[
        list[str] | None,
        reads(
            "--texts",
            ".txt, .csv, .tsv, .jsonl or .parquet with a column text, or the folder of a corpus; repeatable.",
            "PLACE",
        ),
    ] = None
    vectors: Annotated[
        list[str] | None,
        reads(
            "--vectors",
            "In place of --texts: Parquet with the columns text and vector; repeatable.",
            "FILE",
        ),
    ] = None
    out: Out
    split: Split = "train"
    model_overrides: ModelSet = None
    extend: Annotated[Ref | None, reads("--extend", "Finished cache whose vectors are reused.", "CACHE")] = None

    def check(self) -> None:
        """A usage error for options that do not go together."""
        if not (self.texts or self.vectors):
            raise typer.BadParameter("name the texts, or their vectors with --vectors", param_hint="--texts")
        if self.vectors:
            of_teacher = {
                "--texts": self.texts,
                "--model-set": self.model_overrides,
                "--precision": None if self.precision == "fp32" else self.precision,
                "--batch-size": self.batch_size,
                "--engine": self.engine,
            }
            refuse(of_teacher, "is for a model that dcdctl runs, and --vectors runs none")
        if self.teacher is None:
            raise typer.BadParameter(
                "name the model that encodes the texts, or that gave --vectors", param_hint="--teacher"
            )

    def job(self, say: Say) -> TextCacheJob:
        """What to encode, and where."""
        from dcdctl.core.teacher import TextCacheJob

        return TextCacheJob(
            out=path(self.out),
            teacher=os.fspath(self.teacher or ""),
            texts=self.texts or (),
            vectors=self.vectors or (),
            split=self.split,
            model_set=self.model_overrides,
            extend=optional_path(self.extend),
            compute=self.compute(say),
        )


def cache_texts(arguments: CacheTexts, json: Json = False) -> None:
    """Encode texts with a teacher. Training a query student reads the vectors and never runs the teacher."""
    from dcdctl.core import teacher

    arguments.check()
    job = arguments.job(note)
    cache = teacher.cache_texts(job, track=bar)
    document = _document(job, cache)
    if json:
        return show_json(document)
    vectors = f"vectors of {counted(cache.num_texts, 'texts')}, {cache.space.dim} numbers each"
    show(f"{vectors} -> {job.out}; next: {document['next']}")


def _document(job: TextCacheJob, cache: TextCache) -> dict[str, Any]:
    # Its student reads the tokens that it reads.
    of_tokens = ["--teacher", job.teacher, "--set", "model.text=teacher"] if cache.space.has_tokens else []
    recipe = "query-static" if of_tokens else "query-minilm"
    return {
        "cache": str(job.out),
        "texts": cache.num_texts,
        "languages": cache.plan["languages"],
        "teacher": cache.space.teacher_name or cache.space.teacher,
        "next": shlex.join(["dcdctl", "distill", recipe, "--cache", str(job.out), *of_tokens, "--out", "RUN"]),
    }
