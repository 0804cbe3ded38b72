"""The command that comes after another one, as it is typed: what the trainings and `dcdctl cache-teacher` print when
they are done."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from dcdctl.core.files import shown
from dcdctl.core.teacher import CacheJob
from dcdctl.core.training.inputs import InputRefs
from dcdctl.core.training.recipe import load_recipe
from dcdctl.core.training.runs import TrainingJob


def command_after_training(job: TrainingJob, refs: InputRefs) -> str:
    """The command that uses the model of a training: an evaluation of a student, or the cache of a teacher."""
    if job.kind == "distill":
        return f"dcdctl eval {shlex.quote(str(job.out))} {refs.evaluation_flags}"
    # One place: only a student is trained on a stream, which has several.
    (data,) = refs.places
    corpus = _corpus(data, refs.split, None)
    return shlex.join(
        ["dcdctl", "cache-teacher", "--teacher", str(job.out), *corpus, "--recipe", "RECIPE", "--out", "CACHE"]
    )


def command_after_cache(job: CacheJob, recipe: str, sets: Sequence[str]) -> str:
    """The training of a student on a finished cache, with the recipe that it was made for.

    It names the teacher only where the recipe reads more of it than its scores; REF stands for the model of scores from
    elsewhere.
    """
    found = load_recipe(recipe, sets)
    words = ["dcdctl", "distill", recipe, *_corpus(job.data, job.split, job.max_images), "--cache", str(job.out)]
    if found.model.start == "teacher" or found.loss.vector_terms:
        teacher, settings = (job.teacher or "REF", job.model_set)
        words += ["--teacher", teacher, *_repeated("--model-set", settings)]
    return shlex.join([*words, *_repeated("--set", sets), "--out", "RUN"])


def command_after_plan(job: CacheJob, recipe: str, sets: Sequence[str]) -> str:
    """The command that takes the scores of a work list."""
    words = [
        "dcdctl",
        "cache-teacher",
        *_corpus(job.data, job.split, job.max_images),
        "--recipe",
        recipe,
        *_repeated("--set", sets),
    ]
    words += [] if job.extend is None else ["--extend", str(job.extend)]
    return shlex.join([*words, "--scores", "SCORES", "--teacher-name", "NAME", "--out", str(job.out)])


def _corpus(data: str | Path, split: str, max_images: int | None) -> list[str]:
    # The defaults of the commands are left out.
    words = ["--data", shown(data), *([] if split == "train" else ["--split", split])]
    return words if max_images is None else [*words, "--max-images", str(max_images)]


def _repeated(option: str, values: Sequence[str]) -> list[str]:
    return [word for value in values for word in (option, value)]
