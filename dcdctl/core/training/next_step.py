"""The command that comes after another one, as it is typed: what the trainings and `dcdctl cache-teacher` print when
they are done."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from dcdctl.core.teacher import CacheJob
from dcdctl.core.toml import assignments
from dcdctl.core.training.inputs import Flag, InputRefs, corpus_flags, flags
from dcdctl.core.training.recipe import load_recipe
from dcdctl.core.training.runs import TrainingJob


def command_after_training(job: TrainingJob, refs: InputRefs) -> str:
    """The command that uses the model of a training: an evaluation of a student, or the cache of a teacher. Two, joined
    as a shell takes them, where the student of a pool is compared with a teacher that has to score the split first."""
    if job.kind == "distill":
        run, cache = str(job.out), f"{job.out}-scores"
        if load_recipe(job.recipe, job.sets).model.learns_teacher_space:
            teacher = next(iter(refs.teachers), "TEACHER")
            return refs.evaluation_of(teacher, "--query-model", run, cache=cache)
        if refs.has_images_alone:
            return shlex.join(["dcdctl", "index", run, "--images", *refs.places, "--out", "INDEX"])
        return refs.evaluation_of(run, cache=cache)
    words = ["dcdctl", "cache-teacher", "--teacher", str(job.out), *flags(*corpus_flags(refs.places, refs.split))]
    return shlex.join([*words, "--recipe", "RECIPE", "--out", "CACHE"])


def command_after_cache(job: CacheJob, recipe: str, sets: Sequence[str]) -> str:
    """The training of a student on a finished cache, with the recipe that it was made for.

    It names the teacher only where the recipe reads more of it than its scores. If another program computed the scores,
    the reader of the command puts their model in place of REF.
    """
    loaded = load_recipe(recipe, sets)
    named: list[Flag] = corpus_flags([job.data], job.split)
    named.append(("--max-images", job.max_images))
    named.append(("--cache", job.out))
    if loaded.model.starts_from_teacher or loaded.loss.vector_terms:
        named.append(("--teacher", job.teacher or "REF"))
        named += [("--model-set", text) for text in assignments(job.model_set)]
    named += [("--set", text) for text in sets]
    named.append(("--out", "RUN"))
    return shlex.join(["dcdctl", "distill", recipe, *flags(*named)])
