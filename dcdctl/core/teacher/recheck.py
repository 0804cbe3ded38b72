"""Some scores of a finished cache, or some vectors of a text cache, computed again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from dcdctl.core import models
from dcdctl.core.arguments import Settings
from dcdctl.core.data import Corpus
from dcdctl.core.engines import ON_CPU, Compute
from dcdctl.core.errors import ConfigError, StaleError
from dcdctl.core.progress import Track, silent
from dcdctl.core.teacher.cache import read_cache
from dcdctl.core.teacher.cache_format import CACHE, TEXTS
from dcdctl.core.teacher.job import verify_scores
from dcdctl.core.teacher.text_cache import TextCacheJob, read_text_cache, verify_texts


@dataclass(frozen=True, kw_only=True)
class Recheck:
    """Which cache to check, and what computed it. Precision, split and number of images are those of the cache."""

    cache: Path
    count: int
    """Scores, or texts."""
    teacher: str
    data: Path | None = None
    """The corpus of the scores; texts are in their cache."""
    model_set: Settings | None = None
    compute: Compute = ON_CPU

    def check(self) -> None:
        """ModelError if the teacher's reference names nothing, and ConfigError for scores without their corpus, before
        anything is read."""
        models.check_ref(self.teacher, models.parse_overrides(self.model_set))
        if self.data is None and (self.cache / CACHE.seal_file).exists():
            raise ConfigError(
                f"the scores of {self.cache} are of images with captions", hint="name their corpus: --data DIR"
            )


@dataclass(frozen=True, kw_only=True)
class Rechecked:
    """What was computed again."""

    what: str
    """pairs or texts"""
    count: int
    largest_difference: float


def recheck(job: Recheck, *, track: Track = silent) -> Rechecked:
    """Compute some scores or vectors of a cache again.

    StaleError if the difference is larger than rounding explains, or if the cache belongs to another corpus or teacher;
    see also `Recheck.check`.
    """
    job.check()
    if (job.cache / TEXTS.seal_file).exists():
        return Rechecked(what="texts", count=job.count, largest_difference=_recheck_texts(job, track))
    return Rechecked(what="pairs", count=job.count, largest_difference=_recheck_scores(job, track))


def _recheck_texts(job: Recheck, track: Track) -> float:
    # Vectors from elsewhere have no precision, and are refused as those of another teacher.
    precision = read_text_cache(job.cache).plan["precision"] or job.compute.precision
    compute = replace(job.compute, precision=precision)
    texts = TextCacheJob(out=job.cache, teacher=job.teacher, model_set=job.model_set, compute=compute)
    return verify_texts(texts, job.count, track=track)


def _recheck_scores(job: Recheck, track: Track) -> float:
    cache = read_cache(job.cache)
    if cache.teacher_name is not None:
        raise StaleError(
            f"the scores of {job.cache} are those of {cache.teacher_name}, which dcdctl cannot compute again",
            hint="score some pairs again elsewhere: --scores compares them with the finished cache",
        )
    assert job.data is not None, "a cache that can be read has the file that `check` looks for"
    corpus = Corpus.open(job.data, cache.plan["split"], cache.plan["images"])
    read_cache(job.cache, corpus=corpus)
    teacher = models.load_scorer(job.teacher, models.parse_overrides(job.model_set), track)
    compute = replace(job.compute, precision=cache.plan["precision"])
    return verify_scores(job.cache, corpus, teacher, job.count, compute=compute, track=track)
