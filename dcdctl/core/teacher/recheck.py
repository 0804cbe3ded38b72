"""Some scores of a finished cache, or some vectors of a text cache, computed again."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dcdctl.core import models
from dcdctl.core.arguments import path
from dcdctl.core.data import Corpus
from dcdctl.core.errors import ConfigError, StaleError
from dcdctl.core.progress import Track, silent
from dcdctl.core.teacher.cache import read_cache
from dcdctl.core.teacher.cache_format import CACHE, TEXTS
from dcdctl.core.teacher.job import Recheck
from dcdctl.core.teacher.make import verify_scores
from dcdctl.core.teacher.text_cache import load_teacher, read_text_cache, verify_texts


@dataclass(frozen=True, kw_only=True)
class Rechecked:
    """What was computed again."""

    what: str
    """pairs or texts"""
    count: int
    largest_difference: float


def check_recheck(cache: Path, job: Recheck) -> None:
    """ModelError if the teacher's reference names nothing, and ConfigError for scores without their corpus, before
    anything is read."""
    models.check_ref(_teacher_of(job), models.parse_overrides(job.model_overrides))
    if job.data is None and (cache / CACHE.seal_file).exists():
        raise ConfigError(f"the scores of {cache} are of images with captions", hint="name their corpus: --data DIR")


def recheck(cache: Path, job: Recheck, *, track: Track = silent) -> Rechecked:
    """Compute some scores or vectors of a cache again.

    StaleError if the difference is larger than rounding explains, or if the cache belongs to another corpus or teacher;
    see also `check_recheck`.
    """
    check_recheck(cache, job)
    assert job.scores is not None, "a command that computes nothing again does not ask"
    is_of_texts = (cache / TEXTS.seal_file).exists()
    largest = (_recheck_texts if is_of_texts else _recheck_scores)(cache, job, job.scores, track)
    return Rechecked(what="texts" if is_of_texts else "pairs", count=job.scores, largest_difference=largest)


def _recheck_texts(folder: Path, job: Recheck, count: int, track: Track) -> float:
    # Vectors from elsewhere have no precision, and are refused as those of another teacher.
    compute = job.compute(read_text_cache(folder).plan["precision"] or "float32")
    teacher = load_teacher(_teacher_of(job), job.model_overrides, compute, track)
    return verify_texts(folder, teacher, count, compute=compute, track=track)


def _recheck_scores(folder: Path, job: Recheck, count: int, track: Track) -> float:
    cache = read_cache(folder)
    if cache.teacher_name is not None:
        raise StaleError(
            f"the scores of {folder} are those of {cache.teacher_name}, which dcdctl cannot compute again",
            hint="score some pairs again elsewhere: --scores compares them with the finished cache",
        )
    assert job.data is not None, "a cache that can be read has the file that `check_recheck` looks for"
    corpus = Corpus.open(path(job.data), cache.plan["split"], cache.plan["images"])
    read_cache(folder, corpus=corpus)
    teacher = models.load_scorer(_teacher_of(job), models.parse_overrides(job.model_overrides), track)
    compute = job.compute(cache.plan["precision"])
    return verify_scores(folder, corpus, teacher, count, compute=compute, track=track)


def _teacher_of(job: Recheck) -> str:
    assert job.teacher is not None, "the command line refuses --scores without --teacher"
    return os.fspath(job.teacher)
